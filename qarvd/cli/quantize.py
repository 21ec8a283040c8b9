"""`quantize MODEL --recipe w4a8 --out F`."""

from __future__ import annotations

import argparse
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from tqdm import tqdm

from ..calibrate.calibration import Calibration
from ..checkpoint.calibration import load_calibration
from ..checkpoint.model import Model, save
from ..errors import SettingError
from ..jobs.budget import check_target
from ..jobs.quantize import quantize
from ..jobs.work import Work
from ..quantize.model import LayerReport, linear_groups
from ..quantize.rounding import ROUNDING
from ..recipe import OUTLIERS, RECIPES, Recipe
from .calibrate import add_calibration, open_work, place, read_clips, run_calibration
from .common import add_model, check_out, load_model, say, size_text, text_table

HELP = "quantize a checkpoint to int8 or int4 weights with two scales, and write it as safetensors"
CALIBRATION_SHARE = 0.4
"""Of --budget-minutes that may go into rolling out prompts; walking through the blocks takes about as long again."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser, "model")
    parser.add_argument("--recipe", choices=RECIPES, default="w8a8")
    parser.add_argument("--rounding", choices=ROUNDING, help="another rounding method than the recipe's")
    parser.add_argument("--outliers", choices=OUTLIERS, help="another choice of outlier channels than the recipe's")
    parser.add_argument("--single-scale", action="store_true", help="the same as --outliers none")
    parser.add_argument("--symmetric", action="store_true", help="weights without zero points")
    parser.add_argument("--target", help="choose 4, 8 or 16 bits a layer to meet a size, such as 900MB or '4.5 bits'")
    parser.add_argument("--data-free", action="store_true", help="round to nearest, without any calibration")
    parser.add_argument("--stats", type=Path, help="statistics written by `calibrate`, instead of --prompts")
    add_calibration(parser)
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")


def run(args: argparse.Namespace) -> None:
    recipe = wanted(args)
    check_out(args.out, ".safetensors")
    model = load_model(args.model, args.preset)
    check_target(model, recipe)
    if not args.data_free and not args.stats and not args.prompts and model.preset_name != "demo":
        if args.target is not None:
            raise SettingError("--target weighs what each layer does on prompts; give --prompts or --stats.")
        say(
            "No prompts were given, so weights are rounded to nearest without calibration; --prompts (or --stats) "
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
    print(f"wrote {args.out}: {size_text(args.out.stat().st_size)}")


def wanted(args: argparse.Namespace) -> Recipe:
    """The recipe with the user's changes. Raises SettingError for those that exclude each other."""
    if args.prompts and args.stats:
        raise SettingError("--prompts and --stats were both given; statistics bring their own prompts, so drop one.")
    if args.data_free and (data := needing_data(args)):
        raise SettingError(f"--data-free does without calibration, but {', '.join(data)} needs it; drop one.")
    recipe = replace(RECIPES[args.recipe], symmetric=args.symmetric, target=args.target)
    if args.rounding:
        recipe = replace(recipe, rounding=args.rounding)
    if args.outliers or args.single_scale:
        recipe = replace(recipe, outliers="none" if args.single_scale else args.outliers)
    return recipe.without_data() if args.data_free else recipe


def needing_data(args: argparse.Namespace) -> list[str]:
    """The options given that mean nothing without a calibration."""
    needing = {
        "--prompts": args.prompts is not None,
        "--stats": args.stats is not None,
        "--target": args.target is not None,
        f"--rounding {args.rounding}": args.rounding not in (None, "nearest"),
        f"--outliers {args.outliers}": args.outliers == "search",
    }
    return [option for option, given in needing.items() if given]


def calibrated(args: argparse.Namespace, model: Model, recipe: Recipe) -> tuple[Model, list[LayerReport]]:
    """Calibrate, or read statistics, and quantize; what is finished survives a kill."""
    place(model, args.device)
    if args.stats:
        calibration = load_calibration(args.stats)
        work = open_work(args, model, recipe, {"stats": sha256(args.stats.read_bytes()).hexdigest()})
    else:
        clips = read_clips(args, model)
        work = open_work(args, model, recipe, clips.about)
        minutes = None if args.budget_minutes is None else CALIBRATION_SHARE * args.budget_minutes
        calibration = run_calibration(model, recipe, clips, args.seed, args.reach, work, minutes)
    model, reports = with_bar(model, recipe, calibration, work)
    work.finish(lambda path: save(model, path), args.out)
    return model, reports


def with_bar(
    model: Model, recipe: Recipe, calibration: Calibration | None = None, work: Work | None = None
) -> tuple[Model, list[LayerReport]]:
    """Quantize with a progress bar."""
    count = sum(map(len, linear_groups(model.config.num_layers)))
    with tqdm(total=count, unit="linear", desc="quantizing", leave=False) as bar:

        def measuring() -> None:
            bar.set_description("measuring what each number of bits does")

        def done(name: str) -> None:
            bar.set_description("quantizing", refresh=False)
            bar.update()

        return quantize(model, recipe, calibration, work, done, measuring)


def by_kind(reports: list[LayerReport]) -> list[dict[str, object]]:
    """Sum up the linears of all blocks by their kind, such as cross_attn.k."""
    kinds: dict[str, list[LayerReport]] = {}
    for report in reports:
        parts = report.name.split(".")
        kinds.setdefault(".".join(parts[2:] if parts[0] == "blocks" else parts), []).append(report)
    return [
        {
            "linears": kind,
            "number": len(group),
            "in": group[0].shape[1],
            "out": group[0].shape[0],
            "bits": sum(r.bits for r in group) / len(group),
            "outliers (mean)": sum(r.n_outlier for r in group) / len(group),
            "outliers (most)": max(r.n_outlier for r in group),
            "weight error": sum(r.relative_error for r in group) / len(group),
            "size": size_text(sum(r.nbytes for r in group)),
            "kept": group[0].kept,
        }
        for kind, group in kinds.items()
    ]


def by_choice(reports: list[LayerReport]) -> list[dict[str, object]]:
    """What a bit budget gave each group of linears that share an input, and what other choices would have cost."""
    groups: dict[tuple[object, ...], list[LayerReport]] = {}
    for report in reports:
        groups.setdefault((report.name.rsplit(".", 1)[0], *(report.effects or {}).values()), []).append(report)
    return [
        {
            "linears": ", ".join([group[0].name, *(r.name.rsplit(".", 1)[1] for r in group[1:])]),
            "bits": group[0].bits,
            **{f"error at {bits} bits": (group[0].effects or {}).get(bits) for bits in (4, 8)},
            "size": size_text(sum(r.nbytes for r in group)),
            "kept": group[0].kept,
        }
        for group in groups.values()
    ]
