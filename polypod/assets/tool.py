"""The child process that reads, converts and draws meshes: `python -m polypod.assets.tool`.

Started by `derive`, with its request as JSON in the one argument. Answers with one line of JSON
on standard output: `{"result": ...}` or `{"error": code, "message": ..., "hint": ...}`. What
libraries print, and tracebacks, go to standard error. Limits are set before anything is imported
that could be hurt by a hostile file.
"""

# pyright: basic
from __future__ import annotations

import errno
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from polypod import child


def main() -> None:
    request = json.loads(sys.argv[1])
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    child.bind(request["parent"], request["memory"], request["file_size"])
    try:
        reply = {"result": _do(request)}
    except BaseException as error:
        traceback.print_exc()
        reply = _explained(error)
    answer.write(json.dumps(reply) + "\n")
    answer.flush()
    os._exit(0)  # nothing to tidy up that the end of the process does not; saves 50 ms


def _do(request: dict[str, Any]) -> dict[str, Any] | None:
    from polypod.assets import formats

    folder = Path(request["folder"])
    shape = formats.read(Path(request["source"]), request["format"])
    if request["task"] == "previews":
        return _previews(shape, folder, request["size"])
    if not isinstance(shape, tuple):
        from polypod.errors import BadInput

        raise BadInput(
            "This result has points and no triangles, so it cannot be converted.",
            "Download it in its own format.",
        )
    formats.write(shape, folder / request["target"], request["target_format"])
    return None


def _previews(shape: Any, folder: Path, size: int) -> dict[str, Any]:
    import cv2

    from polypod.assets.mesh import Splats, facts

    if isinstance(shape, Splats):
        from polypod.assets.splats import render_splats

        pictures = render_splats(shape, size)
    else:
        from polypod.assets.render import render

        pictures = render(shape, size)
    for index, picture in enumerate(pictures):
        png = cv2.imencode(".png", picture[..., ::-1])[1].tobytes()
        (folder / f"view_{index}.png").write_bytes(png)
    return facts(shape)


def _explained(error: BaseException) -> dict[str, str]:
    from polypod.errors import Problem

    if isinstance(error, Problem):
        return {"error": error.code(), "message": error.message, "hint": error.hint}
    if isinstance(error, MemoryError) or "bad_alloc" in str(error):
        return {"error": "out_of_memory"}
    full = os.strerror(errno.ENOSPC) in str(error)  # USD raises errors of its own
    if full or (isinstance(error, OSError) and error.errno == errno.EDQUOT):
        return {"error": "disk_full"}
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return {"error": "too_large", "message": "The file would be too large.", "hint": ""}
    return {"error": "failed"}


if __name__ == "__main__":
    main()
