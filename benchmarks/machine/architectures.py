"""What a multiprocessor of each architecture holds and does per clock, with where each number comes from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .code import Instruction

SUB_PARTITIONS = 4
"""Of a multiprocessor; each issues one instruction of one warp per clock (NVIDIA's whitepapers, Volta and later)."""
SHARED_BYTES_PER_CLOCK = 128
"""Of a multiprocessor: 32 banks of 4 bytes (CUDA C++ Programming Guide, "Shared Memory")."""
SPECIAL_LANES_PER_CLOCK = 4
"""Of a sub-partition: 16 results per clock and multiprocessor for exponentials and for conversions between int32 and
float32 (CUDA C++ Programming Guide, "Throughput of Native Arithmetic Instructions"). Nsight Compute's guide calls that
unit XU. From 8.6 on, compilers convert int32 to float32 by I2FP, which does not run there."""
MATRIX_BYTES = 8 * 8 * 2
"""Of each matrix that ldmatrix reads (PTX ISA)."""
WARP = 32
REGISTERS = 65536
REGISTER_UNIT = 8
"""Registers of a thread are given out in eights (CUDA C++ Programming Guide; cuda_occupancy.h)."""
SHARED_UNIT = 128
"""Bytes that a block's shared memory is rounded up to from compute capability 8.0 on; 256 before: cuda_occupancy.h."""


@dataclass(frozen=True)
class Architecture:
    """Limits: CUDA C++ Programming Guide, table "Technical Specifications per Compute Capability".

    Rates are dense multiply-adds of a sub-partition per clock, derived from a card's published peak:
    operations per second / (2 * multiprocessors * 4 * boost clock).
    """

    name: str
    capability: tuple[int, int]
    shared: int
    """Bytes of shared memory of a multiprocessor."""
    reserved: int
    """Bytes that the system takes of it for each block."""
    threads: int
    blocks: int
    int8: int | None
    fp16: int | None
    """With sums in float32."""
    source: str
    """Of the two rates."""


ARCHITECTURES = {
    a.name: a
    for a in (
        Architecture(
            "sm_75", (7, 5), 64 << 10, 0, 1024, 16, 256, 64,
            "GeForce RTX 2080 Ti, Turing whitepaper: 227.7 TOPS and 56.9 TFLOPS, 68 multiprocessors at 1.635 GHz",
        ),
        Architecture(
            "sm_80", (8, 0), 164 << 10, 1 << 10, 2048, 32, 512, 256,
            "A100, Ampere whitepaper: 624 TOPS and 312 TFLOPS, 108 multiprocessors at 1.41 GHz",
        ),
        Architecture(
            "sm_86", (8, 6), 100 << 10, 1 << 10, 1536, 16, 256, 64,
            "GeForce RTX 3080, GA102 whitepaper: 238 TOPS and 59.5 TFLOPS, 68 multiprocessors at 1.71 GHz",
        ),
        Architecture(
            "sm_89", (8, 9), 100 << 10, 1 << 10, 1536, 24, 256, 64,
            "GeForce RTX 4090, Ada whitepaper: 660.6 TOPS and 165.2 TFLOPS, 128 multiprocessors at 2.52 GHz",
        ),
        Architecture(
            "sm_90", (9, 0), 228 << 10, 1 << 10, 2048, 32, 1024, 512,
            "H100 SXM, Hopper whitepaper: 1,979 TOPS and 989 TFLOPS, 132 multiprocessors at 1.83 GHz; that is the "
            "rate of wgmma, which these kernels do not use: mma reaches less of it",
        ),
        Architecture(
            "sm_100", (10, 0), 228 << 10, 1 << 10, 2048, 32, None, None,
            "none: B200's published rates are those of tcgen05, which these kernels do not use",
        ),
        Architecture(
            "sm_120", (12, 0), 100 << 10, 1 << 10, 1536, 24, 256, 64,
            "GeForce RTX 5090, Blackwell whitepaper: 838 TOPS and 209.5 TFLOPS, 170 multiprocessors at 2.407 GHz",
        ),
    )
}  # fmt: skip


def is_tensor(instruction: Instruction) -> bool:
    """Whether it multiplies matrices."""
    return instruction.opcode.startswith(("IMMA.", "HMMA.", "QMMA."))


def tensor_cycles(code: Sequence[Instruction], on: Architecture) -> float | None:
    """Clocks that the tensor core of one sub-partition is busy with one warp's `code`."""
    total = 0.0
    for instruction in filter(is_tensor, code):
        kind, shape, *modifiers = instruction.opcode.split(".")
        m, n, k = (int(part) for part in re.fullmatch(r"(16|8)(8)(\d+)", shape).groups())  # type: ignore[union-attr]
        rate = {"IMMA": on.int8, "HMMA": on.fp16}.get(kind)
        if rate is None or (kind == "HMMA" and "F32" not in modifiers):  # sums in float16 are faster
            return None
        total += m * n * k / rate
    return total


def shared_cycles(code: Sequence[Instruction]) -> int:
    """Clocks that the shared memory of a multiprocessor is busy while each sub-partition runs one warp's `code`.

    Without bank conflicts, and as if no two lanes read the same: the most that their bytes can take.
    """
    return SUB_PARTITIONS * sum(_wavefronts(instruction) for instruction in code)


def _wavefronts(instruction: Instruction) -> int:
    """Clocks of one warp's access."""
    kind, *modifiers = instruction.opcode.split(".")
    if kind == "LDSM":
        return int(modifiers[-1]) * MATRIX_BYTES // SHARED_BYTES_PER_CLOCK
    if kind in ("LDS", "STS", "LDGSTS"):
        lane = 16 if "128" in modifiers else 8 if "64" in modifiers else 4
        return WARP * lane // SHARED_BYTES_PER_CLOCK
    return 0


def special_cycles(code: Sequence[Instruction]) -> int:
    """Clocks that one sub-partition's unit for exponentials and conversions is busy with one warp's `code`."""
    names = [instruction.opcode.split(".")[0] for instruction in code]
    return sum(name in ("MUFU", "I2F", "F2I", "F2F") for name in names) * WARP // SPECIAL_LANES_PER_CLOCK


def occupancy(on: Architecture, registers: int, shared: int, threads: int) -> tuple[int, str]:
    """Blocks that a multiprocessor holds at once, and what allows no more."""
    warps = -(-threads // WARP)
    each = -(-registers // REGISTER_UNIT) * REGISTER_UNIT * WARP * warps
    unit = SHARED_UNIT if on.capability >= (8, 0) else 256
    room = -(-shared // unit) * unit + on.reserved
    limits = {
        "registers": REGISTERS // each,
        "shared memory": on.shared // room if room else on.blocks,
        "threads": on.threads // (warps * WARP),
        "blocks": on.blocks,
    }
    least = min(limits, key=lambda name: limits[name])
    return limits[least], least
