"""The net holds: kernels are clean under every sanitizer, and each fault planted in them is caught."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import cases
import pytest
import torch
from emulator.build import CSRC, Library, build
from emulator.isolated import Outcome, run_isolated
from emulator.launcher import Access, Emulator, KernelFault, Schedule
from replay import record, replay

from qarvd.ops.codecs import CODECS
from qarvd.ops.cuda import kernels
from qarvd.ops.cuda.arguments import LinearArguments, pointer

Kernels = Callable[[str], Library]


def ragged(emulator: Emulator) -> None:
    """Every kernel once, with sizes that fill no tile."""
    cases.activation(emulator, 3, 288, 64, 32, "bfloat16", 3, 0)
    cases.decode(emulator, CODECS["int3g32"], 3, 288, 96, False, 0)
    cases.decode(emulator, CODECS["int4"], 3, 288, 96, False, 0)
    cases.linear(emulator, 65, 67, 288, 96, True, True, "float16", 0, 1)
    cases.linear(emulator, 33, 101, 352, 32, True, False, "float32", 1, 2)
    cases.append(emulator, 4, 2, 7, 9, 5, 64, True, "bfloat16", 3)
    cases.append(emulator, 8, 1, 5, 5, 3, 96, False, "float32", 4)
    cases.attention(emulator, 8, 35, 131, 3, 65, 128, True, "float16", 1.0, 5)
    cases.attention(emulator, 4, 17, 65, 0, 9, 64, False, "bfloat16", 1.0, 6)


def small_activation(emulator: Emulator) -> None:
    cases.activation(emulator, 2, 288, 64, 32, "float16", 3, 0)


def small_decode(emulator: Emulator) -> None:
    cases.decode(emulator, CODECS["int4g16"], 40, 288, 96, False, 0)


def small_linear(emulator: Emulator) -> None:
    cases.linear(emulator, 33, 40, 288, 32, True, True, "float16", 1, 0)


def small_attention(emulator: Emulator) -> None:
    cases.attention(emulator, 8, 20, 150, 70, 70, 64, True, "float16", 1.0, 0)


@pytest.fixture
def replayed(compiled_kernels: Kernels, tmp_path: Path) -> Callable[..., Outcome]:
    """Run a case under a sanitizer, beside what it gave without one."""

    def run(case: Callable[[Emulator], None], library: Library, **settings: object) -> Outcome:
        launches = tmp_path / case.__name__
        if not launches.exists():
            record(compiled_kernels("plain"), case, launches)
        return run_isolated(library, replay, str(launches), **settings)

    return run


FILES = {
    "activation.cuh": small_activation,
    "decode.cuh": small_decode,
    "linear.cuh": small_linear,
    "attention_plain.cuh": small_attention,
    "attention_ring.cuh": small_attention,
}
"""Sources whose threads wait for one another, with a case that runs all of each."""
NOTHING_FOLLOWS = {"linear.cuh", "attention_ring.cuh"}
"""Here `copy_wait<0>` ends the kernel: it only keeps copies from outliving their block."""


def places(text: str) -> list[tuple[str, int, str]]:
    """File, line and what is there, wherever a kernel's source has this text."""
    return [
        (path.name, i, line.strip())
        for path in sorted(CSRC.glob("*.cuh"))
        for i, line in enumerate(path.read_text().splitlines(), 1)
        if text in line and path.name != "isa.cuh"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("schedule", Schedule)
@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_kernels_are_clean(
    compiled_kernels: Kernels, replayed: Callable[..., Outcome], sanitizer: str, lazy: bool, schedule: Schedule
) -> None:
    outcome = replayed(ragged, compiled_kernels(sanitizer), lazy=lazy, schedule=schedule, seed=3)
    assert outcome.clean, outcome.report


@pytest.mark.slow
@pytest.mark.parametrize(("file", "line"), [place[:2] for place in places("block_barrier();")])
def test_a_missing_barrier_is_a_race(
    compiled_kernels: Kernels, replayed: Callable[..., Outcome], file: str, line: int
) -> None:
    """Some show only where copies land early, some only where they land late."""
    library = compiled_kernels("thread")
    outcomes = (replayed(FILES[file], library, lazy=lazy, skipped_barrier=f"{file}:{line}") for lazy in (False, True))
    assert any(outcome.code and "data race" in outcome.report for outcome in outcomes)


@pytest.mark.parametrize(("file", "line", "wait"), places("copy_wait<"))
def test_a_wait_one_too_lax_reads_what_is_not_there(compiled_kernels: Kernels, file: str, line: int, wait: str) -> None:
    run, emulator = FILES[file], Emulator(compiled_kernels("plain"), lazy=True, lax_wait=f"{file}:{line}")
    if wait == "copy_wait<0>();" and file in NOTHING_FOLLOWS:
        return run(emulator)
    with pytest.raises((AssertionError, KernelFault)):
        run(emulator)


def test_copies_that_land_early_hide_a_wait_that_is_too_lax(compiled_kernels: Kernels) -> None:
    library = compiled_kernels("plain")
    ((file, line, _),) = places("copy_wait<STAGES - 2>();")
    small_linear(Emulator(library, lazy=False, lax_wait=f"{file}:{line}"))
    with pytest.raises(AssertionError, match="differ"):
        small_linear(Emulator(library, lazy=True, lax_wait=f"{file}:{line}"))


@pytest.fixture
def mutant(tmp_path: Path, cache: Path) -> Callable[[str, str, str, str], Library]:
    """The smallest linear, built of sources in one of which one text is another."""

    def make(variant: str, file: str, old: str, new: str) -> Library:
        folder = tmp_path / "csrc"
        shutil.copytree(CSRC, folder, ignore=shutil.ignore_patterns("cubins"))
        text = (folder / file).read_text()
        assert text.count(old) == 1
        (folder / file).write_text(text.replace(old, new))
        kept = (folder / "kernels.cu").read_text().splitlines()
        wanted = [line for line in kept if not line.startswith('#include "attention')]
        cut = next(i for i, line in enumerate(wanted) if line.startswith("#define ATTENTION"))
        (folder / "kernels.cu").write_text("\n".join(wanted[:cut]) + "\n")
        return build([folder / "kernels.cu"], variant, cache)

    return make


def test_reading_beyond_a_tensor_is_found(mutant: Callable[..., Library], replayed: Callable[..., Outcome]) -> None:
    library = mutant("address", "linear.cuh", "first + row + i * APART < rows &&", "first + row + i * APART <= rows &&")
    outcome = replayed(small_linear, library)
    assert outcome.code and "heap-buffer-overflow" in outcome.report


def test_shared_memory_that_is_too_small_is_found(compiled_kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels.Tile, "shared", 4 * (64 + 64) * 64 - 16)
    with pytest.raises(KernelFault, match="shared memory"):
        small_linear(Emulator(compiled_kernels("plain")))


def test_a_misaligned_tensor_is_found(compiled_kernels: Kernels) -> None:
    memory = torch.zeros(64 * 64 + 8, dtype=torch.int8)
    x, weight = memory[8:].view(64, 64), torch.zeros(64, 64, dtype=torch.int8)
    scale, out = torch.ones(64, 2), torch.zeros(64, 64)
    arguments = LinearArguments(*map(pointer, (x, weight, scale, None, scale, None, None, out)), *(64, 64, 64, 0, 0))
    tile = kernels.TILES[1]
    with pytest.raises(KernelFault, match="multiple of 16"):
        Emulator(compiled_kernels("plain")).launch(tile.kernel, (1, 1, 1), kernels.THREADS, tile.shared, arguments)


def shared_accesses(library: Library, case: Callable[[Emulator], None]) -> list[Access]:
    emulator = Emulator(library)
    case(emulator)
    return [access for access in emulator.take_profile() if access.kind.startswith("shared")]


@pytest.mark.slow
def test_no_two_rows_of_a_matrix_share_banks(compiled_kernels: Kernels) -> None:
    library = compiled_kernels("profile")
    for case in (small_linear, small_attention, ragged):
        accesses = [a for a in shared_accesses(library, case) if not a.site.startswith(("activation", "decode"))]
        assert len(accesses) >= 3
        assert all(access.ratio == 1 for access in accesses), accesses


@pytest.mark.slow
def test_shared_memory_without_swizzle_is_seen(mutant: Callable[..., Library]) -> None:
    library = mutant(
        "profile",
        "linear.cuh",
        "if (PIECES == 4) return row * 4 + (piece ^",
        "if (PIECES == 4) return row * 4 + (piece ^ 0 * ",
    )
    assert max(access.ratio for access in shared_accesses(library, small_linear)) >= 2


@pytest.mark.slow
def test_results_leave_in_whole_sectors(compiled_kernels: Kernels) -> None:
    emulator = Emulator(compiled_kernels("profile"))
    cases.linear(emulator, 64, 64, 256, 32, False, True, "float16", 1, 0)
    cases.attention(emulator, 8, 64, 64, 0, 64, 128, False, "float16", 1.0, 0)
    stores = [a for a in emulator.take_profile() if a.kind == "global store" and not a.site.startswith("activation")]
    assert stores
    assert all(access.ratio <= 1.01 for access in stores), stores
