"""`quantize MODEL --recipe w4a8 --out F`."""

from __future__ import annotations

import argparse
from dataclasses import replace
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..calibrate.calibration import Calibration
from ..checkpoint.calibration import load_calibration
from ..checkpoint.model import Model, save
from ..errors import SettingError
from ..jobs.budget import check_target
from ..jobs.quantize import MEASURING, QUANTIZING, check_statistics, check_stream, quantize
from ..jobs.time_budget import CHOOSING, FITTING
from ..jobs.work import Work
from ..quantize.model import LayerReport, linear_groups
from ..quantize.rounding import ROUNDING
from ..recipe import FORMATS, GROUPS, OUTLIERS, RECIPES, ROTATIONS, STOCK, Recipe
from ..report.tables import by_choice, by_kind, size_text, text_table
from .calibrate import add_calibration, advise, filled, given, open_work, read_clips, run_calibration, wanted_plan
from .common import add_model, check_out, load_model, model_path, place, say

HELP = "quantize a checkpoint to weights of 3 to 8 bits with two scales, and write it as safetensors"
OF_CLIPS = ("prompts", "chunks", "size", "reach", "seed", "budget_minutes")
"""Options that say what clips are rolled out."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser, "model")
    parser.add_argument(
        "--recipe",
        choices=RECIPES,
        help="the bits of weights and activations (w8a8; w4a8 with --format asym_w4a8_int8)",
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        help="the file's format. asym_w4a8_int8 (4 bits, and 6 with comfy-kitchen 0.2.40) and int8_tensorwise (8 bits) "
        "are ComfyUI's own: it loads them without this pack, and they have no second scale (qarvd)",
    )
    parser.add_argument(
        "--group",
        type=int,
        choices=GROUPS[4],
        help="columns of a row that share a scale, for weights of fewer than 8 bits: fewer make a larger and better "
        "file. 0: the whole row shares one (the recipe's: 16)",
    )
    parser.add_argument(
        "--rotation",
        type=int,
        choices=ROTATIONS,
        help="rotate the inputs of linears by Hadamard matrices of this width; 0: not (the recipe's: 256)",
    )
    parser.add_argument(
        "--rounding", choices=ROUNDING, help="how weights are rounded (gptq with calibration, nearest without)"
    )
    parser.add_argument(
        "--outliers",
        choices=OUTLIERS,
        help="how outlier channels are chosen (search with calibration, published without)",
    )
    parser.add_argument("--single-scale", action="store_true", help="the same as --outliers none")
    parser.add_argument("--symmetric", action="store_true", help="weights without zero points")
    parser.add_argument("--target", help="choose 3 to 16 bits a layer to meet a size, such as 900MB or '4 bits'")
    parser.add_argument(
        "--stream-chunks",
        type=int,
        help="the length in chunks of the streams you will make; early chunks then weigh as they do in such a stream "
        "(as the clips)",
    )
    parser.add_argument("--data-free", action="store_true", help="round to nearest, without any calibration")
    parser.add_argument("--stats", type=Path, help="statistics written by `calibrate`, instead of --prompts")
    add_calibration(parser)
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")


def run(args: argparse.Namespace) -> None:
    recipe, unused = wanted(args), needing_data(args)
    args = filled(args)
    check_out(args.out, ".safetensors", model_path(args.model), args.prompts, args.stats)
    model = load_model(args.model, args.preset)
    check_target(model, recipe)
    if not args.data_free and not args.stats and not args.prompts and model.preset_name != "demo":
        if unused:
            raise SettingError(f"{needs(unused)} calibration on prompts; give --prompts or --stats.")
        say(
            "No prompts were given, so weights are rounded to nearest without calibration. --prompts (or --stats) "
            "makes a much better model."
        )
        recipe = recipe.without_data()
    if recipe == recipe.without_data():
        place(model, args.device)
        model, reports = with_bar(model, recipe)
        save(model, args.out)
    else:
        model, reports = calibrated(args, model, recipe)
    print(text_table(by_kind(reports)))
    if recipe.target is not None:
        print(text_table(by_choice(reports)))
        budget: Any = model.notes["budget"]
        bits = 8 * sum(report.nbytes for report in reports) / sum(prod(report.shape) for report in reports)
        print(f"{bits:.2f} bits a weight; estimated weighted error {budget['error']:.4g}, the least for this size")
    print(f"wrote {args.out}: {size_text(args.out.stat().st_size)}")


def wanted(args: argparse.Namespace) -> Recipe:
    """The recipe with the user's changes. Raises SettingError for those that exclude each other."""
    if args.stats and (double := given(args, *OF_CLIPS)):
        raise SettingError(
            f"{', '.join(double)} and --stats were both given, but statistics bring their own clips; drop one."
        )
    if args.data_free and (data := needing_data(args)):
        raise SettingError(f"--data-free means no calibration, but {needs(data)} it; drop one.")
    if args.single_scale and args.outliers:
        raise SettingError(f"--single-scale and --outliers {args.outliers} were both given; drop one.")
    options = {"target": args.target, "stream_chunks": args.stream_chunks}
    options |= {"symmetric": True} if args.symmetric else {}
    recipe = in_format(args)
    chosen = {"group": args.group, "rotation": args.rotation}
    options |= {name: value for name, value in chosen.items() if value is not None}
    recipe = replace(recipe, **options)
    if args.rounding:
        recipe = replace(recipe, rounding=args.rounding)
    if args.outliers or args.single_scale:
        recipe = replace(recipe, outliers="none" if args.single_scale else args.outliers)
    return recipe.without_data() if args.data_free else recipe


def in_format(args: argparse.Namespace) -> Recipe:
    """The ready-made recipe for the format. Raises SettingError where one was named that the format can't hold."""
    recipe = RECIPES[args.recipe or "w8a8"]
    if args.format is None:
        return recipe
    if args.recipe is None and args.format in STOCK:
        bits = next(iter(STOCK[args.format].groups))
        recipe = RECIPES[f"w{bits}a8"]
    made = recipe.in_format(args.format)
    if made.weight_bits != recipe.weight_bits:
        bits = " or ".join(map(str, STOCK[args.format].groups))
        raise SettingError(
            f"{args.format} holds weights of {bits} bits, but --recipe {args.recipe} has {recipe.weight_bits}; drop "
            "one of them."
        )
    return made


def needing_data(args: argparse.Namespace) -> list[str]:
    """The options given that mean nothing without a calibration."""
    by_value = {
        f"--rounding {args.rounding}": args.rounding not in (None, "nearest"),
        f"--outliers {args.outliers}": args.outliers == "search",
    }
    found = given(args, *OF_CLIPS, "stats", "target", "stream_chunks", "resume")
    return [*found, *(option for option, needed in by_value.items() if needed)]


def needs(options: list[str]) -> str:
    """`options` as the subject, and the verb."""
    return f"{', '.join(options)} {'needs' if len(options) == 1 else 'need'}"


def calibrated(args: argparse.Namespace, model: Model, recipe: Recipe) -> tuple[Model, list[LayerReport]]:
    """Calibrate, or read statistics, and quantize; what is finished survives a kill."""
    place(model, args.device)
    if args.stats:
        calibration = load_calibration(args.stats)
        check_statistics(calibration, model)
        check_stream(recipe, len(calibration.horizon))
        measured = calibration.measured_as
        if len(calibration.errors) and recipe.frame_weights and measured and measured.weight_bits != recipe.weight_bits:
            say(f"Chunks were measured with {measured.weight_bits}-bit weights; these measurements are used here too.")
        work = open_work(args, model, recipe, {"stats": sha256(args.stats.read_bytes()).hexdigest()})
    else:
        clips = read_clips(args, model)
        check_stream(recipe, -(-clips.frames // model.preset.chunk_frames))
        work = open_work(args, model, recipe, clips.about)
        rest = FITTING if recipe.target is None else FITTING + CHOOSING
        calibration = run_calibration(model, clips, wanted_plan(args, clips, recipe, rest), work)
    advise(calibration)
    model, reports = with_bar(model, recipe, calibration, work)
    work.finish(lambda path: save(model, path), args.out)
    return model, reports


def with_bar(
    model: Model, recipe: Recipe, calibration: Calibration | None = None, work: Work | None = None
) -> tuple[Model, list[LayerReport]]:
    """Quantize with a progress bar."""
    count = sum(map(len, linear_groups(model.config.num_layers)))
    calls = 0 if calibration is None else sum(len(rollout.calls) for rollout in calibration.rollouts)
    with (
        tqdm(total=calls, unit="call", desc=MEASURING, leave=False, disable=recipe.target is None) as measuring,
        tqdm(total=count, unit="linear", desc=QUANTIZING, leave=False) as bar,
    ):

        def on_call(what: str) -> None:
            if what == MEASURING:
                measuring.update()

        return quantize(model, recipe, calibration, work, lambda name: bar.update(), on_call)
