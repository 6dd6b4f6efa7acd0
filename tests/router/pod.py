"""A pod as a process of its own: `python -m tests.router.pod PORT DATA [VERSION]`.

It is the stub model behind the same app, engine and workers as under BentoML, which takes longer
to start.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import uvicorn

from polypod.api.app import create_app
from polypod.jobs.engine import Engine
from polypod.settings import Settings
from tests.models.stub.model import MODEL


def main(port: int, data: Path, version: str) -> None:
    settings = Settings(data=data, port=port)
    engine = Engine([replace(MODEL, version=version)], settings)
    app = create_app(engine, settings, guarded=True)
    uvicorn.run(app, port=port, log_level="warning", timeout_graceful_shutdown=1)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "1")
