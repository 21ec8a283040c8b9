"""The ComfyUI node pack: what ComfyUI looks for when it loads this folder. The library it shows is `qarvd/`."""

import sys
from importlib import util
from pathlib import Path

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """The extension with all nodes; imported now and not before, so that nothing happens where ComfyUI is not."""
    from .nodes import Extension

    return Extension()


def _give_way_to_the_library() -> None:
    """In the folder above a checkout called `qarvd`, Python takes this pack for the library of that name: become it."""
    folder = Path(__file__).with_name("qarvd")
    spec = util.spec_from_file_location(__name__, folder / "__init__.py", submodule_search_locations=[str(folder)])
    assert spec is not None and spec.loader is not None
    sys.modules[__name__] = library = util.module_from_spec(spec)
    spec.loader.exec_module(library)


if __name__ == "qarvd":  # ComfyUI gives the pack a name of its own
    _give_way_to_the_library()

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
