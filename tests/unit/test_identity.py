"""A model is known by its tensors in bfloat16, hashed once and one at a time."""

from __future__ import annotations

from typing import Any
from weakref import ref

import pytest
import torch
from tiny.model import CONFIG, tiny_model
from torch import Tensor

from qarvd.checkpoint.model import checksum
from qarvd.jobs.calibrate import CalibrationPlan, calibrate
from qarvd.jobs.quantize import quantize
from qarvd.recipe import RECIPES

RECIPE = RECIPES["w4a8"]


def test_a_model_is_told_by_its_tensors_in_bfloat16_which_are_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, hashed = tiny_model(), []
    rounded = {key: tensor.bfloat16() for key, tensor in model.tree.state_dict().items()}
    expected = checksum(rounded)
    monkeypatch.setattr("qarvd.checkpoint.model.checksum", lambda *given: hashed.append(given) or checksum(*given))
    quantize(model, RECIPE, calibrate(model, torch.zeros(4, 3, CONFIG.text_dim), CalibrationPlan((4, 6), 5, RECIPE)))
    assert model.identity == expected and len(hashed) == 1


def test_no_copy_of_all_tensors_is_made_to_hash_them() -> None:
    class Lent(dict[str, Tensor]):
        """Tensors of which one is converted at a time; the one before may still be there."""

        def __getitem__(self, key: str) -> Tensor:
            assert sum(made() is not None for made in copies) <= 1
            return super().__getitem__(key).as_subclass(Watched)

    class Watched(Tensor):
        def to(self, *to: Any) -> Tensor:  # type: ignore[override]
            copy = self.as_subclass(Tensor).to(*to)
            copies.append(ref(copy))
            return copy

    copies: list[ref[Tensor]] = []
    tensors = {name: torch.rand(9) for name in "abc"}
    expected = checksum({name: tensor.bfloat16() for name, tensor in tensors.items()})
    assert checksum(Lent(tensors), torch.bfloat16) == expected and len(copies) == 3
