"""ComfyUI's own tests of quantized weights, run while this pack is at work."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = """
import pytest


@pytest.fixture(scope="session", autouse=True)
def with_the_pack(part):
    import comfy.ops

    assert comfy.ops._load_quantized_module.__module__ == part("nodes.layout").__name__
"""


@pytest.mark.newer_comfyui
def test_they_pass(tmp_path: Path) -> None:
    folder = Path.cwd() / "tests-unit" / "comfy_quant"
    if not folder.is_dir():
        pytest.skip(f"this ComfyUI comes without its own tests: there is no {folder}")
    (tmp_path / "with_the_pack.py").write_text(PLUGIN)
    command = [sys.executable, "-m", "pytest", "-p", "harness.within", "-p", "with_the_pack", "-q"]
    command += ["-c", os.devnull, f"--rootdir={tmp_path}", "--import-mode=importlib", "-p", "no:cacheprovider"]
    paths = os.pathsep.join([os.environ["PYTHONPATH"], str(tmp_path)])
    done = subprocess.run(
        [*command, str(folder)], env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, timeout=300
    )
    passed = re.search(r"(\d+) passed", done.stdout)
    assert done.returncode == 0 and passed and int(passed[1]) >= 6, done.stdout + done.stderr
