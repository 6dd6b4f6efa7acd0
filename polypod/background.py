"""Tasks that run beside the caller: held while they run, logged when they fail, ended together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

log = logging.getLogger("polypod")

AGAIN_S = 5.0


class Background:
    """Belongs to the running event loop."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def run(
        self,
        work: Coroutine[Any, Any, Any],
        on_error: Callable[[Exception], Coroutine[Any, Any, Any]] | None = None,
    ) -> asyncio.Task[Any]:
        """Run `work`; what it raises goes to `on_error`, else to the log."""
        task = asyncio.get_running_loop().create_task(_guarded(work, on_error))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def stop(self) -> None:
        """Cancel what runs, and wait until it has ended.

        Cancelled again if need be: before Python 3.12 `asyncio.wait_for` swallows a cancellation
        that comes just as what it waits for is done.
        """
        while tasks := [task for task in self._tasks if not task.done()]:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=AGAIN_S)


async def _guarded(
    work: Coroutine[Any, Any, Any],
    on_error: Callable[[Exception], Coroutine[Any, Any, Any]] | None,
) -> None:
    try:
        await work
    except Exception as error:
        if on_error is None:
            log.exception("background work failed")
        else:
            await on_error(error)
