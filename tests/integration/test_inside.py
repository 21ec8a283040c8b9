"""What tests in ComfyUI's own Python come to is told here as it was there."""

from __future__ import annotations

from pathlib import Path

from harness import inside
from harness.install import ComfyUI

TESTS = """
import pytest

@pytest.mark.parametrize("x", [1, 2])
def test_half(x):
    assert x == 1

def test_comfy():
    import folder_paths
    from comfy.model_management import get_torch_device
    assert get_torch_device().type == "cpu"
    print("on a CPU")

@pytest.mark.skip(reason="not today")
def test_skipped():
    pass

@pytest.fixture
def broken():
    raise OSError("the fixture is broken")

def test_broken(broken):
    pass
"""


def test_each_outcome_is_told_with_its_reason(comfyui: ComfyUI, tmp_path: Path) -> None:
    (tmp_path / "test_all.py").write_text(TESTS)
    half_1, half_2, comfy, skipped, broken = inside.run([str(tmp_path / "test_all.py")], comfyui)
    assert [case.name for case in (half_1, half_2)] == ["test_half[1]", "test_half[2]"]
    assert [case.outcome for case in (half_1, half_2)] == ["passed", "failed"]
    assert "assert 2 == 1" in half_2.text
    assert comfy == inside.Case("test_comfy", "passed", "", "on a CPU")
    assert skipped == inside.Case("test_skipped", "skipped", "not today")
    assert broken.outcome == "failed"
    assert "the fixture is broken" in broken.text


def test_a_file_that_cannot_be_imported_fails_as_a_whole(comfyui: ComfyUI, tmp_path: Path) -> None:
    (tmp_path / "test_none.py").write_text("import not_there\n\ndef test_x():\n    pass\n")
    (case,) = inside.run([f"{tmp_path / 'test_none.py'}::test_x"], comfyui)
    assert (case.name, case.outcome) == ("", "failed")
    assert "not_there" in case.text
