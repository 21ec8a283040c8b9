"""Compile CUDA kernels for the emulator: a shared library for each variant, kept by the hash of all that made it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
CSRC = HERE.parents[2] / "qarvd" / "csrc"
MACHINE = ("launch.cpp", "machine.cpp", "warp.cpp", "profile.cpp")
COMPILER = "g++"
FLAGS = (
    *("-std=c++17", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-unused-parameter"),
    "-ffp-contract=off",  # as --fmad=false
    "-fno-strict-aliasing",  # CUDA code reads registers as what it likes
)
DECLARATION = re.compile(r"emulator::Launched\s+(\w+)\s*\(\s*const\s+(\w+)\s+\w+\s*\)")

_ADDRESS = (
    *("-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
    "-fno-sanitize=null,vptr,object-size,pointer-overflow",  # slow to compile, and address sees what they would
    "-fsanitize-sections=emulated_shared",
)
_ADDRESS_OPTIONS = {"ASAN_OPTIONS": "detect_leaks=0"}
_THREAD = ("-O1", "-g1", "-fsanitize=thread", "-fno-builtin-memcpy")  # a call to memcpy is seen as its accesses
_PROFILE = (*_THREAD, "-fno-optimize-sibling-calls", "--param", "tsan-instrument-func-entry-exit=0")
_THREAD_OPTIONS = {"TSAN_OPTIONS": "halt_on_error=1 ignore_noninstrumented_modules=1"}


@dataclass(frozen=True)
class Variant:
    """How kernels are compiled; `machine` is the macro that tells the machine of it."""

    name: str
    flags: tuple[str, ...]
    machine: str | None = None
    preload: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def link(self) -> list[str]:
        """The recorder takes the place of the sanitizer whose instrumentation it borrows: nothing is linked."""
        return [flag for flag in self.flags if flag.startswith("-fsanitize=")] if self.preload else []


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("plain", ("-O2",)),
        Variant("address", _ADDRESS, "EMULATOR_UNDER_ADDRESS_SANITIZER", "libasan.so", _ADDRESS_OPTIONS),
        Variant("thread", _THREAD, "EMULATOR_UNDER_THREAD_SANITIZER", "libtsan.so", _THREAD_OPTIONS),
        Variant("profile", _PROFILE, "EMULATOR_RECORDS"),
    )
}


@dataclass(frozen=True)
class Library:
    """A compiled library, and what a process needs to load it."""

    path: Path
    variant: Variant

    def environment(self) -> dict[str, str]:
        """Of this process, plus the sanitizer, which must come before all else."""
        environment = dict(os.environ) | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        if self.variant.preload:
            libraries = [_runtime_library(name) for name in (self.variant.preload, "libstdc++.so.6")]
            environment |= {"LD_PRELOAD": " ".join(libraries), **self.variant.environment}
        return environment


def refuses() -> str | None:
    """Why nothing can be compiled here; None where it can."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return f"the emulator's fibres are written for Linux on x86-64, not {platform.system()} {platform.machine()}"
    return None if shutil.which(COMPILER) else f"the emulator needs {COMPILER}"


def build(sources: Sequence[Path], variant: str, cache: Path, defines: Sequence[str] = ()) -> Library:
    """Compile all kernels in `sources` and what they include from their folders; `defines` are macros, set to 1."""
    chosen = VARIANTS[variant]
    cache.mkdir(parents=True, exist_ok=True)
    includes = sorted({str(source.resolve().parent) for source in sources} | {str(CSRC)})
    flags = [*FLAGS, "-DQARVD_EMULATED", f"-I{HERE}", *(f"-I{i}" for i in includes), *(f"-D{d}" for d in defines)]
    key = _hash(
        [*_files(HERE), *(file for folder in includes for file in _files(Path(folder)))],
        [*flags, *chosen.flags, *chosen.link],
    )
    library = cache / f"kernels-{variant}-{key}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            kernels, linked = Path(scratch, "kernels.cpp"), Path(scratch, "kernels.so")
            listed = "".join(f'#include "{source.resolve()}"\n' for source in sources)
            kernels.write_text(listed)
            declared = DECLARATION.findall(_run([COMPILER, "-E", *flags, str(kernels)]))
            kernels.write_text(listed + registration(declared))
            compiled = _compile(kernels, Path(scratch), [*flags, *chosen.flags])
            _run([COMPILER, "-shared", *chosen.link, str(compiled), *_machine(chosen, cache), "-o", str(linked)])
            os.replace(linked, library)  # at once, should two processes build the same
    return Library(library, chosen)


def registration(kernels: Sequence[tuple[str, str]]) -> str:
    """C++ that lists kernels for the machine: each its name and its struct of arguments."""
    rows = "".join(
        f'    {{"{name}", sizeof({struct}), [](const void* p) {{ {name}(*(const {struct}*)p); }}}},\n'
        for name, struct in kernels
    )
    return f"const emulator::Kernel emulator::kernels[] = {{\n{rows}    {{nullptr, 0, nullptr}},\n}};\n"


def _machine(variant: Variant, cache: Path) -> list[str]:
    """Compiled without the sanitizer's instrumentation, as it isn't part of what is tested."""
    flags = [*FLAGS, "-O2", *([f"-D{variant.machine}"] if variant.machine else [])]
    folder = cache / f"machine-{variant.name}-{_hash(_files(HERE), flags)}"
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            for name in MACHINE:
                _compile(HERE / name, Path(scratch), flags)
            with contextlib.suppress(FileExistsError):
                shutil.copytree(scratch, folder)
    return [str(path) for path in sorted(folder.glob("*.o"))]


def _compile(source: Path, folder: Path, flags: Sequence[str]) -> Path:
    target = folder / f"{source.stem}.o"
    _run([COMPILER, "-c", *flags, str(source), "-o", str(target)])
    return target


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in {".h", ".cpp", ".cu", ".cuh"})


def _hash(files: Sequence[Path], flags: Sequence[str]) -> str:
    digest = hashlib.sha256(repr([_run([COMPILER, "--version"]), *flags]).encode())
    for path in files:
        digest.update(f"{path} {path.stat().st_size}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _runtime_library(name: str) -> str:
    return _run([COMPILER, f"-print-file-name={name}"]).strip()


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return done.stdout
