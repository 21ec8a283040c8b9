"""Quantize autoregressive video diffusion models and stream them: `from qarvd import load, quantize, save, stream`."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import load, quantize, save, stream

__version__ = "0.1.0"
__all__ = ["__version__", "load", "quantize", "save", "stream"]


def __getattr__(name: str) -> Any:
    """A function of `api`, which is imported when one is first asked for."""
    if name in __all__:
        return getattr(import_module(".api", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class CalledPackage(ModuleType):
    """A folder of modules that is also called, as the function of `api` of its name.

    Once any module of `stream/` is imported, Python finds that folder by `from qarvd import stream`.
    """

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return getattr(import_module(".api", __name__), self.__name__.rpartition(".")[2])(*arguments, **options)
