"""One real ComfyUI for the whole run, set up when the first test needs it.

What only ComfyUI's tests need is imported in the fixtures: tests/gpu runs where little is installed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from harness import inside, newer
from harness.install import PACK, ComfyUI, named
from harness.server import Server, serve

if TYPE_CHECKING:
    from harness.client import Client

if "PYTEST_XDIST_WORKER" in os.environ:  # a worker has one core: more threads would wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.File | None:
    if module_path.parent == inside.FOLDER:
        return inside.InsideFile.from_parent(parent, path=module_path)
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("newer_comfyui") and (reason := newer.refuses(named())):
        pytest.skip(reason)


@pytest.fixture(scope="session")
def comfyui() -> ComfyUI:
    return inside.comfyui_or_fail()


@pytest.fixture(scope="session")
def server(comfyui: ComfyUI, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """ComfyUI with the pack, for all tests: they share its models, its outputs and its cache of results."""
    with serve(comfyui, tmp_path_factory.mktemp("comfyui") / "base", {"qarvd": PACK}) as running:
        failed = running.failed_imports()
        if failed:
            pytest.fail("\n".join([f"ComfyUI says in {running.log}:", *failed]), pytrace=False)
        yield running


@pytest.fixture(scope="session")
def model_files(server: Server) -> None:
    """What harness.models tells of, where ComfyUI looks for models."""
    from harness.models import write_models

    write_models(server.base / "models")


@pytest.fixture
def comfy(server: Server) -> Iterator[Client]:
    """A client of the server; what the test leaves running is interrupted."""
    from harness.client import Client

    with Client(server) as client:
        yield client
        client.stop_all()
