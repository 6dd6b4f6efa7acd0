"""Runs the stub's stages and notes each one that begins. Standard library only."""

import importlib.util
import os
from pathlib import Path

STUB = Path(__file__).parents[2] / "models" / "stub" / "worker.py"


def load(worker, settings):
    spec = importlib.util.spec_from_file_location("stub_worker", STUB)
    stub = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(stub)
    return stub, stub.load(worker, settings)


def run(stage, state, job):
    stub, inner = state
    note(f"{stage} {job.params.seed}\n")
    stub.run(stage, inner, job)


def note(line):
    """One write, so lines of several workers do not mix and a kill leaves none in half."""
    runs = os.open(os.environ["CHAOS_RUNS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(runs, line.encode())
    os.close(runs)
