"""Streaming is lazy, stops without a trace, and goes on from where a clip ended."""

from collections.abc import Callable, Iterator
from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qarvd.checkpoint.model import Model
from qarvd.errors import SettingError, ShapeError
from qarvd.stream.cache import FloatCache, KVCache
from qarvd.stream.noise import from_seeds, from_tensors
from qarvd.stream.presets import PRESETS
from qarvd.stream.rollout import check_guidance, roll_out, roll_out_from
from qarvd.stream.sampler import Chunk, Denoiser, Step, spans, stream
from qarvd.stream.schedule import Schedule
from qarvd.wan.forward import encode_text

SIZE = (4, 4)
SCHEDULE = Schedule.from_steps((1000, 500))
SHAPE = (1, 16, 3, *SIZE)


class Stop(Exception):
    pass


@pytest.fixture(scope="module")
def roll(shared_model: Model, embeddings: Tensor) -> Callable[..., Iterator[Chunk]]:
    """A roll-out of the tiny model."""

    def run(frames: int | None = 6, seeds: tuple[int, ...] = (0,), preset: str = "self-forcing", **more: object):
        tree, config = shared_model.tree, shared_model.config
        text = embeddings.expand(len(seeds), -1, -1)
        return roll_out(tree, config, PRESETS[preset], text, SIZE, frames, seeds, **more)  # pyright: ignore

    return run


def denoiser(model: Model, embeddings: Tensor, cache: KVCache) -> Denoiser:
    with torch.no_grad():
        text = encode_text(model.tree, model.config, embeddings)
    return Denoiser(model.tree, model.config, text, cache)


def joined(chunks: Iterator[Chunk]) -> Tensor:
    return torch.cat([chunk.latents for chunk in chunks], dim=2)


@given(st.integers(1, 100), st.integers(1, 9), st.integers(0, 50))
def test_chunks_cover_each_frame_once(frames: int, chunk: int, start: int) -> None:
    cut = list(spans(frames, chunk, start))
    assert [f for span in cut for f in span] == list(range(start, start + frames))
    assert all(len(span) == chunk for span in cut[:-1])


@given(st.integers(1, 9), st.integers(0, 50), st.integers(1, 20))
def test_an_endless_stream_is_cut_the_same_way(chunk: int, start: int, count: int) -> None:
    assert list(islice(spans(None, chunk, start), count)) == list(spans(chunk * count, chunk, start))


@pytest.mark.parametrize(("frames", "chunk"), [(0, 3), (-1, 3), (6, 0), (None, 0)])
def test_an_empty_stream_is_refused(frames: int | None, chunk: int) -> None:
    with pytest.raises(SettingError, match="at least 1"):
        spans(frames, chunk)


def test_chunks_come_in_order_and_the_last_may_be_shorter(roll: Callable[..., Iterator[Chunk]]) -> None:
    chunks = list(roll(frames=8))
    assert [(c.index, c.start, c.latents.shape[2]) for c in chunks] == [(0, 0, 3), (1, 3, 3), (2, 6, 2)]
    assert all(c.latents.isfinite().all() and not c.latents.requires_grad for c in chunks)


def test_an_endless_stream_begins_like_a_finite_one(roll: Callable[..., Iterator[Chunk]]) -> None:
    endless = joined(islice(roll(frames=None, preset="longlive"), 3))
    torch.testing.assert_close(endless, joined(roll(frames=9, preset="longlive")), rtol=0, atol=1e-5)


def test_a_chunk_is_yielded_before_later_noise_is_drawn(shared_model: Model, embeddings: Tensor) -> None:
    drawn: list[int] = []

    def noise() -> Iterator[Tensor]:
        for i in range(3):
            drawn.append(i)
            yield torch.zeros(SHAPE)

    chunks = stream(denoiser(shared_model, embeddings, FloatCache(9)), noise(), SCHEDULE, from_seeds([0]))
    assert drawn == []
    for i, chunk in enumerate(chunks):
        assert chunk.index == i and drawn == list(range(i + 1))


def test_break_leaves_the_cache_empty(roll: Callable[..., Iterator[Chunk]]) -> None:
    cache = FloatCache(9)
    for _ in roll(cache=cache):
        assert cache.nbytes > 0
        break
    assert cache.nbytes == 0 and cache.end == 0


def test_running_to_the_end_leaves_the_cache_empty(roll: Callable[..., Iterator[Chunk]]) -> None:
    cache = FloatCache(9)
    assert len(list(roll(cache=cache))) == 2
    assert cache.nbytes == 0


def test_on_step_may_stop_a_stream_between_any_two_model_calls(roll: Callable[..., Iterator[Chunk]]) -> None:
    for limit in range(9):
        cache, seen = FloatCache(9), []

        def on_step(step: Step, seen: list[Step] = seen, limit: int = limit) -> None:
            seen.append(step)
            if len(seen) > limit:
                raise Stop

        with pytest.raises(Stop):
            list(roll(cache=cache, on_step=on_step))
        assert len(seen) == limit + 1 and cache.nbytes == 0


def test_on_step_sees_every_step_and_the_clean_pass_of_each_chunk_but_the_last(
    roll: Callable[..., Iterator[Chunk]],
) -> None:
    steps: list[Step] = []
    chunks = list(roll(preset="causal-forcing-1-step", on_step=steps.append))
    schedule = PRESETS["causal-forcing-1-step"].schedule
    assert [(s.chunk, s.timestep) for s in steps] == [
        *((0, t) for t in (*schedule.of_chunk(0), schedule.context_noise)),
        *((1, t) for t in schedule.of_chunk(1)),
    ]
    assert torch.equal(steps[3].clean, chunks[0].latents)


def test_same_seeds_give_the_same_result(roll: Callable[..., Iterator[Chunk]]) -> None:
    assert torch.equal(joined(roll(seeds=(4,))), joined(roll(seeds=(4,))))
    assert not torch.equal(joined(roll(seeds=(4,))), joined(roll(seeds=(5,))))


def test_a_batch_equals_its_samples_alone(roll: Callable[..., Iterator[Chunk]]) -> None:
    alone = torch.cat([joined(roll(seeds=(seed,))) for seed in (4, 5)])
    torch.testing.assert_close(joined(roll(seeds=(4, 5))), alone, rtol=0, atol=1e-5)


def test_initial_latents_are_not_yielded_and_shift_what_follows(roll: Callable[..., Iterator[Chunk]]) -> None:
    steps: list[Step] = []
    chunks = list(roll(initial=torch.zeros(1, 16, 4, *SIZE), on_step=steps.append))
    assert [(c.index, c.start) for c in chunks] == [(2, 4), (3, 7)]
    assert [s.chunk for s in steps] == [0, 1, *[2] * 5, *[3] * 4]


@pytest.mark.parametrize("shape", [(1, 16, 3, 8, 4), (1, 15, 3, 4, 4), (2, 16, 3, 4, 4)])
def test_initial_latents_of_another_shape_are_refused(
    roll: Callable[..., Iterator[Chunk]], shape: tuple[int, ...]
) -> None:
    with pytest.raises(ShapeError, match="initial latents"):
        roll(initial=torch.zeros(shape))


def test_going_on_from_latents_equals_having_generated_them(shared_model: Model, embeddings: Tensor) -> None:
    draw = from_seeds([3])
    noise, fresh = [draw(SHAPE) for _ in range(3)], [draw(SHAPE) for _ in range(3)]  # one renoising a chunk

    def run(given: list[Tensor]) -> list[Chunk]:
        n = len(given)
        model = denoiser(shared_model, embeddings, FloatCache(6, 1))
        return list(stream(model, noise[n:], SCHEDULE, from_tensors(fresh[n:]), given))

    whole = run([])
    for n in (1, 2):
        for ours, theirs in zip(run([c.latents for c in whole[:n]]), whole[n:], strict=True):
            assert (ours.index, ours.start) == (theirs.index, theirs.start)
            torch.testing.assert_close(ours.latents, theirs.latents, rtol=0, atol=1e-6)


def test_seeds_and_prompts_must_agree_in_number(shared_model: Model, embeddings: Tensor) -> None:
    with pytest.raises(ShapeError, match="one seed for each prompt; 2 for 1 were given"):
        roll_out(shared_model.tree, shared_model.config, PRESETS["demo"], embeddings, SIZE, 3, [1, 2])


@pytest.mark.parametrize("scale", [0.0, 5.0, float("nan")])
def test_guidance_is_refused(scale: float) -> None:
    check_guidance(1.0)
    with pytest.raises(SettingError, match="use cfg 1"):
        check_guidance(scale)


def test_a_roll_out_from_the_noise_that_seeds_draw_is_that_of_the_seeds(
    roll: Callable[..., Iterator[Chunk]], shared_model: Model, embeddings: Tensor
) -> None:
    initial, later = torch.randn(1, 16, 4, *SIZE), {1: embeddings.flip(1)}
    preset, drawn, steps = PRESETS["demo"], from_seeds([5]), []
    by_seed = list(roll(7, (5,), "demo", initial=initial, prompts=later))
    noise = (drawn((1, 16, len(span), *SIZE)) for span in spans(7, preset.chunk_frames))
    ours = list(
        roll_out_from(
            shared_model.tree,
            shared_model.config,
            embeddings,
            noise,
            drawn,
            preset.schedule,
            preset.cache(11),
            initial,
            steps.append,
            later,
        )
    )
    assert [(chunk.index, chunk.start) for chunk in ours] == [(2, 4), (3, 7), (4, 10)]
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(ours, by_seed, strict=True))
    assert [step.start for step in steps[:2]] == [0, 3] and torch.equal(steps[0].latents, initial[:, :, :3])
