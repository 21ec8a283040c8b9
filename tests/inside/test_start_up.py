"""What loading the pack costs ComfyUI's start, and what it drags in. In a process of its own: it loads it once."""

from __future__ import annotations

import asyncio
import compileall
import importlib.util
import sys
import time
from types import ModuleType

import pytest
from harness.within import PACK

MOST = 0.5
"""Seconds of a processor; 0.15 are aimed at, and machines differ."""
OPTIONAL = ("av", "tqdm", "sklearn", "matplotlib")
"""What parts of the library need that no node does, or that ComfyUI may lack."""


async def start(pack: ModuleType) -> None:
    """What ComfyUI does with a pack."""
    extension = await pack.comfy_entrypoint()
    await extension.on_load()
    for node in await extension.get_node_list():
        node.GET_SCHEMA()


@pytest.fixture(scope="module")
def loaded() -> tuple[float, set[str]]:
    """Seconds of a processor that loading takes a ComfyUI which is up otherwise, and the modules that it adds."""
    for name in ("nodes", "server", "comfy.sd", "comfy_api.latest"):
        importlib.import_module(name)
    for part in ("nodes", "qarvd"):  # as at any start but the first
        compileall.compile_dir(PACK / part, quiet=2)
    before = set(sys.modules)
    spec = importlib.util.spec_from_file_location(
        "started", PACK / "__init__.py", submodule_search_locations=[str(PACK)]
    )
    assert spec is not None and spec.loader is not None
    with pytest.MonkeyPatch.context() as patch:
        for name in OPTIONAL:
            patch.setitem(sys.modules, name, None)  # importing it raises ImportError
        began = time.process_time()
        sys.modules["started"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        at_once = set(sys.modules) - before - set(OPTIONAL)
        asyncio.run(start(module))
        seconds = time.process_time() - began
    assert at_once == {"started"}, "the pack's __init__.py imports something"
    return seconds, set(sys.modules) - before - set(OPTIONAL)


def test_it_costs_little(loaded: tuple[float, set[str]]) -> None:
    seconds, _ = loaded
    print(f"loading the pack takes {seconds:.2f} s of a processor")
    assert seconds < MOST


def test_it_imports_nothing_but_itself_beyond_what_comfyui_has(loaded: tuple[float, set[str]]) -> None:
    _, modules = loaded
    assert {name.partition(".")[0] for name in modules} == {"started"}
