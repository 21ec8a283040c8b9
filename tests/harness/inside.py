"""Tests that need ComfyUI's own Python: tests/inside/test_*.py run in it, and report here as items of this run."""

from __future__ import annotations

import ast
import functools
import os
import re
import subprocess
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest

from harness.install import PACK, ComfyUI, SetupError, find, refuses

FOLDER = PACK / "tests" / "inside"
ALL_WITHIN = 900  # seconds for one file


@functools.cache
def comfyui() -> ComfyUI | str:
    """The ComfyUI of this run, or why there is none; set up once, and a failure isn't tried again for each test."""
    try:
        return find()
    except SetupError as error:
        return str(error)


def missing(reason: str) -> NoReturn:
    """Skip, or fail where all must run."""
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def comfyui_or_fail() -> ComfyUI:
    reason = refuses()
    if reason:
        missing(reason)
    found = comfyui()
    if isinstance(found, str):
        pytest.fail(found, pytrace=False)
    return found


@dataclass(frozen=True)
class Case:
    """How one test ended in there: "passed", "skipped" or "failed", why, and what it printed."""

    name: str  # with its parameters in brackets; empty for the whole file
    outcome: str
    text: str
    printed: str = ""


class InsideFile(pytest.File):
    """A file of tests that is read here, for their names, and imported only in ComfyUI's Python."""

    def collect(self) -> Iterator[pytest.Item]:
        for statement in ast.parse(self.path.read_text()).body:
            if isinstance(statement, ast.FunctionDef) and statement.name.startswith("test_"):
                yield InsideItem.from_parent(self, name=statement.name, line=statement.lineno - 1)

    @functools.cached_property
    def cases(self) -> list[Case]:
        """The selected tests of this file, run in one process at the first of them."""
        selected = [item.name for item in self.session.items if item.parent is self]
        return run([f"{self.path}::{name}" for name in selected], comfyui_or_fail())


class InsideItem(pytest.Item):
    """One test function, with all its parameters."""

    def __init__(self, *, line: int, **kwargs: object) -> None:
        super().__init__(**kwargs)  # type: ignore[arg-type]
        self.line = line

    def runtest(self) -> None:
        assert isinstance(self.parent, InsideFile)
        mine = [case for case in self.parent.cases if case.name.split("[")[0] in (self.name, "")]
        print(*(case.printed for case in mine if case.printed), sep="\n", end="")
        failed = [f"{case.name}\n{case.text}" for case in mine if case.outcome == "failed"]
        if failed or not mine:
            pytest.fail("\n\n".join(failed) or f"{self.name} did not run in ComfyUI's Python", pytrace=False)
        if all(case.outcome == "skipped" for case in mine):
            pytest.skip(mine[0].text)

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, self.line, self.name


def run(tests: Iterable[str], comfyui: ComfyUI, folders: Iterable[Path] = ()) -> list[Case]:
    """Run tests with ComfyUI's Python in ComfyUI's folder, with the pack at hand (see within.py); on a CPU."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        command = [str(comfyui.python), "-m", "pytest", "-p", "harness.within", f"--junitxml={report}", "-q"]
        # None of this repository's settings or conftest files: they are for the Python that runs the suite.
        command += ["-c", os.devnull, f"--rootdir={scratch}", f"--confcutdir={FOLDER}", "--import-mode=importlib"]
        command += ["-o", "junit_logging=system-out", "-p", "no:cacheprovider", *tests]
        path = [str(comfyui.folder), *map(str, folders), str(FOLDER.parent)]
        settings = os.environ | {"PYTHONPATH": os.pathsep.join(path), "QARVD_TEST_BASE": scratch}
        done = subprocess.run(
            command, cwd=comfyui.folder, env=settings, capture_output=True, text=True, timeout=ALL_WITHIN
        )
        said = "\n".join((done.stdout + done.stderr).splitlines()[-60:])
        if not report.exists():
            return [Case("", "failed", f"pytest in ComfyUI's Python ended with {done.returncode}:\n{said}")]
        return [_case(entry) for entry in ElementTree.parse(report).iter("testcase")]


def _case(entry: ElementTree.Element) -> Case:
    # A file that can't be imported is an entry with no test's name: it fails, or skips, every test of the file.
    name = entry.get("name", "")
    if not name.split("[")[0].isidentifier():
        name = ""
    printed = re.sub(r"^-+ Captured Out -+\n?", "", entry.findtext("system-out") or "", flags=re.MULTILINE).strip()
    for tag, outcome in (("failure", "failed"), ("error", "failed"), ("skipped", "skipped")):
        found = entry.find(tag)
        if found is not None:
            text = found.get("message", "") if outcome == "skipped" else found.text or found.get("message", "")
            return Case(name, outcome, text, printed)
    return Case(name, "passed", "", printed)
