"""`demo --out DIR`: quantize the bundled model, stream it before and after, show the difference."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..checkpoint.model import Model, load, save
from ..demo import bundle, experiment, pixels
from ..demo.performance import measure
from ..errors import SettingError
from ..files import replacing
from ..jobs.calibrate import CalibrationPlan
from ..quantize.model import LayerReport
from ..recipe import RECIPES
from ..report.charts import bar_chart, line_chart, stacked_counts
from ..report.page import Clip, Figure, Picture, render_page
from ..report.png import png_bytes, write_png
from ..report.sheet import contact_sheet
from ..report.tables import size_text, text_table
from ..report.video import VideoWriter
from ..stream.presets import PRESETS
from .calibrate import demo_clips, place, run_calibration
from .common import load_model, ready, say, wanted_frames
from .quantize import with_bar

HELP = "the main job on the bundled model: detect outliers, quantize to W8A8 and W4A8, stream all three, report"
BATCH = 64
SHOWN_RECIPES = ("w8a8", "w4a8")
PROMPTS = 24
"""Calibration prompts."""
SHOWN = 8
"""Clips in each video and rows of the contact sheet."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("qarvd-demo"), help="the folder to write (qarvd-demo)")
    parser.add_argument("--samples", type=int, default=64, help="clips per variant, at least 64 (64)")
    parser.add_argument("--chunks", type=int, default=7, help="chunks per clip (7)")


def run(args: argparse.Namespace) -> None:
    if args.samples < 64 or args.chunks < 1:
        raise SettingError("The demo needs at least 64 samples and at least 1 chunk.")
    wanted_frames(args.chunks, None, PRESETS["demo"])
    clips = demo_clips(PROMPTS, wanted_frames(None, None, PRESETS["demo"]))
    began = time.perf_counter()
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingError(f"The folder {args.out} cannot be created: {error.strerror}.") from error

    variants: dict[str, tuple[Model, Path]] = {"full": (load_model("demo"), bundle.MODEL)}
    layers: dict[str, list[LayerReport]] = {}
    calibration = None
    for name in SHOWN_RECIPES:
        recipe = RECIPES[name]
        path = args.out / f"demo-{name}.safetensors"
        model = load_model("demo")
        place(model, "cpu")
        calibration = calibration or run_calibration(model, clips, CalibrationPlan(clips.size, clips.frames, recipe))
        quantized, layers[name] = with_bar(model, recipe, calibration)
        save(quantized, path)
        variants[name] = (load(path), path)  # what is measured is what was written

    cases = experiment.samples(args.samples)
    prompts = [prompt for prompt, _ in cases]
    reader, reader_accuracy = bundle.load_judge()
    latents: dict[str, Tensor] = {}
    verdicts: dict[str, experiment.Verdict] = {}
    figures: dict[str, dict[str, Any]] = {}
    for name, (model, path) in variants.items():
        performance = measure(path, args.chunks)
        ready(model, "cpu")
        with tqdm(total=-(-len(cases) // BATCH) * args.chunks, unit="chunk", desc=f"streaming {name}") as bar:
            latents[name] = experiment.run(model, cases, args.chunks, BATCH, lambda chunk: bar.update())
        verdicts[name] = experiment.judge(reader, latents[name], prompts, model.preset.chunk_frames)
        quality = experiment.metrics(model, latents[name], latents["full"], verdicts[name])
        figures[name] = {"bytes": path.stat().st_size, **quality, **asdict(performance)}
    figures["full"]["digit_loss_points"] = None
    for name in layers:
        mean, low, high = experiment.paired_loss(verdicts["full"].digit, verdicts[name].digit, groups=64)
        figures[name]["digit_loss_points"] = {"mean": mean, "interval_95": [low, high]}
    print(text_table(_rows(figures)))
    print(f"The digit judge itself is right on {reader_accuracy:.1%} of digits that were in no training set.")
    _write_report(args.out, variants, layers, latents, figures, [str(p) for p in prompts[:SHOWN]], reader_accuracy)
    with replacing(args.out / "metrics.json") as temporary:
        temporary.write_text(json.dumps(figures, indent=2) + "\n")
    say(f"wrote {args.out}/report.html and the files beside it in {time.perf_counter() - began:.0f} s")


LABELS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "samples": ("clips", str),
    "bytes": ("file", size_text),
    "weight_bits": ("bits per quantized weight", "{:.2f}".format),
    "psnr_db": ("PSNR against full (dB)", "{:.1f}".format),
    "psnr_last_chunk_db": ("PSNR of the last chunk (dB)", "{:.1f}".format),
    "digit_accuracy_first": ("right digit, first chunk", "{:.1%}".format),
    "digit_accuracy_last": ("right digit, last chunk", "{:.1%}".format),
    "digit_loss_points": ("points of digit accuracy lost [95 %]", lambda loss: _interval(**loss)),
    "motion_accuracy": ("right motion", "{:.1%}".format),
    "first_frame_seconds": ("first frame after (ms)", lambda seconds: f"{1000 * seconds:.0f}"),
    "seconds_per_chunk": ("a chunk takes (ms)", lambda seconds: f"{1000 * seconds:.0f}"),
    "peak_memory_bytes": ("peak memory of the process", size_text),
}
"""What each figure is called in the table, and how it is written."""


def _interval(mean: float, interval_95: list[float]) -> str:
    low, high = interval_95
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"


def _rows(figures: dict[str, dict[str, Any]]) -> list[dict[str, object]]:
    """A row per figure, a column per variant."""
    return [
        {"": label, **{name: "-" if f[key] is None else write(f[key]) for name, f in figures.items()}}
        for key, (label, write) in LABELS.items()
    ]


def _write_report(
    out: Path,
    variants: dict[str, tuple[Model, Path]],
    layers: dict[str, list[LayerReport]],
    latents: dict[str, Tensor],
    figures: dict[str, dict[str, Any]],
    prompts: list[str],
    reader_accuracy: float,
) -> None:
    clips = {name: pixels.decode(latent[:SHOWN]) for name, latent in latents.items()}
    for name, clip in clips.items():
        with VideoWriter(out / f"{name}.mp4", bundle.FRAMES_PER_SECOND, scale=6) as video:
            video.write(torch.cat([torch.cat(list(clip[i : i + 4]), dim=2) for i in range(0, SHOWN, 4)], dim=1))
    frames = clips["full"].shape[1]
    sheet = contact_sheet(clips, range(0, frames, max(1, frames // 7)), prompts)
    write_png(out / "contact-sheet.png", sheet)

    chunk_frames = variants["full"][0].preset.chunk_frames
    errors = {name: experiment.chunk_errors(latents[name], latents["full"], chunk_frames) for name in layers}
    smallest, report = list(layers.items())[-1]
    sizes = {name: variants[name][1].stat().st_size / 1e6 for name in (*layers, "full")}  # in the errors' colours
    page = render_page(
        title="qarvd demo",
        summary=(
            f"A small autoregressive video model with 8-bit and 4-bit weights and 8-bit activations, streamed "
            f"from the same noise as the full-precision one. {figures['full']['samples']} clips of prompts it was not "
            f"trained on; the digit judge itself is right on {reader_accuracy:.1%} of unseen digits."
        ),
        table=_rows(figures),
        figures=[
            Figure(
                "Error per chunk",
                "Mean squared error of the latents against full precision.",
                line_chart(errors, "chunk", "squared error", log_y=True, first=1),
            ),
            Figure(
                f"Outlier channels per layer, {smallest}",
                "Input channels with a scale of their own, as many as leave the least error of the output.",
                stacked_counts({r.name: (r.n_outlier, r.shape[1]) for r in report}),
            ),
            Figure(
                "Size on disk",
                "The whole file, parts that stay in 16 bits included.",
                bar_chart(sizes, "MB"),
            ),
        ],
        pictures=[Picture("Side by side", "Rows are prompts; strips are frames over time.", png_bytes(sheet))],
        clips=[
            Clip(name, f"{SHOWN} clips streamed by {name}.", (out / f"{name}.mp4").read_bytes()) for name in variants
        ],
    )
    with replacing(out / "report.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
