"""Matrix instructions place every element where CUTLASS's published layouts have it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from emulator import probes
from emulator.build import Library
from emulator.launcher import Emulator
from numpy.typing import NDArray
from tensor_layouts import Layout
from tensor_layouts.atoms import CopyAtom, MMAAtom
from tensor_layouts.atoms_nv import (
    SM75_U16x8_LDSM_T,
    SM75_U32x4_LDSM_N,
    SM80_16x8x16_F32BF16BF16F32_TN,
    SM80_16x8x16_F32F16F16F32_TN,
    SM80_16x8x32_S32S8S8S32_TN,
)


@pytest.fixture(scope="module")
def emulator(compiled_probes: Callable[..., Library]) -> Emulator:
    return Emulator(compiled_probes("plain"))


def offsets(layout: Layout, values: int) -> NDArray:
    """Where each value of each lane lies, [32, values]."""
    return np.array([[layout(lane, value) for value in range(values)] for lane in range(32)])


def to_lanes(matrix: NDArray, layout: Layout) -> NDArray:
    """Elements that each lane holds, [32, values]; CUTLASS counts a matrix's elements down its columns."""
    return np.ascontiguousarray(matrix.ravel("F")[offsets(layout, matrix.size // 32)])


def from_lanes(values: NDArray, layout: Layout, shape: tuple[int, int]) -> NDArray:
    flat = np.empty(values.size, values.dtype)
    flat[offsets(layout, values.shape[1])] = values
    return flat.reshape(shape, order="F")


def multiply(emulator: Emulator, kernel: str, atom: MMAAtom, a: NDArray, b: NDArray, c: NDArray) -> NDArray:
    """a [m, k] times b [n, k] transposed, plus c [m, n], with one instruction of a warp."""
    given = np.hstack([to_lanes(a, atom.a_layout).view(np.uint32), to_lanes(b, atom.b_layout).view(np.uint32)])
    out = to_lanes(c, atom.c_layout)
    probes.launch(emulator, kernel, np.ascontiguousarray(given), out)
    return from_lanes(out, atom.c_layout, c.shape)


@pytest.mark.parametrize(("kernel", "dtype"), [("probe_mma_s8", np.int8), ("probe_mma_u8", np.uint8)])
def test_byte_products_are_exact(emulator: Emulator, kernel: str, dtype: type[np.integer]) -> None:
    rng = np.random.default_rng(0)
    limits = np.iinfo(dtype)
    a = rng.integers(limits.min, limits.max + 1, (16, 32), dtype=dtype)
    b = rng.integers(-128, 128, (8, 32), dtype=np.int8)
    c = rng.integers(-(2**30), 2**30, (16, 8), dtype=np.int32)
    expected = a.astype(np.int64) @ b.astype(np.int64).T + c
    assert np.array_equal(multiply(emulator, kernel, SM80_16x8x32_S32S8S8S32_TN, a, b, c), expected)


def test_byte_products_wrap_around(emulator: Emulator) -> None:
    a, b = np.full((16, 32), 127, np.int8), np.full((8, 32), 127, np.int8)
    c = np.full((16, 8), 2**31 - 1, np.int32)
    expected = 2**31 - 1 + 32 * 127**2 - 2**32
    assert np.all(multiply(emulator, "probe_mma_s8", SM80_16x8x32_S32S8S8S32_TN, a, b, c) == expected)


def to_bfloat(x: NDArray) -> NDArray:
    """Bits of float32 numbers that have no more than bfloat16's."""
    return (x.view(np.uint32) >> 16).astype(np.uint16)


@pytest.mark.parametrize(
    ("kernel", "atom", "encode"),
    [
        ("probe_mma_half", SM80_16x8x16_F32F16F16F32_TN, lambda x: x.astype(np.float16)),
        ("probe_mma_bfloat", SM80_16x8x16_F32BF16BF16F32_TN, to_bfloat),
    ],
)
def test_float_products_of_small_integers_are_exact(
    emulator: Emulator, kernel: str, atom: MMAAtom, encode: Callable[[NDArray], NDArray]
) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-128, 128, (rows, 16)).astype(np.float32) for rows in (16, 8))
    c = rng.integers(-128, 128, (16, 8)).astype(np.float32) + np.float32(0.5)
    assert np.array_equal(multiply(emulator, kernel, atom, encode(a), encode(b), c), a @ b.T + c)


def test_float_products_are_added_in_float32_along_k(emulator: Emulator) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((rows, 16)).astype(np.float16) for rows in (16, 8))
    expected = c = rng.standard_normal((16, 8)).astype(np.float32)
    for k in range(16):
        expected = expected + np.outer(a[:, k], b[:, k].astype(np.float32))
    assert np.array_equal(multiply(emulator, "probe_mma_half", SM80_16x8x16_F32F16F16F32_TN, a, b, c), expected)


@pytest.mark.parametrize(("atom", "transposed"), [(SM75_U32x4_LDSM_N, 0), (SM75_U16x8_LDSM_T, 1)])
def test_matrices_reach_the_lanes_that_hold_them(emulator: Emulator, atom: CopyAtom, transposed: int) -> None:
    rows, out = np.arange(32 * 8, dtype=np.uint16), np.empty((32, 8), np.uint16)  # every element another
    probes.launch(emulator, "probe_matrices", rows, out, shared=512, choice=transposed)
    bits = np.array([[atom.dst_layout_bits(lane, 16 * value) for value in range(8)] for lane in range(32)])
    source = [atom.src_layout_bits(lane, 0) for lane in range(32)]
    assert source == [128 * lane for lane in range(32)], "each lane gives the address of one row"
    assert np.array_equal(out, rows[bits // 16])
