"""One linear of Wan2.1-1.3B on the CPU: 8-bit activations with 4- and 8-bit weights beside full precision.

Everything a call does is timed: permutation, activation quantizer, products, epilogue. Contestants take turns in one
process, so that a machine that slows down slows all of them. Targets on 2 cores: W4A8 at least 1.25x of float32 at
1536 outputs and 1.4x at 8960. `ONEDNN_MAX_CPU_ISA=AVX2` in the environment shows a processor without VNNI.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor

from qarvd.ops.backends.cpu import sums_exactly
from qarvd.ops.codecs import CODECS, Codec
from qarvd.ops.linear import QuantizedLinear
from qarvd.ops.split import ChannelSplit
from qarvd.ops.weight import QuantizedWeight

HOPELESS = 10
"""A contestant this many times slower than float32 at its first call sits out."""


def contestants(tokens: int, channels: int, out: int, outliers: int) -> dict[str, Callable[[], Tensor]]:
    """Ways to run one linear [out, channels] on the same `tokens`, float32 first."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, channels, generator=generator)
    weight = torch.randn(out, channels, generator=generator) / channels**0.5
    bias = torch.randn(out, generator=generator)
    split = ChannelSplit(channels, tuple(range(5, 5 + outliers)))
    w4, w8 = (random_weight(CODECS[name], split, out, generator) for name in ("int4", "int8"))
    linear4, linear8 = QuantizedLinear(w4, bias), QuantizedLinear(w8, bias)
    turned = random_weight(CODECS["int4g16"], replace(split, rotation=256), out, generator)
    rotated = QuantizedLinear(turned, bias)
    narrow = [t.bfloat16() for t in (x, weight, bias)]
    return {
        "fp32": lambda: F.linear(x, weight, bias),
        "bf16": lambda: F.linear(*narrow),
        "W4A8": lambda: linear4(x),
        "W8A8": lambda: linear8(x),
        "W4A8, groups of 16, rotated": lambda: rotated(x),
        "W4 dequantized": lambda: F.linear(x, w4.dequantize(), bias),
    }


def random_weight(codec: Codec, split: ChannelSplit, out: int, generator: torch.Generator) -> QuantizedWeight:
    """Any codes will do: no contestant's time depends on their values."""
    scale = torch.tensor([8.0, 1.0]) * (1 + torch.rand(out, 1, generator=generator)) / codec.high / split.channels**0.5
    low, high = (0, 2**codec.bits - 1) if codec.group else (codec.low, codec.high)
    codes = codec.pack(torch.randint(low, high + 1, (out, split.channels), dtype=torch.int8, generator=generator))
    if not codec.group:
        return QuantizedWeight(codec, split, codes, scale)
    groups = torch.full((out, split.channels // codec.group), 127 / max(codec.table)).to(torch.float8_e4m3fn)
    table = torch.tensor(codec.table) if codec.has_table else None
    return QuantizedWeight(codec, split, codes, scale, None, groups, table)


def race(runs: dict[str, Callable[[], Tensor]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each of `runs`, taking turns; hopeless ones are left out."""
    for run in runs.values():
        run()  # allocates and prepares
    first = {name: milliseconds(run) for name, run in runs.items()}
    times = {name: [] for name, spent in first.items() if spent < HOPELESS * first["fp32"] or rounds == 1}
    for _ in range(rounds):
        for name, spent in times.items():
            spent.append(milliseconds(runs[name]))
    return {name: median(spent) for name, spent in times.items()}


def milliseconds(run: Callable[[], Tensor]) -> float:
    start = perf_counter()
    run()
    return 1e3 * (perf_counter() - start)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description="Time one linear of Wan2.1-1.3B on the CPU.")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, one round: only that everything runs")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if min(args.threads, args.rounds) < 1:
        parser.error("--threads and --rounds must be at least 1")
    torch.set_num_threads(args.threads)
    exact = "exact" if sums_exactly() else "saturate"
    print(f"CPU capability {torch.backends.cpu.get_cpu_capability()}; oneDNN's sums of 8-bit products {exact}")
    shapes = (
        [(24, 96, 64, 32)] if args.smoke else [(1560, 1536, 1536, 64), (1560, 1536, 8960, 64), (1560, 8960, 1536, 64)]
    )
    for tokens, channels, out, outliers in shapes:
        print(f"\n{tokens} tokens, {channels} -> {out}, {outliers} outlier channels")
        spent = race(contestants(tokens, channels, out, outliers), 1 if args.smoke else args.rounds)
        for name, time in spent.items():
            print(f"  {name:<16}{time:9.2f} ms   {spent['fp32'] / time:5.2f}x")


if __name__ == "__main__":
    main()
