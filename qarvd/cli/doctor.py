"""`doctor`: who runs each op on this machine and why not the others, and whether they do it right."""

from __future__ import annotations

import argparse
import platform
from pathlib import Path

import torch

from .. import __version__
from ..errors import DeviceError, QarvdError, first_line
from ..ops.backend import Standing, who_runs
from ..ops.cuda import cubins, nvrtc, source
from ..ops.cuda.device import load
from ..ops.cuda.driver import Driver
from ..ops.self_test import Check, checks, compute_dtype
from ..report.tables import size_text, text_table
from .common import kernel_folder, say

HELP = "say which backend runs each op on this machine, why not the others, and test them; exit code 1 if one is wrong"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cache", type=Path, help="folder for compiled CUDA kernels (the user's cache folder)")


def run(args: argparse.Namespace) -> int:
    cache = args.cache or kernel_folder()
    for name, value in about(cache).items():
        print(f"{name:<9} {value}")
    cards = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    right = [examine(device, cache) for device in (*cards, torch.device("cpu"))]
    print("\nAll self-tests passed." if all(right) else "\nSELF-TESTS FAILED: results there can't be trusted.")
    return 0 if all(right) else 1


def about(cache: Path) -> dict[str, str]:
    """What all devices have in common."""
    cuda = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    return {
        "qarvd": __version__,
        "python": f"{platform.python_version()}, {platform.system()} {platform.machine()}",
        "torch": f"{torch.__version__}, {cuda}",
        "driver": _driver(),
        "NVRTC": _nvrtc(),
        "prebuilt": _prebuilt(),
        "compiled": f"{len(list(cache.glob('*.xz')))} kept in {cache}",
    }


def _driver() -> str:
    try:
        major, minor = Driver().version
    except DeviceError as error:
        return str(error) if torch.version.cuda else "none is needed: this torch is built without CUDA"
    return f"runs CUDA {major}.{minor} and earlier"


def _nvrtc() -> str:
    found = nvrtc.open_first(nvrtc.installed())
    if isinstance(found, str):
        return f"{found}; only cards without prebuilt kernels need it"
    return f"{found.version[0]}.{found.version[1]}, {found.path}"


def _prebuilt() -> str:
    try:
        wanted = source.read().hash
    except DeviceError as error:
        return str(error)
    found = {name: cubins.shipped(served[0], wanted) for name, served in cubins.SERVES.items()}
    usable = ", ".join(name for name, cubin in found.items() if not isinstance(cubin, str)) or "none"
    why = [cubin for cubin in found.values() if isinstance(cubin, str)]
    return f"{usable}; {len(why)} can't be used: {why[0]}" if why else usable


def examine(device: torch.device, cache: Path) -> bool:
    """Print what runs on one device, and whether its ops are right."""
    print(f"\n{device}: {_describe(device)}")
    if device.type == "cuda":
        loaded = load(device, cache, say)
        print(f"kernels: {f'none: {loaded}' if isinstance(loaded, str) else loaded.origin}")
    tests, dtype = checks(), compute_dtype(device)
    rows = [(op, standings, *_tested(tests[op], device, dtype)) for op, standings in who_runs(device).items()]
    print(text_table([_row(op, standings, said) for op, standings, _, said in rows]))
    return all(right for _, _, right, _ in rows)


def _describe(device: torch.device) -> str:
    if device.type == "cpu":
        return f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    has = torch.cuda.get_device_properties(device)
    memory = size_text(has.total_memory)
    return f"{has.name}, compute capability {has.major}.{has.minor}, {has.multi_processor_count} SMs, {memory}"


def _tested(check: Check, device: torch.device, dtype: torch.dtype) -> tuple[bool, str]:
    """Whether an op is right, and how right."""
    try:
        share = check(device, dtype)
    except (QarvdError, RuntimeError) as error:  # what a broken kernel may raise
        return False, f"FAILED: {first_line(error)}"
    if share <= 1:
        return True, "exact" if share == 0 else f"{share:.1g} of tolerance"
    return False, f"FAILED: error is {share:.3g} times what is allowed"


def _row(op: str, standings: list[Standing], tested: str) -> dict[str, object]:
    chosen = next(i for i, standing in enumerate(standings) if standing.refusal is None)
    refused = "; ".join(f"{standing.backend}: {standing.refusal}" for standing in standings[:chosen])
    return {"op": op, "runs on": standings[chosen].backend, "self-test": tested, "refused": refused or None}
