"""A model may be fitted for streams longer than the clips that it was calibrated on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny.model import CONFIG, tiny_model

from qarvd.calibrate.call_sensitivity import sample_calls
from qarvd.checkpoint.model import checksum, state_tensors
from qarvd.errors import SettingError
from qarvd.jobs import budget as budget_job
from qarvd.jobs import quantize as quantize_job
from qarvd.jobs.calibrate import CalibrationPlan, calibrate, setting_of
from qarvd.jobs.quantize import quantize
from qarvd.quantize.sensitivity import option_errors
from qarvd.recipe import RECIPES

RECIPE = RECIPES["w4a8"]
SIZE, FRAMES = (4, 6), 5
"""Two chunks, of three and of two frames."""


def test_chunks_weigh_as_in_a_longer_stream_where_that_is_asked_for() -> None:
    texts = torch.randn(4, 3, CONFIG.text_dim, generator=torch.Generator().manual_seed(1))
    made = calibrate(tiny_model(), texts, CalibrationPlan(SIZE, FRAMES, RECIPE))
    setting = setting_of(tiny_model(), SIZE, FRAMES)
    weights = made.weights(setting.chunk_sizes)
    with pytest.raises(SettingError, match="have 1 chunks, but the calibration clips have 2"):
        quantize(tiny_model(), replace(RECIPE, stream_chunks=1), made)
    tables, files = [], []
    for chunks in (None, 2, 20):
        found, _ = quantize(tiny_model(), replace(RECIPE, stream_chunks=chunks), made)
        table: Any = found.notes["call_weights"]
        tables.append([sum(row) / len(row) for row in table])
        files.append(checksum(state_tensors(found)))
        assert found.recipe is not None and found.recipe.stream_chunks == chunks
    assert tables[0] == pytest.approx(weights.values)
    assert tables[1] == pytest.approx(tables[0])
    long = weights.extend((3, 2, *[3] * 18)).values
    assert tables[2] == pytest.approx([2 * value / sum(long[:2]) for value in long[:2]])
    assert tables[2] != pytest.approx(tables[0]) and files[2] != files[0]


@pytest.mark.parametrize("all_calls", [False, True], ids=["drawn", "all"])
@pytest.mark.parametrize("call_weights", [False, True], ids=["alike", "weighed"])
def test_layers_are_fitted_to_the_drawn_calls_at_the_weights_that_the_file_names(
    all_calls: bool, call_weights: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = torch.randn(4, 3, CONFIG.text_dim, generator=torch.Generator().manual_seed(1))
    made = calibrate(tiny_model(), texts, CalibrationPlan(SIZE, FRAMES, RECIPE))
    fitted: list[Any] = []

    def walk(tree: Any, setting: Any, rollouts: Any, weights: Any, *rest: Any, **more: Any) -> list[Any]:
        fitted.extend((rollouts, weights))
        return []

    monkeypatch.setattr(quantize_job, "quantize_blockwise", walk)
    found, _ = quantize(tiny_model(), replace(RECIPE, call_weights=call_weights), made, all_calls=all_calls)
    table: Any = found.notes["call_weights"]
    assert all((max(row) > 1.01 * min(row)) == call_weights for row in table)
    rollouts, weights = (made.rollouts, table) if all_calls else sample_calls(made.rollouts, table)
    assert [[(c.chunk, c.step) for c in r.calls] for r in fitted[0]] == [
        [(c.chunk, c.step) for c in r.calls] for r in rollouts
    ]
    assert fitted[1] == weights
    assert (sum(len(r.calls) for r in fitted[0]) < sum(len(r.calls) for r in made.rollouts)) == (
        call_weights and not all_calls
    )


def test_bits_are_chosen_by_the_weights_that_the_file_names(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = torch.randn(4, 3, CONFIG.text_dim, generator=torch.Generator().manual_seed(1))
    made = calibrate(tiny_model(), texts, CalibrationPlan(SIZE, FRAMES, RECIPE))
    seen: list[Any] = []

    def measured(tree: Any, setting: Any, rollouts: Any, weights: Any, *rest: Any, **more: Any) -> Any:
        seen.append(weights)
        return option_errors(tree, setting, rollouts, weights, *rest, **more)

    monkeypatch.setattr(budget_job, "option_errors", measured)
    found, _ = quantize(tiny_model(), replace(RECIPE, target="6 bits"), made)
    assert seen == [found.notes["call_weights"]]
    means = [sum(row) / len(row) for row in seen[0]]
    assert means == pytest.approx(made.weights(setting_of(tiny_model(), SIZE, FRAMES).chunk_sizes).values)
    assert means[0] > 1.1 * means[1]
