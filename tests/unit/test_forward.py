"""The forward pass keeps the tree's dtype, pads text as published, and refuses what does not fit."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from qarvd.checkpoint.model import Model
from qarvd.errors import ShapeError
from qarvd.stream.cache import FloatCache
from qarvd.stream.sampler import Denoiser
from qarvd.wan.forward import encode_text, time_wave


def velocity(model: Model, embeddings: Tensor, latents: Tensor) -> Tensor:
    with torch.no_grad():
        text = encode_text(model.tree, model.config, embeddings)
        return Denoiser(model.tree, model.config, text, FloatCache(latents.shape[2])).velocity(latents, 625.0, 0)


def latents(*size: int) -> Tensor:
    return torch.randn(1, 16, 2, *size, generator=torch.Generator().manual_seed(2))


def test_a_bfloat16_tree_runs_and_stays_near_float32(model: Model, embeddings: Tensor) -> None:
    wide = velocity(model, embeddings, latents(4, 6))
    model.tree.bfloat16()
    narrow = velocity(model, embeddings.bfloat16(), latents(4, 6).bfloat16())
    assert narrow.dtype == torch.bfloat16 and narrow.shape == wide.shape == latents(4, 6).shape
    assert (narrow.float() - wide).norm() < 0.03 * wide.norm()


def test_short_text_is_padded_with_zeros_that_take_part(shared_model: Model, embeddings: Tensor) -> None:
    padded = F.pad(embeddings, (0, 0, 0, 1))
    assert torch.equal(velocity(shared_model, embeddings, latents(4, 4)), velocity(shared_model, padded, latents(4, 4)))
    for key, value in encode_text(shared_model.tree, shared_model.config, embeddings):
        assert key.shape == value.shape == (1, 2, 4, 32)


@pytest.mark.parametrize("shape", [(1, 5, 16), (1, 3, 32), (3, 16), (1, 1, 3, 16)])
def test_embeddings_of_another_model_are_refused(shared_model: Model, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="at most 4 tokens, 16"):
        encode_text(shared_model.tree, shared_model.config, torch.zeros(shape))


@pytest.mark.parametrize("size", [(5, 4), (4, 5), (1, 1)])
def test_latents_that_do_not_divide_into_patches_are_refused(
    shared_model: Model, embeddings: Tensor, size: tuple[int, int]
) -> None:
    with pytest.raises(ShapeError, match="do not divide into patches of 2x2"):
        velocity(shared_model, embeddings, latents(*size))


def test_samples_of_a_batch_do_not_meet(shared_model: Model, embeddings: Tensor) -> None:
    x = latents(4, 4)
    both = velocity(shared_model, embeddings.expand(2, -1, -1), torch.cat([x, 2 * x]))
    torch.testing.assert_close(both[:1], velocity(shared_model, embeddings, x), rtol=0, atol=1e-5)


def test_the_time_wave_is_cosines_then_sines_in_float64() -> None:
    wave = time_wave(torch.tensor([0.0, 937.5]), 32)
    assert wave.dtype == torch.float64 and wave.shape == (2, 32)
    assert torch.equal(wave[0], torch.tensor([1.0] * 16 + [0.0] * 16, dtype=torch.float64))
    torch.testing.assert_close(wave[:, :16].square() + wave[:, 16:].square(), torch.ones(2, 16, dtype=torch.float64))
