"""A contract for `lint-imports`: what the pack of nodes may import of the library.

import-linter follows imports within packages that it can import; the nodes reach the library by `from ..qarvd`, out of
theirs, since ComfyUI gives the pack a name of its own. So their imports are read here.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output

ROOT = Path(__file__).parents[1]


class PackContract(Contract):
    """No file of `folder` imports any of `forbidden_modules` of the library, or what lies in them."""

    folder = fields.StringField()
    forbidden_modules = fields.ListField(fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        forbidden = tuple(str(module) for module in self.forbidden_modules)  # type: ignore[union-attr]
        broken = [
            f"{path.relative_to(ROOT)}:{line} imports {module}"
            for path in sorted((ROOT / str(self.folder)).glob("**/*.py"))
            for line, module in imported(path)
            if any(module == name or module.startswith(f"{name}.") for name in forbidden)
        ]
        return ContractCheck(kept=not broken, metadata={"broken": broken})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for line in check.metadata["broken"]:
            output.print_error(line)


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Lines and full names of what a file of the pack imports of the library, names of a module's members included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "qarvd":
            yield node.lineno, node.module
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
