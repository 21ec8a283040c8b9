"""The library in three lines: what docs/python.md shows runs, and gives what the command line gives."""

import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny.commands import Run, played, texts
from tiny.model import CONFIG
from torch import Tensor

import qarvd
from qarvd import load, quantize, save, stream
from qarvd.checkpoint.model import Model, state_tensors
from qarvd.errors import CheckpointError, PromptError, SettingError, ShapeError
from qarvd.ops.backends import registry
from qarvd.ops.linear import QuantizedLinear
from qarvd.quantize.model import weight_bits
from qarvd.recipe import RECIPES, Recipe
from qarvd.stream import scale

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tiny(model_file: Path) -> Model:
    return load(model_file, device="cpu")


def latents(chunks: Iterator[Any]) -> Tensor:
    return torch.cat([chunk.latents for chunk in chunks], dim=2)


def test_the_documented_code_runs(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a tiny model, and tiny videos, for the real checkpoint that it names."""
    torch.save({"generator_ema": state_tensors(model)}, tmp_path / "self_forcing_dmd.pt")
    texts(tmp_path / "prompts.safetensors", 4, 3, CONFIG.text_dim)
    monkeypatch.setattr(scale, "USUAL", (32, 32))
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL)
    (tmp_path / "documented.py").write_text("\n".join(blocks))
    monkeypatch.chdir(tmp_path)
    made = runpy.run_path("documented.py")
    assert load("demo-w4a8.safetensors").recipe == RECIPES["w4a8"].without_data()
    assert made["fitted"].recipe == RECIPES["w4a8"] and made["full"].recipe is None
    assert made["fitted"].notes["calibration"]["size"] == (4, 4)
    assert played(tmp_path / "seven.mp4") == 12


def python(code: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_imports_nothing_else() -> None:
    code = "import sys; before = set(sys.modules); import qarvd; print(*sorted(set(sys.modules) - before))"
    found = set(python(code, ROOT).split())
    assert "qarvd" in found and not [name for name in found if name.startswith("qarvd.")]
    assert not {"torch", "numpy", "safetensors", "av", "tqdm"} & found


ORDERS = {
    "functions first": "from qarvd import *; from qarvd import load, quantize, stream",
    "modules first": "import qarvd.stream.presets, qarvd.quantize.model; from qarvd import load, quantize, stream",
}


@pytest.mark.parametrize("order", ORDERS)
def test_the_functions_are_found_whatever_was_imported_before(order: str) -> None:
    use = "[chunk] = stream(quantize(load('demo')), 'a 7 moving left', 1); print(*chunk.latents.shape)"
    assert python(f"{ORDERS[order]}; {use}", ROOT).split() == ["1", "16", "3", "8", "8"]


def test_the_folders_of_their_names_stay_packages() -> None:
    import qarvd.quantize.model as quantize_module
    import qarvd.stream.presets as stream_module

    assert isinstance(quantize_module, ModuleType) and isinstance(stream_module, ModuleType)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        qarvd.nonsense  # type: ignore[attr-defined]  # noqa: B018


def test_the_demo_is_loaded_where_it_is_asked_for() -> None:
    model = load("demo", device="cpu")
    assert model.preset_name == "demo" and model.tree.patch_embedding.weight.dtype == torch.float32
    with pytest.raises(SettingError, match="no device 'abacus' here"):
        load("demo", device="abacus")
    with pytest.raises(CheckpointError, match="There is no file"):
        load("nowhere.safetensors")


def test_the_environment_forces_a_backend(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_forced", [])
    monkeypatch.setenv("QARVD_BACKEND", "reference")
    made = quantize(load(model_file, device="cpu"))
    assert {m.backend.name for m in made.tree.modules() if isinstance(m, QuantizedLinear)} == {"reference"}
    monkeypatch.setenv("QARVD_BACKEND", "abacus")
    with pytest.raises(SettingError, match="no backend 'abacus'"):
        load(model_file)


def test_a_checkpoint_of_no_named_family_needs_one(model: Model, tmp_path: Path) -> None:
    save_file(state_tensors(model), tmp_path / "plain.safetensors")
    with pytest.raises(CheckpointError, match="--preset"):
        load(tmp_path / "plain.safetensors")
    assert load(str(tmp_path / "plain.safetensors"), "causvid").preset_name == "causvid"


@pytest.mark.parametrize("recipe", RECIPES)
def test_quantizing_gives_the_file_of_the_command_line_and_leaves_the_model_as_it_was(
    run: Run, tiny: Model, model_file: Path, prompts: Path, tmp_path: Path, recipe: str
) -> None:
    before = {key: tensor.clone() for key, tensor in tiny.tree.state_dict().items()}
    clip = ("--prompts", prompts, "--chunks", 2, "--size", "48x32", "--budget-minutes", 0)
    made: dict[str, tuple[Model, tuple[object, ...]]] = {"nearest": (quantize(tiny, recipe), ("--data-free",))}
    if recipe == "w4a8":
        made["fitted"] = (quantize(tiny, recipe, prompts, chunks=2, size=(48, 32), minutes=None), clip)
    for name, (model, options) in made.items():
        (tmp_path / name).mkdir()
        mine, its = (tmp_path / name / f"{who}.safetensors" for who in ("a", "b"))
        save(model, mine)
        run("quantize", model_file, "--recipe", recipe, *options, "--device", "cpu", "--out", its)
        found, expected = load_file(mine), load_file(its)
        assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)
    after = tiny.tree.state_dict()
    assert tiny.recipe is None and not any(isinstance(m, QuantizedLinear) for m in tiny.tree.modules())
    assert after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)


def test_prompts_may_be_files_or_tensors_one_or_several(tiny: Model, tmp_path: Path) -> None:
    path = texts(tmp_path / "prompts.safetensors", 2, 3, CONFIG.text_dim)
    tensor = load_file(path)["text_embeds"]
    video = {"size": (32, 32), "chunks": 1}
    both = latents(stream(tiny, path, **video))
    assert both.shape == (2, 16, 3, 4, 4)
    for same in (str(path), tensor, [f"{path}#1", f"{path}#2"]):
        assert torch.equal(latents(stream(tiny, same, **video)), both)
    first = latents(stream(tiny, tensor[0], **video))
    torch.testing.assert_close(first, both[:1], rtol=1e-4, atol=1e-5)
    second = latents(stream(tiny, f"{path}#2", seed=1, **video))
    torch.testing.assert_close(second, both[1:], rtol=1e-4, atol=1e-5)  # the seeds are 0 and 1


def test_prompts_of_different_lengths_stream_as_each_alone(tiny: Model, tmp_path: Path) -> None:
    long, short = texts(tmp_path / "long.safetensors", 4, 16), texts(tmp_path / "short.safetensors", 2, 16, seed=1)
    both = latents(stream(tiny, [long, short], 1, size=(32, 32)))
    alone = latents(stream(tiny, short, 1, size=(32, 32), seed=1))
    torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-5)
    with pytest.raises(PromptError, match="different widths"):
        stream(tiny, [long, texts(tmp_path / "wide.safetensors", 2, 32)])


def test_a_stream_is_that_of_the_command_line(
    run: Run, tiny: Model, arguments: list[object], text: Path, embeddings: Tensor, tmp_path: Path
) -> None:
    other, out = tmp_path / "other.safetensors", tmp_path / "clip.safetensors"
    save_file({"text_embeds": embeddings[0] + 1}, other)
    window = {"window": 6, "sink": 1, "cache": "int8"}
    more = (word for name, value in window.items() for word in (f"--{name}", value))
    run(*arguments, "--chunks", 3, "--seed", 5, "--then", 3, other, *more, "--device", "cpu", "--latents", out)
    found = latents(stream(tiny, text, 3, seed=5, size=(48, 32), changes={3: other}, **window))
    assert torch.equal(found, load_file(out)["latents"])
    run(*arguments, "--chunks", 1, "--initial", out, "--device", "cpu", "--latents", tmp_path / "more.safetensors")
    found = latents(stream(tiny, text, 1, initial=load_file(out)["latents"]))
    assert torch.equal(found, load_file(tmp_path / "more.safetensors")["latents"])


def test_an_endless_stream_is_stopped_by_break(tiny: Model, text: Path) -> None:
    with pytest.raises(SettingError, match="needs a window"):
        stream(tiny, text, None)
    starts = []
    for chunk in stream(tiny, text, None, size=(32, 32), window=6):
        starts.append(chunk.start)
        if len(starts) == 5:
            break
    assert starts == [0, 3, 6, 9, 12]


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no chunks": ({"chunks": 0}, SettingError, "0 chunks were asked for; give a whole number from 1 on"),
    "half a chunk": ({"chunks": 2.5}, SettingError, "2.5 chunks were asked for; give a whole number"),
    "size": ({"size": (60, 104)}, SettingError, "60 x 104 pixels"),
    "size as a text": ({"size": "832x480"}, SettingError, r"'832x480' is not \(width, height\) in pixels"),
    "one length": ({"size": 832}, SettingError, r"832 is not \(width, height\) in pixels"),
    "half a size": ({"size": (832,)}, SettingError, r"\(832,\) is not \(width, height\) in pixels"),
    "cache": ({"cache": "int3"}, SettingError, "no cache codec 'int3'"),
    "change at the start": ({"changes": {1: "text"}}, SettingError, "the first change can be at chunk 2"),
    "change after the end": ({"changes": {8: "text"}}, SettingError, "the video ends with chunk 7"),
    "initial of one video": ({"initial": torch.zeros(16, 3, 4, 4)}, ShapeError, r"\(16, 3, 4, 4\); \[batch, channels"),
    "initial": ({"initial": torch.zeros(2, 16, 3, 4, 4)}, ShapeError, "initial latents have shape"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_options_are_refused_before_the_first_chunk(tiny: Model, text: Path, bad: str) -> None:
    options, kind, told = BAD[bad]
    if "changes" in options:
        options = {**options, "changes": dict.fromkeys(options["changes"], text)}
    with pytest.raises(kind, match=told):
        stream(tiny, text, **options)


def test_bad_prompts_and_recipes_are_refused(tiny: Model, prompts: Path, tmp_path: Path) -> None:
    few = texts(tmp_path / "few.safetensors", 3, 3, CONFIG.text_dim)
    budget = Recipe(target="6 bits")
    for call, kind, told in (
        (lambda: stream(tiny, []), PromptError, "No prompt was given"),
        (lambda: stream(tiny, "a cat on a sofa"), PromptError, "a cat on a sofa"),
        (lambda: stream(load("demo"), "a cat"), PromptError, "a cat"),
        (lambda: stream(tiny, few, changes={2: prompts}), PromptError, r"changes\[2\] must hold .* 3, not \d"),
        (lambda: quantize(tiny, "w2a2"), SettingError, "no recipe 'w2a2'; choose from w8a8, w6a8, w4a8, w3a8"),
        (lambda: quantize(tiny, "w4a8", few), PromptError, "Calibration needs at least 4 prompts; 3 were given"),
        (lambda: quantize(tiny, budget), SettingError, "need calibration; give prompts"),
        (lambda: quantize(tiny, Recipe(target="1KB"), prompts), SettingError, "1KB"),
        (lambda: quantize(tiny, Recipe(stream_chunks=1), prompts), SettingError, "1 chunk"),
        (lambda: quantize(quantize(tiny)), CheckpointError, "already quantized"),
    ):
        with pytest.raises(kind, match=told):
            call()


def test_a_size_is_met_with_prompts(tiny: Model, prompts: Path) -> None:
    made = quantize(tiny, Recipe(target="6 bits"), prompts, chunks=2, size=(48, 32))
    assert 4 < weight_bits(made.tree) <= 6 and made.recipe is not None and made.recipe.target == "6 bits"
    assert len({m.weight.codec.name for m in made.tree.modules() if isinstance(m, QuantizedLinear)}) > 1
