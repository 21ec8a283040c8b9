"""How much each way to quantize costs in quality: all methods on one model, from the same noise, at the same bits.

The natural demo model and its hostile twin (tools/plant_outliers.py); 64 prompts that no calibration saw, 8 seeds each;
several calibration seeds, each with prompts and noise of its own. Every finished run is written to --out at once, and a
further start does what is missing: `--only` narrows that down. --page writes the tables of docs/quality.md and of
docs/quality_runs.md.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from baselines import frontier
from baselines.figures import compare, entry, rounded
from baselines.methods import METHODS, Case, measured
from baselines.tables import MODELS, comparisons, markdown
from baselines.timing import Calibrations, timed
from torch import Tensor
from tqdm import tqdm

from qarvd.calibrate.calibration import Calibration
from qarvd.checkpoint.model import Model
from qarvd.cli.common import load_model
from qarvd.demo import experiment
from qarvd.demo.bundle import LATENT_SIDE, embed, load_judge
from qarvd.demo.prompts import Prompt, split_prompts
from qarvd.files import replacing
from qarvd.quantize.model import linear_groups, linear_of
from qarvd.quantize.rounding.adaround import ITERATIONS
from qarvd.stream.rollout import roll_out

ROOT = Path(__file__).parents[1]
OUT, UNTOUCHED = ROOT / "docs" / "quality.json", ROOT / "docs" / "quality_untouched.json"
PAGE, RUNS = ROOT / "docs" / "quality.md", ROOT / "docs" / "quality_runs.md"
CHART = PAGE.with_suffix(".svg")
MARKED = re.compile(r"(<!-- (frontier|comparisons|tables|untouched) -->\n).*?(<!-- end -->)", re.DOTALL)
"""Where the tables of OUT and of UNTOUCHED stand in the pages."""
TWIN = ROOT / "tools" / "plant_outliers.py"
PROMPTS, SEEDS, CHUNKS, BATCH = 64, 8, 7, 64
CALIBRATION_PROMPTS = 64
CACHED = ("ours", "published", "published_dynamic", "nearest", "smoothquant", "rotation", "gptq")
"""Methods that are also run with an int8 cache."""
SMOKED = ("nearest", "rotation", "smoothquant_gptq", "published", "published_dynamic", "gptq", "random_outliers")
"""One of each kind."""
BITS = {"w8a8": 8, "w6a8": 6, "w4a8": 4, "w4a8_int8_cache": 4, "w3a8": 3}
"""Sections of the result, and their weights' bits."""


@dataclass(frozen=True)
class Run:
    """One quantization; sections that differ in the cache alone share it."""

    bits: int
    model: str
    method: str
    seed: int
    """Calibration seed."""

    @property
    def sections(self) -> tuple[str, ...]:
        found = [f"w{self.bits}a8"]
        if self.bits == 4 and self.method in CACHED:
            found.append("w4a8_int8_cache")
        return tuple(found)

    def key(self, section: str) -> str:
        return f"{section}/{self.model}/{self.method}/{self.seed}"


def runs(seeds: int) -> Iterator[Run]:
    """All runs, the most telling first; a method without calibration needs one seed."""
    for seed in range(seeds):
        for bits in (4, 8, 3, 6):
            for name in (name for name, method in METHODS.items() if bits in method.bits):
                for model in MODELS:
                    if seed == 0 or (METHODS[name].repeat and METHODS[name].prompts and bits in (4, 8)):
                        yield Run(bits, model, name, seed)


class Bench:
    """Models, reference clips and calibrations, each made when first needed."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        seeds: int,
        chunks: int,
        calibrated: int = CALIBRATION_PROMPTS,
        iterations: int = ITERATIONS,
    ) -> None:
        """`calibrated` prompts at most calibrate; `iterations` of published AdaRound."""
        self.prompts, self.seeds, self.chunks = len(prompts), seeds, chunks
        self.calibrated, self.iterations = calibrated, iterations
        self.cases = [(prompts[i % len(prompts)], 1000 + i) for i in range(len(prompts) * seeds)]
        self.reader, _ = load_judge()

    @cache  # noqa: B019
    def model(self, name: str) -> Model:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "twin.safetensors"
            if name == "twin":
                subprocess.run([sys.executable, TWIN, "demo", path], check=True, stdout=subprocess.DEVNULL)
            model = load_model(str(path) if name == "twin" else "demo")
        model.tree.float()
        return model

    @cache  # noqa: B019
    def reference(self, name: str) -> Tensor:
        return self.stream(self.model(name).tree, "16-bit")

    def case(self, name: str, bits: int, seed: int) -> tuple[Case, Calibrations[Calibration]]:
        """A case, and the calibrations that it hands out: fewer than 8 bits share those that are measured at 4."""
        case, calibrations = self.calibrated_case(name, 8 if bits == 8 else 4, seed)
        return replace(case, bits=bits), calibrations

    @cache  # noqa: B019
    def calibrated_case(self, name: str, bits: int, seed: int) -> tuple[Case, Calibrations[Calibration]]:
        """A case of 4 or 8 bits, and the calibrations that it hands out."""
        known = split_prompts()[0].copy()
        Random(seed).shuffle(known)
        model, side = self.model(name), (LATENT_SIDE, LATENT_SIDE)
        text = embed(known[: self.calibrated])
        frames = self.chunks * model.preset.chunk_frames
        calibrations = Calibrations(lambda prompts: measured(replace(case, text=text[:prompts])))
        case = Case(model, text, side, frames, 20_000 + 1000 * seed, bits, calibrations, self.iterations)
        return case, calibrations

    def stream(self, tree: Any, codec: str) -> Tensor:
        """Clips of all cases, [samples, channels, frames, height, width]."""
        model, side = self.model("natural"), (LATENT_SIDE, LATENT_SIDE)
        frames, clips = self.chunks * model.preset.chunk_frames, []
        for first in range(0, len(self.cases), BATCH):
            prompts, seeds = zip(*self.cases[first : first + BATCH], strict=True)
            store = model.preset.cache(frames, codec)
            chunks = roll_out(tree, model.config, model.preset, embed(prompts), side, frames, seeds, store)
            clips.append(torch.cat([chunk.latents for chunk in chunks], dim=2))
        return torch.cat(clips)

    def judge(self, latents: Tensor, model: str) -> dict[str, object]:
        """Errors against full precision and the judge's verdicts, one figure a prompt."""
        size = self.model(model).preset.chunk_frames
        error = (latents - self.reference(model)).square()
        verdict = experiment.judge(self.reader, latents, [p for p, _ in self.cases], size)
        figures = {
            "mse": error.flatten(1).mean(1),
            "mse_last": error[:, :, -size:].flatten(1).mean(1),
            "digit": verdict.digit,
            "motion": verdict.motion,
        }
        return {
            key: [rounded(v) for v in values.double().view(self.seeds, self.prompts).mean(0).tolist()]
            for key, values in figures.items()
        }

    def build(self, run: Run) -> tuple[tuple[Any, int], float]:
        """The quantized tree and the bytes of its linears; the seconds that took, with its calibration."""
        case, calibrations = self.case(run.model, run.bits, run.seed)
        return timed(lambda: METHODS[run.method].build(case), calibrations)

    def run(self, run: Run) -> dict[str, dict[str, object]]:
        """Results by section."""
        (tree, stored), seconds = self.build(run)
        found = {}
        for section in run.sections:
            latents = self.stream(tree, "int8" if "cache" in section else "16-bit")
            found[section] = {"bytes": stored, "seconds": rounded(seconds), **self.judge(latents, run.model)}
        return found


def summarise(results: dict[str, dict[str, Any]], full: dict[str, Any]) -> dict[str, Any]:
    """The published file: a list of methods for each section, comparisons with ours, and the runs themselves."""
    summary: dict[str, Any] = {section: [] for section in BITS}
    for section in BITS:
        for model in MODELS:
            groups: dict[str, dict[int, dict[str, Any]]] = {}
            for key, result in results.items():
                its_section, its_model, method, seed = key.split("/")
                if (its_section, its_model) == (section, model):
                    groups.setdefault(method, {})[int(seed)] = result
            rows = [
                entry(name, model, list(groups[name].values()), full[model], experiment.PEAK)
                for name in METHODS
                if name in groups
            ]
            for row in rows:
                if "ours" in groups and row["method"] != "ours":
                    mine, other = ({s: r["mse"] for s, r in groups[n].items()} for n in ("ours", row["method"]))
                    if not METHODS[row["method"]].prompts:
                        other = {seed: other[0] for seed in mine}  # the same, whatever the calibration
                    row["ours_against_it"] = compare(mine, other)
            summary[section] += rows
    return {**summary, "full": full, "runs": results}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where results are (docs/quality.json, or quality_untouched.json)")
    parser.add_argument(
        "--untouched", action="store_true", help="on the other held-out prompts, by which next to nothing was chosen"
    )
    parser.add_argument("--only", default="*", help="runs SECTION/MODEL/METHOD/SEED that match this pattern")
    parser.add_argument("--calibration-seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of torch (all)")
    parser.add_argument("--table", action="store_true", help="print the tables of --out and stop")
    parser.add_argument("--page", action="store_true", help="write the tables and the chart of the pages and stop")
    parser.add_argument("--time", action="store_true", help="build again what was run, and correct its seconds alone")
    parser.add_argument("--smoke", action="store_true", help="methods of each kind on two clips, written nowhere")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.smoke:
        smoke()
        return
    out = args.out or (UNTOUCHED if args.untouched else OUT)
    if args.table:
        summary = summarise(*stored(out))
        print(frontier.table(frontier.points(summary, weights())), comparisons(summary), markdown(summary), sep="\n\n")
        return
    if args.page:
        for page in (PAGE, RUNS):
            page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
        CHART.write_text(frontier.chart(frontier.points(summarise(*stored(OUT)), weights())) + "\n", encoding="utf-8")
        return
    wanted = [r for r in runs(args.calibration_seeds) if any(fnmatch.fnmatch(r.key(s), args.only) for s in r.sections)]
    if not wanted:
        parser.error(f"no run matches {args.only!r}; runs are called SECTION/MODEL/METHOD/SEED")
    if unknown := {key.split("/")[2] for key in stored(out)[0]} - METHODS.keys():
        parser.error(f"{out} holds runs of {', '.join(sorted(unknown))}, which is no method here; remove them first")
    held_out = split_prompts()[1]
    bench = Bench(held_out[PROMPTS:] if args.untouched else held_out[:PROMPTS], SEEDS, CHUNKS)
    for run in tqdm(wanted, unit="run"):
        known, full = stored(out)
        keys = [run.key(section) for section in run.sections]
        if args.time:
            found = retimed(bench, run, {key: known[key] for key in keys if key in known})
        elif set(keys) - known.keys():
            if run.model not in full:
                full[run.model] = bench.judge(bench.reference(run.model), run.model)
            found: dict[str, dict[str, Any]] = {run.key(section): new for section, new in bench.run(run).items()}
            tqdm.write(f"{keys[0]}: {np.mean(found[keys[0]]['mse']):.5f}", sys.stderr)
        else:
            continue
        known, others = stored(out)  # again: another process may have added to it meanwhile
        with replacing(out) as temporary:
            temporary.write_text(json.dumps(summarise(known | found, others | full), indent=0) + "\n")


def stored(out: Path) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """The runs that a file holds, and what full precision does."""
    found = json.loads(out.read_text()) if out.exists() else {}
    return found.get("runs", {}), found.get("full", {})


def filled(page: str, out: Path = OUT, untouched: Path = UNTOUCHED) -> str:
    """`page` with the tables of both files between its marks."""
    tables = {"tables": lambda: markdown(summarise(*stored(out)))}
    tables["comparisons"] = lambda: comparisons(summarise(*stored(out)))
    tables["frontier"] = lambda: frontier.table(frontier.points(summarise(*stored(out)), weights()))
    tables["untouched"] = lambda: markdown(summarise(*stored(untouched)), "untouched prompts, ")
    return MARKED.sub(lambda mark: f"{mark[1]}\n{tables[mark[2]]()}\n{mark[3]}", page)


def weights() -> int:
    """How many weights the linears of either model have."""
    model = load_model("demo")
    names = chain.from_iterable(linear_groups(model.config.num_layers))
    return sum(linear_of(model.tree, name).weight.numel() for name in names)


def retimed(bench: Bench, run: Run, known: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """A run's known results with their seconds corrected, by building it again."""
    if not known:
        return {}
    _, seconds = bench.build(run)
    return {key: {**result, "seconds": rounded(seconds)} for key, result in known.items()}


def smoke() -> None:
    """A little of everything."""
    bench = Bench(split_prompts()[1][:2], seeds=1, chunks=2, calibrated=2, iterations=5)
    results, full = {}, {m: bench.judge(bench.reference(m), m) for m in MODELS}
    for run in [Run(4, "natural", method, 0) for method in SMOKED] + [Run(4, "twin", "nearest", 0)]:
        results |= {run.key(section): result for section, result in bench.run(run).items()}
    print(markdown(summarise(results, full)))


if __name__ == "__main__":
    main()
