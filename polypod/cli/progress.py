"""How the progress of jobs is shown: bars on a terminal, lines elsewhere, nothing for JSON."""

from __future__ import annotations

import time
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from polypod.cli.output import is_terminal, talk_console
from polypod.client.views import JobView

LINE_EVERY_S = 10.0
NAME_WIDTH = 24


class Display(Protocol):
    """Shows jobs by the name of their picture."""

    def __enter__(self) -> Display: ...
    def __exit__(self, *error: object) -> None: ...
    def say(self, name: str, what: str) -> None:
        """What happens to a picture that has no job, or to its results."""
        ...

    def show(self, name: str, job: JobView) -> None: ...
    def log(self, name: str, line: str) -> None: ...


def display(*, as_json: bool) -> Display:
    if as_json:
        return Nothing()
    return Bars() if is_terminal() else Lines()


class Nothing:
    def __enter__(self) -> Display:
        return self

    def __exit__(self, *error: object) -> None: ...
    def say(self, name: str, what: str) -> None: ...
    def show(self, name: str, job: JobView) -> None: ...
    def log(self, name: str, line: str) -> None: ...


class Lines:
    """A line whenever status or stage change, and now and then in between."""

    def __init__(self) -> None:
        self._console = talk_console()
        self._last: dict[str, tuple[str, float]] = {}

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *error: object) -> None: ...

    def say(self, name: str, what: str) -> None:
        self._console.print(escape(f"{name}: {what}"))

    def show(self, name: str, job: JobView) -> None:
        key = f"{job.status} {job.stage} {job.position}"
        last, at = self._last.get(name, ("", 0.0))
        if key != last or time.monotonic() - at > LINE_EVERY_S:
            self._last[name] = key, time.monotonic()
            eta = f", {_minutes(job.eta_seconds)} left" if job.eta_seconds else ""
            self.say(name, f"{job.progress:3.0f} %  {what_happens(job)}{eta}")

    def log(self, name: str, line: str) -> None:
        self.say(name, f"| {line}")


class Bars:
    """A bar for each picture, with what happens and the time left."""

    def __init__(self, console: Console | None = None) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:3.0f} %"),
            TimeLeft(),
            TextColumn("{task.fields[what]}", markup=False),
            console=console or Console(stderr=True, highlight=False, emoji=False, markup=False),
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def say(self, name: str, what: str) -> None:
        self._progress.update(self._task(name), what=what)

    def show(self, name: str, job: JobView) -> None:
        self._progress.update(
            self._task(name),
            completed=job.progress,
            what=what_happens(job),
            eta=job.eta_seconds,
        )

    def log(self, name: str, line: str) -> None:
        self._progress.console.print(line, style="dim")

    def _task(self, name: str) -> TaskID:
        if name not in self._tasks:
            short = name if len(name) <= NAME_WIDTH else f"{name[: NAME_WIDTH - 1]}…"
            self._tasks[name] = self._progress.add_task(short, total=100, what="", eta=None)
        return self._tasks[name]


class TimeLeft(ProgressColumn):
    """Counts down between the service's estimates, which come seldom."""

    max_refresh = 0.5

    def __init__(self) -> None:
        super().__init__()
        self._told: dict[TaskID, tuple[float, float]] = {}
        """The last estimate, and when it would be over."""

    def render(self, task: Task) -> Text:
        eta: float | None = task.fields["eta"]
        if not eta or task.finished:
            return Text("     ")
        told, until = self._told.get(task.id, (-1.0, 0.0))
        if told != eta:
            until = time.monotonic() + eta
            self._told[task.id] = eta, until
        return Text(f"{_minutes(max(until - time.monotonic(), 0)):>5}", style="cyan")


def what_happens(job: JobView) -> str:
    if job.status == "queued":
        return f"waiting, position {job.position}" if job.position else "waiting"
    if job.status == "processing":
        message = "" if job.stage and job.stage in job.message else job.message
        return " · ".join(part for part in (job.stage, message) if part) or "running"
    return job.status


def _minutes(seconds: float) -> str:
    return f"{int(seconds // 60)}:{int(seconds % 60):02d}"
