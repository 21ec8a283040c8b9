"""Compiled kernels, ours and a peer's, with what is known of how they are launched."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from qarvd.errors import DeviceError
from qarvd.ops.codecs import CACHE_CODECS, CODECS
from qarvd.ops.cuda import cubins, kernels, nvrtc, ring_kernels, source
from qarvd.ops.cuda.cubins import Cubin
from qarvd.ops.cuda.nvrtc import Candidate, Nvrtc, candidates

COMPILER = (12, 9)
"""The version of CUDA that prebuilt kernels are made with."""


@dataclass(frozen=True)
class Launch:
    """A block's threads and bytes of dynamic shared memory (None: not known)."""

    threads: int
    shared: int | None


def launches() -> dict[str, Launch]:
    """Our kernels by name."""
    made = {name: Launch(kernels.ACTIVATION_THREADS, 0) for name in kernels.ACTIVATION}
    made |= {kernels.decode_kernel(c): Launch(kernels.DECODE_THREADS, 0) for c in CODECS.values() if c.bits < 8}
    made |= {tile.kernel: Launch(kernels.THREADS, tile.shared) for tile in kernels.TILES}
    made[ring_kernels.APPEND] = Launch(ring_kernels.APPEND_TOKENS * 32, 0)
    for bits in (codec.bits for codec in CACHE_CODECS.values()):
        for head_dim in ring_kernels.HEAD_DIMS:
            for dtype in (torch.float16, torch.bfloat16):
                name, shared = ring_kernels.attention_kernel(torch.empty(0, head_dim, dtype=dtype), bits)
                made[name] = Launch(kernels.THREADS, shared)
    return made


def cubin_for(capability: tuple[int, int], prebuilt: Path, nvrtc_folder: Path | None, compile_it: bool) -> Cubin:
    """What cards of `capability` run: the prebuilt kernels if they are current, else compiled. Raises DeviceError."""
    wanted = source.read()
    found = cubins.shipped(capability, wanted.hash, prebuilt)
    if isinstance(found, Cubin):
        return found
    if not compile_it:
        raise DeviceError(found)
    return _compiler(nvrtc_folder).compile(wanted, cubins.architecture_for(capability) or "")


def _compiler(folder: Path | None) -> Nvrtc:
    places = nvrtc.installed()
    if folder is not None:
        within = candidates(sys.platform, folder, [folder / "nvidia", folder])
        places = [place for place in within if Path(place.library).is_absolute()]
    for candidate in (c for c in places if c.major in (None, COMPILER[0])):
        made = _opened(candidate)
        if made is not None and made.version == COMPILER:
            return made
    raise DeviceError('needs NVRTC of CUDA 12.9: pip install -e ".[kernels]", or name its folder with --nvrtc')


def _opened(candidate: Candidate) -> Nvrtc | None:
    try:
        return Nvrtc(candidate)
    except DeviceError:
        return None  # the sentence above says what to do


def peer_label(mangled: str) -> tuple[str, Launch] | None:
    """What comfy-kitchen's `int8_linear` and `int8_attention` launch on Ampere and later, readable; None for others."""
    gemm = re.search(
        r"DefaultGemmWithVisitorIa\w*?OpClassTensorOp\w*?GemmShapeILi(\d+)ELi(\d+)ELi(\d+)EE\w*?ILi(\d+)ELi(\d+)ELi(\d+)E"
        r"\w*?ILi16ELi8ELi32E\w*?(\d+)ENS\d*_\d+OpMultiplyAddSaturate",
        mangled,
    )
    if gemm:
        m, n, k, warp_m, warp_n, warp_k, stages = map(int, gemm.groups())
        threads = m * n * k // (warp_m * warp_n * warp_k) * 32
        return f"int8_linear {m}x{n}x{k}, {stages} stages", Launch(threads, stages * (m + n) * k)
    attention = re.search(
        r"qk_int_sv_i8_attn_kernelILj(\d+)ELj(\d+)ELj(\d+)ELj(\d+)ELj(\d+)E\w*?8MaskModeE?(\d+)E", mangled
    )
    if attention:
        rows, keys, warp_rows, warp_keys, head_dim, mask = map(int, attention.groups())
        if mask == 0:
            threads = rows * keys // (warp_rows * warp_keys) * 32
            return f"int8_attention {rows}x{keys}, head {head_dim}", Launch(threads, None)
    return None
