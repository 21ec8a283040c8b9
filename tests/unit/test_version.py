"""One version everywhere."""

from __future__ import annotations

import re
from pathlib import Path

import qarvd

ROOT = Path(__file__).parents[2]


def test_the_package_and_its_metadata_have_one_version() -> None:
    declared = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert declared and declared[1] == qarvd.__version__
