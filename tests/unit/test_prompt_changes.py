"""A stream goes on with another prompt: what the window holds is written anew with it, and the sink stays."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qarvd.checkpoint.model import Model
from qarvd.errors import SettingError, ShapeError
from qarvd.stream.cache import FloatCache, KVCache
from qarvd.stream.noise import from_seeds, from_tensors
from qarvd.stream.presets import CACHES, PRESETS
from qarvd.stream.rollout import roll_out
from qarvd.stream.sampler import NO_PROMPTS, Chunk, Denoiser, Step, stream
from qarvd.stream.schedule import Schedule
from qarvd.wan.forward import encode_text

CHUNKS, SHAPE = 5, (1, 16, 3, 4, 4)
SCHEDULE = Schedule.from_steps((1000, 500))
DRAW = from_seeds([3])
NOISE, FRESH = ([DRAW(SHAPE) for _ in range(CHUNKS)] for _ in range(2))  # one renoising a chunk


class Streams:
    """Streams of the tiny model from the same noise."""

    def __init__(self, model: Model, first: Tensor) -> None:
        self.model, self.first = model, first
        self.other = first.flip(1) + 1
        self.steps: list[Step] = []

    def denoiser(self, cache: KVCache, first: Tensor | None = None) -> Denoiser:
        with torch.no_grad():
            text = encode_text(self.model.tree, self.model.config, self.first if first is None else first)
        return Denoiser(self.model.tree, self.model.config, text, cache)

    def run(
        self,
        cache: KVCache,
        first: Tensor | None = None,
        prompts: dict[int, Tensor] | None = None,
        given: list[Tensor] | None = None,
    ) -> list[Chunk]:
        self.steps.clear()
        model, given = self.denoiser(cache, first), given or []
        noise, fresh = NOISE[len(given) :], from_tensors(FRESH[len(given) :])
        return list(stream(model, noise, SCHEDULE, fresh, given, self.steps.append, prompts or NO_PROMPTS))


@pytest.fixture(scope="module")
def streams(shared_model: Model, embeddings: Tensor) -> Streams:
    return Streams(shared_model, embeddings)


def latents(chunks: list[Chunk]) -> Tensor:
    return torch.cat([chunk.latents for chunk in chunks], dim=2)


def test_the_same_prompt_again_changes_nothing_while_nothing_has_left_the_window(streams: Streams) -> None:
    for codec, cache in CACHES.items():
        once = streams.run(cache(15, chunk_frames=3))
        again = streams.run(cache(15, chunk_frames=3), prompts={2: streams.first, 3: streams.first})
        # Codes are made of keys and values that were computed over codes themselves.
        torch.testing.assert_close(latents(again), latents(once), rtol=0, atol=1e-6 if codec == "16-bit" else 2e-2)


def test_what_follows_is_as_if_the_video_so_far_had_been_given_with_the_new_prompt(streams: Streams) -> None:
    old = streams.run(FloatCache(15))
    changed = streams.run(FloatCache(15), prompts={2: streams.other})
    fresh = streams.run(FloatCache(15), streams.other, given=[chunk.latents for chunk in old[:2]])
    assert torch.equal(latents(changed[:2]), latents(old[:2]))
    torch.testing.assert_close(latents(changed[2:]), latents(fresh), rtol=0, atol=1e-6)
    assert (latents(changed[2:]) - latents(old[2:])).abs().max() > 1e-3


@pytest.mark.parametrize("codec", CACHES)
def test_the_window_is_written_anew_and_the_sink_is_not(streams: Streams, codec: str) -> None:
    streams.run(CACHES[codec](9, 3, chunk_frames=3), prompts={1: streams.other, 4: streams.other})
    writing = [s.chunk for s in streams.steps if s.timestep == 0]
    assert writing == [0, 1, 2, 3, 2, 3]  # chunk 0 is the sink; after chunk 3 the window holds chunks 2 and 3
    assert [s.start for s in streams.steps if s.timestep == 0] == [3 * chunk for chunk in writing]


@pytest.mark.parametrize("codec", CACHES)
def test_chunks_do_not_depend_on_how_many_follow(shared_model: Model, embeddings: Tensor, codec: str) -> None:
    preset = PRESETS["demo"]  # a window of 12 latent frames, 3 of them the sink

    def run(frames: int) -> list[Chunk]:
        return list(
            roll_out(
                *(shared_model.tree, shared_model.config, preset, embeddings, (4, 4), frames, [1]),
                cache=preset.cache(frames, codec),
                prompts={2: embeddings.flip(1) + 1},
            )
        )

    for short, long in zip(run(12), run(15), strict=False):
        torch.testing.assert_close(short.latents, long.latents, rtol=0, atol=1e-6)


def test_with_an_image_at_the_start_chunks_that_begin_in_the_sink_stay(streams: Streams) -> None:
    steps: list[Step] = []
    image, fresh = torch.zeros(1, 16, 1, 4, 4), from_tensors(FRESH[:3])
    model = streams.denoiser(FloatCache(9, 3, chunk_frames=3))
    list(stream(model, NOISE[:3], SCHEDULE, fresh, [image], steps.append, {3: streams.other}))
    assert [s.start for s in steps if s.timestep == 0] == [0, 1, 4, 4]


def test_given_latents_are_written_anew_as_they_were(streams: Streams) -> None:
    noisy = Schedule.from_steps((1000, 500), context_noise=100)
    steps: list[Step] = []
    model, fresh = streams.denoiser(FloatCache(15)), from_tensors(FRESH[:2])
    list(stream(model, NOISE[:2], noisy, fresh, [torch.zeros(SHAPE)], steps.append, {2: streams.other}))
    times = [(s.chunk, s.timestep) for s in steps if s.timestep not in noisy.timesteps]
    assert times == [(0, 0), (1, 100), (0, 0), (1, 100)]


def test_changes_outside_of_the_video_and_prompts_for_another_number_of_videos_are_refused(
    shared_model: Model, embeddings: Tensor
) -> None:
    def run(frames: int | None, at: int, text: Tensor = embeddings) -> object:
        preset = PRESETS["demo"]
        return roll_out(
            shared_model.tree, shared_model.config, preset, embeddings, (4, 4), frames, [1], prompts={at: text}
        )

    run(9, 2)
    run(None, 1000)
    for at, words in (
        (0, "at chunk 1; the first change can be at chunk 2"),
        (3, "chunk 4, because .* ends with chunk 3"),
    ):
        with pytest.raises(SettingError, match=words):
            run(9, at)
    with pytest.raises(ShapeError, match="one seed for each prompt; 1 for 2 were given"):
        run(9, 1, embeddings.expand(2, -1, -1))
    with pytest.raises(ShapeError, match="prompt embeddings"):
        run(9, 1, torch.zeros(1, 4, 99))


def test_a_roll_out_counts_generated_chunks(shared_model: Model, embeddings: Tensor) -> None:
    steps: list[Step] = []
    preset = PRESETS["self-forcing"]
    list(
        roll_out(
            *(shared_model.tree, shared_model.config, preset, embeddings, (4, 4), 6, [1]),
            initial=torch.zeros(SHAPE),
            on_step=steps.append,
            prompts={1: embeddings + 1},
        )
    )
    writing = [s.chunk for s in steps if s.timestep == 0]
    assert writing == [0, 1, 0, 1]
