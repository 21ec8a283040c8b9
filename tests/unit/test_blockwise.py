"""Block by block, each layer makes up for those before it; memory, disk and a resumed run give the same bits."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny.model import CONFIG, tiny_model
from torch import Tensor, nn

from qarvd.calibrate import collect
from qarvd.calibrate.offload import OffloadAllocator
from qarvd.calibrate.rollout import Rollout, Setting, roll_out
from qarvd.checkpoint.model import Model, state_tensors
from qarvd.errors import CheckpointError
from qarvd.ops.linear import QuantizedLinear
from qarvd.quantize import walk
from qarvd.quantize.blockwise import quantize_blockwise
from qarvd.quantize.model import LayerReport, linear_groups, quantize_group, quantize_tree
from qarvd.quantize.walk import Memory, Results
from qarvd.recipe import RECIPES, Recipe
from qarvd.stream.presets import PRESETS
from qarvd.stream.rollout import roll_out as stream_out

PRESET = replace(PRESETS["self-forcing"], window=6, sink=1, sink_follows=True, chunk_frames=2)
SETTING = Setting(CONFIG, PRESET, (8, 8), 6)
CALLS = 5
EVEN = [1.0, 1.0, 1.0]
W4A8 = RECIPES["w4a8"]
NEAREST = replace(W4A8, rounding="nearest")
"""The fastest, for what has nothing to do with rounding."""
ALL = tuple(name for group in linear_groups(CONFIG.num_layers) for name in group)


@pytest.fixture(scope="module")
def rollouts() -> list[Rollout]:
    texts = torch.randn(6, 3, CONFIG.text_dim, generator=torch.Generator().manual_seed(5))
    return [roll_out(SETTING, tiny_model().tree, texts[i : i + 3], range(i, i + 3))[0] for i in (0, 3)]


def quantized(
    rollouts: Sequence[Rollout], recipe: Recipe = W4A8, weights: Sequence[float] = EVEN, **options: object
) -> tuple[Model, list[LayerReport]]:
    model = tiny_model()
    reports = quantize_blockwise(model.tree, SETTING, rollouts, [[w] * CALLS for w in weights], recipe, **options)  # type: ignore[arg-type]
    return model, reports


Whole = tuple[Model, list[LayerReport], dict[tuple[str, ...], Results]]


@pytest.fixture(scope="module")
def whole(rollouts: list[Rollout]) -> Whole:
    """An unbroken run: the model, its reports, and what was kept of it."""
    stored: dict[tuple[str, ...], Results] = {}
    model, reports = quantized(rollouts, memory=Memory(keep=stored.__setitem__))
    return model, reports, stored


def final_error(model: Model) -> float:
    texts = torch.randn(8, 3, CONFIG.text_dim, generator=torch.Generator().manual_seed(6))
    clips = [
        torch.cat([c.latents for c in stream_out(m.tree, CONFIG, PRESET, texts, (8, 8), 6, range(50, 58))], dim=2)
        for m in (tiny_model(), model)
    ]
    return float((clips[0] - clips[1]).square().mean())


def same(a: Model, b: Model) -> bool:
    ours, theirs = state_tensors(a), state_tensors(b)
    return ours.keys() == theirs.keys() and all(
        torch.equal(*(t[k].flatten().view(torch.uint8) for t in (ours, theirs))) for k in ours
    )


def test_it_leaves_less_than_half_the_error_of_rounding_to_nearest(rollouts: list[Rollout], whole: Whole) -> None:
    nearest = tiny_model()
    quantize_tree(nearest.tree, CONFIG.num_layers, W4A8.without_data())
    ours, reports, _ = whole
    plain, _ = quantized(rollouts, replace(W4A8, compensate=False))
    assert final_error(ours) < 0.5 * final_error(nearest)
    assert final_error(plain) < final_error(nearest)
    assert [report.name for report in reports] == list(ALL)
    assert all(0 < report.output_error < 0.2 for report in reports if report.output_error is not None)
    assert sum(report.output_error is None for report in reports) == 1


def test_states_on_disk_give_the_same_bits(rollouts: list[Rollout], whole: Whole, tmp_path: Path) -> None:
    assert same(whole[0], quantized(rollouts, offload=OffloadAllocator(tmp_path))[0])
    assert list(tmp_path.iterdir())


@pytest.mark.parametrize("finished", [1, 5, 9, 15])
def test_a_resumed_run_gives_the_bits_of_an_unbroken_one(rollouts: list[Rollout], whole: Whole, finished: int) -> None:
    model, reports, stored = whole
    part = dict(list(stored.items())[:finished])
    fitted: list[tuple[str, ...]] = []
    again, again_reports = quantized(
        rollouts, memory=Memory(recall=part.get, keep=lambda names, results: fitted.append(names))
    )
    assert same(model, again) and reports == again_reports
    assert len(fitted) == len(stored) - finished


def test_kept_linears_stay_and_the_rest_is_quantized(rollouts: list[Rollout]) -> None:
    model, reports = quantized(rollouts, replace(NEAREST, keep=("blocks.0.ffn.0", "blocks.1.self_attn.v")))
    kept = {report.name for report in reports if report.kept} - {"text_embedding.0"}  # 16 channels are too few
    assert kept == {"blocks.0.ffn.0", *(f"blocks.1.self_attn.{x}" for x in "qkv")}
    for name in ALL[1:]:
        assert isinstance(model.tree.get_submodule(name), nn.Linear if name in kept else QuantizedLinear)


def test_a_budgets_bits_are_taken_layer_by_layer(rollouts: list[Rollout]) -> None:
    bits = dict.fromkeys(ALL, "4") | {"blocks.0.ffn.0": "8", "blocks.1.ffn.0": "4g16", "blocks.1.ffn.2": "16"}
    reports = {report.name: report for report in quantized(rollouts, NEAREST, bits=bits)[1]}
    assert {name: reports[name].bits for name in ALL[1:]} == {name: bits[name] for name in ALL[1:]}
    assert reports["blocks.1.ffn.2"].kept == "given 16 bits by the bit budget"


def test_weighting_a_chunk_lowers_its_error_at_the_cost_of_others(rollouts: list[Rollout]) -> None:
    def errors(weights: list[float]) -> Tensor:
        model, _ = quantized(rollouts, weights=weights)
        texts = torch.cat([rollout.embeddings for rollout in rollouts])
        clips = [
            torch.cat([c.latents for c in stream_out(m.tree, CONFIG, PRESET, texts, (8, 8), 6, range(6))], dim=2)
            for m in (tiny_model(), model)
        ]
        return (clips[0] - clips[1]).square().mean((0, 1, 3, 4))

    assert errors([100.0, 1.0, 1.0])[:2].mean() < errors([1.0, 1.0, 100.0])[:2].mean()


def test_the_inputs_of_every_linear_weigh_as_their_calls(
    rollouts: list[Rollout], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}

    def settled(names: Sequence[str], *rest: Any) -> Any:
        *_, stats, _, _ = rest
        seen[names[0]] = stats.weight
        return quantize_group(names, *rest)

    monkeypatch.setattr(walk, "quantize_group", settled)
    table = [[3.0 ** (k - i) for i in range(CALLS)] for k in range(len(EVEN))]
    quantize_blockwise(tiny_model().tree, SETTING, rollouts, table, NEAREST)
    calls = [call for rollout in rollouts for call in rollout.calls]
    expected = sum(table[call.chunk][call.step] * call.latents[:, 0].numel() / 4 for call in calls)  # 4 latents a token
    video = {n: w for n, w in seen.items() if n.startswith("blocks") and not n.endswith("cross_attn.k")}
    assert len(video) == 6 * CONFIG.num_layers and all(w == pytest.approx(expected) for w in video.values())


def test_a_share_of_the_video_is_taken_and_all_of_the_text(
    rollouts: list[Rollout], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are 24 tokens of text and thousands of video."""
    monkeypatch.setattr(collect, "TOKENS", 100)
    seen = {}

    def settled(names: Sequence[str], *rest: Any) -> Any:
        *_, stats, clips, sample_tokens = rest
        assert clips == sum(len(rollout.embeddings) for rollout in rollouts)
        text = "text" in names[0] or names[0].endswith("cross_attn.k")
        assert sample_tokens == (CONFIG.text_len if text else 2 * 16)  # a chunk's frames times their tokens
        seen[names[0]] = stats.weight
        return quantize_group(names, *rest)

    monkeypatch.setattr(walk, "quantize_group", settled)
    quantized(rollouts, NEAREST)
    text = {name: weight for name, weight in seen.items() if name.startswith("text") or name.endswith("cross_attn.k")}
    assert len(text) == 4 and all(weight == 24 for weight in text.values())
    assert all(50 < seen[name] < 200 for name in seen if name not in text)


def test_inputs_that_overflow_name_the_layer(rollouts: list[Rollout]) -> None:
    model = tiny_model()
    norm = model.tree.get_submodule("blocks.1.norm3")
    assert isinstance(norm, nn.LayerNorm)
    norm.bias[3] = torch.inf
    with pytest.raises(CheckpointError, match=r"The inputs of blocks\.1\.cross_attn\.q became NaN or infinite"):
        quantize_blockwise(model.tree, SETTING, rollouts, [[w] * CALLS for w in EVEN], NEAREST)
    model = tiny_model()
    model.tree.get_parameter("blocks.1.norm3.weight").fill_(1e19)  # of which norms follow, so that outputs are finite
    with pytest.raises(CheckpointError, match=r"The squared inputs of blocks\.1\.cross_attn\.q became NaN or infinite"):
        quantize_blockwise(model.tree, SETTING, rollouts, [[w] * CALLS for w in EVEN], NEAREST)


def test_a_token_that_overflows_is_found_where_it_is_not_in_the_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "TOKENS", 1)
    x = torch.ones(2, 4)
    x[1, 3] = torch.nan
    with pytest.raises(CheckpointError, match="The inputs of layer became NaN"):
        collect.Collector(("layer",), 10**9).add(x, None, 1.0)
