"""Nodes that measure a model: what calibration records, and which chunks matter."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.model_management as management
import torch
from comfy_api.latest import io

from ..qarvd.calibrate.calibration import Calibration
from ..qarvd.calibrate.frame_weights import FrameWeights
from ..qarvd.calibrate.horizon import HORIZONS
from ..qarvd.checkpoint.calibration import FORMAT, load_calibration, save_calibration
from ..qarvd.checkpoint.model import Model, checksum
from ..qarvd.errors import PromptError, SettingError
from ..qarvd.jobs.calibrate import CalibrationPlan, calibrate, identity
from ..qarvd.jobs.time_budget import FITTING, MINUTES
from ..qarvd.jobs.work import Work
from ..qarvd.recipe import RECIPES
from ..qarvd.recipe import Recipe as Choices
from ..qarvd.report.chunks import Sensitivity
from ..qarvd.wan.forward import pad_text
from . import host
from .models import CATEGORY, FAMILIES, FAMILY_TIP
from .progress import Progress
from .sockets import PromptList, Prompts, Recipe, Statistics, StoredCalibration
from .store import kept_at, recalled


@contextmanager
def fitting_on(model: Model) -> Iterator[Model]:
    """The model where ComfyUI computes, in the dtype for it, while other models make room; gradients are possible."""
    device = management.get_torch_device()
    management.unload_all_models()
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    model.tree.to(device, dtype)
    try:
        yield model
    finally:
        model.tree.to("cpu")
        management.soft_empty_cache()


class Calibrate(io.ComfyNode):
    """Rolls a model out on prompts; found again by what went in."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="QarvdCalibrate",
            display_name="Calibrate",
            category=CATEGORY,
            description=(
                "Generates clips in full precision, records the inputs of the model, and measures how much each chunk "
                "matters to the final video. Dual-Scale Quantize needs the result. It is kept in "
                "output/qarvd/statistics and found again after a restart. An interrupted run resumes."
            ),
            inputs=[
                io.Model.Input("model", tooltip="A model in full precision. A LoRA on it is merged."),
                Prompts.Input("prompts", tooltip="The output of Encode Prompt List."),
                io.Combo.Input("family", options=FAMILIES, default=host.AUTOMATIC, tooltip=FAMILY_TIP),
                io.Int.Input(
                    "chunks",
                    default=7,
                    min=1,
                    max=1000,
                    tooltip="The number of chunks in each clip. Most families were trained on 7.",
                ),
                io.Int.Input(
                    "width",
                    default=832,
                    min=16,
                    max=8192,
                    step=16,
                    tooltip="The width of the video in pixels. The demo model has 32.",
                ),
                io.Int.Input(
                    "height",
                    default=480,
                    min=16,
                    max=8192,
                    step=16,
                    tooltip="The height of the video in pixels. The demo model has 32.",
                ),
                io.Combo.Input(
                    "reach",
                    options=sorted(HORIZONS, key=lambda name: name != "short"),
                    default="short",
                    tooltip=(
                        "How many later chunks are generated to see the effect of one. short takes a third of the time "
                        "and estimates the rest, with weights within 7 %. full follows each to the end, as published."
                    ),
                ),
                io.Float.Input(
                    "budget_minutes",
                    default=MINUTES,
                    min=0.0,
                    max=10_000.0,
                    tooltip=(
                        "Use as many prompts as fit into this time, Dual-Scale Quantize included, but at least 4. "
                        "0 uses all prompts."
                    ),
                ),
                Recipe.Input(
                    "recipe",
                    optional=True,
                    tooltip="Chunks are measured with the bits of this recipe. Without one: with 4-bit weights.",
                ),
            ],
            outputs=[
                Statistics.Output(
                    display_name="statistics", tooltip="Connect to Dual-Scale Quantize and Frame Sensitivity."
                ),
                io.String.Output(
                    display_name="file", tooltip="The file of the statistics. The command line reads it with --stats."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        prompts: PromptList,
        family: str,
        chunks: int,
        width: int,
        height: int,
        reach: str,
        budget_minutes: float,
        recipe: Choices | None = None,
    ) -> io.NodeOutput:
        recipe = recipe or RECIPES["w4a8"]
        with torch.inference_mode(False):
            found = host.library_model(model, family)
            size = found.preset.scale.latent_size(found.config, width, height)
            frames = chunks * found.preset.chunk_frames
            embeddings = checked(found, prompts)
            about = {
                "model": identity(found),
                "preset": found.preset_name,
                "prompts": checksum({"text_embeds": embeddings}),
                "size": size,
                "frames": frames,
                "reach": reach,
                "minutes": budget_minutes,
                "recipe": json.loads(measured_by(recipe).to_json()),
                "format": FORMAT,
            }
            path = kept_at("statistics", about)
            calibration = recalled(path, load_calibration)
            if calibration is None:
                minutes = budget_minutes or None
                plan = CalibrationPlan(size, frames, recipe, horizon=reach, minutes=minutes, rest=FITTING)
                calibration = measure(found, embeddings, plan, path, about)
        return io.NodeOutput(StoredCalibration(calibration, path), str(path))


def measured_by(recipe: Choices) -> Choices:
    """What of a recipe a calibration depends on: bits, and what is measured."""
    return replace(recipe.without_data(), frame_weights=recipe.frame_weights, call_weights=recipe.call_weights)


def checked(model: Model, prompts: PromptList) -> torch.Tensor:
    """The embeddings as ordinary tensors. Raises PromptError for those of another model's text encoder."""
    embeddings = prompts.embeddings.detach().clone()
    if embeddings.shape[-1] != model.config.text_dim:
        raise PromptError(
            f"The prompts were encoded to {embeddings.shape[-1]} numbers a token, but this model takes "
            f"{model.config.text_dim}. Encode them with its own text encoder."
        )
    pad_text(model.config, embeddings[:1])
    return embeddings


def measure(
    model: Model,
    embeddings: torch.Tensor,
    plan: CalibrationPlan,
    path: Path,
    about: dict[str, object],
) -> Calibration:
    """Calibrate, go on with what an interrupted run of the same had finished, and write `path`."""
    work, bar = Work(path.with_name(f"{path.name}.work"), about, resume=True), Progress(1)
    with fitting_on(model):
        calibration = calibrate(model, embeddings, plan, work, bar.at)
    work.finish(lambda temporary: save_calibration(calibration, temporary), path)
    return calibration


class FrameSensitivity(io.ComfyNode):
    """How much each chunk matters to the final video."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="QarvdFrameSensitivity",
            display_name="Frame Sensitivity",
            category=CATEGORY,
            description=(
                "Shows how much each chunk matters: its share of the error in the final video if only that chunk is "
                "quantized, with 95 % intervals and a fitted decay."
            ),
            is_output_node=True,
            inputs=[
                Statistics.Input("statistics", tooltip="The output of Calibrate."),
                io.Int.Input(
                    "stream_chunks",
                    default=0,
                    min=0,
                    max=100_000,
                    tooltip=(
                        "The number of chunks to give weights for. Later ones are estimated by the fit. 0: as measured."
                    ),
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="frame weights", tooltip="One weight for each chunk, as JSON. Their mean is 1."
                ),
            ],
        )

    @classmethod
    def execute(cls, statistics: StoredCalibration, stream_chunks: int) -> io.NodeOutput:
        calibration = statistics.calibration
        sizes = chunk_sizes(calibration)
        found = calibration.weights(sizes)
        if not found.prompts:
            raise SettingError("These statistics have no measured chunks. Calibrate clips of two or more chunks.")
        if stream_chunks and stream_chunks < len(sizes):
            raise SettingError(
                f"stream_chunks is {stream_chunks}, but the calibrated clips have {len(sizes)} chunks. Calibrate "
                "shorter clips, or set stream_chunks to 0."
            )
        longer = found.extend((*sizes, *[max(sizes)] * (stream_chunks - len(sizes)))) if stream_chunks else found
        return io.NodeOutput(
            json.dumps([round(value, 6) for value in longer.values]), ui=sensitivity_data(found, calibration)
        )


def chunk_sizes(calibration: Calibration) -> tuple[int, ...]:
    """Latent frames of each recorded chunk."""
    calls = calibration.rollouts[0].calls
    return tuple({call.chunk: call.latents.shape[2] for call in calls}.values())


def sensitivity_data(found: FrameWeights, calibration: Calibration) -> dict[str, Any]:
    """What the panel draws."""
    shown = Sensitivity(
        found.chunk_frames,
        found.sensitivity,
        found.low,
        found.high,
        found.per_affected,
        found.fitted,
        found.rate,
        found.prompts,
        calibration.horizon,
    )
    names = ("share", "low", "high", "fitted_share", "per_affected", "chunk_frames")
    return {
        "qarvd_sensitivity": [
            {**{name: list(getattr(shown, name)) for name in names}, "prompts": shown.prompts, "rate": shown.rate}
        ]
    }
