"""Nodes that quantize a MODEL and save the result."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy_api.latest import io

from ..qarvd import __version__
from ..qarvd.checkpoint.model import Model, checksum, described, load, read_metadata, save, stored_tensors
from ..qarvd.errors import SettingError
from ..qarvd.jobs.budget import check_target
from ..qarvd.jobs.calibrate import identity
from ..qarvd.jobs.quantize import quantize
from ..qarvd.jobs.work import Work, report_from
from ..qarvd.quantize.model import LayerReport, linear_groups
from ..qarvd.recipe import OURS, STOCK
from ..qarvd.recipe import Recipe as Choices
from ..qarvd.report.tables import by_kind, text_table
from . import host
from .calibration import fitting_on
from .models import CATEGORY, FAMILIES, FAMILY_TIP
from .outliers import layer_data
from .progress import Progress
from .sockets import Recipe, Statistics, StoredCalibration
from .store import kept_at, recalled

AUTOMATIC = "automatic: the format of the recipe"
QARVD = "qarvd (dual scale, this pack loads it)"
FILES = {AUTOMATIC: None, QARVD: OURS} | {f"{name} (ComfyUI loads it without this pack)": name for name in STOCK}
"""Formats of files by what Save Quantized Model calls them."""

NO_STATISTICS = (
    "Weights were rounded to nearest, which is much worse, because there are no statistics. Connect Calibrate."
)

DEVICES = ("CON", "PRN", "AUX", "NUL", "COM", "LPT")
"""What Windows takes for a device, whatever ending follows; COM and LPT with a number."""


class Quantize(io.ComfyNode):
    """A MODEL in full precision to a new one with integer weights."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="QarvdQuantize",
            display_name="Dual-Scale Quantize",
            category=CATEGORY,
            description=(
                "Quantizes the linear layers of a model to integers, with a second scale for outlier channels. The "
                "input MODEL does not change. The result is kept in output/qarvd/quantized and found again after a "
                "restart."
            ),
            is_output_node=True,  # so that a new page is told of a result that ComfyUI has cached
            inputs=[
                io.Model.Input("model", tooltip="A model in full precision. A LoRA on it is merged."),
                Recipe.Input("recipe", tooltip="The output of Recipe or Bit Budget."),
                Statistics.Input(
                    "statistics",
                    optional=True,
                    tooltip=(
                        "The output of Calibrate for this same model. Without it, weights are rounded to nearest, "
                        "which is much worse."
                    ),
                ),
                io.Combo.Input("family", options=FAMILIES, default=host.AUTOMATIC, tooltip=FAMILY_TIP),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL", tooltip="The quantized model."),
                io.String.Output(
                    display_name="report", tooltip="Bits, outliers and errors of each kind of layer, as a text table."
                ),
            ],
        )

    @classmethod
    def execute(
        cls, model: Any, recipe: Choices, family: str, statistics: StoredCalibration | None = None
    ) -> io.NodeOutput:
        with torch.inference_mode(False):
            found = host.library_model(model, family)
            identity(found)  # refuses a quantized one
            note = None
            if statistics is None:
                recipe, note = data_free(recipe)
            check_target(found, recipe)
            about = {
                "model": identity(found),
                "preset": found.preset_name,
                "recipe": recipe.to_json(),
                "statistics": None if statistics is None else checksum_of(statistics),
                "qarvd": __version__,
            }
            path = kept_at("quantized", about)
        made = recalled(path, load)  # in the mode in which ComfyUI moves models about
        if made is None:
            with torch.inference_mode(False):
                fit(found, recipe, statistics, path, about)
            made = load(path)
        patcher = host.patcher_of(made)
        reports = [report_from({"name": name, **report}) for name, report in made.notes["layers"].items()]  # pyright: ignore
        table = by_kind(reports)
        text = text_table(table)
        return io.NodeOutput(
            patcher, text if note is None else f"{note}\n\n{text}", ui=report_data(made, reports, table, note)
        )


def data_free(recipe: Choices) -> tuple[Choices, str | None]:
    """The recipe that needs no statistics, and what to say of it. Raises SettingError where none makes sense."""
    if recipe.target is not None:
        raise SettingError("A bit budget chooses by measured effects, so it needs statistics. Connect Calibrate.")
    simple = recipe.without_data()
    return simple, None if simple == recipe else NO_STATISTICS


def checksum_of(statistics: StoredCalibration) -> str:
    """What tells these statistics from others."""
    calibration = statistics.calibration
    tensors = {"errors": calibration.errors, "call_errors": calibration.call_errors}
    for number, rollout in enumerate(calibration.rollouts):
        tensors[f"text.{number}"] = rollout.embeddings
        tensors |= {f"call.{number}.{index}": call.latents for index, call in enumerate(rollout.calls)}
    return checksum(tensors)


def fit(
    model: Model, recipe: Choices, statistics: StoredCalibration | None, path: Path, about: Mapping[str, object]
) -> None:
    """Quantize, going on with what an interrupted run of the same had finished, and keep the result at `path`."""
    bar = Progress(sum(map(len, linear_groups(model.config.num_layers))))
    work = Work(path.with_name(f"{path.name}.work"), about, resume=True)
    calibration = None if statistics is None else statistics.calibration
    with fitting_on(model):
        made, _ = quantize(model, recipe, calibration, work, lambda name: bar.advance(), lambda what: bar.check())
    work.finish(lambda temporary: save(made, temporary), path)


def report_data(
    model: Model, reports: Sequence[LayerReport], table: Sequence[Mapping[str, object]], note: str | None
) -> dict[str, Any]:
    """What the panel draws."""
    by_name = {report.name: report for report in reports}
    groups = linear_groups(model.config.num_layers)
    cells = [layer_data(names, by_name[names[0]].shape[1], by_name[names[0]].n_outlier) for names in groups]
    rows = [[v if isinstance(v, int | float | None) else str(v) for v in row.values()] for row in table]
    return {
        "qarvd_outliers": [{"layers": cells}],
        "qarvd_table": [{"columns": list(table[0]), "rows": rows, "note": note}],
    }


class SaveModel(io.ComfyNode):
    """A quantized MODEL as a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="QarvdSaveModel",
            display_name="Save Quantized Model",
            category=CATEGORY,
            description=(
                "Writes output/diffusion_models/NAME.safetensors. Press R to see it in the loaders. The file records "
                "its family, recipe and frame weights. From ComfyUI 0.27 on, Load Diffusion Model opens it too."
            ),
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The output of Dual-Scale Quantize."),
                io.String.Input(
                    "name",
                    default="quantized",
                    tooltip="The name of the file, without a folder. If the name is taken, a number is added.",
                ),
                io.Combo.Input(
                    "format",
                    options=list(FILES),
                    default=AUTOMATIC,
                    tooltip=(
                        "qarvd keeps both scales, and needs this pack to load. The other formats load without it, and "
                        "need a model of a stock recipe."
                    ),
                ),
            ],
            outputs=[io.String.Output(display_name="file", tooltip="The file that was written.")],
        )

    @classmethod
    def execute(cls, model: Any, name: str, format: str) -> io.NodeOutput:
        found = host.library_model(model)
        if not found.quantized:
            raise SettingError("This MODEL is in full precision. Quantize it with Dual-Scale Quantize first.")
        folder = Path(folder_paths.get_output_directory(), "diffusion_models")
        folder.mkdir(parents=True, exist_ok=True)
        taken, path = free_name(folder, name)
        there = find(taken, found, FILES[format])
        if there is not None:
            path = there
        else:
            save(found, path, FILES[format])
        text = f"{path.name}: {path.stat().st_size / 1e6:.2f} MB{', which was there already' if there else ''}"
        return io.NodeOutput(str(path), ui={"text": [text]})


def find(paths: Sequence[Path], model: Model, format: str | None) -> Path | None:
    """The file among `paths` that holds this very model in that format, by what it says of itself."""
    stored = {path: {key: value for key, value in read_metadata(path).items() if key != "versions"} for path in paths}
    if not any(stored.values()):
        return None
    mine = json.loads(json.dumps(described(model, stored_tensors(model, format))))
    return next((path for path, found in stored.items() if found == mine), None)


def free_name(folder: Path, name: str) -> tuple[list[Path], Path]:
    """The files in `folder` of that name, with numbers, and the first path that is free.

    Raises SettingError for a name that leads elsewhere.
    """
    stem = re.sub(r"\.safetensors$", "", name.strip(), flags=re.IGNORECASE)
    device = stem.split(".")[0].upper().rstrip("0123456789 ") in DEVICES
    if not stem.isprintable() or set(stem) & set('/\\:*?"<>|') or stem[:1] in ("", ".") or device:
        raise SettingError(f"{name!r} is not a file name. Write a plain one, such as self-forcing-w4a8.")
    taken: list[Path] = []
    for path in [folder / f"{stem}.safetensors", *(folder / f"{stem}_{i:03}.safetensors" for i in range(2, 1000))]:
        if not path.exists():
            return taken, path
        taken.append(path)
    raise SettingError(f"{folder} already has a thousand files called {stem}. Choose another name.")
