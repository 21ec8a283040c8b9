"""Encode Prompt List: whose texts it reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import folder_paths
import pytest

Part = Callable[[str], ModuleType]
LINES = [f"a {digit} moving up" for digit in range(4)]


@pytest.fixture
def text_file() -> Iterator[Path]:
    folder = Path(folder_paths.get_input_directory())
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "prompts.txt"
    path.write_text("\n\n".join(LINES), encoding="utf-8-sig")
    yield path
    path.unlink()


def test_a_text_file_of_the_input_folder_is_read(part: Part, text_file: Path) -> None:
    prompts = part("nodes.prompts")
    for name in (text_file.name, str(text_file), f" {text_file.name}\n"):
        assert prompts.listed(None, prompts.WRITTEN, name) == LINES


@pytest.mark.parametrize("name", ["../secret.txt", "/etc/secret.txt", "a/../../secret.txt"])
def test_no_other_file_is(part: Part, text_file: Path, name: str) -> None:
    (text_file.parents[1] / "secret.txt").write_text("\n".join(LINES))
    prompts = part("nodes.prompts")
    with pytest.raises(part("qarvd.errors").PromptError, match=r"input folder. Put secret\.txt into"):
        prompts.listed(None, prompts.WRITTEN, name)


def test_a_text_file_that_changes_is_read_again(part: Part, text_file: Path) -> None:
    prompts = part("nodes.prompts")
    mark = prompts.EncodePrompts.fingerprint_inputs
    before = mark(source=prompts.WRITTEN, text=text_file.name)
    text_file.touch()
    assert mark(source=prompts.WRITTEN, text=text_file.name) != before
    assert mark(source=prompts.SHIPPED, text=text_file.name) == mark() == ""
