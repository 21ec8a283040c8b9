"""A compiled CUDA module as data: its functions' instructions, and what they occupy. NVIDIA's disassembler reads it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

BYTES = 16
"""Of an instruction, from Volta on."""
HOW = 'Install them with `pip install -e ".[test]"` (packages nvidia-cuda-nvdisasm and nvidia-cuda-cuobjdump).'


class NoTools(Exception):
    """The disassembler is not installed."""


@dataclass(frozen=True)
class Tools:
    """NVIDIA's programs that read compiled modules."""

    nvdisasm: Path
    cuobjdump: Path


@dataclass(frozen=True)
class Instruction:
    address: int
    opcode: str
    """With its modifiers, such as IMMA.16832.S8.S8."""
    operands: str
    predicated: bool


@dataclass(frozen=True)
class Resources:
    """What a function occupies."""

    registers: int
    stack: int
    """Bytes a thread; 0 where nothing is spilled."""
    shared: int
    """Bytes of static shared memory, without what the system reserves."""


def find_tools() -> Tools:
    """In the `nvidia` packages, else on the path. Raises NoTools."""
    spec = find_spec("nvidia")
    roots = [] if spec is None else [Path(place) for place in spec.submodule_search_locations or ()]
    folders = [str(folder) for root in roots for folder in sorted(root.glob("c*/bin"), reverse=True)]
    where = os.pathsep.join([*folders, os.environ.get("PATH", "")])
    found = [shutil.which(name, path=where) for name in ("nvdisasm", "cuobjdump")]
    if not all(found):
        raise NoTools(f"nvdisasm and cuobjdump, which read machine code, are not here. {HOW}")
    return Tools(*(Path(str(path)) for path in found))


def functions(tools: Tools, cubin: Path) -> dict[str, list[Instruction]]:
    """Instructions of each function by its name."""
    _, listed = json.loads(_output(tools, str(tools.nvdisasm), "-json", "-ndf", str(cubin)))
    return {function["function-name"]: list(_instructions(function["sass-instructions"])) for function in listed}


def _instructions(listed: list[dict[str, str]]) -> Iterator[Instruction]:
    for index, one in enumerate(listed):
        yield Instruction(index * BYTES, one["opcode"], one.get("operands", ""), "predicate" in one)


def resources(tools: Tools, cubin: Path, reserved: int) -> dict[str, Resources]:
    """Of each function by its name; `reserved` bytes of shared memory may be counted by the tool, and are taken off."""
    text = _output(tools, str(tools.cuobjdump), "-res-usage", str(cubin))
    found = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)", text)
    return {
        name: Resources(int(registers), int(stack), int(shared) - (reserved if int(shared) >= reserved else 0))
        for name, registers, stack, shared in found
    }


def modules(tools: Tools, library: Path, architecture: str, folder: Path) -> list[Path]:
    """Write the modules that a host library holds for `architecture` to `folder`."""
    _output(tools, str(tools.cuobjdump), "-xelf", f".{architecture}.", str(library.resolve()), folder=folder)
    return sorted(folder.glob(f"*.{architecture}.cubin"))


def available(tools: Tools, library: Path) -> set[str]:
    """Architectures that a host library holds modules for."""
    return set(re.findall(r"\.(sm_\w+)\.cubin", _output(tools, str(tools.cuobjdump), "-lelf", str(library))))


def _output(tools: Tools, *command: str, folder: Path | None = None) -> str:
    """What a tool says; its warnings, for example of an older ELF format, are shown only where it fails."""
    path = os.pathsep.join([str(tools.nvdisasm.parent), os.environ.get("PATH", "")])  # cuobjdump runs nvdisasm
    done = subprocess.run(command, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        done.check_returncode()
    return done.stdout
