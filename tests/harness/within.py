"""A pytest plugin for ComfyUI's own Python: ComfyUI on a CPU with files of its own, and the pack as it loads it."""

from __future__ import annotations

import asyncio
import importlib
import io
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from harness.newer import refuses

PACK = Path(__file__).resolve().parents[2]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "newer_comfyui: needs ComfyUI 0.27 or later")
    # ComfyUI's nodes.py puts its comfy/ in front of sys.path, where `utils` is another; its main.py imports this first.
    importlib.import_module("utils.install_util")
    # Both are read where ComfyUI's other modules are imported, so they are set first.
    args = importlib.import_module("comfy.cli_args").args
    args.cpu = True
    args.base_directory = os.environ["QARVD_TEST_BASE"]


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("newer_comfyui") and (reason := refuses(Path.cwd())):
        pytest.skip(reason)


@pytest.fixture(scope="session")
def pack() -> ModuleType:
    """The pack, loaded by ComfyUI's own loader under the name that it gives it; its nodes are registered."""
    nodes = importlib.import_module("nodes")  # ComfyUI's, which type checkers take for the pack's
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    logging.getLogger().addHandler(handler)
    if not asyncio.run(nodes.load_custom_node(str(PACK), module_parent="custom_nodes")):
        pytest.fail(f"ComfyUI could not load the pack:\n{said.getvalue()}", pytrace=False)
    logging.getLogger().removeHandler(handler)
    return sys.modules[str(PACK).replace(".", "_x_")]


@pytest.fixture(scope="session")
def part(pack: ModuleType) -> Callable[[str], ModuleType]:
    """A module of the pack by its place in it, such as "nodes.host" or "qarvd.ops.linear"."""
    return lambda name: importlib.import_module(f"{pack.__name__}.{name}")
