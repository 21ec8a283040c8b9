"""What pyproject.toml and the package say of themselves agrees, and has what ComfyUI's registry asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import qarvd

tomllib = pytest.importorskip("tomllib", reason="Python reads TOML from 3.11 on")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def declared() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_package_and_its_metadata_have_one_version(declared: dict[str, Any]) -> None:
    assert declared["project"]["version"] == qarvd.__version__


def test_the_registry_is_told_who_the_pack_is_and_where_it_runs(declared: dict[str, Any]) -> None:
    comfy, classifiers = declared["tool"]["comfy"], declared["project"]["classifiers"]
    assert comfy["PublisherId"] and comfy["DisplayName"] and "ComfyUI" not in comfy["DisplayName"]
    assert comfy["requires-comfyui"] == ">=0.3.75"  # the version that tests/harness sets up
    assert len(set(classifiers)) == len(classifiers)
    for kind in ("Operating System :: ", "Environment :: GPU :: "):  # without one, the registry takes all for supported
        assert any(name.startswith(kind) for name in classifiers)


def test_the_icon_is_a_square_picture_as_the_registry_shows_it() -> None:
    icon = ElementTree.parse(ROOT / "docs" / "icon.svg").getroot()
    assert icon.tag == "{http://www.w3.org/2000/svg}svg"
    assert icon.get("width") == icon.get("height") and 0 < int(icon.get("width", "0")) <= 400
