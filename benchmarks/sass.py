"""What the machine code of the CUDA kernels says: registers, spills, occupancy, and the cost of each main loop.

No card is needed: NVIDIA's disassembler reads the compiled kernels. A main loop is an innermost loop with tensor-core
instructions. Two counts of it:

- all: every instruction of the loop, also of branches that rarely run (rescaling when the running maximum rises,
  masking in the last tile);
- usual: one path through it, which does all copies, shared-memory reads, barriers and products, and of those paths
  the one with the fewest instructions. Cycles are of this path.

Cycles are a model: tensor, special and issue cycles of one of a multiprocessor's four sub-partitions for one turn of
one warp, at the published dense rates (benchmarks/machine/architectures.py names each); shared-memory cycles of the
multiprocessor while each of its sub-partitions makes one such turn. Every instruction takes one issue slot.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from machine.architectures import (
    ARCHITECTURES,
    Architecture,
    is_tensor,
    occupancy,
    shared_cycles,
    special_cycles,
    tensor_cycles,
)
from machine.code import Instruction, NoTools, Resources, Tools, available, find_tools, functions, modules, resources
from machine.kernels import Launch, cubin_for, launches, peer_label
from machine.loops import loops
from machine.tables import markdown

from qarvd.errors import DeviceError
from qarvd.ops.cuda import source
from qarvd.ops.cuda.cubins import SHIPPED, architecture_for

WORK = ("LDSM", "LDGSTS", "LDG", "LDS", "STS", "BAR")
"""With products, what the usual path must not miss."""


@dataclass(frozen=True)
class Turn:
    """One turn of a main loop, by one warp."""

    kind: str
    """bytes (IMMA) or floats (HMMA)."""
    every: int
    usual: int
    tensor: int
    ldsm: int
    ldgsts: int
    lds: int
    tensor_cycles: float | None
    shared_cycles: int
    special_cycles: int

    @property
    def other(self) -> int:
        return self.usual - self.tensor - self.ldsm - self.ldgsts - self.lds

    @property
    def issue_share(self) -> float | None:
        """Issue slots of what is not a product, for each tensor cycle."""
        return (self.usual - self.tensor) / self.tensor_cycles if self.tensor_cycles else None


@dataclass(frozen=True)
class Kernel:
    """What one kernel occupies and does on one architecture."""

    name: str
    architecture: str
    compiled_for: str
    registers: int
    stack: int
    spills: int
    """Instructions that read or write a thread's stack."""
    shared: int | None
    blocks: int
    """Of a multiprocessor."""
    limited_by: str
    turns: tuple[Turn, ...]
    """The one with the most products first."""


def is_work(instruction: Instruction) -> bool:
    return is_tensor(instruction) or instruction.opcode.split(".")[0] in WORK


def turns(code: Sequence[Instruction], on: Architecture) -> tuple[Turn, ...]:
    """Of each innermost loop with products, the one with the most products first; equal ones once."""
    found = [loop for loop in loops(code, is_work) if any(map(is_tensor, loop.every))]
    inner = [a for a in found if not any(b is not a and set(b.every) < set(a.every) for b in found)]
    counted = [_turn(loop.every, loop.usual, on) for loop in inner]
    return tuple(sorted(dict.fromkeys(counted), key=lambda turn: -turn.tensor))


def _turn(every: Sequence[Instruction], usual: Sequence[Instruction], on: Architecture) -> Turn:
    names = [instruction.opcode.split(".")[0] for instruction in usual]
    tensor = [instruction for instruction in usual if is_tensor(instruction)]
    return Turn(
        kind="/".join(sorted({"bytes" if i.opcode.startswith("IMMA") else "floats" for i in tensor})),
        every=len(every),
        usual=len(usual),
        tensor=len(tensor),
        ldsm=names.count("LDSM"),
        ldgsts=names.count("LDGSTS"),
        lds=names.count("LDS"),
        tensor_cycles=tensor_cycles(usual, on),
        shared_cycles=shared_cycles(usual),
        special_cycles=special_cycles(usual),
    )


def kernel(
    name: str, code: Sequence[Instruction], held: Resources, launch: Launch, on: Architecture, compiled_for: str
) -> Kernel:
    """Put together what is known of one kernel; without its shared memory, occupancy is by registers and threads."""
    blocks, limited_by = occupancy(on, held.registers, held.shared + (launch.shared or 0), launch.threads)
    spills = sum(i.opcode.split(".")[0] in ("STL", "LDL") for i in code)
    shared = None if launch.shared is None else held.shared + launch.shared
    return Kernel(
        name, on.name, compiled_for, held.registers, held.stack, spills, shared, blocks, limited_by, turns(code, on)
    )


def own(
    tools: Tools, on: Sequence[Architecture], prebuilt: Path, nvrtc: Path | None, compile_it: bool = True
) -> Iterator[Kernel]:
    """Our kernels on each architecture. Raises DeviceError where they are not prebuilt and not compiled either."""
    known, read = launches(), {}
    for architecture in on:
        name = architecture_for(architecture.capability) or architecture.name
        if name not in read:
            image = cubin_for(architecture.capability, prebuilt, nvrtc, compile_it).image
            with TemporaryDirectory() as folder:
                path = Path(folder) / "own.cubin"
                path.write_bytes(image)
                read[name] = (functions(tools, path), resources(tools, path, ARCHITECTURES[name].reserved))
        code, held = read[name]
        for function in sorted(set(code) & set(known)):
            yield kernel(function, code[function], held[function], known[function], architecture, name)


def peer(tools: Tools, library: Path, on: Sequence[Architecture]) -> Iterator[Kernel]:
    """comfy-kitchen's kernels, from its compiled library, in the newest code it has that each architecture runs.

    Of kernels that differ in types and epilogue alone, the one with the shortest main loop.
    """
    has, read = available(tools, library), {}
    for architecture in on:
        major, minor = architecture.capability
        fits = [f"sm_{major}{m}" for m in range(minor, -1, -1) if f"sm_{major}{m}" in has]
        if fits:
            if fits[0] not in read:
                read[fits[0]] = list(_peer_code(tools, library, fits[0]))
            best: dict[str, Kernel] = {}
            for label, launch, code, held in read[fits[0]]:
                made = kernel(label, code, held, launch, architecture, fits[0])
                if made.turns and (label not in best or _cost(made) < _cost(best[label])):
                    best[label] = made
            yield from (best[label] for label in sorted(best, key=_by_size))


def _cost(made: Kernel) -> tuple[int, int]:
    return made.turns[0].usual, made.registers


def _by_size(label: str) -> tuple[str, list[int]]:
    return label.split()[0], [int(number) for number in re.findall(r"\d+", label)]


def _peer_code(
    tools: Tools, library: Path, architecture: str
) -> Iterator[tuple[str, Launch, list[Instruction], Resources]]:
    with TemporaryDirectory() as folder:
        for path in modules(tools, library, architecture, Path(folder)):
            held = resources(tools, path, ARCHITECTURES[architecture].reserved)
            wanted = {name: label for name in held if (label := peer_label(name)) is not None}
            code = functions(tools, path) if wanted else {}
            for name, (label, launch) in wanted.items():
                yield label, launch, code[name], held[name]


COLUMNS = (
    "kernel", "regs", "stack", "spills", "shared", "blocks", "loop", "all", "usual", "tensor", "LDSM", "LDGSTS", "LDS",
    "other", "tensor cyc", "shared cyc", "special cyc", "issue share",
)  # fmt: skip


def rows(kernels: Sequence[Kernel]) -> Iterator[tuple[str, ...]]:
    """One for each main loop, or one without."""
    for made in kernels:
        head = (
            made.name,
            str(made.registers),
            str(made.stack),
            str(made.spills),
            "?" if made.shared is None else str(made.shared),
            f"{made.blocks} ({made.limited_by})",
        )
        for turn in made.turns or (None,):
            yield head + (("-",) * 12 if turn is None else _cells(turn))
            head = ("",) * len(head)


def _cells(turn: Turn) -> tuple[str, ...]:
    counts = (turn.every, turn.usual, turn.tensor, turn.ldsm, turn.ldgsts, turn.lds, turn.other)
    cycles = "?" if turn.tensor_cycles is None else f"{turn.tensor_cycles:.0f}"
    share = "?" if turn.issue_share is None else f"{turn.issue_share:.2f}"
    return (turn.kind, *map(str, counts), cycles, str(turn.shared_cycles), str(turn.special_cycles), share)


def show(title: str, kernels: Sequence[Kernel]) -> None:
    for name, architecture in ARCHITECTURES.items():
        chosen = [made for made in kernels if made.architecture == name]
        if not chosen:
            continue
        code = chosen[0].compiled_for
        print(f"\n## {title} on {name}" + ("" if code == name else f", which runs the code for {code}"))
        print(f"Tensor rate: {architecture.source}.\n")
        print(markdown([COLUMNS, *rows(chosen)]))


def library_in(place: Path) -> Path:
    """comfy-kitchen's compiled library: a file, or found in an unpacked wheel. Raises DeviceError."""
    if place.is_file():
        return place
    found = sorted(place.glob("**/backends/cuda/_C*.so"))
    if not found:
        raise DeviceError(f"{place} holds no comfy_kitchen/backends/cuda/_C*.so; unpack the wheel for Linux there")
    return found[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="one architecture; skipped where something is missing")
    parser.add_argument("--architectures", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--prebuilt", type=Path, default=SHIPPED, help="folder of prebuilt kernels")
    parser.add_argument("--nvrtc", type=Path, help="folder of NVRTC 12.9, where prebuilt kernels are missing")
    parser.add_argument("--peer", type=Path, help="comfy-kitchen's compiled library, or its unpacked wheel")
    parser.add_argument("--peer-on", nargs="+", choices=ARCHITECTURES, default=["sm_80", "sm_86", "sm_89"])
    parser.add_argument("--json", type=Path, help="write all figures there")
    args = parser.parse_args()
    chosen = [ARCHITECTURES[name] for name in (["sm_80"] if args.smoke else args.architectures)]
    try:
        tools = find_tools()
        ours = list(own(tools, chosen, args.prebuilt, args.nvrtc, compile_it=not args.smoke))
        beside = [ARCHITECTURES[name] for name in args.peer_on]
        theirs = list(peer(tools, library_in(args.peer), beside)) if args.peer else []
    except (NoTools, DeviceError) as error:
        if not args.smoke:
            parser.exit(2, f"{error}\n")
        print(f"Skipped: {error}")
        return
    show("qarvd", ours)
    show("comfy-kitchen", theirs)
    if args.json:
        figures = {
            "source": source.read().hash,
            "qarvd": [asdict(made) for made in ours],
            "comfy-kitchen": [asdict(made) for made in theirs],
        }
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
