"""What only a newer ComfyUI has, so that tests of it can skip with a reason."""

from __future__ import annotations

from pathlib import Path


def refuses(folder: Path | None) -> str | None:
    """Why tests marked newer_comfyui can't run with the ComfyUI in this folder (None: the one from PyPI)."""
    if folder and (folder / "comfy" / "ldm" / "wan" / "ar_model.py").is_file():
        return None
    return "needs ComfyUI 0.27 or later: name its folder in COMFYUI_DIR, and its Python in COMFYUI_PYTHON"
