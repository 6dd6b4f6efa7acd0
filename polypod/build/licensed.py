"""Files under licence, which whoever builds an image has to get: what is missing, and where it is.

An image that holds them is private: its label says so, and `push` heeds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from polypod.build import bake
from polypod.image import Licensed

LABEL = "polypod.licensed"
"""Of an image that holds such files: their names."""


def names(files: Sequence[Licensed]) -> str:
    """In a few words, for a label or a message."""
    first = ", ".join(file.name for file in files[:3])
    return first + (f" and {len(files) - 3} more" if len(files) > 3 else "")


def wanted(files: Sequence[Licensed]) -> str:
    """Which files, and where to get them: a paragraph for each place."""
    places = groupby(files, key=lambda file: file.where)
    return "\n".join(
        f"From {where}:\n" + "\n".join(f"  {file.name}" for file in those)
        for where, those in places
    )


def what_is_wrong(files: Sequence[Licensed], folder: Path | None) -> str:
    """What the folder lacks, or holds in another version; empty: all is well."""
    missing = [file for file in files if folder is None or not (folder / file.name).is_file()]
    if missing:
        are, place = "is" if len(missing) == 1 else "are", f" in {folder}" if folder else ""
        return (
            f"{names(missing)} {are} missing{place}: their licence does not let anyone pass them "
            "on. Get them yourself, put them into a folder by these names, and name that folder: "
            f"--licensed FOLDER.\n{wanted(missing)}"
        )
    for file in files:
        if folder and not bake.fits(folder / file.name, {"sha256": file.sha256}):
            found = bake.digest(folder / file.name)
            return (
                f"{folder / file.name} is not the file that is declared: its SHA-256 is {found}, "
                f"not {file.sha256}. Get it again from {file.where}."
            )
    return ""
