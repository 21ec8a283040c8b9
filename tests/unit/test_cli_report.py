"""`report` shows what the files say and what streaming them gives, and answers bad input with one sentence."""

import copy
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from qarvd.calibrate.frame_weights import FrameWeights
from qarvd.checkpoint.model import Model, load, save
from qarvd.cli import main
from qarvd.cli.common import load_model
from qarvd.jobs.quantize import quantize
from qarvd.ops.weight import QuantizedWeight
from qarvd.quantize.model import LayerReport, linear_groups, linear_of, relative_error
from qarvd.quantize.outliers import column_norms, detect
from qarvd.recipe import RECIPES
from qarvd.report.numerals import number_text
from qarvd.wan.tree import WanTree

LAYERS = [name for names in linear_groups(2) for name in names]
"""Of the tiny model."""
W4 = RECIPES["w4a8"].without_data()
Run = Callable[..., str]


@pytest.fixture
def small(model: Model, tmp_path: Path) -> Path:
    """The tiny model in 4 bits, without data."""
    return quantized(model, tmp_path / "small.safetensors")[0]


@pytest.fixture
def text(embeddings: Tensor, tmp_path: Path) -> Path:
    """Two prompts."""
    path = tmp_path / "text.safetensors"
    save_file({"text_embeds": torch.cat([embeddings, -embeddings])}, path)
    return path


@pytest.fixture
def report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Write a report, which must succeed, and give the page."""

    def command(*arguments: object) -> str:
        out = tmp_path / "report.html"
        code = main(["report", *map(str, arguments), "--out", str(out)])
        assert code == 0, capsys.readouterr().err
        return out.read_text(encoding="utf-8")

    return command


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Ask for a report, which must be refused and leave an earlier one as it was, and give the sentence."""

    def command(*arguments: object) -> str:
        out = tmp_path / "report.html"
        out.write_bytes(b"precious")
        before = sorted(tmp_path.iterdir())
        assert main(["report", "--out", str(out), *map(str, arguments)]) == 2
        assert out.read_bytes() == b"precious" and sorted(tmp_path.iterdir()) == before
        said = capsys.readouterr().err.split("\r")[-1].strip()
        assert said.startswith("qarvd: ") and said.endswith(".") and "\n" not in said
        return said

    return command


def quantized(model: Model, path: Path, **changes: object) -> tuple[Path, list[LayerReport]]:
    """Quantize a copy of `model` and write it with some of its notes changed."""
    found, reports = quantize(copied(model), W4)
    save(replace(found, notes={**found.notes, **changes}), path)
    return path, reports


def copied(model: Model) -> Model:
    return replace(model, tree=copy.deepcopy(model.tree))


def measured() -> FrameWeights:
    """Weights of three chunks from eight prompts."""
    errors = torch.rand(8, 3, 3, generator=torch.Generator().manual_seed(0)).triu() + torch.eye(3)
    return FrameWeights.from_errors(errors.double(), (3, 3, 3))


def hovers(page: str) -> list[str]:
    return [unescape(told) for told in re.findall(r"<title>([^<]*)</title>", page)]


def test_the_page_tells_each_layers_outliers_threshold_and_error(
    report: Run, model_file: Path, model: Model, tmp_path: Path
) -> None:
    path, reports = quantized(model, tmp_path / "small.safetensors")
    told = hovers(report(model_file, path))
    for r in reports:
        error = f"relative squared error {number_text(r.relative_error)}"
        assert f"{r.name}: {'kept in 16 bits' if r.kept else error}" in told
    full = load(model_file)
    weights = [linear_of(full.tree, f"blocks.1.self_attn.{name}").weight for name in "qkv"]
    norms = column_norms(*weights)
    limit = detect(norms).threshold
    above = int((norms > limit).sum())
    assert above == 3  # the planted ones
    count = next(r.n_outlier for r in reports if r.name == "blocks.1.self_attn.q")
    assert f"blocks.1.self_attn.q, k, v: {count} of 64 channels; 3 above the threshold {limit:.4g}" in told


def test_errors_that_a_file_does_not_tell_are_measured_on_its_weights(
    report: Run, model_file: Path, model: Model, tmp_path: Path
) -> None:
    path, _ = quantized(model, tmp_path / "small.safetensors", layers={})
    weights = [load(file).tree.get_submodule("blocks.1.ffn.0").weight for file in (model_file, path)]
    assert isinstance(weights[0], Tensor) and isinstance(weights[1], QuantizedWeight)
    error = number_text(relative_error(weights[0], weights[1].dequantize()))
    assert f"blocks.1.ffn.0: relative squared error {error}" in hovers(report(model_file, path))


def test_a_file_without_frame_weights_says_so_and_without_a_prompt_streaming_is_left_out(
    report: Run, model_file: Path, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = report(model_file, small)
    assert "Chunks were not measured for small." in page and "relative squared error of the weight" in page
    assert "No prompt was given" in page and "Drift" not in page and "<img" not in page
    assert "--prompt" in capsys.readouterr().err


def test_measured_chunks_and_output_errors_are_those_of_the_file(
    report: Run, model_file: Path, model: Model, tmp_path: Path
) -> None:
    weights = measured()
    path, reports = quantized(model, tmp_path / "a.safetensors", frame_weights=json.loads(weights.to_json()))
    told = hovers(report(model_file, path))
    points = zip(weights.sensitivity, weights.low, weights.high, strict=True)
    for chunk, (share, low, high) in enumerate(points, 1):
        assert f"measured, chunk {chunk}: {share:.4g} [{low:.4g}, {high:.4g}]" in told
    assert f"measured, chunk 3: {weights.per_affected[2]:.4g}" in told

    layers = {r.name: {"output_error": 0.5 + index} for index, r in enumerate(reports)}
    path, _ = quantized(model, tmp_path / "b.safetensors", layers=layers)
    page = report(model_file, path)
    assert "relative squared error of the output" in page
    assert f"{LAYERS[-1]}: relative squared error {len(LAYERS) - 0.5:.4g}" in hovers(page)


def test_frame_weights_that_were_not_measured_are_not_shown(
    report: Run, model_file: Path, model: Model, tmp_path: Path
) -> None:
    uniform = json.loads(FrameWeights.uniform((3, 3)).to_json())
    path, _ = quantized(model, tmp_path / "a.safetensors", frame_weights=uniform)
    assert "Chunks were not measured for a." in report(model_file, path)


def test_full_and_quantized_stream_the_same_noise(
    report: Run, model_file: Path, model: Model, small: Path, text: Path, tmp_path: Path
) -> None:
    kept, _ = quantize(model, replace(W4, keep=tuple(LAYERS)))
    save(kept, tmp_path / "kept.safetensors")
    start = [model_file, small, tmp_path / "kept.safetensors"]
    page = report(*start, "--prompt", text, "--size", "48x32", "--chunks", 2)
    points = [told for told in hovers(page) if told.startswith(("small, chunk", "kept, chunk"))]
    assert [told.partition(":")[0] for told in points] == ["small, chunk 1", "small, chunk 2"]  # no error, no point
    assert all(float(told.split()[-1]) > 0 for told in points)
    assert re.search(r">kept</th>.*<td class=\"number\">0</td><td class=\"number\">0</td></tr>", page)
    assert page.count("<img") == 1 and "2 clips" in page and "text 1; text 2" in page and "No prompt" not in page


def test_methods_are_listed_where_they_are_given(report: Run, model_file: Path, small: Path, tmp_path: Path) -> None:
    entry = {"method": "a method", "model": "twin", "mse": 0.5, "mse_low": 0.4, "mse_high": 0.6, "bytes": 10}
    quality = tmp_path / "quality.json"
    quality.write_text(json.dumps({"w4a8": [entry], "clips": 64}), encoding="utf-8")
    page = report(model_file, small, "--quality", quality)
    assert "a method" in page and "0.4 to 0.6" in page
    assert "Methods" not in report(model_file, small)


def test_files_of_one_name_are_told_apart(report: Run, model_file: Path, small: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    twin = tmp_path / "other" / small.name
    twin.write_bytes(small.read_bytes())
    page = report(model_file, small, twin)
    assert f"Outlier channels, {small}<" in page and f"Outlier channels, {twin}<" in page


def test_the_page_needs_nothing_from_anywhere(report: Run, model_file: Path, small: Path, text: Path) -> None:
    page = report(model_file, small, "--prompt", text, "--size", "32x32", "--chunks", 1)
    foreign = re.findall(r"(?:https?:)?//[a-z][^\s\"'<>)]*", re.sub(r"base64,[A-Za-z0-9+/=]*", "", page))
    assert set(foreign) == {"http://www.w3.org/2000/svg"} and "<script" not in page and "<link" not in page


def wider(model: Model, path: Path) -> None:
    config = replace(model.config, ffn_dim=192)
    tree = WanTree(config).requires_grad_(False)
    dtypes = {key: torch.float32 for key in tree.state_dict()}
    quantized(Model(tree, config, model.preset_name, dtypes), path)


def of_another_family(model: Model, path: Path) -> None:
    quantized(replace(model, preset_name="causvid"), path)


def retrained(model: Model, path: Path) -> None:
    other = copied(model)
    other.tree.patch_embedding.weight.add_(0.1)
    quantized(other, path)


def noted(**notes: object) -> Callable[[Model, Path], object]:
    """A quantized file with these notes."""
    return lambda model, path: quantized(model, path, **notes)


BAD_FILES: dict[str, tuple[Callable[[Model, Path], object], str]] = {
    "other shapes": (wider, "is of another model"),
    "other family": (of_another_family, "is of another model"),
    "other weights": (retrained, "another checkpoint"),
    "damaged notes": (noted(layers=[3]), "notes of"),
    "damaged notes of a layer": (noted(layers={LAYERS[-1]: 3}), "notes of"),
    "damaged weights": (noted(frame_weights={"low": 3}), "frame weights"),
    "no weights": (noted(frame_weights={}), "frame weights"),
    "missing": (lambda model, path: None, "There is no file"),
}


@pytest.mark.parametrize("bad", BAD_FILES)
def test_a_file_that_is_not_a_quantized_twin_of_the_full_one_is_refused(
    refused: Run, model_file: Path, model: Model, small: Path, tmp_path: Path, bad: str
) -> None:
    make, expected = BAD_FILES[bad]
    path = tmp_path / "bad.safetensors"
    make(model, path)
    said = refused(model_file, small, path)
    assert expected in said and "bad.safetensors" in said


def test_full_and_quantized_in_the_wrong_places_are_refused(refused: Run, model_file: Path, small: Path) -> None:
    assert "start from the full-precision checkpoint" in refused(small, small)
    assert "is not quantized" in refused(model_file, model_file)
    assert "given twice" in refused(model_file, small, small)


BAD_OPTIONS: dict[str, tuple[list[str], str]] = {
    "no quality": (["--quality", "nowhere.json"], "There is no file"),
    "bad quality": (["--quality", "bad.json"], "bad.json"),
    "binary quality": (["--quality", "binary.json"], "UTF-8"),
    "chunks": (["--chunks", "0"], "--chunks must be at least 1"),
    "text": (["--prompt", "a cat"], "`python -m qarvd encode` makes"),
    "size": (["--prompt", "text.safetensors", "--size", "large"], "not WIDTHxHEIGHT in pixels"),
    "prompts of two shapes": (["--prompt", "text.safetensors", "--prompt", "short.safetensors"], "different shapes"),
    "device": (["--prompt", "text.safetensors", "--device", "abacus"], "abacus"),
}


@pytest.mark.parametrize("bad", BAD_OPTIONS)
def test_a_bad_option_is_refused(
    refused: Run, model_file: Path, small: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.json").write_text('{"w4a8": [1]}')
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\xfa")
    save_file({"text_embeds": torch.zeros(1, 2, 16)}, tmp_path / "short.safetensors")
    options, expected = BAD_OPTIONS[bad]
    assert expected in refused(model_file, small, *options)


def test_a_page_that_could_not_be_written_is_refused_before_the_work(
    model_file: Path, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("qarvd.cli.report.load_model", lambda *_: pytest.fail("the work began"))
    for out, expected in ((tmp_path / "a.pdf", "must end in .html"), (small / "a.html", "choose another folder")):
        assert main(["report", str(model_file), str(small), "--out", str(out)]) == 2
        assert expected in capsys.readouterr().err


def test_the_bundled_demo_is_streamed_on_its_own_prompts(report: Run, tmp_path: Path) -> None:
    path, _ = quantized(load_model("demo"), tmp_path / "w4.safetensors")
    page = report("demo", path, "--chunks", 1)
    assert "over 16 clips" in page and "a 6 moving down slow from the middle" in page and page.count("<img") == 1
    page = report("demo", path, "--chunks", 1, "--prompt", "a 7 moving left", "--prompt", "a 3 moving up fast")
    assert "over 2 clips" in page and "a 7 moving left slow from the middle; a 3 moving up fast from the middle" in page
