"""Recorded roll-outs are the stream's own, and the effect of a chunk is what whole runs would measure."""

from dataclasses import replace

import pytest
import torch
from tiny.model import tiny_model
from torch import Tensor, nn

from qarvd.calibrate import calibration
from qarvd.calibrate.calibration import collect
from qarvd.calibrate.rollout import Setting, roll_out
from qarvd.checkpoint.model import Model
from qarvd.quantize.model import quantize_tree
from qarvd.recipe import RECIPES
from qarvd.stream.noise import from_seeds
from qarvd.stream.presets import PRESETS
from qarvd.stream.rollout import roll_out as stream_out
from qarvd.stream.sampler import Denoiser, denoise, write
from qarvd.wan.forward import encode_text

WINDOWED = replace(PRESETS["self-forcing"], window=6, sink=1, sink_follows=True, chunk_frames=2)


@pytest.fixture(scope="module")
def setting() -> Setting:
    return Setting(tiny_model().config, WINDOWED, (4, 4), 9)


@pytest.fixture(scope="module")
def quantized() -> nn.Module:
    model = tiny_model()
    quantize_tree(model.tree, model.config.num_layers, RECIPES["w4a8"].without_data())
    return model.tree


def test_the_calls_are_those_of_the_stream(shared_model: Model, setting: Setting, embeddings: Tensor) -> None:
    two = embeddings.expand(2, -1, -1)
    seen = []
    chunks = stream_out(
        shared_model.tree,
        setting.config,
        setting.preset,
        two,
        setting.size,
        setting.frames,
        [3, 4],
        on_step=seen.append,
    )
    assert sum(chunk.latents.shape[2] for chunk in chunks) == setting.frames
    rollout, errors = roll_out(setting, shared_model.tree, two, [3, 4])
    assert errors is None
    for call, step in zip(rollout.calls, seen, strict=True):
        assert (call.chunk, call.timestep, call.start) == (step.chunk, step.timestep, step.start)
        assert torch.equal(call.latents, step.latents)


def test_a_chunks_effect_is_that_of_a_whole_run_with_only_this_chunk_quantized(
    shared_model: Model, quantized: nn.Module, setting: Setting, embeddings: Tensor
) -> None:
    two = embeddings.expand(2, -1, -1)

    def whole(changed: int | None) -> list[Tensor]:
        cache, draw, chunks = setting.cache(), from_seeds([3, 4]), []
        for index, span in enumerate(setting.spans):
            tree = quantized if index == changed else shared_model.tree
            denoiser = Denoiser(tree, setting.config, encode_text(tree, setting.config, two), cache)
            noise = draw((2, setting.config.in_dim, len(span), *setting.size))
            with torch.no_grad():
                chunk = denoise(denoiser, noise, setting.preset.schedule, draw, index, span.start)
                write(denoiser, chunk, setting.preset.schedule)
            chunks.append(chunk.latents)
        return chunks

    clean = whole(None)
    _, errors = roll_out(setting, shared_model.tree, two, [3, 4], quantized)
    assert errors is not None and errors.shape == (2, 5, 5)
    for k in range(5):
        for j, (ours, other) in enumerate(zip(clean, whole(k), strict=True)):
            expected = (ours.double() - other.double()).square().flatten(1).mean(1)
            torch.testing.assert_close(errors[:, k, j], expected, rtol=1e-4, atol=1e-12)
            assert (expected > 0).all() == (j >= k)


def test_the_full_prefix_is_shared(
    shared_model: Model, quantized: nn.Module, setting: Setting, embeddings: Tensor
) -> None:
    generated = []
    roll_out(setting, shared_model.tree, embeddings, [0], quantized, on_chunk=lambda: generated.append(1))
    assert len(generated) == 5 + 5 * 6 // 2


def test_measuring_ends_once_the_intervals_are_narrow(
    shared_model: Model, quantized: nn.Module, setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = torch.randn(12, 3, setting.config.text_dim, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(calibration, "BATCH_TOKENS", 1)
    monkeypatch.setattr(calibration, "converged", lambda errors, *_: len(errors) >= 5)
    rollouts, errors = collect(setting, shared_model.tree, quantized, texts, 0, most_measured=9)
    assert len(errors) == 5 and sum(len(rollout.embeddings) for rollout in rollouts) == 12
    monkeypatch.setattr(calibration, "converged", lambda *_: False)
    assert len(collect(setting, shared_model.tree, quantized, texts, 0, most_measured=9)[1]) == 9
