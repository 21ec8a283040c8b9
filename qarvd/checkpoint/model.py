"""A loaded model, and how it becomes a file again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .. import __version__
from ..errors import CheckpointError, SettingError, ShapeError
from ..files import replacing
from ..ops.linear import QuantizedLinear
from ..recipe import OURS, STOCK, Recipe
from ..stream.presets import PRESETS, Preset, find_preset
from ..wan.config import WanConfig
from ..wan.tree import WanTree
from .quantized import MARKER, declared, quantized_names, read_linear, write_linear
from .read import STATISTICS, Contents, read
from .write import save_file

FORMAT = 1
"""Version of the file format."""
FLOATS = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Model:
    """A Wan tree with all that is needed to stream it and to write it."""

    tree: WanTree
    config: WanConfig
    preset_name: str
    dtypes: Mapping[str, torch.dtype]
    """The dtype in which the file holds each tensor."""
    recipe: Recipe | None = None
    notes: Mapping[str, object] = field(default_factory=dict)
    """The rest of the file's `qarvd` metadata."""
    formats: Mapping[str, str] = field(default_factory=dict)
    """The format in which the file holds each quantized linear."""

    @property
    def preset(self) -> Preset:
        return PRESETS[self.preset_name]

    @property
    def quantized(self) -> bool:
        """Whether a recipe was applied; it may be unknown, since ComfyUI's own Save node drops it."""
        return self.recipe is not None or any(isinstance(module, QuantizedLinear) for module in self.tree.modules())

    @cached_property
    def identity(self) -> str:
        """The checksum in bfloat16, the same whatever dtype the model computes in; as the tree was when first asked."""
        return checksum(self.tree.state_dict(), torch.bfloat16)


def load(path: Path, preset: str | None = None) -> Model:
    """Read a causal Wan checkpoint, quantized or not, keeping its dtypes.

    `preset` names the family of a file that does not say so itself. Raises CheckpointError, naming the tensors, where
    some are missing, extra, of another shape or dtype, or not finite.
    """
    contents = read(path)
    try:
        return _assemble(contents, preset)
    except (CheckpointError, ShapeError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def _assemble(contents: Contents, preset: str | None) -> Model:
    transformer = contents.json("config").get("transformer", {})
    ours = contents.json("qarvd")
    if STATISTICS in contents.metadata:
        raise CheckpointError(
            "These are calibration statistics, not a model; `quantize` takes them as --stats, and `inspect` describes "
            "them."
        )
    versions = ours.get("versions", {})
    if not isinstance(transformer, dict) or not isinstance(versions, dict):
        raise CheckpointError(
            "The metadata is damaged: transformer and versions should be objects. Download or write the file again."
        )
    if (stored := versions.get("format", FORMAT)) != FORMAT:
        raise CheckpointError(f"The file is of format {stored!r}; this version of qarvd reads format {FORMAT}.")
    tensors = contents.tensors
    if "checksum" in ours and ours["checksum"] != checksum(tensors):
        raise CheckpointError(
            "The tensors do not match the checksum: the file was damaged or edited. Download or write it again."
        )

    recipe = Recipe.from_json(json.dumps(ours["recipe"])) if ours.get("recipe") else None
    notes = {key: value for key, value in ours.items() if key not in ("preset", "recipe", "checksum", "versions")}
    family = preset or ours.get("preset")
    if preset and ours.get("preset", preset) != preset:
        raise CheckpointError(
            f"The family in the file is {ours['preset']!r}, but {preset!r} was asked for. Leave the family out, or "
            "name that of the file."
        )
    return assemble(tensors, transformer, None if family is None else str(family), recipe, notes)


def assemble(
    tensors: dict[str, Tensor],
    transformer: Mapping[str, object],
    family: str | None,
    recipe: Recipe | None = None,
    notes: Mapping[str, object] | None = None,
) -> Model:
    """A model of `tensors` as a file holds them under Wan's names, which it takes out of the dictionary and shares.

    `transformer` is the file's `config["transformer"]`. Raises as `load` does.
    """
    formats = {name: str(declared(tensors[f"{name}.{MARKER}"]).get("format")) for name in quantized_names(tensors)}
    weights = {name: read_linear(name, tensors) for name in formats}
    shapes = {key: tuple(t.shape) for key, t in tensors.items()}
    shapes |= {f"{name}.weight": weight.shape for name, weight in weights.items()}
    config = WanConfig.from_shapes(shapes, transformer)
    if transformer.get("causal_ar") is False:
        raise CheckpointError(
            "The file's metadata says that the model is not autoregressive (causal_ar is false); get the checkpoint of "
            "an autoregressive family."
        )
    if family is None:
        raise CheckpointError(f"{_unknown_family(bool(weights))} (--preset; on a node, family): {', '.join(PRESETS)}.")
    preset = find_preset(family)
    unseen = {"text_len": preset.text_len, "num_heads": max(1, config.dim // preset.head_dim)}
    config = replace(config, **{key: value for key, value in unseen.items() if key not in transformer})
    with torch.device("meta"):
        tree = WanTree(config)
    _check(tensors, tree, shapes, quantized=bool(weights))
    for name, weight in weights.items():
        tree.set_submodule(name, QuantizedLinear(weight, tensors.get(f"{name}.bias")))
    tree.load_state_dict(tensors, strict=True, assign=True)
    tree.requires_grad_(False).eval()
    return Model(tree, config, family, {key: t.dtype for key, t in tensors.items()}, recipe, notes or {}, formats)


def _unknown_family(quantized: bool) -> str:
    if quantized:
        return (
            "The file holds quantized linears, but does not say their family: ComfyUI's own Save node (ModelSave) "
            "drops it, and other programs do not record it. Name it"
        )
    return (
        "The file does not say which autoregressive family it belongs to (ComfyUI's own Save node drops that), and "
        "from its tensors a bidirectional Wan model looks the same. If it is autoregressive, name its family"
    )


def _check(
    tensors: Mapping[str, Tensor], tree: nn.Module, shapes: Mapping[str, tuple[int, ...]], quantized: bool
) -> None:
    expected = {key: tuple(t.shape) for key, t in tree.state_dict().items()}
    missing, extra = sorted(set(expected) - set(shapes)), sorted(set(shapes) - set(expected))
    if missing or extra:
        lacks = f"it lacks {_some(missing)}" if missing else ""
        has = f"it has, beyond a Wan model, {_some(extra)}" if extra else ""
        raise CheckpointError(
            f"This is not a whole text-to-video Wan model: {' and '.join(filter(None, (lacks, has)))}."
        )
    for key, shape in shapes.items():
        if shape != expected[key]:
            raise CheckpointError(f"{key} has shape {shape}; {expected[key]} was expected.")
    for key, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            advice = "" if quantized else " Start from the full-precision checkpoint."
            raise CheckpointError(f"{key} is {tensor.dtype}; float16, bfloat16 or float32 was expected.{advice}")
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{key} holds NaN or infinite values; the checkpoint is damaged.")


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def state_tensors(model: Model, stock: bool = False) -> dict[str, Tensor]:
    """All tensors of the file, in the file's dtypes; matrices that came in float32 become bfloat16.

    Quantized linears are in our formats, or, `stock`, in ComfyUI's own; raises SettingError where those can't hold one.
    """
    tensors: dict[str, Tensor] = {}
    for name, module in model.tree.named_modules():
        if isinstance(module, QuantizedLinear):
            tensors.update(write_linear(name, module.weight, stock))
    for key, tensor in model.tree.state_dict().items():
        tensors[key] = tensor.to(written_dtype(model, key, tensor))
    return {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}


def written_dtype(model: Model, key: str, tensor: Tensor) -> torch.dtype:
    """The dtype in which a file holds `tensor`, called `key`."""
    dtype = model.dtypes.get(key, tensor.dtype)
    matrix = key.endswith(".weight") and tensor.ndim > 1
    return torch.bfloat16 if matrix and dtype == torch.float32 else dtype


def stored_tensors(model: Model, format: str | None = None) -> dict[str, Tensor]:
    """All tensors of a file in that format, or in that of the model's recipe, or, without one, of its file.

    Raises SettingError where the format can't hold the model's linears.
    """
    if model.recipe is not None:
        known = model.recipe.format
    else:
        known = next((held for held in model.formats.values() if held in STOCK), OURS)
    tensors = state_tensors(model, (format or known) in STOCK)
    stored = {declared(tensor).get("format") for key, tensor in tensors.items() if key.endswith(f".{MARKER}")}
    if format in STOCK and format not in stored:
        other = " and ".join(sorted(map(str, stored)))
        why = f"would be stored as {other}" if other else "are in full precision"
        raise SettingError(
            f"The model's linears {why}. For a file in {format}, quantize it with a recipe of that format."
        )
    return tensors


def save(model: Model, path: Path, format: str | None = None) -> None:
    """Write `model` as safetensors, to a temporary name first. Raises SettingError where that cannot be done.

    `format`, if it is not that of the model's recipe, must be able to hold it.
    """
    tensors = stored_tensors(model, format)
    versions = {"qarvd": __version__, "torch": version("torch"), "format": FORMAT}
    about = {**described(model, tensors), "versions": versions}
    metadata = {**common_metadata(model, path), "qarvd": json.dumps(about)}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata)


def described(model: Model, tensors: Mapping[str, Tensor]) -> dict[str, object]:
    """The `qarvd` metadata of a file of `model`, whose `state_tensors` are `tensors`, but for the versions."""
    recipe = json.loads(model.recipe.to_json()) if model.recipe else None
    return {"preset": model.preset_name, "recipe": recipe, **model.notes, "checksum": checksum(tensors)}


def read_metadata(path: Path) -> dict[str, object]:
    """The `qarvd` metadata of a file; nothing where there is none."""
    try:
        with safe_open(path, "pt") as file:
            found = json.loads((file.metadata() or {}).get("qarvd", "{}"))
    except (OSError, SafetensorError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def common_metadata(model: Model, path: Path) -> dict[str, str]:
    """What the metadata of every file tells other programs."""
    return {
        "config": json.dumps({"transformer": model.config.transformer_metadata()}),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "wan2.1-causal",
        "modelspec.title": path.stem,
        "modelspec.implementation": "qarvd",
    }


def checksum(tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> str:
    """SHA-256 over name, dtype, shape and bytes of all tensors, in the order of their names (docs/format.md).

    With a `dtype`, of the tensors as rounded to it, one at a time.
    """
    digest = hashlib.sha256()
    for key in sorted(tensors):
        tensor = tensors[key].detach().cpu()
        tensor = tensor.to(dtype or tensor.dtype).contiguous()
        name = str(tensor.dtype).removeprefix("torch.")
        digest.update(f"{key} {name} {list(tensor.shape)}\n".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
