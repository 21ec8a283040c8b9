"""A stream that goes aside and comes back is one that never did, and holds one cache where nothing is evicted."""

from __future__ import annotations

from dataclasses import replace
from weakref import WeakSet

import pytest
import torch
from tiny.model import CONFIG, tiny_model

from qarvd.calibrate.cache_branch import branch_cache
from qarvd.calibrate.call_sensitivity import call_errors
from qarvd.calibrate.rollout import Setting, roll_out
from qarvd.checkpoint.model import Model
from qarvd.quantize.model import quantize_tree
from qarvd.recipe import RECIPES
from qarvd.stream.cache import FloatCache, KVCache
from qarvd.stream.presets import CACHES, PRESETS

WHOLE = Setting(CONFIG, replace(PRESETS["self-forcing"], chunk_frames=2), (4, 4), 10)
WINDOWED = replace(WHOLE, preset=replace(WHOLE.preset, window=6, sink=1, sink_follows=True))


def attend(cache: KVCache, start: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    cache.begin(start, 2, 4)
    return cache.attend(0, *torch.randn(3, 1, 2, 8, 32, generator=generator))


@pytest.mark.parametrize("frames", [10, 6], ids=["whole", "windowed"])
def test_what_is_done_aside_leaves_no_trace(frames: int) -> None:
    straight, other = (FloatCache(frames, 1 if frames == 6 else 0, True, 2) for _ in range(2))
    for start in range(0, 10, 2):
        with branch_cache(other, 10) as branch:
            for ahead in range(start, 10, 2):
                attend(branch, ahead, seed=100 + ahead)
        assert torch.equal(attend(straight, start, seed=start), attend(other, start, seed=start))


@pytest.mark.parametrize(("setting", "most"), [(WHOLE, 1), (WINDOWED, 2)], ids=["whole", "windowed"])
def test_measuring_holds_one_cache_or_two_where_frames_are_evicted(
    setting: Setting, most: int, shared_model: Model, embeddings: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: WeakSet[KVCache] = WeakSet()
    held = []

    class Counted(FloatCache):
        def __new__(cls, *arguments: object, **options: object) -> Counted:
            made = super().__new__(cls)
            alive.add(made)
            return made

        def _pair(self, layer: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            pair = super()._pair(layer, like)
            held.append(sum(cache.nbytes > 0 for cache in alive if hasattr(cache, "_pairs")))
            return pair

    monkeypatch.setitem(CACHES, "16-bit", Counted)
    quantized = tiny_model().tree
    quantize_tree(quantized, CONFIG.num_layers, RECIPES["w4a8"].without_data())
    roll_out(setting, shared_model.tree, embeddings, [7], quantized)
    assert max(held) == most
    held.clear()
    call_errors(setting, shared_model.tree, quantized, embeddings, [7])
    assert max(held) == most
