"""`doctor`: who runs each op on this machine and why no faster one does, and whether they do it right."""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import sys
from importlib import import_module, metadata
from pathlib import Path

import torch

from .. import __version__
from ..errors import DeviceError, QarvdError, first_line
from ..files import home_folder, kernel_folder
from ..jobs.placement import devices
from ..ops.backends.registry import VARIABLE, Standing, who_runs
from ..ops.cuda import cubins, nvrtc, source
from ..ops.cuda.device import load
from ..ops.cuda.driver import Driver
from ..ops.self_test import Check, checks, compute_dtype
from ..report.tables import size_text, text_table
from .common import counted, say

HELP = "say which backend runs each op here, why no faster one does, and test them; exit code 1 if one fails"


KITCHENS_CUDA = 13
"""Of the torch with which ComfyUI lets comfy-kitchen run its kernels; ours need no particular one."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cache", type=Path, help="folder for compiled CUDA kernels (the user's cache folder)")


def run(args: argparse.Namespace) -> int:
    cache = args.cache or kernel_folder(sys.platform, os.environ, home_folder())
    for name, value in about(cache).items():
        print(f"{name:<9} {value}")
    verdicts = [verdict for device in devices() for verdict in examine(device, cache)]
    if False in verdicts:
        print("\nSELF-TESTS FAILED: results there can't be trusted.")
    elif None in verdicts:
        print(f"\nSome ops do not run: {VARIABLE} forces a backend that refuses them.")
    else:
        print("\nAll self-tests passed.")
    return 0 if all(verdicts) else 1


def about(cache: Path | None) -> dict[str, str]:
    """What all devices have in common."""
    return {
        "qarvd": __version__,
        "python": f"{platform.python_version()}, {platform.system()} {platform.machine()}",
        "torch": f"{torch.__version__}, {_build()}",
        "driver": _driver(),
        "NVRTC": _nvrtc(),
        "prebuilt": _prebuilt(),
        "compiled": _compiled(cache),
        "kitchen": _kitchen(),
    }


def _build() -> str:
    """What this torch is built for."""
    if torch.version.cuda:
        return f"built for CUDA {torch.version.cuda}"
    return f"built for ROCm {torch.version.hip}" if torch.version.hip else "built without CUDA"


def _compiled(cache: Path | None) -> str:
    if cache is None:
        return "kept nowhere, since you have no home folder; --cache names another one"
    return f"{len(list(cache.glob('*.xz')))} kept in {cache}"


def _kitchen() -> str:
    """Whether ComfyUI would run its own quantized formats with comfy-kitchen's fast kernels."""
    try:
        version = metadata.version("comfy-kitchen")
    except metadata.PackageNotFoundError:
        return (
            "comfy-kitchen is not installed; ComfyUI's own quantized formats need it, and cards that our kernels refuse"
        )
    try:
        backends = import_module("comfy_kitchen").registry.list_backends()
        fast = [name for name in ("cuda", "hip") if name in backends and backends[name]["available"]]
        missing = backends["cuda"]["unavailable_reason"]
    except (ImportError, OSError, RuntimeError, AttributeError, LookupError, TypeError) as error:  # of a broken one
        return f"comfy-kitchen {version} can't be used: {first_line(error)}"
    build = torch.version.cuda
    if build and int(build.split(".")[0]) < KITCHENS_CUDA:
        fast, missing = [], f"ComfyUI wants a torch built for CUDA {KITCHENS_CUDA}, and this one is for {build}"
    if fast:
        return f"comfy-kitchen {version} runs ComfyUI's own quantized formats with its fast kernels ({', '.join(fast)})"
    return f"comfy-kitchen {version} runs ComfyUI's own quantized formats without its fast kernels: {missing}"


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


def examine(device: torch.device, cache: Path | None) -> list[bool | None]:
    """Print what runs on one device, and say for each op whether it is right (None: nothing runs it)."""
    print(f"\n{device}: {_describe(device)}")
    if device.type == "cuda":
        loaded = load(device, cache, say)
        print(f"kernels: {f'none: {loaded}' if isinstance(loaded, str) else loaded.origin}")
    tests, dtype, rows = checks(), compute_dtype(device), []
    for op, standings in who_runs(device).items():
        runs = any(standing.refusal is None for standing in standings)
        rows.append((op, standings, *(_tested(tests[op], device, dtype) if runs else (None, "not run"))))
    print(text_table([_row(op, standings, said) for op, standings, _, said in rows]))
    return [right for _, _, right, _ in rows]


def _describe(device: torch.device) -> str:
    if device.type == "cpu":
        return f"{torch.backends.cpu.get_cpu_capability()}, {counted(torch.get_num_threads(), 'thread')}"
    if device.type != "cuda":
        return "runs in plain torch"
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
    willing = [standing.backend for standing in standings if standing.refusal is None]
    before = itertools.takewhile(lambda standing: standing.refusal is not None, standings)
    refused = "; ".join(f"{standing.backend}: {standing.refusal}" for standing in before)
    return {"op": op, "runs on": [*willing, "nothing"][0], "self-test": tested, "refused": refused or None}
