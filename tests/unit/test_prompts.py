"""The demo's language."""

import pytest
import torch

from qarvd.demo.bundle import embed
from qarvd.demo.prompts import DIRECTIONS, SPEEDS, STARTS, VOCABULARY, Prompt, parse, split_prompts
from qarvd.errors import PromptError

TRAINED, HELD_OUT = split_prompts()


def test_every_prompt_reads_back() -> None:
    prompts = TRAINED + HELD_OUT
    assert len(set(prompts)) == 1440 == 10 * len(DIRECTIONS) * len(SPEEDS) * len(STARTS)
    assert all(parse(str(p)) == p for p in prompts)


def test_held_out_prompts_are_not_trained_on_and_always_the_same() -> None:
    assert len(HELD_OUT) == 144 and not set(HELD_OUT) & set(TRAINED)
    assert split_prompts() == (TRAINED, HELD_OUT)


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("a 7 moving left fast", Prompt(7, "left", "fast")),
        ("8 moving up right", Prompt(8, "up right")),
        ("  An 8  MOVING Down Left slow from the bottom right. ", Prompt(8, "down left", "slow", "bottom right")),
        ("a 0 moving up from the right", Prompt(0, "up", "slow", "right")),
    ],
)
def test_words_may_be_left_out_and_written_freely(text: str, prompt: Prompt) -> None:
    assert parse(text) == prompt


@pytest.mark.parametrize(
    "text",
    ["", "a cat", "a 12 moving left", "a 7", "a 7 moving sideways", "a 7 moving left fast and slow", "a ٣ moving up"],
)
def test_other_prompts_are_refused_with_what_is_known(text: str) -> None:
    with pytest.raises(PromptError) as caught:
        parse(text)
    for word in (*DIRECTIONS, *SPEEDS, *STARTS, "0 to 9", repr(text)):
        assert word in str(caught.value)


def test_every_prompt_has_four_words_of_its_own() -> None:
    rows = {tuple(p.words) for p in TRAINED + HELD_OUT}
    assert len(rows) == 1440 and all(len(row) == 4 and max(row) < len(VOCABULARY) for row in rows)
    embeddings = embed(HELD_OUT)
    assert embeddings.shape[:2] == (144, 4) and embeddings.dtype == torch.float32
    assert len(embeddings.flatten(1).unique(dim=0)) == 144
