"""What a stream asks of ComfyUI before it begins: a size, memory, noise that is fresh."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import comfy.model_management as management
import comfy.sample
import pytest
import torch

Part = Callable[[str], ModuleType]
CARD = torch.device("cuda", 0)


class Loaded:
    """A MODEL on a card that gives back as much memory as it is asked for, up to what it takes."""

    offload_device = torch.device("cpu")

    def __init__(self, taken: int, free: int) -> None:
        self.taken, self.free = taken, free

    def partially_unload(self, where: torch.device, wanted: int) -> int:
        freed = min(wanted, self.taken)
        self.taken, self.free = self.taken - freed, self.free + freed
        return freed


@pytest.fixture
def on_a_card(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], Loaded]:
    def make(taken: int, free: int) -> Loaded:
        model = Loaded(taken, free)
        monkeypatch.setattr(management, "free_memory", lambda *_, **__: [])
        monkeypatch.setattr(management, "get_free_memory", lambda _: model.free)
        return model

    return make


def test_a_model_makes_room_for_its_own_cache(part: Part, on_a_card: Callable[[int, int], Loaded]) -> None:
    model = on_a_card(1000, 400)
    part("nodes.session").make_room(1000, CARD, model, working=200)
    assert model.free >= 1300 and model.taken > 0


def test_a_cache_that_does_not_fit_an_empty_card_is_refused(
    part: Part, on_a_card: Callable[[int, int], Loaded]
) -> None:
    model = on_a_card(1000, 400)
    with pytest.raises(part("qarvd.errors").DeviceError, match="Choose a smaller window"):
        part("nodes.session").make_room(2000, CARD, model)


def test_noise_between_steps_is_not_that_of_the_start(
    part: Part, model_of: Callable[[int], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = part("nodes.sampler")
    patcher = model_of(16)
    shape = (1, 16, 3, 8, 8)
    start = comfy.sample.prepare_noise(torch.zeros(shape), 7)
    drawn = []

    def roll_out_from(tree: Any, config: Any, text: Any, noise: Any, fresh: Any, *_: Any) -> list[Any]:
        drawn.append(fresh(shape))
        return []

    monkeypatch.setattr(sampler, "roll_out_from", roll_out_from)
    guider = SimpleNamespace(
        model_patcher=patcher, inner_model=patcher.model, conds={"positive": [[torch.zeros(1, 4, 32), {}]]}
    )
    schedule = part("qarvd.stream.presets").PRESETS["demo"].schedule
    options = {"family": "demo", "frames": (0, 0, -1), "codec": "16-bit", "schedule": schedule}
    sigmas = part("nodes.schedules").sigmas_of(schedule)
    model = SimpleNamespace(inner_model=guider, noise=start, latent_image=torch.zeros(shape))
    sampler.sample(model, start, sigmas, {"seed": 7}, **options, initial=None, node="5")
    assert not (drawn[0].float() == start).any()


def test_a_family_that_starts_below_full_noise_takes_it_unscaled_unless_it_has_latents_to_change(part: Part) -> None:
    starting, noise = part("nodes.sampler").starting, torch.randn(1, 16, 3, 8, 8)
    empty, video = torch.zeros_like(noise), torch.ones_like(noise)
    for latents, expected in ((empty, noise), (video, 0.7 * noise + 0.3 * video)):
        scaled = 0.7 * noise + 0.3 * latents
        model = SimpleNamespace(noise=noise, latent_image=latents)
        assert torch.equal(starting(model, scaled), expected)


@pytest.mark.parametrize("kind", ["cpu", "mps", "xpu"])
def test_a_stream_may_run_on_any_device(part: Part, model_of: Callable[[int], Any], kind: str) -> None:
    """Also on those without float64, such as Apple's: the library doesn't need it there."""
    patcher = model_of(16)
    session = part("nodes.session").of(patcher, patcher.model, "demo", (0, 0, -1), torch.device(kind))
    assert session.device.type == kind


def test_statistics_of_a_recipe_that_measures_less_are_others(part: Part) -> None:
    recipe, measured_by = part("qarvd.recipe").Recipe, part("nodes.calibration").measured_by
    assert measured_by(recipe(frame_weights=False)) != measured_by(recipe())
    assert measured_by(recipe(rounding="nearest", target="5 bits", stream_chunks=9)) == measured_by(recipe())
