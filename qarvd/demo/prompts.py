"""The demo's language: "a 7 moving left fast from the top right"; every word has a fixed embedding."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import product
from random import Random

from ..errors import PromptError

DIGITS = tuple("0123456789")
DIRECTIONS = {
    "right": (1, 0),
    "down right": (1, 1),
    "down": (0, 1),
    "down left": (-1, 1),
    "left": (-1, 0),
    "up left": (-1, -1),
    "up": (0, -1),
    "up right": (1, -1),
}
"""Unit steps (x, y) on the screen, y downwards."""
SPEEDS = {"slow": 2, "fast": 4}
"""Pixels per frame, on each axis that moves."""
STARTS = {
    "top left": (2, 2),
    "top": (8, 2),
    "top right": (14, 2),
    "left": (2, 8),
    "middle": (8, 8),
    "right": (14, 8),
    "bottom left": (2, 14),
    "bottom": (8, 14),
    "bottom right": (14, 14),
}
"""Top-left corner (x, y) of the digit's 16x16 box in the first frame, in pixels."""

VOCABULARY = (*DIGITS, *(f"moving {d}" for d in DIRECTIONS), *SPEEDS, *(f"from the {s}" for s in STARTS))
"""Every word that has an embedding, in the order of the embedding table."""

_SENTENCE = re.compile(
    r"(?:a |an )?(?P<digit>[0-9]) moving (?P<direction>{})(?: (?P<speed>{}))?(?: from the (?P<start>{}))?".format(
        *("|".join(sorted(words, key=len, reverse=True)) for words in (DIRECTIONS, SPEEDS, STARTS))
    )
)


@dataclass(frozen=True)
class Prompt:
    """What a demo clip shows."""

    digit: int
    direction: str
    speed: str = "slow"
    start: str = "middle"

    def __str__(self) -> str:
        return f"a {self.digit} moving {self.direction} {self.speed} from the {self.start}"

    @property
    def words(self) -> list[int]:
        """Rows of the embedding table."""
        words = (str(self.digit), f"moving {self.direction}", self.speed, f"from the {self.start}")
        return [VOCABULARY.index(word) for word in words]


def parse(text: str) -> Prompt:
    """Read a prompt. Raises PromptError, saying what the demo knows, for anything else."""
    match = _SENTENCE.fullmatch(" ".join(text.lower().split()).rstrip("."))
    if not match:
        raise PromptError(
            f"The demo model does not understand {text!r}. It knows: a DIGIT moving DIRECTION [SPEED] "
            f"[from the PLACE], such as 'a 7 moving left fast'; digits 0 to 9; directions {', '.join(DIRECTIONS)}; "
            f"speeds {', '.join(SPEEDS)}; places {', '.join(STARTS)}."
        )
    return Prompt(
        int(match["digit"]), match["direction"], match["speed"] or Prompt.speed, match["start"] or Prompt.start
    )


def split_prompts() -> tuple[list[Prompt], list[Prompt]]:
    """All 1,440 prompts in a fixed shuffled order: (used in training, held out from it)."""
    prompts = [Prompt(int(d), *rest) for d, *rest in product(DIGITS, DIRECTIONS, SPEEDS, STARTS)]
    Random(0).shuffle(prompts)
    return prompts[144:], prompts[:144]
