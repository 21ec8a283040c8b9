"""The ComfyUI node pack: what ComfyUI looks for when it loads this folder. The library it shows is `qarvd/`."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """The extension with all nodes; imported now and not before, so that nothing happens where ComfyUI is not."""
    from .nodes import Extension

    return Extension()


__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
