"""The command line runs wherever the checkout lies: above a folder called `qarvd`, Python takes the pack for the
library."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny.commands import linked

ROOT = Path(__file__).parents[2]
WAYS = {
    "above the checkout": ["-m", "qarvd"],
    "by the folder's path": ["qarvd"],
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("path", [None, str(ROOT)], ids=["without PYTHONPATH", "with PYTHONPATH"])
def test_the_command_line_runs_above_a_checkout(tmp_path: Path, way: str, path: str | None) -> None:
    linked(tmp_path / "qarvd", ROOT)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = path

    def told(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *WAYS[way], *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)

    good, bad = told("inspect", "demo"), told("inspect", "nowhere.pt")
    assert good.returncode == 0 and good.stdout.startswith("family      demo") and good.stderr == ""
    assert bad.returncode == 2 and bad.stderr == "qarvd: There is no file nowhere.pt.\n"


def test_the_functions_are_found_above_a_checkout(tmp_path: Path) -> None:
    linked(tmp_path / "qarvd", ROOT)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    code = (
        "import qarvd; assert not hasattr(qarvd, 'NODE_CLASS_MAPPINGS') and qarvd.WEB_DIRECTORY;"
        "from qarvd import load, quantize, stream; model = load('demo');"
        "print(*[chunk.latents.shape[2] for chunk in stream(model, 'a 7 moving left', 2)])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)
    assert done.stdout.split() == ["3", "3"], done.stderr
