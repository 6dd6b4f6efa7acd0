"""The fleet file: what it says, and how mistakes in it are told."""

from __future__ import annotations

import pytest

from polypod.errors import BadInput
from polypod.router.endpoint import Known
from polypod.router.fleet import FLEET, read_fleet
from polypod.router.up import pod_specs


def fleet_of(tmp_path, text):
    path = tmp_path / "fleet.yaml"
    path.write_text(text)
    return read_fleet(path)


def test_the_fleet_that_is_shipped_is_one_inflate_here():
    specs = pod_specs(read_fleet(FLEET))
    assert [(spec.id, spec.model) for spec in specs] == [("inflate-1", "inflate")]


def test_what_a_fleet_can_say(tmp_path, monkeypatch):
    monkeypatch.setenv("THEIR_KEY", "secret")
    fleet = fleet_of(
        tmp_path,
        """
models:
  two: {service: inflate, min: 2, idle_s: 60, env: {POLYPOD_SLOT_GPU: "cuda:1"}}
  far: {provider: fixed, url: "https://a.example", key_from: THEIR_KEY}
  wide: {provider: fixed, url: ["https://b.example", "https://c.example"]}
""",
    )
    specs = pod_specs(fleet)
    assert [(s.id, s.model) for s in specs] == [("two-1", "inflate"), ("two-2", "inflate")]
    assert specs[0].env == {"MODEL_IDLE_TIMEOUT": "60.0", "POLYPOD_SLOT_GPU": "cuda:1"}
    assert fleet.models["two"].max == 2
    assert fleet.fixed() == [
        Known("far", "https://a.example", "fixed", "secret"),
        Known("wide-1", "https://b.example"),
        Known("wide-2", "https://c.example"),
    ]


MISTAKES = {
    "not YAML": ("models: [", "line 1: this is not YAML"),
    "an unknown field": (
        "models:\n  inflate:\n    provider: local\n    minn: 1\n",
        "line 4: `models.inflate.minn`: there is no such field. Did you mean 'min'?",
    ),
    "an unknown field above": ("model: {}\n", "line 1: `model`: there is no such field"),
    "a number out of range": ("models:\n  a:\n    min: -1\n", "line 3: `models.a.min`: "),
    "a text for a number": ("models:\n  a:\n    min: many\n", "line 3: `models.a.min`: "),
    "an unknown provider": ("models:\n  a:\n    provider: moon\n", "line 3: `models.a.provider`"),
    "no url": (
        "models:\n  a:\n    provider: fixed\n",
        "line 2: `models.a`: a fixed endpoint",
    ),
    "no such scheme": (
        "models:\n  a:\n    provider: fixed\n    url: ftp://x\n",
        "line 2: `models.a`: a url begins with http",
    ),
    "no server": (
        "models:\n  a:\n    provider: fixed\n    url: 'http://['\n",
        "line 2: `models.a`: the url is not the plain address of a service",
    ),
    "a url of what runs here": (
        "models:\n  a:\n    url: 'http://x'\n",
        "line 3: `models.a.url`: this is for endpoints that run elsewhere: write provider: fixed",
    ),
    "a key of what runs here": (
        "models:\n  a:\n    key_from: A_KEY\n",
        "line 3: `models.a.key_from`: this is for endpoints that run elsewhere",
    ),
    "max below min": ("models:\n  a: {min: 3, max: 1}\n", "max (1) is less than min (3)"),
    "a list of models": ("models: [inflate]\n", "line 1: `models`: "),
    "a text": ("hello", "line 1: "),
    "a model twice": (
        "models:\n  a: {service: inflate}\n  a: {provider: fixed, url: 'http://x'}\n",
        "line 3: `a` is there already",
    ),
    "an endpoint twice": (
        "models:\n  a: {}\n  a-1: {provider: fixed, url: 'http://x'}\n",
        "Two endpoints of the fleet would be called a-1",
    ),
    "no variable": ("models:\n  a: {env: {A=B: c}}\n", "'A=B' is no environment variable"),
    "no value": ('models:\n  a: {env: {A: "\\0"}}\n', "'A' is no environment variable, or"),
    "no date": ("models:\n  a: {idle_s: 2026-13-45}\n", "this is not YAML: month must be in"),
    "no end": ("models:\n  a: {idle_s: .inf}\n", "line 2: `models.a.idle_s`: "),
    "no name": ("models:\n  A B: {}\n", "'A B' in the fleet is not a model's name"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_with_its_line(tmp_path, mistake):
    text, told = MISTAKES[mistake]
    with pytest.raises(BadInput) as refused:
        fleet_of(tmp_path, text)
    assert told in refused.value.message


@pytest.mark.parametrize(
    "field", ["service: inflate", "min: 1", "max: 2", "idle_s: 60", "env: {POLYPOD_LOG: json}"]
)
def test_what_says_nothing_of_a_fixed_endpoint_is_refused(tmp_path, field):
    with pytest.raises(BadInput) as refused:
        fleet_of(
            tmp_path,
            f"models:\n  a:\n    {field}\n    provider: fixed\n    url: 'http://x'\n",
        )
    name = field.partition(":")[0]
    assert f"line 3: `models.a.{name}`: this is for endpoints that" in refused.value.message
    assert "or write provider: local" in refused.value.message


def test_no_file(tmp_path):
    with pytest.raises(BadInput, match="cannot be read: No such file"):
        read_fleet(tmp_path / "none.yaml")


def test_a_key_that_is_not_set(tmp_path, monkeypatch):
    monkeypatch.delenv("NO_KEY", raising=False)
    fleet = fleet_of(
        tmp_path, "models:\n  a: {provider: fixed, url: 'http://a', key_from: NO_KEY}\n"
    )
    with pytest.raises(BadInput, match="NO_KEY, which is not set"):
        fleet.fixed()


def test_a_key_that_cannot_be_one(tmp_path, monkeypatch):
    monkeypatch.setenv("A_KEY", "schlüssel")
    fleet = fleet_of(
        tmp_path, "models:\n  a: {provider: fixed, url: 'http://a', key_from: A_KEY}\n"
    )
    with pytest.raises(BadInput, match=r"\$A_KEY, holds characters that no key has"):
        fleet.fixed()
