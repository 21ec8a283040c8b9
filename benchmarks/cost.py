"""What calibrating and quantizing Wan2.1-1.3B costs: counted from its shapes, and one block's memory measured here.

The count: floating-point operations, minutes on an RTX 3090 by the rates below, and what each stage holds at its peak,
beside what torch itself takes; by default for as many prompts as `quantize` takes in its default time.
The measurement: one block of that model with random weights, calibrated on a short clip on this machine; what the
process held at its peak beyond the block and its two caches (the full model's and the quantized one's). `--smoke`
measures a small block instead.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from math import ceil

import torch

from qarvd.calibrate.call_sensitivity import BATCHES, FOLLOWED, generated
from qarvd.calibrate.call_sensitivity import CHUNKS as FIRST
from qarvd.calibrate.collect import TOKENS
from qarvd.calibrate.frame_weights import LEAST_PROMPTS
from qarvd.calibrate.horizon import HORIZONS
from qarvd.calibrate.rollout import Setting, roll_out
from qarvd.calibrate.stats import WIDE
from qarvd.cli.calibrate import DEFAULTS
from qarvd.demo.performance import peak_memory
from qarvd.jobs.calibrate import MEASURED_IN_TIME
from qarvd.jobs.quantize import ON_CARD
from qarvd.jobs.time_budget import CHOOSING, FITTING, MINUTES, Clock, RemainingWork
from qarvd.quantize.blockwise import quantize_blockwise
from qarvd.quantize.lattice import NUMBERS
from qarvd.quantize.model import linear_groups
from qarvd.quantize.rounding.gptq import KEPT, ROUNDS, SWEEPS
from qarvd.recipe import Recipe
from qarvd.report.tables import text_table
from qarvd.stream.presets import PRESETS
from qarvd.wan.config import WanConfig
from qarvd.wan.tree import WanTree

WAN = WanConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30)
SIZE, CHUNKS, CHUNK_FRAMES, FRAME_TOKENS = (60, 104), 7, 3, 1560
CALLS = 5
"""Of a chunk: four steps and the pass that fills the cache."""
DRAWN = 2.1
"""Of these, those that layers are fitted to, with the shares that the demo model's calls have (calls.sample_calls)."""

MOVES = 17 / 3 + 8 / 3
"""How often the walk through a block reads and writes all states (quantize/blockwise.py)."""


@dataclass(frozen=True)
class Card:
    """Rates that a card keeps up, in operations a second: half of an RTX 3090's peak; seconds that a launch takes."""

    half: float = 35e12
    single: float = 18e12
    double: float = 0.28e12
    launch: float = 8e-6
    link: float = 8e9
    """Bytes a second from and to memory or a page cache."""
    memory: float = 24e9
    """Bytes."""


def chunk_work(config: WanConfig, chunk: int) -> float:
    """Operations of one model call in chunk `chunk` (from 0) of a clip without a window."""
    tokens = CHUNK_FRAMES * FRAME_TOKENS
    linears = 2 * config.num_layers * (6 * config.dim**2 + 2 * config.dim * config.ffn_dim)
    cross = 4 * config.num_layers * config.dim * config.text_len
    attention = 4 * config.num_layers * config.dim * tokens * (chunk + 1)
    return tokens * (linears + cross + attention)


def clip_work(config: WanConfig, first: int = 0, end: int = CHUNKS) -> float:
    """Operations of the chunks from `first` to before `end`."""
    return CALLS * sum(chunk_work(config, k) for k in range(first, end))


def fit_seconds(config: WanConfig, card: Card) -> float:
    """Fitting all linears in groups: factors of the Hessian, roundings, descent; many small launches."""
    total = 0.0
    for names in linear_groups(config.num_layers):
        kind = names[0].split(".", 2)[-1]
        channels = (
            config.ffn_dim if kind == "ffn.2" else config.text_dim if names[0] == "text_embedding.0" else config.dim
        )
        rows = config.ffn_dim if kind == "ffn.0" else config.dim
        precise = card.double if channels <= WIDE else card.single
        factors = 3 * channels**3 + 3 * rows * channels**2
        passes = KEPT + SWEEPS * (ROUNDS + 1) + 4 * ROUNDS + 3  # over rows x channels x channels
        pieces = ceil(rows * channels * KEPT / NUMBERS)
        launches = channels * (15 * pieces + 6 * SWEEPS * (ROUNDS + 1) + 6 * ROUNDS)
        seconds = factors / precise + 2 * rows * channels**2 * passes / card.single + launches * card.launch
        total += len(names) * seconds
    return total


def minutes(config: WanConfig, card: Card, prompts: int, measured: int, reach: str) -> list[dict[str, object]]:
    """Each part of a run as a row."""
    clip = clip_work(config)
    effects = sum(clip_work(config, k, k + far) for k, far in enumerate(HORIZONS[reach](CHUNKS)))
    singles = clip_work(config, 0, FIRST + FOLLOWED - 1)
    singles = BATCHES * (singles + sum(CALLS * clip_work(config, k, k + FOLLOWED) for k in range(FIRST)))
    calls = CHUNKS * CALLS - 1
    tokens = min(TOKENS, prompts * calls * CHUNK_FRAMES * FRAME_TOKENS)
    widths = [config.dim] * 4 + [config.dim] + [config.ffn_dim]
    sums = 4 * tokens * config.num_layers * sum(w**2 for w in widths)
    walked = prompts * DRAWN / CALLS
    states = 3 * walked * calls * CHUNK_FRAMES * FRAME_TOKENS * config.dim * 2
    beside = 2 * weights_of(config) + ON_CARD
    moved = 0.0 if states + beside <= card.memory else MOVES * config.num_layers * states
    parts = [
        ("record the clips", prompts * clip, prompts * clip / card.half),
        (
            f"measure the chunks' effects on {measured} of them ({reach})",
            measured * effects,
            measured * effects / card.half,
        ),
        (f"measure the calls' effects on {BATCHES} of them", singles, singles / card.half),
        ("walk both states through the blocks", 2.3 * walked * clip, 2.3 * walked * clip / card.half),
        ("sum second moments", sums, sums / card.single),
        ("fit the linears", None, fit_seconds(config, card)),
        (f"move states that the card cannot hold ({moved / 1e12:.1f} TB)", None, moved / card.link),
    ]
    rows: list[dict[str, object]] = [
        {"part": name, "PFLOP": None if work is None else work / 1e15, "minutes": seconds / 60}
        for name, work, seconds in parts
    ]
    total = sum(seconds for _, _, seconds in parts) / 60
    return [*rows, {"part": f"all, with {states / 1e9:.0f} GB of states", "PFLOP": None, "minutes": total}]


def weights_of(config: WanConfig) -> int:
    """How many weights the blocks' linears have."""
    return config.num_layers * (8 * config.dim**2 + 2 * config.dim * config.ffn_dim)


def prompts_in(limit: float, measured: int, reach: str, rest: RemainingWork = FITTING, card: Card = Card()) -> int:
    """How many prompts `calibrate` takes in `limit` minutes on `card`: all its clock knows is the pace of chunks."""
    clock, far = Clock(None), HORIZONS[reach](CHUNKS)
    effects = sum(clip_work(WAN, k, k + chunks) for k, chunks in enumerate(far))
    later = BATCHES * generated(Setting(WAN, PRESETS["self-forcing"], SIZE, CHUNKS * CHUNK_FRAMES))
    prompts = 0
    while True:
        measuring = prompts < measured
        upcoming = CHUNKS + measuring * sum(far)
        if prompts >= LEAST_PROMPTS and clock.projected_minutes(upcoming + later, prompts + 1, CHUNKS, rest) > limit:
            return prompts
        clock.earlier += (clip_work(WAN) + measuring * effects) / card.half
        clock.generated += upcoming
        prompts += 1


def whole_minutes(prompts: int, measured: int, reach: str) -> float:
    """Minutes of a whole run on an RTX 3090."""
    *_, whole = minutes(WAN, Card(), prompts, min(prompts, measured), reach)
    return float(str(whole["minutes"]))


def peaks(config: WanConfig, prompts: int) -> list[dict[str, object]]:
    """What each stage holds in bfloat16, one clip at a time: models, caches; the widest activations, or sums.

    Blocks that are not walked through lie in the host's memory, and so do the texts of all prompts, once their
    embedding is fitted, and what a bit budget chooses among (4 bytes a weight).
    """
    linears = weights_of(config)
    full, quantized = 2 * linears, linears / 2
    tokens = CHUNK_FRAMES * FRAME_TOKENS
    cache = 2 * 2 * config.num_layers * config.dim * tokens  # of a chunk
    call = 2 * tokens * (2 * config.ffn_dim + 4 * config.dim)
    followed = FIRST + FOLLOWED - 1
    block, gram = full / config.num_layers, 4 * config.ffn_dim**2
    texts = 2 * prompts * config.text_len * (config.text_dim + 2 * config.dim)
    gradients = 2 * tokens * config.dim * config.num_layers + 6 * call
    stages = [
        ("record and measure chunks", full + quantized, CHUNKS * cache, call),
        ("measure calls", full + quantized, followed * cache, call),
        ("choose bits for a target", full, CHUNKS * cache, gradients),
        ("fit the text embedding", 2 * config.dim * (config.text_dim + config.dim), 0, texts + 32 * config.text_dim**2),
        # While sums are taken, two of them and what is added; while a linear is fitted, its two sums and six like them,
        # and later three, beside the roundings that are kept.
        (
            "walk and fit",
            2 * block,
            2 * CHUNKS * cache / config.num_layers,
            max(2 * call + 4 * gram, 8 * gram, 5 * gram + 11 * NUMBERS),
        ),
    ]
    heads = ("models, GB", "caches, GB", "other, GB", "all, GB")
    return [
        {"stage": name, **dict(zip(heads, (part / 1e9 for part in (*parts, sum(parts))), strict=True))}
        for name, *parts in stages
    ]


def measure(config: WanConfig, size: tuple[int, int], frames: int) -> dict[str, object]:
    """Peak memory of quantizing one block, in GB; chunks of one latent frame."""
    preset = PRESETS["causal-forcing-framewise"]
    setting = Setting(config, preset, size, frames)
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        tree = WanTree(config)
    tree.to_empty(device="cpu").to(torch.bfloat16)
    for parameter in tree.parameters():
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
    text = torch.randn(1, 4, config.text_dim, generator=generator).bfloat16()
    rollout, _ = roll_out(setting, tree, text, [0])
    tokens = frames * size[0] * size[1] // 4
    caches = 2 * 2 * tokens * config.dim * 2
    states = 3 * sum(call.latents[:, 0].numel() // 4 for call in rollout.calls) * config.dim * 2
    block = sum(p.numel() for p in tree.blocks[0].parameters()) * 2
    before = peak_memory() or 0
    quantize_blockwise(tree, setting, [rollout], [[1.0] * CALLS] * frames, Recipe(weight_bits=4))
    beyond = (peak_memory() or 0) - before - caches - states - block
    return {
        "block, GB": block / 1e9,
        "caches, GB": caches / 1e9,
        "states, GB": states / 1e9,
        "beyond, GB": beyond / 1e9,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--prompts", type=int, help=f"as many as are taken in {MINUTES:g} minutes where it is not given"
    )
    parser.add_argument("--measured", type=int, default=MEASURED_IN_TIME, help="prompts on which chunks are measured")
    parser.add_argument("--reach", choices=HORIZONS, default=DEFAULTS["reach"])
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    prompts = args.prompts or prompts_in(MINUTES, args.measured, args.reach)
    targeted = prompts_in(MINUTES, args.measured, args.reach, FITTING + CHOOSING)
    print(f"In {MINUTES:g} minutes that choose bits for a --target, too, {targeted} prompts are taken.")
    print(f"{prompts} prompts of {CHUNKS} chunks at {SIZE[0]}x{SIZE[1]} latents; an RTX 3090 at {Card()}")
    print(text_table(minutes(WAN, Card(), prompts, min(prompts, args.measured), args.reach)))
    print(text_table(peaks(WAN, prompts)))
    small = WanConfig(dim=64, ffn_dim=128, num_heads=2, num_layers=1, text_dim=16, text_len=4, freq_dim=32)
    one = WanConfig(**{**vars(WAN), "num_layers": 1})
    print("One block, measured here:")
    print(text_table([measure(small, (8, 8), 2) if args.smoke else measure(one, SIZE, 2)]))


if __name__ == "__main__":
    main()
