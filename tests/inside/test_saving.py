"""Save Quantized Model: what a file may be called."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

Part = Callable[[str], ModuleType]
BAD = ["", " ", ".hidden", "../out", "a/b", "a\\b", "C:x", "a\nb", "CON", "com1.v2", "nul .x"]


@pytest.mark.parametrize("name", BAD)
def test_a_name_that_is_no_file_name_anywhere_is_refused(part: Part, tmp_path: Path, name: str) -> None:
    with pytest.raises(part("qarvd.errors").SettingError, match="is no file name"):
        part("nodes.quantizing").free_name(tmp_path, name)


def test_an_existing_file_is_never_overwritten(part: Part, tmp_path: Path) -> None:
    free_name = part("nodes.quantizing").free_name
    for expected in ("a.safetensors", "a_002.safetensors", "a_003.safetensors"):
        path = free_name(tmp_path, "a.safetensors")
        assert path == tmp_path / expected
        path.touch()
