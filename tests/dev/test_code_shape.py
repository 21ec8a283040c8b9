"""Code stays small: no function over 60 lines, but for what declares a node's sockets, and no file over 300."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(path for folder in ("qarvd", "nodes") for path in (ROOT / folder).rglob("*.py"))
MOST_LINES, MOST_LINES_OF_FILE = 60, 300
DECLARES = "define_schema"


def functions(text: str) -> Iterator[tuple[str, int]]:
    """The name and the lines of every function, those inside others included."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield node.name, node.end_lineno - node.lineno + 1


def too_long(text: str) -> list[str]:
    """What is too long in a file of this text."""
    found = [f"{name}: {lines} lines" for name, lines in functions(text) if lines > MOST_LINES and name != DECLARES]
    lines = len(text.splitlines())
    return found + ([f"the file: {lines} lines"] if lines > MOST_LINES_OF_FILE else [])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_and_files_are_short(path: Path) -> None:
    assert not too_long(path.read_text(encoding="utf-8"))


def test_what_is_too_long_is_found() -> None:
    def function(name: str, lines: int) -> str:
        return f"class A:\n    def {name}(self):\n" + "        pass\n" * (lines - 1)

    assert too_long(function("f", MOST_LINES)) == too_long(function(DECLARES, 99)) == []
    assert too_long(function("f", MOST_LINES + 1)) == ["f: 61 lines"]
    nested = "async def outer():\n    def inner():\n" + "        pass\n" * MOST_LINES
    assert too_long(nested) == ["outer: 62 lines", "inner: 61 lines"]
    assert too_long("pass\n" * 300) == [] and too_long("pass\n" * 301) == ["the file: 301 lines"]
    assert len(FILES) > 100 and ROOT / "qarvd" / "ops" / "linear.py" in FILES
