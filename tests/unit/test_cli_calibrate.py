"""`calibrate`, and `quantize` with prompts or statistics: they agree, and answer bad input before any work."""

import re
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny.commands import CLIP, PROMPTS, Run, texts
from tiny.model import CONFIG, tiny_model

import qarvd.cli.calibrate as calibrate_verb
from qarvd.calibrate import calibration
from qarvd.checkpoint.calibration import load_calibration
from qarvd.checkpoint.model import Model, load, save
from qarvd.cli import main
from qarvd.demo import prompts as demo_prompts
from qarvd.errors import CheckpointError
from qarvd.jobs import time_budget
from qarvd.jobs.calibrate import CalibrationPlan, calibrate
from qarvd.ops.linear import QuantizedLinear
from qarvd.quantize.model import quantize_tree
from qarvd.recipe import RECIPES


def test_statistics_and_their_prompts_give_the_same_linears(
    run: Run, model_file: Path, prompts: Path, tmp_path: Path
) -> None:
    stats, by_stats, by_prompts = (tmp_path / f"{name}.safetensors" for name in ("stats", "a", "b"))
    said = run("calibrate", model_file, "--prompts", prompts, *CLIP, "--out", stats)
    assert re.search(r"chunk +weight +95 % from +to\n1( +[\d.]+){3}\n2( +[\d.]+){3}\n", said)
    assert re.search(rf"measured on {PROMPTS} prompts; intervals reach at most \d+% from their weights", said)
    assert load_calibration(stats).errors.shape == (PROMPTS, 2, 2)
    run("quantize", model_file, "--recipe", "w4a8", "--stats", stats, "--out", by_stats)
    run("quantize", model_file, "--recipe", "w4a8", "--prompts", prompts, *CLIP, "--out", by_prompts)
    ours, theirs = load_file(by_stats), load_file(by_prompts)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert load(by_stats).notes == load(by_prompts).notes
    assert not list(tmp_path.glob("*.work"))


@pytest.mark.parametrize("verb", ["calibrate", "quantize"])
@pytest.mark.parametrize(
    ("options", "taken"), [((), 4), (("--budget-minutes", 500), PROMPTS), (("--budget-minutes", 0), PROMPTS)], ids=str
)
def test_half_an_hour_is_kept_unless_another_time_is_given(
    run: Run,
    model_file: Path,
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    options: tuple[object, ...],
    taken: int,
) -> None:
    looked = count()
    monkeypatch.setattr(calibration, "BATCH_TOKENS", 1)
    monkeypatch.setattr(time_budget, "time", SimpleNamespace(monotonic=lambda: 60 * next(looked)))
    if verb == "quantize":
        options += ("--rounding", "nearest")  # the fastest
    said = run(verb, model_file, "--prompts", prompts, *CLIP, *options, "--out", tmp_path / "a.safetensors")
    few = f"{taken} of {PROMPTS} prompts fit into 30 minutes; a larger --budget-minutes takes more, and 0 takes all."
    assert (few in said) == (taken < PROMPTS)


def test_without_prompts_a_real_model_is_rounded_without_data_and_that_is_said(
    run: Run, model_file: Path, tmp_path: Path
) -> None:
    said = run("quantize", model_file, "--recipe", "w4a8", "--out", tmp_path / "a.safetensors")
    assert "No prompts were given, so weights are rounded to nearest without calibration. --prompts" in said
    model = load(model_file)
    model.tree.float()
    quantize_tree(model.tree, CONFIG.num_layers, RECIPES["w4a8"].without_data())
    written = load(tmp_path / "a.safetensors")
    assert written.recipe == RECIPES["w4a8"].without_data()
    made, expected = (m.tree.get_submodule("blocks.1.ffn.2") for m in (written, model))
    assert isinstance(made, QuantizedLinear) and isinstance(expected, QuantizedLinear)
    assert torch.equal(made.weight.codes, expected.weight.codes)
    assert "No prompts" not in run("quantize", model_file, "--data-free", "--out", tmp_path / "a.safetensors")


@pytest.mark.parametrize("verb", ["calibrate", "quantize"])
@pytest.mark.usefixtures("no_work")
def test_prompts_that_do_not_fit_the_model_are_refused_before_any_work(
    refused: Run, model_file: Path, prompts: Path, out: Path, tmp_path: Path, verb: str
) -> None:
    def said(path: Path, *more: object) -> str:
        return refused(verb, model_file, "--prompts", path, *CLIP, "--out", out, *more)

    text = tmp_path / "prompts.txt"
    text.write_text("a cat on a sofa\n" * 8)
    assert "is text, but this model takes encoded prompts: `python -m qarvd encode` makes" in said(text)
    assert "There is no file" in said(tmp_path / "nowhere.txt")
    assert "is a folder; a file was expected" in said(tmp_path)
    assert "at most 4 tokens, 16" in said(texts(prompts, PROMPTS, 3, 32))
    assert "at most 4 tokens, 16" in said(texts(prompts, PROMPTS, 5, 16))
    assert "[prompts, tokens, text_dim] was expected" in said(texts(prompts, 3, 16))
    assert "holds 3 prompts; calibration needs at least 4" in said(texts(prompts, 3, 3, 16))
    assert "which is empty" in said(texts(prompts, 0, 3, 16))
    save_file({"text_embeds": torch.full((PROMPTS, 3, 16), torch.inf)}, prompts)
    assert "with NaN or infinite values" in said(prompts)
    prompts.write_bytes(prompts.read_bytes()[:100])
    assert "truncated" in said(prompts)


@pytest.mark.usefixtures("no_work")
def test_a_bad_list_of_demo_prompts_is_refused_before_any_work(refused: Run, out: Path, tmp_path: Path) -> None:
    text = tmp_path / "prompts.txt"
    for content, expected in (
        (b"", "holds no prompts; write one a line"),
        (b"\n  \n", "holds no prompts"),
        (b"a 7 moving left\n", "holds 1 prompt; calibration needs at least 4"),
        (b"a 7 moving left\n" * 3, "holds 3 prompts; calibration needs at least 4"),
        (b"a 7 moving left\n" * 4 + b"a cat\n", "does not understand 'a cat'"),
        (b"\xff\xfe\x00", "not a text file in UTF-8"),
    ):
        text.write_bytes(content)
        assert expected in refused("quantize", "demo", "--prompts", text, "--out", out)
    save_file({"text_embeds": torch.zeros(4, 4, 64)}, tmp_path / "prompts.safetensors")
    said = refused("quantize", "demo", "--prompts", tmp_path / "prompts.safetensors", "--out", out)
    assert "takes prompts as text, one a line" in said


def test_a_list_of_demo_prompts_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    text = tmp_path / "prompts.txt"
    text.write_text("\ufeffa 7 moving left\n\n", encoding="utf-8")
    expected = calibrate_verb.bundle.embed([demo_prompts.parse("a 7 moving left")])
    assert torch.equal(calibrate_verb.read_prompts(text, demo=True), expected)


def test_statistics_that_do_not_fit_are_refused_and_leave_nothing(
    run: Run, refused: Run, model_file: Path, prompts: Path, out: Path, tmp_path: Path
) -> None:
    stats = tmp_path / "stats.safetensors"
    run("calibrate", model_file, "--prompts", prompts, *CLIP, "--out", stats)
    other = tiny_model()
    other.tree.get_parameter("blocks.0.ffn.0.bias")[0] += 1
    save(other, tmp_path / "other.safetensors")
    assert "another model" in refused("quantize", tmp_path / "other.safetensors", "--stats", stats, "--out", out)
    save(replace(tiny_model(), preset_name="longlive"), tmp_path / "family.safetensors")
    said = refused("quantize", tmp_path / "family.safetensors", "--stats", stats, "--out", out)
    assert "those of another family, self-forcing; calibrate this model as longlive" in said
    assert "no calibration statistics" in refused("quantize", model_file, "--stats", model_file, "--out", out)
    assert "There is no file" in refused("quantize", model_file, "--stats", tmp_path / "no", "--out", out)
    stats.write_bytes(stats.read_bytes()[:-9])
    assert "not a whole safetensors file" in refused("quantize", model_file, "--stats", stats, "--out", out)
    assert not list(tmp_path.glob("*.work"))


def test_a_weight_that_is_not_finite_is_named(
    refused: Run, model: Model, prompts: Path, out: Path, tmp_path: Path
) -> None:
    model.tree.get_parameter("blocks.1.cross_attn.k.weight")[3, 5] = torch.nan
    path = tmp_path / "nan.safetensors"
    save(model, path)
    for verb in ("calibrate", "quantize"):
        said = refused(verb, path, "--prompts", prompts, *CLIP, "--out", out)
        assert "blocks.1.cross_attn.k.weight holds NaN or infinite" in said


def overflowing(model: Model) -> Model:
    """Finite everywhere, but the sums of the last linear are beyond float32."""
    model.tree.get_parameter("blocks.1.ffn.0.bias").fill_(3e38)
    return model


@pytest.mark.parametrize("verb", ["calibrate", "quantize"])
def test_inputs_that_overflow_in_calibration_name_the_layer(
    refused: Run, model: Model, prompts: Path, out: Path, tmp_path: Path, verb: str
) -> None:
    path = tmp_path / "loud.safetensors"
    save(overflowing(model), path)
    said = refused(verb, path, "--prompts", prompts, *CLIP, "--out", out)
    assert "The output of blocks.1.ffn.2 became NaN or infinite in calibration" in said
    assert not list(tmp_path.glob("*.work"))


def test_the_layer_that_overflows_is_named_without_measuring_too(model: Model) -> None:
    recipe = RECIPES["w4a8"].without_data()
    with pytest.raises(CheckpointError, match=r"output of blocks\.1\.ffn\.2 became NaN"):
        calibrate(overflowing(model), torch.zeros(1, 3, CONFIG.text_dim), CalibrationPlan((4, 6), 3, recipe))
    assert not any(module._forward_hooks for module in model.tree.modules())


def test_an_interrupted_run_is_only_taken_up_when_asked_and_with_its_own_arguments(
    run: Run,
    refused: Run,
    model_file: Path,
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(calibrate_verb, "pick_device", lambda name: torch.device("cpu" if name == "auto" else name))
    out, work = tmp_path / "a.safetensors", tmp_path / "a.safetensors.work"
    command = ("calibrate", model_file, "--prompts", prompts, *CLIP, "--out", out)
    with monkeypatch.context() as patch:
        patch.setattr(calibrate_verb, "save_calibration", stopped)
        assert main([str(a) for a in command]) == 130
    assert "qarvd: stopped; the same command with --resume continues" in capsys.readouterr().err
    assert sorted(path.name for path in work.glob("*.*")) == [
        *("about.json", "batch-0000.safetensors", "calls.json", "spent.json")
    ]
    assert "the finished parts of an interrupted run. Add --resume to continue it, or delete the folder." in refused(
        *command
    )
    for more, different in (
        (("--seed", 1), "seed"),
        (("--device", "meta"), "device"),
        (("--recipe", "w8a8", "--reach", "full"), "reach, recipe"),
        (("--chunks", 3), "frames"),
        (("--size", "32x48"), "size"),
        (("--prompts", texts(tmp_path / "others.safetensors", PROMPTS, 3, 16, seed=9)), "prompts"),
    ):
        assert f"is from a run with other settings ({different} differ)" in refused(*command, *more, "--resume")
    save(replace(tiny_model(), preset_name="longlive"), model_file)
    assert "is from a run with other settings (preset differ)" in refused(*command, "--resume")
    save(tiny_model(), model_file)
    with monkeypatch.context() as patch:
        patch.setattr(calibrate_verb, "__version__", "0.0.0")
        assert "is from a run with other settings (qarvd differ)" in refused(*command, "--resume")
    assert "recipe, verb differ" in refused("quantize", *command[1:], "--recipe", "w8a8", "--resume")
    assert f"Resuming from {work}." in run(*command, "--resume")
    assert out.is_file() and not work.exists()
    assert "There is nothing to resume" in run(*command, "--resume")
    assert "resume" not in run(*command)


def stopped(*arguments: object) -> None:
    raise KeyboardInterrupt


def test_a_folder_of_other_files_is_not_taken_for_finished_parts(
    refused: Run, model_file: Path, prompts: Path, out: Path, tmp_path: Path
) -> None:
    work = tmp_path / "out.safetensors.work"
    work.mkdir()
    (work / "letter.txt").write_text("mine")
    said = refused("calibrate", model_file, "--prompts", prompts, *CLIP, "--out", out)
    assert f"{work} already exists and is not from an interrupted run" in said
