"""A model of what the CUDA kernels should bring: linears, attention and a whole clip of Wan2.1, on five cards.

Nothing here was measured on a card. Times follow from the machine code (benchmarks/sass.py counts it; its record is
docs/kernels.json), from published rates and from the assumptions in benchmarks/machine/cards.py:

- a turn of a main loop takes the longest of its tensor, issue, shared-memory and special cycles, over what share of
  that bound a kernel is assumed to reach;
- the blocks of a grid are dealt to the multiprocessors, and the fullest one decides (wave quantization);
- no kernel is faster than memory delivers its operands once.

A clip: 81 frames are 21 latent frames, 7 chunks of 3; each chunk takes 4 steps and a pass that fills the cache. Text
encoder and VAE are left out. Attention keeps a sink of 3 frames and the newest 3 in 16 bits, the rest in 8.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from machine import cards
from machine.architectures import ARCHITECTURES, SUB_PARTITIONS
from machine.cards import CARDS, Card
from machine.tables import markdown

from qarvd.ops.cuda import source
from qarvd.ops.cuda.kernels import K_TILE, choose_tile
from qarvd.ops.cuda.ring_kernels import KEYS, QUERIES

RECORD = Path(__file__).parents[1] / "docs" / "kernels.json"
HEAD_DIM = 128
FRAME_TOKENS, CHUNK_FRAMES, FRAMES, CALLS = 1560, 3, 21, 5
ROWS = FRAME_TOKENS * CHUNK_FRAMES
SINK_FRAMES = 3
WINDOWS = {"window 12": 12, "full": FRAMES}


@dataclass(frozen=True)
class Model:
    name: str
    heads: int
    ffn: int
    blocks: int

    @property
    def dim(self) -> int:
        return self.heads * HEAD_DIM

    @property
    def linears(self) -> tuple[tuple[int, int, int], ...]:
        """(outputs, channels, how many) of a block; keys and values of the cross-attention come from the text alone."""
        return (self.dim, self.dim, 6), (self.ffn, self.dim, 1), (self.dim, self.ffn, 1)

    @property
    def quantized(self) -> tuple[tuple[int, int], ...]:
        """(channels, how many) of the inputs of a block's linears: q, k and v share one."""
        return (self.dim, 5), (self.ffn, 1)


MODELS = (Model("Wan2.1-1.3B", 12, 8960, 30), Model("Wan2.1-14B", 40, 13824, 40))


@cache
def _record(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


@dataclass(frozen=True)
class Bound:
    """Cycles of one turn of a main loop, and what sets them."""

    cycles: float
    by: str


def bound(record: Path, card: Card, kernel: str, kind: str = "bytes") -> Bound:
    """From the slowest of the kernel's main loops of that kind."""
    made = next(k for k in _record(record)["qarvd"] if (k["architecture"], k["name"]) == (card.architecture, kernel))
    found = []
    for turn in made["turns"]:
        if turn["kind"] == kind:
            cycles = {"tensor": turn["tensor_cycles"], "issue": turn["usual"]}
            cycles |= {"shared memory": turn["shared_cycles"], "special": turn["special_cycles"]}
            by = max(cycles, key=lambda name: cycles[name])
            found.append(Bound(cycles[by], by))
    return max(found, key=lambda one: one.cycles)


def _seconds(card: Card, cycles: float) -> float:
    return cycles / (card.ghz * 1e9)


def _streamed(card: Card, size: float) -> float:
    """Seconds for so many bytes."""
    return size / (card.gigabytes_per_second * 1e9 * cards.MEMORY_REACH)


def _kernel(seconds: float, size: float, card: Card) -> float:
    return max(seconds, _streamed(card, size)) + cards.LAUNCH_MICROSECONDS * 1e-6


def our_linear(record: Path, card: Card, rows: int, outputs: int, channels: int) -> float:
    """Seconds of `dual_scale_linear`; 64 more columns stand for the turn in which the two ranges meet."""
    tile = choose_tile(rows, outputs, card.multiprocessors)
    turn = bound(record, card, tile.kernel).cycles / cards.OUR_LINEAR_REACH
    deepest = math.ceil(math.prod(tile.blocks(rows, outputs)) / card.multiprocessors)
    cycles = deepest * (math.ceil(channels / K_TILE) + 1) * turn
    return _kernel(_seconds(card, cycles), rows * channels + outputs * channels + rows * outputs * 2, card)


def decoder(card: Card, outputs: int, channels: int) -> float:
    """Seconds of `decode_weight` of 4 bits with a scale for each 16 columns: 4.5 bits are read and 8 written.

    What it writes into the L2 the product reads there; the next weight takes the same memory. Instructions take less.
    """
    written = outputs * channels
    if written <= cards.CACHED * card.cache_megabytes * 2**20:
        written = 0
    return _kernel(0, outputs * channels * 4.5 / 8 + written, card)


def library_linear(card: Card, rows: int, outputs: int, channels: int, faster: int = 1) -> float:
    """Seconds of a 16-bit linear by cuBLAS; `faster` tensor cores with float16 sums."""
    rate = (ARCHITECTURES[card.architecture].fp16 or 0) * faster * SUB_PARTITIONS
    deepest = [
        math.ceil(math.ceil(rows / m) * math.ceil(outputs / n) / card.multiprocessors) * m * n
        for m, n in cards.LIBRARY_TILES
    ]
    cycles = min(deepest) * channels / rate / cards.CUBLAS_REACH
    return _kernel(_seconds(card, cycles), 2 * (rows * channels + outputs * channels + rows * outputs), card)


def quantizer(card: Card, rows: int, channels: int) -> float:
    """Seconds of `quantize_activation`: 16 bits are read and 8 written."""
    return _kernel(0, rows * channels * 3, card)


def our_attention(record: Path, card: Card, heads: int, ring: int, plain: int) -> float:
    """Seconds of `kv_attention` for a chunk's queries: `ring` keys in 8 bits, `plain` keys in 16."""
    turns = math.ceil(ring / KEYS), math.ceil(plain / KEYS)
    kernel = "qarvd_attention_128_fp16_kv8"
    each = [bound(record, card, kernel, kind).cycles for kind in ("bytes", "floats")]
    deepest = math.ceil(math.ceil(ROWS / QUERIES) * heads / card.multiprocessors)
    cycles = deepest * sum(n * c for n, c in zip(turns, each, strict=True)) / cards.OUR_ATTENTION_REACH
    return _kernel(_seconds(card, cycles), heads * HEAD_DIM * 2 * (ring + 2 * plain + 2 * ROWS), card)


def flash_attention(card: Card, heads: int, keys: int) -> float:
    """Seconds of a 16-bit attention of a chunk's queries, by FlashAttention-2 with float32 sums."""
    rate = (ARCHITECTURES[card.architecture].fp16 or 0) * SUB_PARTITIONS
    deepest = math.ceil(math.ceil(ROWS / cards.FLASH_ROWS) * heads / card.multiprocessors)
    cycles = deepest * cards.FLASH_ROWS * keys * HEAD_DIM * 2 / rate / cards.FLASH_REACH
    return _kernel(_seconds(card, cycles), heads * HEAD_DIM * 2 * 2 * (keys + ROWS), card)


def contexts(window: int) -> Iterator[tuple[int, int]]:
    """(ring, plain) latent frames that each chunk of the clip attends to."""
    for done in range(CHUNK_FRAMES, FRAMES + 1, CHUNK_FRAMES):
        seen = min(done, window)
        plain = min(seen, SINK_FRAMES + CHUNK_FRAMES)
        yield seen - plain, plain


def clip(record: Path, card: Card, model: Model, window: int, ours: bool) -> dict[str, float]:
    """Seconds of each part of a clip: `ours` with 8-bit weights, or 16-bit linears and attention by libraries."""
    calls = CALLS * model.blocks
    chunks = FRAMES // CHUNK_FRAMES
    parts = {
        "linears": 0.0,
        "activation quantizer": 0.0,
        "self-attention": 0.0,
        "cross-attention": calls * chunks * flash_attention(card, model.heads, cards.TEXT_TOKENS),
        "elementwise": calls * chunks * _streamed(card, cards.ELEMENTWISE_PASSES * ROWS * model.dim * 2),
    }
    for outputs, channels, count in model.linears:
        each = (
            our_linear(record, card, ROWS, outputs, channels) if ours else library_linear(card, ROWS, outputs, channels)
        )
        parts["linears"] += calls * chunks * count * each
    if ours:
        for channels, count in model.quantized:
            parts["activation quantizer"] += calls * chunks * count * quantizer(card, ROWS, channels)
    for ring, plain in contexts(window):
        if ours:
            each = our_attention(record, card, model.heads, ring * FRAME_TOKENS, plain * FRAME_TOKENS)
        else:
            each = flash_attention(card, model.heads, (ring + plain) * FRAME_TOKENS)
        parts["self-attention"] += calls * each
    return parts


def linear_table(record: Path) -> list[list[str]]:
    libraries = ("cuBLAS, float32 sums", "cuBLAS, float16 sums")
    ours = ("quantizer", "product", "decoding w4g16", "over the product, %", "bound by")
    head = ["card", "model", "outputs x channels", *libraries, *ours, "w8a8: speed-up", "against float16 sums"]
    lines = [head]
    for card in CARDS:
        for model in MODELS:
            for outputs, channels, _ in model.linears:
                theirs = library_linear(card, ROWS, outputs, channels)
                fast = library_linear(card, ROWS, outputs, channels, cards.FLOAT16_SUMS)
                extra = quantizer(card, ROWS, channels)
                product, decoding = our_linear(record, card, ROWS, outputs, channels), decoder(card, outputs, channels)
                times = [f"{1e6 * t:,.0f}" for t in (theirs, fast, extra, product, decoding)]
                times.append(f"{100 * decoding / product:.1f}")
                by = bound(record, card, choose_tile(ROWS, outputs, card.multiprocessors).kernel).by
                ratios = [f"{t / (product + extra):.2f}" for t in (theirs, fast)]
                lines.append([card.name, model.name, f"{outputs}x{channels}", *times, by, *ratios])
    return lines


def attention_table(record: Path) -> list[list[str]]:
    lines = [
        [
            "card",
            "model",
            "frames in 8 + 16 bits",
            "SDPA",
            "kv_attention",
            "ring bound by",
            "speed-up",
            "at equal reach",
        ]
    ]
    for card in CARDS:
        by = bound(record, card, "qarvd_attention_128_fp16_kv8").by
        for model in MODELS:
            for ring, plain in ((6, 6), (15, 6), (12, 0)):
                theirs = flash_attention(card, model.heads, (ring + plain) * FRAME_TOKENS)
                ours = our_attention(record, card, model.heads, ring * FRAME_TOKENS, plain * FRAME_TOKENS)
                times = [f"{1e3 * t:.2f}" for t in (theirs, ours)]
                ratio = theirs / ours
                ratios = [f"{ratio:.2f}", f"{ratio * cards.FLASH_REACH / cards.OUR_ATTENTION_REACH:.2f}"]
                lines.append([card.name, model.name, f"{ring} + {plain}", *times, by, *ratios])
    return lines


def clip_table(record: Path) -> list[list[str]]:
    shares = f"{' / '.join(clip(record, CARDS[0], MODELS[0], FRAMES, False))}, %"
    lines = [["card", "model", "cache", "16 bits, s", shares, "w8a8, s", "the same, %", "speed-up"]]
    for card in CARDS:
        for model in MODELS:
            for name, window in WINDOWS.items():
                theirs, ours = (clip(record, card, model, window, which) for which in (False, True))
                line = [card.name, model.name, name]
                for parts in (theirs, ours):
                    total = sum(parts.values())
                    line += [f"{total:.1f}", " / ".join(f"{100 * part / total:.0f}" for part in parts.values())]
                lines.append([*line, f"{sum(theirs.values()) / sum(ours.values()):.2f}"])
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="the same; it takes no time")
    parser.add_argument("--record", type=Path, default=RECORD, help="what `sass.py --json` wrote")
    args = parser.parse_args()
    if not args.record.is_file():
        parser.error(f"there is no {args.record}; `python benchmarks/sass.py --json {args.record}` writes it")
    if _record(args.record)["source"] != source.read().hash:
        print(
            "The kernels changed after their machine code was counted: run `python benchmarks/sass.py --json FILE`.\n"
        )
    print(
        "A model: nothing here was measured on a card. Assumed shares of the bound: "
        f"our linear {cards.OUR_LINEAR_REACH}, cuBLAS {cards.CUBLAS_REACH}, our attention {cards.OUR_ATTENTION_REACH}, "
        f"FlashAttention {cards.FLASH_REACH}, memory {cards.MEMORY_REACH}."
    )
    print(f"\n## Linears, {ROWS} tokens, microseconds (speed-ups include the quantizer)\n")
    print(markdown(linear_table(args.record)))
    print(f"\n## Attention of one layer, {ROWS} queries, milliseconds\n")
    print(markdown(attention_table(args.record)))
    print(f"\n## A clip of {FRAMES} latent frames: seconds, and the share of each part\n")
    print(markdown(clip_table(args.record)))


if __name__ == "__main__":
    main()
