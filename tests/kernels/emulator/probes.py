"""The Python side of probes.cuh."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .launcher import Emulator

SOURCE = Path(__file__).with_name("probes.cuh")


class ProbeArguments(ctypes.Structure):
    _fields_ = (
        ("input", ctypes.c_void_p),
        ("output", ctypes.c_void_p),
        ("count", ctypes.c_int),
        ("choice", ctypes.c_int),
    )


class Word(ctypes.Structure):
    """What no kernel takes."""

    _fields_ = (("word", ctypes.c_int),)


def aligned(size: int) -> NDArray:
    """Zero bytes, aligned as on a GPU: numpy's own memory may begin within a sector."""
    memory = np.zeros(size + 255, np.uint8)
    start = -memory.ctypes.data % 256
    return memory[start : start + size]


def _enum(name: str) -> dict[str, int]:
    """As declared in the header."""
    found = re.search(rf"enum {name} \{{(.*?)\}}", SOURCE.read_text(), re.DOTALL)
    assert found
    return {word: value for value, word in enumerate(re.findall(r"\w+", found[1]))}


NUMBER = _enum("Number")
FAULT = _enum("Fault")


def line_of(text: str) -> int:
    """The line of probes.cuh that has this text."""
    (line,) = (i for i, line in enumerate(SOURCE.read_text().splitlines(), 1) if text in line)
    return line


def launch(
    emulator: Emulator,
    kernel: str,
    given: NDArray,
    out: NDArray,
    *,
    blocks: int = 1,
    threads: int = 32,
    shared: int = 0,
    count: int = 0,
    choice: int = 0,
) -> None:
    arguments = ProbeArguments(given.ctypes.data, out.ctypes.data, count, choice)
    emulator.launch(kernel, (blocks, 1, 1), threads, shared, arguments)


def number(emulator: Emulator, choice: int, given: NDArray, dtype: DTypeLike) -> NDArray:
    """Each element as `dtype`, by the conversion `choice`, one of NUMBER."""
    out = np.empty(given.shape, dtype)
    launch(
        emulator, "probe_number", given, out, blocks=-(-given.size // 64), threads=64, count=given.size, choice=choice
    )
    return out


TILES = 5
TILE_WORDS = np.random.default_rng(0).integers(0, 2**32, (TILES, 64, 4), dtype=np.uint32)


def pipeline(emulator: Emulator, blocks: int = 3) -> NDArray:
    """What the pipeline sums from TILE_WORDS, [blocks, 64]."""
    out = np.empty((blocks, 64), np.uint32)
    launch(emulator, "probe_pipeline", TILE_WORDS, out, blocks=blocks, threads=64, shared=3 * 64 * 16, count=TILES)
    return out


def expected_pipeline(blocks: int = 3) -> NDArray:
    total = np.zeros(64, np.uint32)
    for tile in [*TILE_WORDS, np.zeros_like(TILE_WORDS[0])]:
        total = total * np.uint32(31) + np.bitwise_xor.reduce(tile, axis=1)
    return np.tile(total, (blocks, 1))  # a thread sums the other warp's tile, and then writes the other warp's sum


def clean_pipeline(emulator: Emulator) -> None:
    assert np.array_equal(pipeline(emulator), expected_pipeline())


def fault(emulator: Emulator, name: str, count: int = 0) -> None:
    given, out = np.zeros(64 * 16, np.uint8), np.zeros(64 * 16, np.uint8)
    launch(emulator, "probe_fault", given, out, threads=64, shared=64, count=count, choice=FAULT[name])
