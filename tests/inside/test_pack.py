"""The pack as ComfyUI's own loader loads it."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType


def test_loading_it_registers_its_nodes(pack: ModuleType) -> None:
    import nodes

    ours = [name for name in nodes.NODE_CLASS_MAPPINGS if name.startswith("Qarvd")]
    assert "QarvdDemoModel" in ours


def test_its_library_is_the_copy_in_its_folder(pack: ModuleType, part: Callable[[str], ModuleType]) -> None:
    assert str(part("qarvd.errors").__file__).startswith(str(pack.__path__[0]))
