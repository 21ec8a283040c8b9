"""Launch emulated kernels as `qarvd.ops.cuda.driver.Launcher` launches real ones."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Sequence
from ctypes import c_char_p, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from .build import Library


class KernelFault(Exception):
    """The launch makes no sense, or the kernel broke a rule; says which and where."""


class Schedule(IntEnum):
    """In which order threads and blocks get their turn."""

    IN_ORDER = 0
    REVERSED = 1
    SHUFFLED = 2


class _Settings(ctypes.Structure):
    _fields_ = (
        ("lazy", ctypes.c_bool),
        ("schedule", c_int),
        ("seed", c_int),
        ("skipped_barrier", c_char_p),
        ("lax_wait", c_char_p),
    )


class _Row(ctypes.Structure):
    _fields_ = (
        ("code", c_ulonglong),
        ("writes", c_int),
        ("shared", c_int),
        ("requests", c_ulonglong),
        ("transactions", c_ulonglong),
        ("ideal", c_ulonglong),
    )


@dataclass(frozen=True)
class Access:
    """A line of source that reads or writes memory, over all warps that did.

    `transactions` are wavefronts in shared memory and 32-byte sectors in global memory; `ideal` is the least that
    requests of these widths, or this many bytes, can take.
    """

    site: str
    """file:line, without folders"""
    kind: str
    """"shared load", "shared store", "global load" or "global store\""""
    requests: int
    transactions: int
    ideal: int

    @property
    def ratio(self) -> float:
        return self.transactions / self.ideal


class Emulator:
    """One compiled library, and how to run it."""

    def __init__(
        self,
        library: Library,
        *,
        lazy: bool = False,
        schedule: Schedule = Schedule.IN_ORDER,
        seed: int = 0,
        skipped_barrier: str = "",
        lax_wait: str = "",
    ) -> None:
        """`lazy`: asynchronous copies land when they are waited for, not when they are issued.

        Try both, with ThreadSanitizer too: the eager ones show what they overwrite too early, the lazy ones what is
        read too early.

        Two faults can be planted, each at a place such as "linear.cuh:93": barriers at `skipped_barrier` do nothing,
        every `copy_wait` at `lax_wait` leaves one group more under way.
        """
        if lazy and library.variant.name == "profile":
            raise ValueError("a profile needs eager copies: lazy ones would be recorded where they are waited for")
        self._library = library
        places = (place.encode() or None for place in (skipped_barrier, lax_wait))
        self._settings = _Settings(lazy, schedule, seed, *places)
        loaded = ctypes.CDLL(str(library.path))
        self._emulate, self._error, self._take_profile = loaded.emulate, loaded.emulator_error, loaded.take_profile
        self._emulate.argtypes = (c_char_p, c_uint * 3, c_uint, c_uint, c_void_p, c_size_t, c_void_p)
        self._error.restype = c_char_p
        self._take_profile.argtypes = (c_void_p, c_int)

    def prepare(self, kernel: str, shared: int) -> None:
        """Nothing: what the real launcher must do beforehand has no counterpart here."""

    def launch(
        self,
        kernel: str,
        grid: tuple[int, int, int],
        block: int,
        shared: int,
        arguments: ctypes.Structure,
        stream: int = 0,
    ) -> None:
        """Run `kernel` to its end; `block` in threads, `shared` in bytes. Raises KernelFault."""
        failed = self._emulate(
            kernel.encode(),
            (c_uint * 3)(*grid),
            block,
            shared,
            ctypes.byref(arguments),
            ctypes.sizeof(arguments),
            ctypes.byref(self._settings),
        )
        if failed:
            raise KernelFault(self._error().decode())

    def take_profile(self) -> list[Access]:
        """What was recorded since this was last called, by file, line and kind."""
        if self._library.variant.name != "profile":
            raise ValueError(f'the variant "{self._library.variant.name}" records nothing; build "profile"')
        count = self._take_profile(None, 0)
        rows = (_Row * count)()
        self._take_profile(rows, count)
        sites = _sites(self._library.path, [row.code for row in rows])
        totals: dict[tuple[str, str], list[int]] = {}
        for row, site in zip(rows, sites, strict=True):
            kind = f"{'shared' if row.shared else 'global'} {'store' if row.writes else 'load'}"
            total = totals.setdefault((site, kind), [0, 0, 0])
            for i, count in enumerate((row.requests, row.transactions, row.ideal)):
                total[i] += count
        return [Access(site, kind, *counts) for (site, kind), counts in sorted(totals.items())]


def _sites(library: Path, code: Sequence[int]) -> list[str]:
    """The line of each instruction: of what was inlined there, the innermost that isn't an instruction of isa.cuh."""
    if not code:
        return []
    command = ["addr2line", "-a", "-i", "-e", str(library), *map(hex, code)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    sites = []
    for frames in output.split("0x")[1:]:
        lines = [line.split(" ")[0] for line in frames.splitlines()[1:]]
        kernel = [line for line in lines if Path(line.rpartition(":")[0]).name not in ("isa.cuh", "emulator.h")]
        sites.append(Path((kernel or lines)[0]).name)
    return sites
