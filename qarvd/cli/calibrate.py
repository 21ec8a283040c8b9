"""`calibrate MODEL --prompts FILE --out stats.safetensors`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from .. import __version__
from ..calibrate import prompts as shipped
from ..calibrate.calibration import Calibration
from ..calibrate.frame_weights import LEAST_PROMPTS, WITHIN
from ..calibrate.horizon import HORIZONS
from ..checkpoint.calibration import save_calibration
from ..checkpoint.inputs import read_prompt_list
from ..checkpoint.model import Model, checksum
from ..demo import bundle, prompts
from ..errors import PromptError, SettingError
from ..files import has_suffix, no_file
from ..jobs.calibrate import SEED, CalibrationPlan, calibrate, identity
from ..jobs.time_budget import FITTING, MINUTES, RemainingWork
from ..jobs.work import Work
from ..quantize.rounding.task import ENOUGH
from ..recipe import RECIPES, Recipe
from ..report.tables import text_table
from ..stream.presets import find_preset
from ..stream.sampler import frame_tokens, spans
from ..wan.forward import pad_text
from .common import (
    CHUNKS,
    DEVICE_HELP,
    add_model,
    add_size,
    check_out,
    counted,
    latent_size,
    load_model,
    model_path,
    pick_device,
    place,
    say,
    wanted_frames,
    work_folder,
)

HELP = "roll a model out on prompts and measure how much each chunk matters; the statistics serve many quantizations"
DEMO_PROMPTS = 64
"""Of the prompts the demo model was trained on, where none are given."""
DEFAULTS: dict[str, object] = {"reach": "short", "seed": SEED, "budget_minutes": MINUTES}
"""Of options that are None where they were not given, so that one without a use is noticed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser, "model")
    add_calibration(parser)
    parser.add_argument(
        "--recipe", choices=RECIPES, default="w4a8", help="the bits at which chunks are measured (w4a8)"
    )
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file of statistics to write")


def add_calibration(parser: argparse.ArgumentParser) -> None:
    """Arguments of everything that calibrates."""
    parser.add_argument(
        "--prompts",
        type=Path,
        help="a text file, one prompt a line, for the demo model; else a safetensors file of text_embeds "
        "[prompts, tokens, text_dim]",
    )
    parser.add_argument("--chunks", type=int, help=f"chunks of each calibration clip ({CHUNKS})")
    add_size(parser)
    parser.add_argument(
        "--reach",
        choices=HORIZONS,
        help=f"how many later chunks are generated to see the effect of one: all, as published (full), or a few, in a "
        f"third of the time (short); the rest is then estimated, with weights within 7 %% ({DEFAULTS['reach']})",
    )
    parser.add_argument("--seed", type=int, help=f"seed of the first clip's noise ({DEFAULTS['seed']})")
    parser.add_argument(
        "--budget-minutes",
        type=float,
        help="use as many prompts as fit into this time, the fitting included, but at least 4 (an estimate from the "
        f"first prompts); 0 uses all ({MINUTES:g})",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue an interrupted run from the last clips or the last layer that it finished",
    )
    parser.add_argument("--device", default="auto", help=DEVICE_HELP)


def given(args: argparse.Namespace, *names: str) -> list[str]:
    """Those of the options that the user gave."""
    values = {f"--{name.replace('_', '-')}": getattr(args, name) for name in names}
    return [option for option, value in values.items() if value is not None and value is not False]


def filled(args: argparse.Namespace) -> argparse.Namespace:
    """The arguments with defaults in the place of options that were not given."""
    return argparse.Namespace(
        **{name: DEFAULTS.get(name) if value is None else value for name, value in vars(args).items()}
    )


def run(args: argparse.Namespace) -> None:
    args = filled(args)
    check_out(args.out, ".safetensors", model_path(args.model), args.prompts)
    model = load_model(args.model, args.preset)
    recipe = RECIPES[args.recipe]
    clips = read_clips(args, model)
    work = open_work(args, model, recipe, clips.about)
    place(model, args.device)
    calibration = run_calibration(model, clips, wanted_plan(args, clips, recipe, FITTING), work)
    work.finish(lambda path: save_calibration(calibration, path), args.out)
    advise(calibration)
    if len(calibration.errors):
        print_weights(calibration)
    print(f"wrote {args.out}: {counted(calibration.prompts, 'prompt')}")


@dataclass(frozen=True)
class Clips:
    """What is to be rolled out."""

    embeddings: Tensor
    """[prompts, tokens, text_dim]."""
    size: tuple[int, int]
    frames: int

    @property
    def about(self) -> dict[str, object]:
        """What tells these clips from others."""
        return {"prompts": checksum({"text_embeds": self.embeddings}), "size": self.size, "frames": self.frames}


def demo_clips(prompts_: int, frames: int) -> Clips:
    """Clips of prompts that the demo model was trained on."""
    side = bundle.LATENT_SIDE
    known = prompts.split_prompts()[0][:prompts_]
    return Clips(bundle.embed(known), (side, side), frames)


def read_clips(args: argparse.Namespace, model: Model) -> Clips:
    """The clips that the arguments ask for. Raises QarvdErrors for what this model cannot be calibrated with."""
    frames = wanted_frames(args.chunks, None, model.preset)
    if not args.budget_minutes >= 0:
        raise SettingError("--budget-minutes must be 0 (all prompts) or above.")
    demo, size = model.preset_name == "demo", latent_size(args.size, model)
    if args.prompts is None:
        if not demo:
            raise PromptError(
                "--prompts is missing: give a safetensors file of text_embeds [prompts, tokens, text_dim]. `python -m "
                f"qarvd encode` makes one, for example of the 64 prompts in {shipped.FILE}."
            )
        return demo_clips(DEMO_PROMPTS, frames)
    embeddings = read_prompts(args.prompts, demo)
    if len(embeddings) < LEAST_PROMPTS:
        raise PromptError(
            f"{args.prompts} holds {counted(len(embeddings), 'prompt')}; calibration needs at least {LEAST_PROMPTS}, "
            "and 24 or more of different kinds are much better."
        )
    pad_text(model.config, embeddings[:1])
    frame_tokens(model.config, *size)
    return Clips(embeddings, size, frames)


def read_prompts(path: Path, demo: bool) -> Tensor:
    """Embeddings of a list of prompts. Raises PromptError or CheckpointError for a file that holds none."""
    if not path.is_file():
        raise PromptError(no_file(path))
    if demo and has_suffix(path, ".safetensors"):
        raise PromptError(f"The demo model takes prompts as text, one a line, but {path} holds embeddings.")
    if demo:
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise PromptError(f"{path} is not a text file in UTF-8; save it as one.") from error
        texts = [line.strip() for line in lines if line.strip()]
        if not texts:
            raise PromptError(f"{path} holds no prompts; write one a line.")
        return bundle.embed([prompts.parse(text) for text in texts])
    if not has_suffix(path, ".safetensors"):
        raise PromptError(
            f"{path} is text, but this model takes encoded prompts: `python -m qarvd encode` makes a safetensors file "
            "of them."
        )
    return read_prompt_list(path)


def open_work(args: argparse.Namespace, model: Model, recipe: Recipe, about: Mapping[str, object]) -> Work:
    """The folder beside the result in which finished parts are kept until it is written."""
    job: dict[str, object] = {
        "verb": args.verb,
        "qarvd": __version__,
        "device": str(pick_device(args.device)),
        "model": identity(model),
        "preset": model.preset_name,
        "recipe": recipe.to_json(),
    }
    options = {"seed": args.seed, "reach": args.reach, "budget_minutes": args.budget_minutes}
    folder = work_folder(args.out)
    work = Work(folder, {**job, **options, **about}, args.resume)
    if args.resume:
        say(f"Resuming from {folder}." if work.begun else "There is nothing to resume: starting from the beginning.")
    return work


def wanted_plan(args: argparse.Namespace, clips: Clips, recipe: Recipe, rest: RemainingWork) -> CalibrationPlan:
    """What the user wants measured on the clips, before `rest`."""
    minutes = args.budget_minutes or None
    return CalibrationPlan(clips.size, clips.frames, recipe, args.seed, horizon=args.reach, minutes=minutes, rest=rest)


def run_calibration(model: Model, clips: Clips, plan: CalibrationPlan, work: Work | None = None) -> Calibration:
    """Calibrate with a progress bar, and say so if time was short."""
    with tqdm(unit="chunk", desc="calibrating", leave=False) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        found = calibrate(model, clips.embeddings, plan, work, show)
    if found.prompts < len(clips.embeddings):
        say(
            f"{found.prompts} of {counted(len(clips.embeddings), 'prompt')} fit into {plan.minutes:g} minutes; a "
            "larger --budget-minutes takes more, and 0 takes all."
        )
    return found


def advise(calibration: Calibration) -> None:
    """Say so where few prompts were taken."""
    if calibration.prompts < ENOUGH:
        say(f"Calibrated on {counted(calibration.prompts, 'prompt')}; {ENOUGH} or more make a better model.")


def print_weights(calibration: Calibration) -> None:
    """Each measured chunk's weight and its interval as a table, and how sure they are."""
    chunk_frames = find_preset(calibration.preset_name).chunk_frames
    weights = calibration.weights([len(span) for span in spans(calibration.frames, chunk_frames)])
    chunks = len(weights.values)
    columns = zip(weights.values, weights.low, weights.high, strict=True)
    print(
        text_table(
            [
                {"chunk": k + 1, "weight": value, "95 % from": low * chunks, "to": high * chunks}
                for k, (value, low, high) in enumerate(columns)
            ]
        )
    )
    narrow = "narrow enough" if weights.spread <= WITHIN else f"more than {WITHIN:.0%}: more prompts would help"
    reached = f"intervals reach at most {weights.spread:.0%} from their weights, {narrow}"
    print(f"measured on {counted(weights.prompts, 'prompt')}; {reached}")
