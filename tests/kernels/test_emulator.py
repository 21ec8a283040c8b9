"""The emulator computes what CUDA does, and finds what a GPU would hide."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable

import numpy as np
import pytest
from emulator import probes
from emulator.build import Library
from emulator.isolated import run_isolated
from emulator.launcher import Access, Emulator, KernelFault, Schedule
from emulator.probes import NUMBER
from numpy.typing import NDArray

Probes = Callable[..., Library]


@pytest.fixture(scope="module")
def emulator(compiled_probes: Probes) -> Emulator:
    return Emulator(compiled_probes("plain"))


def random_floats(count: int = 2**16) -> NDArray:
    """Any bits at all, and as many again in the range of halves and between."""
    rng = np.random.default_rng(0)
    anything = rng.integers(0, 2**32, count, dtype=np.uint32).view(np.float32)
    exponents = rng.integers(127 - 26, 127 + 18, count, dtype=np.uint32) << 23
    near = (rng.integers(0, 2**32, count, dtype=np.uint32) & 0x807FFFFF | exponents).view(np.float32)
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    ties = ((halves.astype(np.float64) + np.roll(halves, 1)) / 2).astype(np.float32)
    return np.concatenate([anything, near, ties, np.nextafter(ties, np.float32(np.inf)), np.nextafter(ties, -ties)])


def bits(x: NDArray) -> NDArray:
    """As integers, all NaN alike: their payload isn't specified."""
    same = np.where(np.isnan(x), np.array(np.nan, x.dtype), x)
    return same.view({2: np.uint16, 4: np.uint32}[x.itemsize])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_conversions_between_halves_and_floats_are_exact(emulator: Emulator) -> None:
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    widened = probes.number(emulator, NUMBER["FROM_HALF"], halves, np.float32)
    assert np.array_equal(bits(widened), bits(halves.astype(np.float32)))
    floats = random_floats()
    narrowed = probes.number(emulator, NUMBER["TO_HALF"], floats, np.float16)
    assert np.array_equal(bits(narrowed), bits(floats.astype(np.float16)))
    assert set(narrowed[np.isnan(floats)].view(np.uint16)) == {0x7FFF}


def test_conversions_to_bfloat_round_half_to_even(emulator: Emulator) -> None:
    values = np.arange(2**16, dtype=np.uint16)
    widened = probes.number(emulator, NUMBER["FROM_BFLOAT"], values, np.float32)
    assert np.array_equal(widened.view(np.uint32), values.astype(np.uint32) << 16)
    finite = values[np.isfinite(widened)]
    for beyond, expected in ((0, finite), (0x7FFF, finite), (0x8000, finite + (finite & 1)), (0x8001, finite + 1)):
        given = (finite.astype(np.uint32) << 16 | beyond).view(np.float32)
        assert np.array_equal(probes.number(emulator, NUMBER["TO_BFLOAT"], given, np.uint16), expected)
    nan = np.array([0x7F800001, 0xFFFFFFFF], np.uint32).view(np.float32)
    assert probes.number(emulator, NUMBER["TO_BFLOAT"], nan, np.uint16).tolist() == [0x7FFF, 0x7FFF]


def test_floats_become_integers_by_rounding_half_to_even_and_saturate(emulator: Emulator) -> None:
    given = np.array([0.5, 1.5, -2.5, 2.4999998, 2**31, 1e30, -(2.0**31), -np.inf, np.nan, 8388609], np.float32)
    expected = [0, 2, -2, 2, 2**31 - 1, 2**31 - 1, -(2**31), -(2**31), 0, 8388609]
    assert probes.number(emulator, NUMBER["TO_INT"], given, np.int32).tolist() == expected


def test_integers_become_the_nearest_floats(emulator: Emulator) -> None:
    given = np.array([0, -1, 2**24 + 1, 2**24 + 3, 2**31 - 1, -(2**31)], np.int32)
    assert np.array_equal(probes.number(emulator, NUMBER["FROM_INT"], given, np.float32), given.astype(np.float32))


def test_powers_of_two_are_close_and_never_denormal(emulator: Emulator) -> None:
    given = np.array([0, 1, -1, 0.3, -125.7, -126, -126.5, -149, 127.9, -np.inf], np.float32)
    expected = np.exp2(given.astype(np.float64))
    expected[expected < 2.0**-126] = 0
    np.testing.assert_allclose(probes.number(emulator, NUMBER["EXP2"], given, np.float32), expected, rtol=2**-22)


def test_bytes_are_picked_by_the_digits_of_the_selector(emulator: Emulator) -> None:
    rng = np.random.default_rng(0)
    digits = rng.integers(0, 8, (32, 4))
    words = rng.integers(0, 2**32, (32, 2), dtype=np.uint32)
    selectors = (digits << np.array([0, 4, 8, 12])).sum(axis=1, keepdims=True).astype(np.uint32)
    out = np.empty((32, 1), np.uint32)
    probes.launch(emulator, "probe_pick_bytes", np.hstack([words, selectors]), out)
    assert np.array_equal(out.view(np.uint8), np.take_along_axis(words.view(np.uint8), digits, axis=1))


@pytest.mark.parametrize("choice", [0, 1, 5, 16, 31])
def test_lanes_exchange_values_within_their_warp(emulator: Emulator, choice: int) -> None:
    given, out = np.arange(64, dtype=np.float32), np.empty((2, 64), np.float32)
    probes.launch(emulator, "probe_shuffle", given, out, threads=64, choice=choice)
    lanes = np.arange(64)
    assert np.array_equal(out[0], lanes ^ choice)
    assert np.array_equal(out[1], lanes // 32 * 32 + choice)


@pytest.mark.parametrize(("lazy", "schedule"), list(itertools.product([False, True], Schedule)))
def test_a_right_kernel_has_one_result_in_every_order(compiled_probes: Probes, lazy: bool, schedule: Schedule) -> None:
    for seed in range(3):
        probes.clean_pipeline(Emulator(compiled_probes("plain"), lazy=lazy, schedule=schedule, seed=seed))


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("variant", ["plain", "address", "thread"])
def test_a_right_kernel_gives_no_report(compiled_probes: Probes, variant: str, lazy: bool) -> None:
    outcome = run_isolated(compiled_probes(variant), probes.clean_pipeline, lazy=lazy)
    assert outcome.clean, outcome.report


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("barrier", ["tile", "total"])
def test_a_missing_barrier_is_a_race(compiled_probes: Probes, barrier: str, lazy: bool) -> None:
    place = f"probes.cuh:{probes.line_of(f'// pipeline: {barrier}')}"
    outcome = run_isolated(compiled_probes("thread"), probes.clean_pipeline, skipped_barrier=place, lazy=lazy)
    assert "ThreadSanitizer: data race" in outcome.report
    assert re.search(r"#\d+ probe_pipeline .*probes\.cuh:\d+", outcome.report), outcome.report


def test_a_shuffle_orders_no_memory(compiled_probes: Probes) -> None:
    outcome = run_isolated(compiled_probes("thread"), probes.fault, "RACE_IN_WARP")
    assert "ThreadSanitizer: data race" in outcome.report


def test_a_wait_one_too_lax_shows_where_copies_are_lazy(compiled_probes: Probes) -> None:
    place = f"probes.cuh:{probes.line_of('copy_wait<PIPELINE_STAGES - 2>')}"
    eager, lazy = (
        probes.pipeline(Emulator(compiled_probes("plain"), lazy=lazy, lax_wait=place)) for lazy in (False, True)
    )
    assert np.array_equal(eager, probes.expected_pipeline())
    assert not np.array_equal(lazy, probes.expected_pipeline())


@pytest.mark.parametrize(
    ("fault", "count", "report"),
    [
        ("SHARED_OVERRUN", 64, "heap-buffer-overflow"),
        ("STATIC_SHARED_OVERRUN", 64, "index 64 out of bounds"),
        ("GLOBAL_OVERRUN_READ", 64 * 16 - 63, "heap-buffer-overflow"),
        ("GLOBAL_OVERRUN_WRITE", 64 * 16 - 63, "heap-buffer-overflow"),
        ("MISALIGNED_LOAD", 0, "misaligned address"),
    ],
)
def test_a_stray_access_is_reported_at_its_line(compiled_probes: Probes, fault: str, count: int, report: str) -> None:
    outcome = run_isolated(compiled_probes("address"), probes.fault, fault, count)
    assert outcome.code and report in outcome.report, outcome.report


@pytest.mark.parametrize("fault", ["SHARED_OVERRUN", "GLOBAL_OVERRUN_READ", "GLOBAL_OVERRUN_WRITE"])
def test_the_last_byte_is_no_stray_access(compiled_probes: Probes, fault: str) -> None:
    last = 63 if fault == "SHARED_OVERRUN" else 64 * 16 - 64
    outcome = run_isolated(compiled_probes("address"), probes.fault, fault, last)
    assert outcome.clean, outcome.report


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (
            "MISALIGNED_SHARED_COPY",
            r"copy_async16 \(probes.cuh:\d+\): the address .* is not a multiple of 16",
        ),
        ("MISALIGNED_GLOBAL_COPY", r"copy_async4 \(.*\): the address .* is not a multiple of 4"),
        ("COPY_OUTSIDE_SHARED", r"copy_async16 \(.*\): bytes 64 to 79 are outside of the block's 64 bytes"),
        ("ROW_OUTSIDE_SHARED", r"thread 4: load_matrices \(.*\): bytes 64 to 79 are outside"),
        ("COPY_LEFT_UNDER_WAY", "the thread ended with asynchronous copies under way"),
        ("COPIES_OVERLAP", r"copy_async4 \(.*\): a copy to the same bytes is under way"),
        ("DIVERGENT_LANES", r"shuffle_xor \(.*\): the lanes of a warp diverge, thread 0 waits at load_matrices \("),
        ("LANES_AT_BARRIER", r"deadlock: thread 0 waits at block_barrier \(.*\), and thread 1 waits at shuffle_xor"),
        ("HALF_A_BARRIER", r"deadlock: thread 0 waits at block_barrier \(.*\), and thread 32 has ended"),
        (
            "TWO_BARRIERS",
            r"thread 32: block_barrier \(.*\): the threads of a block are at different barriers",
        ),
        ("SHARED_OVERRUN", r"it wrote beyond its 64 bytes of shared memory"),
        ("BAD_SELECTOR", r"pick_bytes \(.*\): selector 0x3218 has digits past 7"),
        ("BAD_LANE", r"shuffle \(.*\): there is no lane 32"),
    ],
)
@pytest.mark.parametrize("lazy", [False, True])
def test_a_broken_rule_ends_the_launch_with_a_sentence(
    compiled_probes: Probes, fault: str, sentence: str, lazy: bool
) -> None:
    emulator = Emulator(compiled_probes("plain"), lazy=lazy)
    with pytest.raises(KernelFault, match=rf"probe_fault, block \(0, 0, 0\).*{sentence}"):
        probes.fault(emulator, fault, count=64)
    probes.clean_pipeline(emulator)  # and nothing of it is left


def test_a_launch_that_makes_no_sense_is_refused(emulator: Emulator) -> None:
    arguments = probes.ProbeArguments()
    for kernel, grid, block, shared, reason in (
        ("probe_nothing", (1, 1, 1), 32, 0, "there is no kernel probe_nothing"),
        ("probe_rows", (1, 0, 1), 32, 0, "a grid has 1 to"),
        ("probe_rows", (1, 1, 1), 48, 0, "whole warps of 32 threads, .*, not 48"),
        ("probe_rows", (1, 1, 1), 32, 2**20, "101376 bytes of shared memory, not 1048576"),
    ):
        with pytest.raises(KernelFault, match=reason):
            emulator.launch(kernel, grid, block, shared, arguments)
    with pytest.raises(KernelFault, match="probe_rows takes arguments of 24 bytes, not 4"):
        emulator.launch("probe_rows", (1, 1, 1), 32, 0, probes.Word())


def profile(library: Library, kernel: str, choice: int = 0) -> dict[tuple[int, str], Access]:
    emulator = Emulator(library)
    emulator.take_profile()
    given, out = probes.aligned(32 * 32 * 4), probes.aligned(512)
    probes.launch(emulator, kernel, given, out, shared=32 * 32 * 4, choice=choice)
    return {(int(row.site.split(":")[1]), row.kind): row for row in emulator.take_profile()}


def test_banks_conflict_in_rows_that_are_not_swizzled(compiled_probes: Probes) -> None:
    site = (probes.line_of("// eight rows at once"), "shared load")
    swizzled = profile(compiled_probes("profile"), "probe_rows")[site]
    plain = profile(compiled_probes("profile", "FAULT_UNSWIZZLED"), "probe_rows")[site]
    assert (swizzled.requests, swizzled.transactions, swizzled.ideal) == (1, 4, 4)
    assert plain.ratio == 4.0


@pytest.mark.parametrize(("stride", "sectors", "wavefronts"), [(1, 4, 1), (2, 8, 2), (8, 32, 8), (32, 32, 32)])
def test_strides_cost_sectors_and_wavefronts(
    compiled_probes: Probes, stride: int, sectors: int, wavefronts: int
) -> None:
    rows = profile(compiled_probes("profile"), "probe_strides", stride)
    load = rows[probes.line_of("// strided load"), "global load"]
    column = rows[probes.line_of("// strided shared store"), "shared store"]
    out = probes.line_of("// coalesced store")
    assert (load.requests, load.transactions, load.ideal) == (1, sectors, 4)
    assert (column.requests, column.transactions, column.ideal) == (1, wavefronts, 1)
    assert rows[out, "shared load"].ratio == 1, "one word for all lanes is no conflict"
    assert rows[out, "global store"].ratio == 1


def test_copies_are_recorded_where_they_are_issued(compiled_probes: Probes) -> None:
    emulator = Emulator(compiled_probes("profile"))
    emulator.take_profile()
    probes.pipeline(emulator, blocks=1)
    rows = emulator.take_profile()
    first = probes.line_of("copy_async16(shared_pointer(memory + (tile %")
    copies = [row for row in rows if first <= int(row.site.split(":")[1]) <= first + 1]
    warps, tiles = 2, probes.TILES
    assert {row.kind: row.requests for row in copies} == {
        "global load": warps * tiles,
        "shared store": warps * (tiles + 1),
    }
    assert emulator.take_profile() == []


def test_a_profile_is_of_eager_copies_in_its_own_variant(compiled_probes: Probes) -> None:
    with pytest.raises(ValueError, match="eager"):
        Emulator(compiled_probes("profile"), lazy=True)
    with pytest.raises(ValueError, match='"plain" records nothing'):
        Emulator(compiled_probes("plain")).take_profile()
