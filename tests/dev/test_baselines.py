"""What quality is compared with does what its name says; figures are means with honest intervals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import baselines.rotation
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from baselines import methods, published
from baselines.fake import FakeLinear, dynamic
from baselines.figures import compare, entry, interval, resample
from baselines.methods import METHODS, Case, random_split
from baselines.rotation import rotation
from baselines.smoothquant import smoothness
from baselines.tables import times
from baselines.timing import Calibrations, timed
from quality import MODELS, Bench, Run, main, retimed, runs, stored, summarise
from tiny.model import CONFIG, tiny_model

from qarvd.calibrate.stats import LayerStats
from qarvd.demo import experiment
from qarvd.demo.prompts import split_prompts
from qarvd.ops.codecs import CODECS
from qarvd.ops.linear import QuantizedLinear
from qarvd.ops.split import ChannelSplit
from qarvd.quantize.rounding import ROUNDING, Task


@pytest.mark.parametrize("signs", [False, True])
@pytest.mark.parametrize("outliers", [0, 32, 96])
def test_a_rotation_keeps_lengths_and_stays_within_its_range(
    outliers: int, signs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = ChannelSplit(256, tuple(range(5, 5 + outliers)))
    transform = rotation(split, signs)
    torch.testing.assert_close(transform @ transform.T, torch.eye(256), rtol=0, atol=1e-5)
    chosen, others = split.ranges(split.to_columns(torch.arange(split.channels)))
    assert not transform[chosen[:, None], others].any()
    if not outliers:
        assert transform.abs().unique().tolist() == pytest.approx([1 / 16])  # every channel is spread over all 256
        monkeypatch.setattr(baselines.rotation, "WIDEST", 32)
        assert set((rotation(split, signs) != 0).sum(0).tolist()) == {32}
        gathered = transform.sum(0).abs().max() / 16  # 1: all channels come together in one
        assert gathered < 0.3 if signs else gathered == 1


def test_smoothing_alone_changes_nothing_and_evens_out_the_inputs() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 30, 64, generator=generator) * torch.logspace(-1, 1, 64)
    weight = torch.randn(16, 64, generator=generator)
    factor = smoothness(x, [weight])
    smoothed = FakeLinear(weight * factor, None, lambda x: x, torch.diag(1 / factor))(x)
    torch.testing.assert_close(smoothed, F.linear(x, weight), rtol=1e-4, atol=1e-4)
    before, after = (t.abs().amax((0, 1)) for t in (x, x / factor))
    assert after.max() / after.min() < 0.2 * before.max() / before.min()


@pytest.mark.parametrize("outliers", [0, 32])
def test_simulated_activations_are_those_of_the_runtime(outliers: int) -> None:
    generator = torch.Generator().manual_seed(0)
    split = ChannelSplit(96, tuple(range(3, 3 + outliers)))
    weight = ROUNDING["nearest"](Task(torch.randn(24, 96, generator=generator), split, CODECS["int8"]))
    x = torch.randn(2, 7, 96, generator=generator)
    real = QuantizedLinear(weight, None)(x)
    torch.testing.assert_close(FakeLinear(weight.dequantize(), None, dynamic(split))(x), real, rtol=1e-3, atol=1e-3)


def test_random_outliers_are_as_many_and_others() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(400, 128, generator=generator), torch.randn(64, 128, generator=generator)
    x[:, :32] /= 8
    weight[:, :32] *= 8
    stats = LayerStats.of(x, None, torch.ones(400), generator)
    ours, again, other = random_split(0), random_split(0), random_split(1)
    drawn = [split([weight], stats, CODECS["int4"], False).split for split in (ours, ours, again, other)]
    assert all(split.n_outlier == 32 and split.outliers != tuple(range(32)) for split in drawn)
    assert drawn[0] == drawn[2] and len({split.outliers for split in drawn}) == 3  # layers and seeds differ


def test_every_method_pays_for_the_calibration_it_asks_for_and_for_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("baselines.timing.time.perf_counter", lambda: now[0])

    def spend(seconds: float) -> None:
        now[0] += seconds

    calibrations = Calibrations(spend)
    builds = {"first": (64, 3), "second": (64, 5), "fewer prompts": (4, 2), "none": (0, 7)}
    for _ in range(2):
        for prompts, own in builds.values():
            _, seconds = timed(lambda p=prompts, own=own: (p and calibrations(p), spend(own)), calibrations)
            assert seconds == prompts + own


def test_timing_again_changes_the_seconds_of_what_was_run_and_nothing_else() -> None:
    class Builds:
        def build(self, run: Run) -> tuple[tuple[None, int], float]:
            return (None, 0), 12.345

    known: dict[str, Any] = {"w4a8/twin/ours/0": {"seconds": 99.0, "mse": [1.0]}}
    run = Run(4, "twin", "ours", 0)
    assert retimed(Builds(), run, known) == {"w4a8/twin/ours/0": {"seconds": 12.35, "mse": [1.0]}}  # type: ignore[arg-type]
    assert retimed(Builds(), run, {}) == {}  # type: ignore[arg-type]


JUDGED = {key: [1.0, 2.0] for key in ("mse", "mse_last", "digit", "motion")}


@pytest.fixture
def quality(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], tuple[dict[str, Any], dict[str, Any]]]:
    """The benchmark with runs that take no time, on a file of its own; gives what that holds in the end."""

    def command(only: str) -> tuple[dict[str, Any], dict[str, Any]]:
        monkeypatch.setattr("sys.argv", ["quality.py", "--out", str(tmp_path / "quality.json"), "--only", only])
        main()
        return stored(tmp_path / "quality.json")

    def run(bench: Bench, wanted: Run) -> dict[str, Any]:
        if wanted.method == "rotation":
            command("w4a8/natural/nearest/0")  # as another process would meanwhile
        return {section: {"bytes": 1, "seconds": 1.0, **JUDGED} for section in wanted.sections}

    monkeypatch.setattr(Bench, "run", run)
    monkeypatch.setattr(Bench, "reference", lambda *_: None)
    monkeypatch.setattr(Bench, "judge", lambda *_: JUDGED)
    return command


def test_runs_that_another_process_finishes_meanwhile_are_kept(quality: Any) -> None:
    known, full = quality("w4a8/natural/rotation/0")
    assert {key.split("/")[2] for key in known} == {"nearest", "rotation"} and list(full) == ["natural"]


def test_a_run_is_found_by_any_of_its_sections_and_a_pattern_without_one_is_refused(
    quality: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    known, _ = quality("w4a8_int8_cache/twin/gptq/2")
    assert list(known) == ["w4a8/twin/gptq/2", "w4a8_int8_cache/twin/gptq/2"]
    with pytest.raises(SystemExit):
        quality("w2a2/*")
    assert "no run matches 'w2a2/*'" in capsys.readouterr().err


def test_runs_of_an_unknown_method_are_refused_before_the_work(
    quality: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "quality.json").write_text(json.dumps({"runs": {"w4a8/twin/unheard/0": JUDGED}}))
    with pytest.raises(SystemExit):
        quality("w4a8/twin/nearest/0")
    assert "holds runs of unheard, which is no method here" in capsys.readouterr().err
    assert list(stored(tmp_path / "quality.json")[0]) == ["w4a8/twin/unheard/0"]


def test_every_method_is_run_on_both_models_and_the_calibrated_ones_again() -> None:
    listed = list(runs(3))
    for bits in (3, 4, 6, 8):
        having = {(run.method, run.model) for run in listed if run.bits == bits}
        assert having == {(n, m) for n, method in METHODS.items() if bits in method.bits for m in MODELS}
    assert {run.seed for run in listed if run.method == "ours"} == {0, 1, 2}
    once = {"published", "rotation", "stock", "random_outliers"}
    assert {run.seed for run in listed if run.method in once} == {0}
    assert {run.seed for run in listed if run.method == "ours_stock"} == {0, 1, 2}
    cached = {run.method for run in listed if "w4a8_int8_cache" in run.sections}
    assert {"ours", "published", "smoothquant", "rotation"} <= cached
    assert len({run.key(section) for run in listed for section in run.sections}) == sum(len(r.sections) for r in listed)


def test_intervals_hold_the_mean_and_know_paired_methods_apart() -> None:
    random = np.random.default_rng(0)
    hard = random.lognormal(size=(1, 64))  # some prompts are hard for every method
    mine, other = hard * 0.9 * random.normal(1, 0.01, (3, 64)), hard * random.normal(1, 0.01, (3, 64))
    low, high = interval(resample(mine))
    assert low < mine.mean() < high
    found = compare(*({seed: list(errors) for seed, errors in enumerate(rows)} for rows in (mine, other)))
    assert found["ratio"] == pytest.approx(0.9, abs=0.01) and found["ratio_low"] < 0.9 < found["ratio_high"] < 1
    assert found["difference_high"] < 0
    assert found["typical"] == pytest.approx(0.9, abs=0.01) and found["typical_low"] < 0.9 < found["typical_high"] < 1
    mine[:, 5] *= 1000  # one clip that went astray
    found = compare(*({seed: list(errors) for seed, errors in enumerate(rows)} for rows in (mine, other)))
    assert found["ratio"] > 2 and found["typical"] < 1.1
    mine[:, 5] /= 1000
    assert interval(resample(mine))[1] > interval(resample(other))[0]  # unpaired, they could not be told apart


def test_the_last_chunk_is_the_last_and_a_prompt_has_the_mean_of_its_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(split_prompts()[1][:2], seeds=2, chunks=3)
    assert [str(prompt) for prompt, _ in bench.cases] == 2 * [str(prompt) for prompt in split_prompts()[1][:2]]
    monkeypatch.setattr(Bench, "model", lambda *_: SimpleNamespace(preset=SimpleNamespace(chunk_frames=3)))
    monkeypatch.setattr(Bench, "reference", lambda *_: torch.zeros(4, 1, 9, 2, 2))
    right = torch.tensor([1.0, 1.0, 1.0, 0.0])
    monkeypatch.setattr(experiment, "judge", lambda *_: SimpleNamespace(digit=right, motion=right))
    latents = torch.zeros(4, 1, 9, 2, 2)
    latents[1, :, 6:] = 3.0
    found = bench.judge(latents, "natural")
    assert found["mse"] == [0, 1.5] and found["mse_last"] == [0, 4.5] and found["digit"] == [1, 0.5]


@pytest.mark.parametrize(
    ("name", "prompts", "static"),
    [
        ("published", 5, True),
        ("published_1_prompt", 1, True),
        ("published_dynamic", 5, False),
        ("published_dynamic_1_prompt", 1, False),
    ],
)
def test_the_published_method_has_the_prompts_its_name_says(
    name: str, prompts: int, static: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def calibration(count: int) -> Any:
        asked.append(min(count, 5))
        return SimpleNamespace(weights=lambda sizes: SimpleNamespace(values=[1.5, 0.5]))

    def quantize(
        tree: Any, names: Any, collect: Any, weights: Any, bits: int, its_static: bool, iterations: int
    ) -> int:
        assert (weights, bits, its_static, iterations) == ([1.5, 0.5], 4, static, 7)
        text, seeds = collect(tree)
        assert len(text) == prompts and list(seeds) == list(range(9, 9 + prompts))
        return 0

    monkeypatch.setattr(published, "quantize", quantize)
    monkeypatch.setattr(methods, "collect", lambda tree, setting, names, text, seeds: (text, seeds))
    text = torch.zeros(5, 3, CONFIG.text_dim)
    METHODS[name].build(Case(tiny_model(), text, (4, 4), 6, 9, 4, calibration, 7))
    assert asked == [prompts]


def test_a_method_without_calibration_is_compared_on_every_calibration_of_ours() -> None:
    def run(error: float) -> dict[str, Any]:
        return {**JUDGED, "mse": [error, error], "bytes": 1, "seconds": 1.0}

    results = {f"w8a8/twin/ours/{seed}": run(seed + 1.0) for seed in range(3)}
    results |= {"w8a8/twin/nearest/0": run(8.0), "w8a8/twin/gptq/0": run(8.0)}
    rows = {row["method"]: row for row in summarise(results, dict.fromkeys(MODELS, JUDGED))["w8a8"]}
    assert rows["nearest"]["ours_against_it"]["ratio"] == 2 / 8
    assert rows["gptq"]["ours_against_it"]["ratio"] == 1 / 8  # of the seed that both have


def test_means_of_few_seeds_vary_as_those_of_so_many_seeds_do() -> None:
    random = np.random.default_rng(1)
    drawn = random.normal(5, 1, (400, 3, 1)).repeat(2, axis=2)  # all prompts alike: the seeds alone tell
    spread = np.mean([resample(values).var() for values in drawn])
    assert spread == pytest.approx(1 / 3, rel=0.1)  # a third less without the correction
    drawn = random.normal(5, 1, (100, 3, 16))  # of a mean of 48
    spread = np.mean([resample(values).var() for values in drawn])
    assert 1 / 48 < spread < 2.2 / 48
    one = random.normal(5, 1, (1, 16))
    assert resample(one).var() == pytest.approx(one.var() / 16, rel=0.1)


def test_seeds_that_one_method_lacks_are_not_compared() -> None:
    mine, other = {0: [1.0, 2.0], 2: [9.0, 9.0], 1: [2.0, 4.0]}, {1: [4.0, 8.0]}
    assert compare(mine, other)["ratio"] == 0.5


def test_a_row_says_what_its_runs_measured() -> None:
    run = {key: [0.5] * 4 for key in ("mse", "mse_last", "digit", "motion")} | {"bytes": 7, "seconds": 2.0}
    row = entry("x", "twin", [{**run, "seconds": 5.0}, run], {"digit": [0.75] * 4, "motion": [0.4] * 4}, peak=5.0)
    assert (row["mse"], row["mse_low"], row["mse_high"]) == (0.5, 0.5, 0.5)
    assert row["psnr_db"] == pytest.approx(10 * np.log10(50), rel=1e-3)
    assert (row["digit_loss_points"], row["motion_loss_points"], row["motion_loss_high"]) == (25, -10, -10)
    assert (row["bytes"], row["seconds"], row["calibration_seeds"]) == (7, 2, 2)


@pytest.mark.parametrize(
    ("ratio", "written"), [(1.2, "1.20"), (0.996, "1.00"), (0.0996, "0.10"), (0.097, "0.097"), (0.04, "0.040")]
)
def test_a_ratio_is_written_with_two_digits_or_more(ratio: float, written: str) -> None:
    assert times(ratio) == written
