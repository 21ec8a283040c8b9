"""What `calibrate`, `quantize` and `inspect` tell of what was measured and of what came of it."""

import re
from math import prod
from pathlib import Path
from typing import Any

import pytest
from tiny.commands import CLIP, PROMPTS, TEXT_DIM, Run, texts
from tiny.model import CONFIG

from qarvd import log
from qarvd.checkpoint.model import load
from qarvd.jobs import calibrate as calibrate_job
from qarvd.ops.backends.cpu import CPU
from qarvd.quantize.rounding.task import ENOUGH

FAST = ("--rounding", "nearest")


def test_statistics_are_inspected_and_not_taken_for_a_model(
    run: Run, refused: Run, model_file: Path, prompts: Path, text: Path, tmp_path: Path
) -> None:
    stats = tmp_path / "stats.safetensors"
    made = run("calibrate", model_file, "--prompts", prompts, *CLIP, "--out", stats)
    told = run("inspect", stats)
    assert "family self-forcing" in told and f"{PROMPTS} prompts, 6 latent frames of 48x32 pixels" in told
    assert "with 4-bit weights" in told and made[made.index("chunk  weight") : made.index("wrote")] in told
    for command in (
        ("quantize", stats, "--out", tmp_path / "a.safetensors"),
        ("stream", stats, "--prompt", text, "--out", tmp_path / "a.mp4"),
        *(("report", stats, stats, "--out", tmp_path / "a.html"), ("compare", stats, model_file)),
    ):
        assert "These are calibration statistics, not a model" in refused(*command)


def test_where_nothing_was_measured_nothing_is_said_of_it(
    run: Run, model_file: Path, prompts: Path, tmp_path: Path
) -> None:
    stats, out = tmp_path / "stats.safetensors", tmp_path / "a.safetensors"
    made = run("calibrate", model_file, "--prompts", prompts, *CLIP, "--chunks", 1, "--out", stats)
    told = run("inspect", stats)
    assert "measured    nothing" in told
    said = run("quantize", model_file, "--recipe", "w8a8", "--stats", stats, *FAST, "--out", out)
    assert not any("weight  95 %" in text or "4-bit" in text for text in (made, told, said))


def test_effects_that_are_measured_of_weights_alone_are_said_to_be(
    run: Run, model_file: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("calibrate", model_file, "--prompts", prompts, *CLIP, "--out", tmp_path / "stats.safetensors")
    caveat = "Activations cannot be quantized here"
    assert caveat not in run(*command)
    with monkeypatch.context() as patch:
        patch.setattr(calibrate_job, "WEIGHT_ONLY", CPU)  # as on a card without kernels
        patch.setattr(log, "_said", set())
        assert run(*command).count(caveat) == 1


def test_the_table_tells_output_errors_where_they_are_known(
    run: Run, model_file: Path, prompts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a.safetensors"

    def rows(*options: object) -> dict[str, list[str]]:
        lines = [line.split() for line in run("quantize", model_file, "--out", out, *options).splitlines()]
        return {words[0]: words for words in lines if words}

    found = rows("--prompts", prompts, *CLIP, *FAST)
    notes: Any = load(out).notes
    errors = [notes["layers"][f"blocks.{i}.ffn.2"]["output_error"] for i in range(CONFIG.num_layers)]
    assert float(found["ffn.2"][8]) == pytest.approx(sum(errors) / len(errors), rel=1e-3)
    assert rows("--data-free")["ffn.2"][8] == "-"


@pytest.mark.parametrize(("number", "few"), [(ENOUGH - 1, True), (ENOUGH, False)])
def test_few_prompts_are_told_by_whatever_calibrates(
    run: Run, model_file: Path, tmp_path: Path, number: int, few: bool
) -> None:
    prompts, stats, out = (tmp_path / f"{name}.safetensors" for name in ("prompts", "stats", "out"))
    texts(prompts, number, 3, TEXT_DIM)
    for said in (
        run("calibrate", model_file, "--prompts", prompts, *CLIP, "--chunks", 1, "--out", stats),
        run("quantize", model_file, "--stats", stats, *FAST, "--out", out),
    ):
        assert (f"Calibrated on {number} prompts; {ENOUGH} or more make a better model." in said) == few


def test_a_target_tells_the_bits_that_came_of_it(run: Run, model_file: Path, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    options = ("--recipe", "w4a8", *FAST, "--prompts", prompts, *CLIP, "--target", "7 bits")
    told = re.search(
        r"\n(\d+\.\d\d) bits a weight; estimated weighted error ", run("quantize", model_file, *options, "--out", out)
    )
    notes: Any = load(out).notes
    linears = notes["layers"].values()
    stored = 8 * sum(layer["nbytes"] for layer in linears) / sum(prod(layer["shape"]) for layer in linears)
    assert told and float(told[1]) == pytest.approx(stored, abs=0.006) and 5 < stored <= 7
