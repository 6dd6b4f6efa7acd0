"""README and docs/models.md tell of every model what its declaration says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from polypod.build.declared import ROOT, declaration

NAMES = sorted(path.parent.name for path in (ROOT / "services").glob("*/model.py"))


def row(page: Path, name: str) -> str:
    (found,) = (line for line in page.read_text().splitlines() if line.startswith(f"| [`{name}`]"))
    return found


@pytest.mark.parametrize("page", ["README.md", "docs/models.md"])
@pytest.mark.parametrize("name", NAMES)
def test_licence_memory_and_card_are_those_of_the_declaration(page: str, name: str) -> None:
    told, model = row(ROOT / page, name), declaration(name)
    (card,) = re.findall(r"\]\(([^)]*README\.md)\)", told)
    assert (ROOT / page).parent.joinpath(card).resolve() == model.folder / "README.md"
    assert ("non-commercial" in told.lower()) == (not model.licence.commercial)
    for region in model.licence.regions_excluded:
        assert region in told.replace("the UK", "UK").replace("South Korea", "KR")
    memory = {f"{gb:g} GB" for gb in model.vram_gb(model.resolve({})).values()}
    assert all(figure in told for figure in memory), memory
    assert memory or "none" in told


@pytest.mark.parametrize("name", NAMES)
def test_the_card_says_what_is_proved(name: str) -> None:
    card = (ROOT / "services" / name / "README.md").read_text()
    model = declaration(name)
    if model.image.gpu:
        proof = card[card.index("## Proof") :]
        assert all(step in proof for step in ("| contract |", "| upstream on CPU |", "| GPU |"))
        told = row(ROOT / "docs/models.md", name)
        tried = re.search(r"\| upstream on CPU \| (yes|in part)", proof)
        assert ("upstream on a CPU" in told) == bool(tried)
    for parameter in set(model.params.model_fields) - {"output_format"}:
        assert f"`{parameter}`" in card, parameter
