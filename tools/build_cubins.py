"""Prebuild the CUDA kernels of qarvd/csrc for every card we know, with NVRTC alone: no card and no nvcc are needed.

    pip install -e ".[kernels]"   # NVRTC of CUDA 12.9, Linux or Windows
    python tools/build_cubins.py

Always CUDA 12.9's, so that every driver of CUDA 12 and later loads the result. The same source gives the same bytes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from qarvd.errors import DeviceError
from qarvd.files import replacing
from qarvd.ops.cuda import source
from qarvd.ops.cuda.cubins import SERVES, SHIPPED, Cubin
from qarvd.ops.cuda.nvrtc import Candidate, Nvrtc, candidates, installed
from qarvd.ops.cuda.source import Source

VERSION = (12, 9)
HOW = 'Install it with `pip install -e ".[kernels]"`, or name where it lies with --nvrtc.'


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nvrtc", type=Path, help="folder that NVRTC was installed to (`pip install --target`)")
    parser.add_argument("--out", type=Path, default=SHIPPED)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 unless what is there is the same")
    args = parser.parse_args(argv)
    try:
        compiler = find(args.nvrtc)
        built = build(compiler, source.read())
    except DeviceError as error:
        print(error, file=sys.stderr)
        return 2
    same = [report(cubin, args.out / f"{cubin.architecture}.xz", write=not args.check) for cubin in built]
    return 1 if args.check and not all(same) else 0


def find(folder: Path | None) -> Nvrtc:
    """NVRTC of exactly CUDA 12.9. Raises DeviceError where there is none."""
    places = installed() if folder is None else within(folder)
    for candidate in (c for c in places if c.major in (None, VERSION[0])):
        try:
            compiler = Nvrtc(candidate)
        except DeviceError:
            continue  # the sentence below says what to do
        if compiler.version == VERSION:
            return compiler
    where = "here" if folder is None else f"in {folder}"
    raise DeviceError(f"There is no NVRTC of CUDA {VERSION[0]}.{VERSION[1]} {where}. {HOW}")


def within(folder: Path) -> list[Candidate]:
    """What a folder holds, be it that of the library or one that packages were installed to."""
    found = candidates(sys.platform, folder, [folder / "nvidia", folder])
    return [c for c in found if Path(c.library).parent != Path()]


def build(compiler: Nvrtc, wanted: Source, architectures: Sequence[str] = tuple(SERVES)) -> list[Cubin]:
    """Compile for each architecture, two at a time."""
    compile_for: Callable[[str], Cubin] = lambda architecture: compiler.compile(wanted, architecture)  # noqa: E731
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(compile_for, architectures))


def report(cubin: Cubin, path: Path, write: bool) -> bool:
    """Write, unless only looking; whether `path` was the same before."""
    packed = cubin.pack()
    same = path.is_file() and path.read_bytes() == packed
    if write and not same:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            part.write_bytes(packed)
    change = "unchanged" if same else "written" if write else "differs"
    print(f"{path.name:12} {len(cubin.image):>9} bytes, {len(packed):>8} packed, {change}")
    return same


if __name__ == "__main__":
    raise SystemExit(main())
