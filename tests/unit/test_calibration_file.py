"""A file of statistics gives back what was saved, and any other file is refused in a sentence."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny.model import CONFIG, tiny_model
from torch import Tensor

from qarvd.calibrate.calibration import Calibration
from qarvd.checkpoint.calibration import load_calibration, save_calibration
from qarvd.checkpoint.read import STATISTICS
from qarvd.errors import CheckpointError, QarvdError, SettingError
from qarvd.jobs.calibrate import CalibrationPlan, calibrate, identity
from qarvd.jobs.quantize import quantize
from qarvd.recipe import RECIPES

RECIPE = RECIPES["w4a8"]
SIZE, FRAMES = (4, 6), 5
"""Two chunks, of three and of two frames."""
Change = Callable[[dict[str, Any], dict[str, Tensor]], object]


def texts(seed: int, prompts: int = 4) -> Tensor:
    return torch.randn(prompts, 3, CONFIG.text_dim, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def made() -> Calibration:
    return calibrate(tiny_model(), texts(1), CalibrationPlan(SIZE, FRAMES, RECIPE))


@pytest.fixture(scope="module")
def other() -> Calibration:
    """Of the same model and other prompts."""
    return calibrate(tiny_model(), texts(2), CalibrationPlan(SIZE, FRAMES, RECIPE, seed=50))


@pytest.fixture
def stored(made: Calibration, tmp_path: Path) -> Path:
    path = tmp_path / "stats.safetensors"
    save_calibration(made, path)
    return path


def contents(calibration: Calibration) -> tuple[dict[str, Tensor], object]:
    """All that there is to it: tensors, and the rest."""
    tensors, calls = {"errors": calibration.errors, "call_errors": calibration.call_errors}, []
    for i, rollout in enumerate(calibration.rollouts):
        tensors[f"{i}"] = rollout.embeddings
        for j, call in enumerate(rollout.calls):
            tensors[f"{i}.{j}"] = call.latents
            calls.append((i, j, call.chunk, call.step, call.timestep, call.start))
    c = calibration
    return tensors, (c.model, c.preset_name, c.size, c.frames, c.horizon, c.measured_as, calls)


def same(a: Calibration, b: Calibration) -> bool:
    ours, theirs = contents(a), contents(b)
    return ours[1] == theirs[1] and all(
        torch.equal(ours[0][key], theirs[0][key]) and ours[0][key].dtype == theirs[0][key].dtype
        for key in {*ours[0], *theirs[0]}
    )


def test_saving_and_loading_gives_back_every_bit(made: Calibration, other: Calibration, tmp_path: Path) -> None:
    halved = [replace(r, embeddings=r.embeddings.bfloat16()) for r in other.rollouts]
    for calibration in (made, made + other, replace(other, rollouts=tuple(halved), errors=other.errors[:0])):
        save_calibration(calibration, tmp_path / "a.safetensors")
        assert same(load_calibration(tmp_path / "a.safetensors"), calibration)


def test_older_statistics_do_not_say_how_they_were_measured(made: Calibration, stored: Path) -> None:
    assert made.measured_as == RECIPE.without_data()
    older = load_calibration(rewritten(stored, lambda about, tensors: about.pop("measured_as")))
    assert older.measured_as is None and same(replace(older, measured_as=made.measured_as), made)


def test_a_quantized_model_notes_what_was_measured_and_how_far(made: Calibration) -> None:
    for calibration in (made, replace(made, measured_as=None)):
        found, _ = quantize(tiny_model(), RECIPE, calibration)
        notes: Any = found.notes["calibration"]
        assert notes["reach"] == (2, 1) and (notes["measured_as"] is None) == (calibration.measured_as is None)
        assert notes["measured_as"] is None or notes["measured_as"]["weight_bits"] == 4


def test_the_same_statistics_are_the_same_bytes(made: Calibration, stored: Path, tmp_path: Path) -> None:
    save_calibration(load_calibration(stored), tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == stored.read_bytes()


def test_calibrations_of_different_prompts_add_up(made: Calibration, other: Calibration) -> None:
    both = made + other
    assert both.prompts == made.prompts + other.prompts == 8
    assert both.rollouts == made.rollouts + other.rollouts
    assert torch.equal(both.errors, torch.cat([made.errors, other.errors]))
    chunk_frames, shares = (3, 2), []
    for calibration in (made, other, both):
        shares.append(torch.tensor(calibration.weights(chunk_frames).sensitivity))
    assert ((shares[2] - shares[0]) * (shares[2] - shares[1]) <= 0).all()  # between the two


OTHERS: dict[str, dict[str, Any]] = {
    "model": {"model": "0" * 64},
    "preset": {"preset_name": "longlive"},
    "size": {"size": (6, 4)},
    "frames": {"frames": 6},
    "horizon": {"horizon": (1, 1)},
    "bits": {"measured_as": RECIPES["w8a8"].without_data()},
    "nobody knows how": {"measured_as": None},
}


@pytest.mark.parametrize("what", OTHERS)
def test_calibrations_that_differ_do_not_add_up(made: Calibration, other: Calibration, what: str) -> None:
    with pytest.raises(SettingError, match="can't be merged"):
        _ = made + replace(other, **OTHERS[what])


@pytest.mark.parametrize("what", ["model", "preset"])
def test_statistics_of_another_model_are_refused(made: Calibration, what: str) -> None:
    with pytest.raises(SettingError, match=r"another (model|family).*; calibrate this"):
        quantize(tiny_model(), RECIPE, replace(made, **OTHERS[what]))


def test_a_model_that_differs_by_a_little_is_another_model(made: Calibration) -> None:
    model = tiny_model()
    model.tree.get_parameter("blocks.1.ffn.0.bias")[7] *= 1.01
    with pytest.raises(SettingError, match="another model"):
        quantize(model, RECIPE, made)


def test_statistics_serve_a_model_that_computes_in_another_dtype(made: Calibration) -> None:
    model = tiny_model()
    model.tree.bfloat16()
    assert identity(model) == made.model
    _, reports = quantize(model, RECIPE, made)
    assert all(report.output_error is None or report.output_error < 0.2 for report in reports)

    model = tiny_model()
    model.tree.bfloat16()
    coarse = calibrate(model, texts(1), CalibrationPlan(SIZE, FRAMES, RECIPE))
    assert coarse.rollouts[0].calls[0].latents.dtype == torch.bfloat16
    quantize(tiny_model(), RECIPE, coarse)


def test_latents_or_texts_of_another_width_are_refused(made: Calibration) -> None:
    rollout = made.rollouts[0]
    narrow = replace(rollout, calls=tuple(replace(c, latents=c.latents[:, :8]) for c in rollout.calls))
    wordy = replace(rollout, embeddings=torch.zeros(4, 9, CONFIG.text_dim))
    for wrong, why in ((narrow, "channels than 16"), (wordy, "at most 4 tokens")):
        with pytest.raises(QarvdError, match=why):
            quantize(tiny_model(), RECIPE, replace(made, rollouts=(wrong,)))


def rewritten(path: Path, change: Change) -> Path:
    """The file with its metadata and tensors changed."""
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()[STATISTICS])
    tensors = load_file(path)
    change(about, tensors)
    save_file(tensors, path, {STATISTICS: json.dumps(about)})
    return path


def call(about: Mapping[str, Any], position: int, value: object, number: int = 0) -> None:
    about["calls"][0][number][position] = value


def fill(tensors: dict[str, Tensor], key: str, value: float) -> None:
    tensors[key].flatten()[3] = value


def without_calls_of(chunk: int) -> Change:
    def change(about: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        kept = [(c, tensors[f"rollouts.0.calls.{j}"]) for j, c in enumerate(about["calls"][0]) if c[0] != chunk]
        about["calls"][0] = [c for c, _ in kept]
        tensors.update({f"rollouts.0.calls.{j}": latents for j, (_, latents) in enumerate(kept)})

    return change


TEXT, CALL = "rollouts.0.text_embeds", "rollouts.0.calls.2"
DAMAGES: dict[str, tuple[Change, str]] = {
    "format": (lambda a, t: a["versions"].update(format=2), "of format 2, this version reads 1"),
    "no format": (lambda a, t: a["versions"].clear(), "'format' is missing"),
    "versions": (lambda a, t: a.update(versions=3), "not subscriptable"),
    "no calls": (lambda a, t: a.pop("calls"), "'calls' is missing"),
    "no roll-outs": (lambda a, t: a.update(calls=[]), "hold no roll-outs"),
    "calls in words": (lambda a, t: a.update(calls=["ab"]), "unpack"),
    "preset": (lambda a, t: a.update(preset="nobody"), "no preset 'nobody'"),
    "size": (lambda a, t: a.update(size=[4]), "unpack"),
    "size in words": (lambda a, t: a.update(size=["4", 6]), "not a whole number"),
    "other size": (lambda a, t: a.update(size=[6, 4]), "latents have shape"),
    "no frames": (lambda a, t: a.update(frames=0), "do not fit together"),
    "negative frames": (lambda a, t: a.update(frames=-5), "do not fit together"),
    "frames without end": (lambda a, t: a.update(frames=10**15), "do not fit together"),
    "infinite frames": (lambda a, t: a.update(frames=float("inf")), "not a whole number"),
    "reach": (lambda a, t: a.update(reach=[3, 1]), "the reach is"),
    "no reach": (lambda a, t: a.update(reach=[]), "do not fit together"),
    "negative chunk": (lambda a, t: call(a, 0, -1), "call of chunk -1"),
    "chunk too large": (lambda a, t: call(a, 0, 2), "call of chunk 2"),
    "chunk in between": (lambda a, t: call(a, 0, 0.5), "0.5 is not a whole number"),
    "negative start": (lambda a, t: call(a, 3, -3), "starts at frame -3"),
    "start too large": (lambda a, t: call(a, 3, 10**12), "starts at frame 1000000000000"),
    "start off the chunk": (lambda a, t: call(a, 3, 1), "starts at frame 1"),
    "negative timestep": (lambda a, t: call(a, 2, -1.0), "timestep -1"),
    "timestep too large": (lambda a, t: call(a, 2, 1000.5), "timestep 1000.5"),
    "timestep NaN": (lambda a, t: call(a, 2, float("nan")), "timestep nan"),
    "negative step": (lambda a, t: call(a, 1, -1), "of chunks and steps"),
    "step twice": (lambda a, t: call(a, 1, 1), "of chunks and steps"),
    "chunk left out": (without_calls_of(1), "calls are of chunks"),
    "chunks out of order": (
        lambda a, t: (
            call(a, 0, 1),
            call(a, 3, 3),
            t.update({"rollouts.0.calls.0": t["rollouts.0.calls.0"][:, :, :2].clone()}),
        ),
        "calls are of chunks",
    ),
    "texts missing": (lambda a, t: t.pop(TEXT), f"'{TEXT}' is missing"),
    "latents missing": (lambda a, t: t.pop(CALL), f"'{CALL}' is missing"),
    "errors missing": (lambda a, t: t.pop("errors"), "'errors' is missing"),
    "errors of calls missing": (lambda a, t: t.pop("call_errors"), "'call_errors' is missing"),
    "negative errors of calls": (lambda a, t: fill(t, "call_errors", -1.0), "errors of calls"),
    "errors of fewer calls": (lambda a, t: t.update(call_errors=t["call_errors"][..., :4].clone()), "errors of calls"),
    "errors of more chunks": (lambda a, t: t.update(call_errors=torch.zeros(4, 3, 5)), "errors of calls have shape"),
    "fewer steps": (lambda a, t: a["calls"][0].pop(), "calls are of chunks"),
    "another schedule": (lambda a, t: call(a, 2, 757.0, number=1), "timestep 757.0, its family's is 937"),
    "measured with another version": (lambda a, t: a.update(measured_as={"sorcery": 1}), "sorcery"),
    "NaN in latents": (lambda a, t: fill(t, CALL, torch.nan), "latents are not finite"),
    "infinite text": (lambda a, t: fill(t, TEXT, torch.inf), "text embeddings"),
    "NaN in errors": (lambda a, t: fill(t, "errors", torch.nan), "errors are not finite"),
    "negative errors": (lambda a, t: fill(t, "errors", -1.0), "errors are not finite, or negative"),
    "whole latents": (lambda a, t: t.update({CALL: t[CALL].int()}), "latents are not finite"),
    "flat latents": (lambda a, t: t.update({CALL: t[CALL].flatten()}), "latents have shape"),
    "fewer latents": (lambda a, t: t.update({CALL: t[CALL][:3].clone()}), "latents have shape"),
    "fewer frames": (lambda a, t: t.update({CALL: t[CALL][:, :, :2].clone()}), "latents have shape"),
    "no channels": (lambda a, t: t.update({CALL: t[CALL][:, :0].clone()}), "latents have shape"),
    "flat text": (lambda a, t: t.update({TEXT: t[TEXT][0].clone()}), "three axes"),
    "flat errors": (lambda a, t: t.update(errors=t["errors"][0].clone()), "errors have shape"),
    "more errors than prompts": (lambda a, t: t.update(errors=t["errors"].repeat(2, 1, 1)), "errors have shape"),
    "errors of other chunks": (lambda a, t: t.update(errors=torch.zeros(4, 3, 3)), "errors have shape"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_statistics_are_refused_with_what_is_wrong(stored: Path, damage: str) -> None:
    change, expected = DAMAGES[damage]
    with pytest.raises(CheckpointError) as caught:
        load_calibration(rewritten(stored, change))
    said = str(caught.value)
    assert str(stored) in said and expected in said and said.endswith("calibrate again.")


def test_other_files_are_refused(stored: Path, model_file: Path, tmp_path: Path) -> None:
    whole = stored.read_bytes()
    for size in (0, 5, 1000, len(whole) - 1):
        stored.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="not a whole safetensors file"):
            load_calibration(stored)
    with pytest.raises(CheckpointError, match="holds no calibration statistics"):
        load_calibration(model_file)
    save_file({"a": torch.zeros(1)}, stored, {STATISTICS: "{"})
    with pytest.raises(CheckpointError, match="cannot be used"):
        load_calibration(stored)
    for path in (tmp_path, tmp_path / "nowhere.safetensors"):
        with pytest.raises(CheckpointError, match="is a folder" if path == tmp_path else "There is no file"):
            load_calibration(path)
