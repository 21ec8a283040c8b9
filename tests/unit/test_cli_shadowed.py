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

    def start(*arguments: str) -> subprocess.Popen[str]:
        command, out = [sys.executable, *WAYS[way], *arguments], subprocess.PIPE
        return subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=out, stderr=out, text=True)

    good, bad = start("inspect", "demo"), start("inspect", "nowhere.pt")  # at once, since starting takes most of it
    told, said = good.communicate(timeout=100)
    assert good.returncode == 0 and told.startswith("family      demo") and said == ""
    assert bad.communicate(timeout=100)[1] == "qarvd: There is no file nowhere.pt.\n" and bad.returncode == 2


def test_the_library_is_found_once_above_a_checkout(tmp_path: Path) -> None:
    linked(tmp_path / "qarvd", ROOT)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    code = (
        "from qarvd import load, quantize, stream; from qarvd.errors import QarvdError; import sys\n"
        "try: load('nowhere.pt')\n"
        "except QarvdError as error: print(error)\n"
        "model = load('demo'); print(*[chunk.latents.shape[2] for chunk in stream(model, 'a 7 moving left', 2)])\n"
        "print(*[name for name in sys.modules if name.startswith('qarvd.qarvd')])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)
    assert done.stdout.splitlines() == ["There is no file nowhere.pt.", "3 3", ""], done.stderr
