"""The ComfyUI node pack: what ComfyUI looks for when it loads this folder. The library it shows is `qarvd/`."""

from importlib import import_module

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """The extension with all nodes; imported now and not before, so that nothing happens where ComfyUI is not."""
    from .nodes import Extension

    return Extension()


def __getattr__(name: str):
    """The library's functions: above a checkout called `qarvd`, `from qarvd import load` finds this pack."""
    if name in ("load", "quantize", "save", "stream"):
        return getattr(import_module(".qarvd", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
