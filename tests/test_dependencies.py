"""Every direct dependency is explained, every locked one may be depended on."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

PERMISSIVE = re.compile(
    r"MIT|BSD|Apache|ISC|PSF|Python Software Foundation|Zlib|CC0|Unlicense"
    r"|Mozilla Public License|MPL"  # weak copyleft: of its own files
    r"|TOST-1\.0",  # Apache-2.0 with other words on trademarks
    re.IGNORECASE,
)
LINKED = {"paramiko", "psycopg", "psycopg-binary"}
"""Under the LGPL: imported as they come, which it allows any program."""
BY_HAND = {"embreex": "BSD-2-Clause"}
"""Those whose metadata holds the text, not the name."""


def names_in(path: Path) -> set[str]:
    lines = path.read_text().splitlines()
    found = (re.match(r"[a-z0-9][a-z0-9-]*", line) for line in lines)
    return {match[0] for match in found if match}


@pytest.mark.parametrize("which", ["serving", "cutout", "dev"])
def test_each_direct_dependency_is_explained(which: str) -> None:
    page = (ROOT / "docs/dependencies.md").read_text()
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| ")]
    explained = set(re.findall(r"[a-z0-9][a-z0-9-]*", " ".join(rows)))
    assert names_in(ROOT / f"requirements/{which}.in") <= explained


@pytest.mark.parametrize("which", ["serving", "cutout", "dev"])
def test_each_locked_package_is_pinned_by_hash(which: str) -> None:
    blocks = re.split(r"\n(?=\S)", (ROOT / f"requirements/{which}.lock").read_text().strip())
    for block in blocks:
        assert re.match(r"[a-z0-9][a-z0-9.\[\]-]*==\S+", block), block[:80]
        assert "--hash=sha256:" in block, block[:80]


def test_licences_allow_a_program_under_mit() -> None:
    locked = names_in(ROOT / "requirements/dev.lock") | names_in(ROOT / "requirements/cutout.lock")
    for name in sorted(locked - LINKED):
        licence = BY_HAND.get(name) or _licence(name)
        assert licence is None or PERMISSIVE.search(licence), f"{name}: {licence}"
        assert licence is None or not re.search(r"\bA?GPL", licence), f"{name}: {licence}"


def _licence(name: str) -> str | None:
    """What the package says its licence is; None where it is not for this platform."""
    try:
        told = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return None
    classifiers = [c for c in told.get_all("Classifier", []) if c.startswith("License ::")]
    return told["License-Expression"] or ", ".join(classifiers) or told["License"] or "not told"
