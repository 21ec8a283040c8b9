"""Save Quantized Model: what a file may be called, and when another one is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import folder_paths
import pytest

Part = Callable[[str], ModuleType]
BAD = ["", " ", ".hidden", "../out", "a/b", "a\\b", "C:x", "a\nb", "CON", "com1.v2", "nul .x"]


@pytest.mark.parametrize("name", BAD)
def test_a_name_that_is_no_file_name_anywhere_is_refused(part: Part, tmp_path: Path, name: str) -> None:
    with pytest.raises(part("qarvd.errors").SettingError, match="is not a file name"):
        part("nodes.quantizing").free_name(tmp_path, name)


@pytest.mark.parametrize("name", ["mine", "mine.safetensors", " mine.SAFETENSORS ", "mine.SafeTensors"])
def test_the_ending_may_be_named_in_capitals_too(part: Part, tmp_path: Path, name: str) -> None:
    assert part("nodes.quantizing").free_name(tmp_path, name) == ([], tmp_path / "mine.safetensors")


def test_an_existing_file_is_never_overwritten_and_a_model_that_is_there_already_not_written_again(
    part: Part, model_of: Callable[[int], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    saving = part("nodes.quantizing")
    folder = tmp_path / "diffusion_models"
    folder.mkdir()
    (folder / "a.safetensors").write_bytes(b"precious")

    def save(bits: int, family: str = "demo") -> tuple[str, str]:
        model = model_of(bits).clone()
        known = part("nodes.host").about(model)
        model.set_attachments(part("nodes.host").ATTACHMENT, replace(known, family=family))
        done = saving.SaveModel.execute(model, "a.safetensors", saving.QARVD)
        (path,), (said,) = done.args, done.ui["text"]
        return Path(path).name, said

    assert save(4)[0] == "a_002.safetensors"
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    name, said = save(4)
    assert name == "a_002.safetensors" and said.endswith("MB, which was there already")
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == times
    name, said = save(8)
    assert name == "a_003.safetensors" and said.endswith("MB")
    assert save(4, "causvid")[0] == "a_004.safetensors"  # it would be streamed otherwise
    assert (folder / "a.safetensors").read_bytes() == b"precious"
