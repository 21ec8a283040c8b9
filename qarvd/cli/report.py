"""`report FULL QUANTIZED... --out report.html`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..calibrate.frame_weights import FrameWeights
from ..checkpoint.inputs import numbered
from ..checkpoint.model import Model
from ..errors import CheckpointError, SettingError, ShapeError
from ..files import no_file, replacing
from ..ops.linear import QuantizedLinear
from ..ops.split import ALIGNMENT
from ..quantize.model import linear_groups, linear_of, relative_error, weight_bits
from ..quantize.outliers import column_norms, detect
from ..report.chunks import Sensitivity
from ..report.layers import Inputs, Layer, Variant, shared_name
from ..report.methods import Method, methods_chapter, read_methods
from ..report.norms import Norms
from ..report.page import render_page
from ..report.quantization import chunks_chapter, errors_chapter, layers_chapter, outliers_chapter
from .common import DEVICE_HELP, add_model, add_size, check_out, load_model, model_path, say
from .side_by_side import FULL, compare, streamed, wanted_cases

HELP = "one page on what quantizing did: chunks that matter, outliers, errors, drift, frames side by side"
FOREIGN = 1e-3
"""Relative squared difference of patch embeddings, which are never quantized, above which a file is of another model;
rounding them to bfloat16 makes one of 1e-5."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser, "full")
    parser.add_argument("quantized", nargs="+", type=Path, help="files that `quantize` made of it")
    parser.add_argument("--out", type=Path, required=True, help="the .html file to write")
    parser.add_argument(
        "--prompt",
        action="append",
        help="text for the demo model (16 held-out prompts); for others a file that `encode` wrote; may be given "
        "several times",
    )
    parser.add_argument("--chunks", type=int, default=7, help="chunks of each clip (7)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first clip's noise (0)")
    add_size(parser)
    parser.add_argument("--quality", type=Path, help="a JSON file of measured methods, such as docs/quality.json")
    parser.add_argument("--device", default="auto", help=DEVICE_HELP)


def run(args: argparse.Namespace) -> None:
    texts = (numbered(prompt)[0] for prompt in args.prompt or ())
    check_out(args.out, ".html", model_path(args.full), *args.quantized, *texts, args.quality)
    methods = read_quality(args.quality) if args.quality else {}
    full = load_model(args.full, args.preset)
    files = named(args.quantized)
    inputs = [read_inputs(full, names) for names in linear_groups(full.config.num_layers)]
    cases = wanted_cases(args, full)
    found = [read_variant(name, path, full, args.preset) for name, path in files.items()]
    variants, about = [variant for variant, _ in found], [row for _, row in found]

    summary = f"{', '.join(files)} beside {full_name(args.full)}, a model of the family {full.preset_name}."
    chapters = [chunks_chapter(variants), outliers_chapter(inputs, variants), errors_chapter(variants)]
    if cases is None:
        missing = "No prompt was given, so nothing was streamed: drift and videos are left out."
        say(f"{missing} Give --prompt a safetensors file of embeddings.")
        summary = f"{summary}\n\n{missing}"
    else:
        latents = {FULL: streamed(full, cases, args.device, FULL)}
        del full  # one model at a time has to fit the device
        for name, path in files.items():
            latents[name] = streamed(load_model(str(path), args.preset), cases, args.device, name)
        chapters.insert(0, compare(latents, cases, about))
    chapters += [methods_chapter(methods)] if methods else []
    chapters.append(layers_chapter(inputs, variants))
    page = render_page("Quantization report", summary, about, table_caption="The files", chapters=chapters)
    with replacing(args.out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    say(f"wrote {args.out}")


def read_quality(path: Path) -> dict[str, list[Method]]:
    """The measured methods of a JSON file. Raises SettingError for any other file."""
    if not path.is_file():
        raise SettingError(no_file(path))
    try:
        return read_methods(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise SettingError(f"{path} is not a text file in UTF-8; save it as one.") from error
    except SettingError as error:
        raise SettingError(f"{path}: {error}") from error


def named(paths: list[Path]) -> dict[str, Path]:
    """A short name for each file: its stem, or its path where another has the same stem."""
    stems = [FULL, *(path.stem for path in paths)]
    names = {path.stem if stems.count(path.stem) == 1 else str(path): path for path in paths}
    if len(names) < len(paths):
        raise SettingError("A file was given twice; name each quantized file once.")
    return names


def full_name(name: str) -> str:
    return "the bundled demo model" if name == "demo" else Path(name).name


def read_inputs(full: Model, names: tuple[str, ...]) -> Inputs:
    """Column norms of linears that share an input. Raises CheckpointError where one is already quantized."""
    norms = column_norms(*(linear_of(full.tree, name).weight for name in names))
    threshold = detect(norms, most=len(norms) // (2 * ALIGNMENT) * ALIGNMENT).threshold
    return Inputs(names, Norms(shared_name(names), norms.sort(descending=True).values.tolist(), threshold))


def read_variant(name: str, path: Path, full: Model, preset: str | None) -> tuple[Variant, dict[str, object]]:
    """What a quantized file tells of itself, and its row of the table.

    Raises CheckpointError for a file that is not quantized and ShapeError for one of another model.
    """
    model = load_model(str(path), preset)
    recipe = model.recipe
    if not model.quantized:
        raise CheckpointError(f"{path} is not quantized; give files that `quantize` wrote.")
    if model.config != full.config or model.preset_name != full.preset_name:
        raise ShapeError(
            f"{path} is of another model: it has {model.preset_name} {model.config}, the full one {full.preset_name} "
            f"{full.config}."
        )
    if not relative_error(full.tree.patch_embedding.weight, model.tree.patch_embedding.weight) < FOREIGN:
        raise CheckpointError(
            f"{path} was made from another checkpoint: its patch embedding differs from that of the full-precision "
            "model."
        )
    layers, measure = read_layers(path, model, full)
    sensitivity = read_sensitivity(path, model.notes)
    row: dict[str, object] = {
        "file": name,
        "MB": path.stat().st_size / 1e6,
        "bits per quantized weight": weight_bits(model.tree),
        "format": " and ".join(sorted(set(model.formats.values()))),
        "rotation": recipe and (recipe.rotation or "none"),
        "rounding": recipe and recipe.rounding,
        "outliers": recipe and recipe.outliers,
        "chunks measured on": f"{sensitivity.prompts} prompts" if sensitivity else None,
    }
    return Variant(name, layers, measure, sensitivity), row


def read_layers(path: Path, model: Model, full: Model) -> tuple[dict[str, Layer], str]:
    """What each linear got, and whether the errors are those of the `output` or of the `weight`."""
    notes: Any = model.notes.get("layers", {})
    names = [name for group in linear_groups(full.config.num_layers) for name in group]
    linears = {name: model.tree.get_submodule(name) for name in names}
    weights = {name: linear.weight for name, linear in linears.items() if isinstance(linear, QuantizedLinear)}
    try:
        stored = {key: {n: notes.get(n, {}).get(key) for n in weights} for key in ("output_error", "relative_error")}
    except AttributeError as error:
        raise CheckpointError(f"The notes of {path} on its layers are damaged; quantize the model again.") from error
    measured = all(isinstance(error, float) for error in stored["output_error"].values())
    errors: dict[str, Any] = stored["output_error" if measured else "relative_error"]
    layers = dict.fromkeys(names, Layer(0, 0.0, kept=True))
    for name, weight in weights.items():
        error = errors[name]
        if not isinstance(error, float):
            error = relative_error(linear_of(full.tree, name).weight, weight.dequantize())
        layers[name] = Layer(weight.split.n_outlier, error, bits=weight.codec.label)
    return layers, "output" if measured else "weight"


def read_sensitivity(path: Path, notes: Mapping[str, Any]) -> Sensitivity | None:
    """The frame weights of a file's notes; None where they were not measured."""
    if "frame_weights" not in notes:
        return None
    try:
        weights = FrameWeights.from_json(json.dumps(notes["frame_weights"]))
    except SettingError as error:
        raise CheckpointError(f"The frame weights in {path} cannot be read; quantize the model again.") from error
    if not weights.prompts:
        return None
    reach = read_reach(path, notes, len(weights.chunk_frames))
    about: Any = notes.get("calibration") or {}
    measured_as = about.get("measured_as")
    return Sensitivity(
        weights.chunk_frames,
        weights.sensitivity,
        weights.low,
        weights.high,
        weights.per_affected,
        weights.fitted,
        weights.rate,
        weights.prompts,
        reach,
        measured_as.get("weight_bits") if isinstance(measured_as, dict) else None,
    )


def read_reach(path: Path, notes: Mapping[str, Any], chunks: int) -> list[int]:
    """How far each of `chunks` chunks was followed; nothing where an older file does not say."""
    about = notes.get("calibration", {})
    reach = about.get("reach", []) if isinstance(about, dict) else None
    if not isinstance(reach, list) or any(type(far) is not int for far in reach) or len(reach) not in (0, chunks):
        raise CheckpointError(f"What {path} notes of its calibration is damaged; quantize the model again.")
    return reach
