"""The pack as ComfyUI's own loader loads it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from types import ModuleType


def test_loading_it_registers_its_nodes(pack: ModuleType) -> None:
    import nodes

    ours = [name for name in nodes.NODE_CLASS_MAPPINGS if name.startswith("Qarvd")]
    assert "QarvdDemoModel" in ours


def test_its_library_is_the_copy_in_its_folder(pack: ModuleType, part: Callable[[str], ModuleType]) -> None:
    assert str(part("qarvd.errors").__file__).startswith(str(pack.__path__[0]))


def test_kernels_that_are_compiled_are_kept_where_those_of_the_command_line_are(
    pack: ModuleType, part: Callable[[str], ModuleType]
) -> None:
    """Else a card without prebuilt ones would have them compiled, for a minute, at every start."""
    asyncio.run(part("nodes").Extension().get_node_list())
    files = part("qarvd.files")
    assert part("qarvd.ops.cuda.device")._folder == [files.kernel_folder(sys.platform, os.environ, files.home_folder())]
