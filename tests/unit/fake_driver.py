"""What fake_libcuda.cpp can be told and asked."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass


@dataclass
class FakeDriver:
    """A CUDA driver without a card, and its own levers."""

    path: str
    library: ctypes.CDLL

    def fail(self, function: str, code: int) -> None:
        """Whenever `function` is called; with 0 it works again."""
        self.library.fake_fail(function.encode(), code)

    def refuse(self, image: bytes, code: int) -> None:
        """Give `code` to whoever loads this module."""
        self.library.fake_refuse(image, code)

    def lines(self) -> list[str]:
        """What the driver was asked since the last look."""
        buffer = ctypes.create_string_buffer(1 << 16)
        self.library.fake_record(buffer, len(buffer))
        self.library.fake_forget()
        return buffer.value.decode().splitlines()

    def asked(self, *functions: str) -> list[str]:
        """The same of these functions alone."""
        return [line for line in self.lines() if line.startswith(functions)]


def opened(path: str) -> FakeDriver:
    """As new, whatever earlier tests told it."""
    library = ctypes.CDLL(path)
    library.fake_argument_bytes.argtypes = (ctypes.c_size_t,)
    library.fake_record.argtypes = (ctypes.c_char_p, ctypes.c_size_t)
    library.fake_reset(0)
    return FakeDriver(path, library)
