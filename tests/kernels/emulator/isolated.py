"""Run a test's function in a process of its own: a sanitizer must be there from the start, and ends what it finds."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from .build import VARIANTS, Library
from .launcher import Emulator


@dataclass(frozen=True)
class Outcome:
    code: int
    report: str
    """All that the process wrote."""

    @property
    def clean(self) -> bool:
        return self.code == 0 and not self.report


def run_isolated(library: Library, case: Callable[..., None], *arguments: object, **settings: object) -> Outcome:
    """Call `case(Emulator(library, **settings), *arguments)`; the case is a function of a module, the rest JSON."""
    job = {
        "library": str(library.path),
        "variant": library.variant.name,
        "file": case.__code__.co_filename,
        "module": case.__module__,
        "case": case.__name__,
        "arguments": arguments,
        "settings": settings,
    }
    environment = library.environment() | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-m", __name__, json.dumps(job)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    return Outcome(done.returncode, done.stdout)


def _module(name: str, file: str) -> ModuleType:
    """By its name where that is the same file, as modules of a package need it; else by the file alone."""
    with contextlib.suppress(ModuleNotFoundError):
        module = importlib.import_module(name)
        if getattr(module, "__file__", None) == file:
            return module
    spec = importlib.util.spec_from_file_location("case", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    job = json.loads(sys.argv[1])
    case = getattr(_module(job["module"], job["file"]), job["case"])
    library = Library(Path(job["library"]), VARIANTS[job["variant"]])
    case(Emulator(library, **job["settings"]), *job["arguments"])


if __name__ == "__main__":
    main()
