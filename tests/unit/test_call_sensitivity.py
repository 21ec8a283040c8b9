"""The effect of a model call is what a run with this call alone quantized shows; calls share a chunk's weight by it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny.model import CONFIG, tiny_model
from torch import Tensor, nn

from qarvd.calibrate.call_sensitivity import (
    CERTAIN,
    LEAST,
    call_errors,
    call_shares,
    calls_of,
    generated,
    nothing_measured,
    sample_calls,
)
from qarvd.calibrate.rollout import Call, Rollout, Setting
from qarvd.checkpoint.model import Model
from qarvd.errors import CheckpointError
from qarvd.jobs.calibrate import measure_calls
from qarvd.quantize.model import quantize_tree
from qarvd.recipe import RECIPES
from qarvd.stream.noise import from_seeds
from qarvd.stream.presets import PRESETS
from qarvd.stream.sampler import Denoiser, call
from qarvd.wan.forward import encode_text

SETTING = Setting(CONFIG, replace(PRESETS["self-forcing"], chunk_frames=2), (4, 4), 10)


@pytest.fixture(scope="module")
def quantized() -> nn.Module:
    model = tiny_model()
    quantize_tree(model.tree, model.config.num_layers, RECIPES["w4a8"].without_data())
    return model.tree


def whole_run(full: nn.Module, other: nn.Module, text: Tensor, changed: tuple[int, int] | None) -> list[Tensor]:
    """All chunks, with call `changed` (chunk, step) made by `other`; noise in the order of calibration."""
    schedule, draw, cache = SETTING.preset.schedule, from_seeds([7]), SETTING.cache()
    noise, fresh = [], []
    for index, span in enumerate(SETTING.spans):
        shape = (1, CONFIG.in_dim, len(span), *SETTING.size)
        noise.append(draw(shape))
        fresh.append([draw(shape) for _ in schedule.of_chunk(index)[1:]])
    chunks = []
    with torch.no_grad():
        trees = {tree: Denoiser(tree, CONFIG, encode_text(tree, CONFIG, text), cache) for tree in (full, other)}
        for index, span in enumerate(SETTING.spans):
            x, steps = noise[index], [*schedule.of_chunk(index), schedule.context_noise]
            for step, timestep in enumerate(steps):
                if 0 < step < len(steps) - 1:
                    sigma = schedule.sigma(timestep)
                    x = (1 - sigma) * x + sigma * fresh[index][step - 1]
                denoiser = trees[other if (index, step) == changed else full]
                clean = call(denoiser, schedule, x, index, step, timestep, span.start)
                x = x if step == len(steps) - 1 else clean
            chunks.append(x)
    return chunks


def test_the_effect_of_a_call_is_that_of_a_run_with_it_alone_quantized(
    shared_model: Model, quantized: nn.Module, embeddings: Tensor
) -> None:
    seen: list[int] = []
    found = call_errors(SETTING, shared_model.tree, quantized, embeddings, [7], lambda: seen.append(1))
    assert found.shape == (1, *nothing_measured(SETTING).shape[1:]) == (1, 3, 5)
    assert len(seen) == generated(SETTING)
    clean = whole_run(shared_model.tree, quantized, embeddings, None)
    for k, i in ((0, 0), (0, 4), (1, 3), (2, 4), (2, 1)):
        other = whole_run(shared_model.tree, quantized, embeddings, (k, i))
        expected = torch.stack([(a - b).double().square().mean() for a, b in zip(other, clean, strict=True)])[k : k + 2]
        assert float(found[0, k, i]) == pytest.approx(float(expected.mean()), rel=1e-3)


def test_every_batch_meets_the_noise_of_its_own_clips(
    shared_model: Model, quantized: nn.Module, embeddings: Tensor
) -> None:
    texts = torch.cat([embeddings, -embeddings])
    apart = measure_calls(SETTING, shared_model.tree, quantized, texts.split(1), 7, lambda: None)
    together = measure_calls(SETTING, shared_model.tree, quantized, [texts], 7, lambda: None)
    torch.testing.assert_close(apart, together, rtol=0.05, atol=0)


def test_a_call_that_overflows_names_the_layer(shared_model: Model, embeddings: Tensor) -> None:
    broken = tiny_model().tree
    broken.get_parameter("blocks.1.ffn.2.bias")[3] = torch.inf
    with pytest.raises(CheckpointError, match=r"output of blocks\.1\.ffn\.2 became NaN or infinite in calibration"):
        measure_calls(SETTING, shared_model.tree, broken, [embeddings], 7, lambda: None)
    assert not any(module._forward_hooks for module in broken.modules())


def test_shares_average_one_in_every_chunk_and_later_chunks_are_like_the_last_measured() -> None:
    errors = torch.rand(4, 3, 5, generator=torch.Generator().manual_seed(0)).double()
    shares = call_shares(errors, [5] * 6)
    assert all(sum(row) == pytest.approx(5) for row in shares)
    assert shares[2] == shares[3] == shares[5] != shares[1]
    assert shares[0] == pytest.approx((errors.mean(0)[0] / errors.mean(0)[0].mean()).tolist())


def test_a_call_without_effect_keeps_a_little_weight() -> None:
    errors = torch.tensor([[[0.0, 0.0, 0.0, 1.0]]]).double()
    (row,) = call_shares(errors, [4])
    assert row[0] == pytest.approx(LEAST, rel=0.05) and sum(row) == pytest.approx(4)


def test_without_measurements_all_calls_weigh_alike() -> None:
    assert call_shares(nothing_measured(SETTING), calls_of(SETTING)) == [[1.0] * 5] * 5
    assert call_shares(torch.zeros(2, 3, 5).double(), [5, 5]) == [[1.0] * 5] * 2


WEIGHTS = [[0.02, 0.1, 1.4, 4.6, 0.9], [0.0, 0.03, 0.4, 3.2, 1.3]]
"""Of two chunks' calls, the pass that fills the cache last; the last chunk has none."""


def recorded(number: int) -> list[Rollout]:
    latents = torch.zeros(1, 1, 1, 1, 1)
    calls = [Call(k, i, 0.0, k, latents) for k, row in enumerate(WEIGHTS) for i in range(len(row))][:-1]
    return [Rollout(torch.zeros(1, 1, 1), tuple(calls)) for _ in range(number)]


def test_drawn_calls_keep_the_sums_that_all_calls_would_give() -> None:
    rollouts = recorded(4000)
    drawn, table = sample_calls(rollouts, WEIGHTS)
    for k, row in enumerate(WEIGHTS):
        for i, weight in enumerate(row[: 5 - k]):
            count = sum(call.chunk == k and call.step == i for rollout in drawn for call in rollout.calls)
            # A call is kept or not: the deviation of the mean of 4,000 such draws.
            chance = min(1.0, weight / sum(row) / CERTAIN)
            slack = 4 * (table[k][i] ** 2 * chance * (1 - chance) / 4000) ** 0.5 if i < 4 else 0
            assert count * table[k][i] / 4000 == pytest.approx(weight, abs=slack + 1e-12)


def test_what_matters_is_always_among_the_drawn_and_most_else_is_not() -> None:
    rollouts = recorded(100)
    drawn, table = sample_calls(rollouts, WEIGHTS)
    for whole, some in zip(rollouts, drawn, strict=True):
        kept = [(call.chunk, call.step) for call in some.calls]
        assert {(0, 2), (0, 3), (0, 4), (1, 3)} <= set(kept)  # the pass that fills the cache, and heavy steps
        assert [call for call in whole.calls if (call.chunk, call.step) in kept] == list(some.calls)
    assert sum(len(some.calls) for some in drawn) < 0.65 * sum(len(whole.calls) for whole in rollouts)
    assert table[0][2:] == WEIGHTS[0][2:]
    again, _ = sample_calls(rollouts, WEIGHTS)
    assert [r.calls for r in again] == [r.calls for r in drawn]  # an interrupted run takes up the same


def test_of_a_chunk_without_weight_the_pass_that_fills_the_cache_is_left() -> None:
    drawn, table = sample_calls(recorded(3), [[0.0] * 5, WEIGHTS[1]])
    assert all([c.step for c in rollout.calls if c.chunk == 0] == [4] for rollout in drawn)
    assert table[0] == [0.0] * 5


def test_calls_of_one_weight_are_all_kept() -> None:
    even = [[1.0] * 5] * 2
    drawn, table = sample_calls(recorded(5), even)
    assert [len(rollout.calls) for rollout in drawn] == [9] * 5 and table == even
