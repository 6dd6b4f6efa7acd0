"""The harness on every interpreter that is here: what stages are given and what becomes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from polypod.workers.worker import (
    Failed,
    Finished,
    Heartbeat,
    Loaded,
    LoadFailed,
    Progress,
    Revoked,
    Started,
)

pytestmark = pytest.mark.anyio


async def test_a_stage_is_given_inputs_outputs_and_params(
    start: Any, python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLYPOD_API_KEYS", "secret")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    (tmp_path / "image.txt").write_text("a picture")
    model = await start(python=python, env={"CUDA_VISIBLE_DEVICES": "3"}, device="cuda:0")
    image = str(tmp_path / "image.txt")
    model.run("a", "describe", inputs={"image": image}, depth=0.5, resolution=64)
    finished = await model.until(Finished, "a")
    seen = json.loads((tmp_path / "out" / "a" / "described.json").read_text())
    assert seen["state"]["worker"] == "gpu"
    assert seen["state"]["settings"] == {"device": "cuda:0"}
    assert seen["inputs"] == {"image": "a picture"}
    assert seen["params"] == {"depth": 0.5, "resolution": 64}
    assert seen["module"] == "polypod_worker"
    assert seen["stdin"] == "" and seen["session"]
    assert seen["environment"]["CUDA_VISIBLE_DEVICES"] == "3"
    assert seen["environment"]["HF_HUB_OFFLINE"] == "1"
    assert not [name for name in seen["environment"] if name.startswith(("POLYPOD_", "PYTHONPA"))]
    assert not [folder for folder in seen["path"] if "polypod" in folder or "samples" in folder]
    assert 0 < finished.seconds < 30 and finished.peak_memory > 1 << 20
    assert finished.peak_gpu_memory == 0


async def test_a_file_beside_is_imported_by_the_models_name_alone(
    start: Any, python: str, tmp_path: Path
) -> None:
    model = await start(python=python)
    model.run("a", "import_beside")
    await model.until(Finished, "a")
    assert (tmp_path / "out/a/module.txt").read_text() == "polypod_worker.bars"


async def test_state_lives_on_and_tasks_follow_in_order(start: Any, python: str) -> None:
    model = await start(python=python)
    for number in range(5):
        model.run(str(number), "nothing")
    await model.until(Finished, "4")
    ends = [event.task for event in model.all((Started, Finished))]
    assert ends == ["0", "0", "1", "1", "2", "2", "3", "3", "4", "4"]
    times = [event.at for event in model.all((Started, Finished))]
    assert times == sorted(times)
    assert model.worker.loaded and model.worker.memory > 1 << 20
    assert model.worker.load_seconds == model.all(Loaded)[0].seconds > 0


async def test_undeclared_parameters_are_not_there(start: Any, python: str) -> None:
    model = await start(python=python)
    model.run("a", "ask_undeclared", depth=0.5)
    failed = await model.until(Failed)
    assert failed.error.code == "upstream_failure"
    assert "declares no parameter 'missing' (it has: depth)" in failed.error.message


async def test_errors_are_told_apart(start: Any, python: str) -> None:
    model = await start(python=python)
    for stage in ("bad_input", "upstream_failure", "exit_0", "interrupt", "unprintable_error"):
        model.run(stage, stage)
    model.run("last", "nothing")
    await model.until(Finished, "last")
    errors = {event.task: event.error for event in model.all(Failed)}
    assert errors["bad_input"].code == "bad_input"
    assert errors["bad_input"].message == "The silhouette is empty."
    assert errors["bad_input"].hint == "Use a picture with one clear object."
    others = {name: error for name, error in errors.items() if name != "bad_input"}
    assert {error.code for error in others.values()} == {"upstream_failure"}
    assert others["upstream_failure"].message.startswith("FileNotFoundError: [Errno 2] No such")
    assert "/models" not in others["upstream_failure"].message
    assert others["exit_0"].message == "the model's code called exit(0)"
    assert others["interrupt"].message == "KeyboardInterrupt"
    assert others["unprintable_error"].message == "Odd"
    log = "\n".join(model.lines("upstream_failure"))
    assert "Traceback" in log and "/opt/secret place/../models/shape.ckpt" in log
    assert "harness.py" not in log


async def test_progress_never_falls_and_stays_in_range(start: Any, python: str) -> None:
    model = await start(python=python)
    model.run("a", "progress", steps=[0.1, 0.5, 0.3, float("nan"), 7, 0.2])
    await model.until(Finished)
    fractions = model.fractions("a")
    assert fractions == sorted(fractions) and fractions[-1] == 1.0
    assert model.messages("a")[-1] == "step 0.2"


async def test_progress_is_thinned_out_and_its_last_is_never_lost(start: Any, python: str) -> None:
    model = await start(python=python)
    model.run("a", "many_steps", seconds=0.4)
    finished = await model.until(Finished)
    progress = model.all(Progress)
    assert len(progress) <= finished.seconds * 24 + 2
    assert (progress[-1].fraction, progress[-1].message) == (0.9, "last")


async def test_progress_that_was_held_back_comes_although_nothing_follows(
    start: Any, python: str, tmp_path: Path
) -> None:
    model = await start(python=python)
    model.run("a", "progress_then_wait", steps=[0.1, 0.2], open=str(tmp_path / "open"))
    await model.wait(lambda: 0.2 in model.fractions("a"))
    assert not model.all(Finished)
    (tmp_path / "open").touch()
    await model.until(Finished)


async def test_what_is_printed_becomes_the_log(start: Any, python: str) -> None:
    model = await start(python=python)
    model.run("a", "say")
    model.run("b", "nothing")
    await model.until(Finished, "b")
    lines = model.lines("a")
    assert model.lines()[0] == "loading gpu"
    said = {"plain", "one", "two", "three", "red", "from native code", "no line break"}
    assert said <= set(lines)
    assert "bytes \ufffd\ufffd end" in lines
    long = next(line for line in lines if line.startswith("long"))
    assert len(long) == 2001 and long.endswith("…")


async def test_lines_belong_to_the_task_that_printed_them(start: Any, python: str) -> None:
    model = await start(python=python)
    names = [str(number) for number in range(30)]
    for name in names:
        model.run(name, "say_stage")
    await model.until(Finished, names[-1])
    for name in names:
        assert model.lines(name) == [f"this is {name}"]


async def test_a_failed_task_takes_the_rest_of_its_chain_with_it(
    start: Any, python: str, tmp_path: Path
) -> None:
    model = await start(python=python)
    model.run("1", "fail_when_open", "job", open=str(tmp_path / "open"))
    model.run("2", "nothing", "job")
    model.run("3", "nothing", "other")
    model.run("4", "nothing", "job")
    (tmp_path / "open").touch()
    await model.until(Finished, "3")
    await model.until(Revoked, "4")  # after "3" where it came to the worker late
    assert [event.task for event in model.all(Revoked)] == ["2", "4"]
    assert [event.task for event in model.all(Started)] == ["1", "3"]


async def test_a_load_that_fails_ends_the_process(start: Any, python: str) -> None:
    model = await start(python=python, load="upstream_failure")
    failed = await model.until(LoadFailed)
    assert failed.error.code == "load_failed"
    assert failed.error.message.startswith("FileNotFoundError")
    assert model.worker.load_seconds is None


async def test_spawned_processes_find_the_worker_module(start: Any, python: str) -> None:
    model = await start(python=python)
    model.run("a", "pool_of_spawned")
    event = await model.until((Finished, Failed))
    assert isinstance(event, Finished), model.lines("a")


async def test_a_forked_process_leaves_the_channel_alone(start: Any, python: str) -> None:
    model = await start(python=python)
    model.run("a", "forked_child")
    event = await model.until((Finished, Failed))
    assert isinstance(event, Finished), model.lines("a")
    assert set(model.fractions("a")) == {0.2}


async def test_peak_memory_is_that_of_the_task(start: Any) -> None:
    size = 200 << 20
    model = await start()
    model.run("large", "use_memory", bytes=size)
    model.run("small", "use_memory", bytes=1 << 20)
    await model.until(Finished, "small")
    large, small = model.all(Finished)
    assert large.peak_memory > size
    assert small.peak_memory < size


TORCH = """
class cuda:
    now = peak = 0
    is_initialized = classmethod(lambda cls: cls.peak > 0)
    memory_reserved = classmethod(lambda cls: cls.now)
    max_memory_allocated = classmethod(lambda cls: cls.peak)

    @classmethod
    def reset_peak_memory_stats(cls):
        cls.peak = cls.now

    @classmethod
    def use(cls, size):
        cls.now, cls.peak = 5, max(cls.peak, size)
"""


async def test_what_a_stage_leaves_in_its_scratch_folder_goes_with_it(
    start: Any, tmp_path: Path
) -> None:
    model = await start()
    model.run("t1", "leave_files")
    await model.until(Finished, "t1")
    outputs = tmp_path / "out" / "t1"
    assert [path.name for path in outputs.iterdir()] == ["result"]
    assert (outputs / "result").read_text() == str(outputs / "scratch")
    model.run("t2", "describe")
    await model.until(Finished, "t2")


async def test_calls_are_progress(start: Any) -> None:
    model = await start()
    model.run("t1", "calls")
    await model.until(Finished, "t1")
    fractions = model.fractions("t1")
    assert fractions[-1] == 0.6 and sorted(fractions) == fractions
    assert set(model.messages("t1")) == {"Enlarging"}


async def test_gpu_memory_is_asked_of_the_torch_that_the_model_uses(
    start: Any, tmp_path: Path
) -> None:
    (tmp_path / "torch.py").write_text(TORCH)
    model = await start(env={"PYTHONPATH": str(tmp_path)})
    model.run("before", "describe")
    for task, size in (("first", 300), ("second", 700), ("third", 100)):
        model.run(task, "use_gpu", bytes=size)
    await model.until(Finished, "third")
    peaks = {event.task: event.peak_gpu_memory for event in model.all(Finished)}
    assert peaks == {"before": 0, "first": 300, "second": 700, "third": 100}
    seen = json.loads((tmp_path / "out" / "before" / "described.json").read_text())
    assert "torch" not in seen["modules"]
    model.events.clear()
    assert (await model.until(Heartbeat)).gpu_memory == 5
