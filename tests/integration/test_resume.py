"""`python -m qarvd quantize`, killed at any point and resumed, writes the bytes of an unbroken run."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from qarvd.cli import main
from qarvd.demo.prompts import split_prompts

pytestmark = pytest.mark.slow

PATIENCE = 120
"""Seconds until a run that leaves no parts has failed."""
QUICK = ("--chunks", "2", "--recipe", "w4a8", "--rounding", "nearest", "--outliers", "published")
"""Block by block against calibrated inputs, as by default, but with rounding that takes seconds."""
DEFAULT = ("--chunks", "2", "--recipe", "w4a8", "--target", "5 bits")
"""The default way of rounding, and a bit budget."""

KILLS: dict[str, Callable[[Path], bool]] = {
    "when the roll-outs are done": lambda work: any(work.glob("batch-*.safetensors")),
    "half-way through the blocks": lambda work: (work / "blocks.1.cross_attn.q.safetensors").is_file(),
}
"""Moments, by what lies in the folder of finished parts."""
DEFAULT_KILLS: dict[str, Callable[[Path], bool]] = {
    "while calls are measured": lambda work: any(work.glob("batch-*.safetensors")),
    "while bits are chosen": lambda work: (work / "calls.json").is_file(),
}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("\n".join(map(str, split_prompts()[0][:8])), encoding="utf-8")
    return path


def command(prompts: Path, folder: Path, options: tuple[str, ...] = QUICK) -> list[str]:
    return ["quantize", "demo", "--prompts", str(prompts), *options, "--out", str(folder / "demo.safetensors")]


def start(arguments: list[str]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "qarvd", *arguments], env=environment, stderr=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def unbroken(prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return whole(prompts, tmp_path_factory.mktemp("unbroken"))


def whole(prompts: Path, folder: Path, options: tuple[str, ...] = QUICK) -> bytes:
    """What a run that nothing interrupts writes."""
    assert start(command(prompts, folder, options)).wait(3 * PATIENCE) == 0
    assert [path.name for path in folder.iterdir()] == ["demo.safetensors"]
    return (folder / "demo.safetensors").read_bytes()


def killed(arguments: list[str], work: Path, moment: Callable[[Path], bool]) -> None:
    """Run a command and kill it, with no chance to clean up, as soon as `moment` has come."""
    process, began = start(arguments), time.monotonic()
    try:
        while not moment(work):
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() - began < PATIENCE
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    assert process.returncode < 0 or os.name == "nt", "it had ended by itself"


def parts(work: Path) -> dict[str, int]:
    """When each finished part was written."""
    return {path.name: path.stat().st_mtime_ns for path in work.glob("[!.]*")}


@pytest.mark.parametrize("kill", KILLS)
def test_a_killed_run_goes_on_where_it_was_and_writes_the_same_bytes(
    kill: str, prompts: Path, unbroken: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, work = tmp_path / "demo.safetensors", tmp_path / "demo.safetensors.work"
    arguments = command(prompts, tmp_path)
    killed(arguments, work, KILLS[kill])
    assert list(tmp_path.iterdir()) == [work]
    finished = parts(work)
    assert main(arguments) == 2 and "Add --resume to continue it, or delete the folder." in capsys.readouterr().err
    assert main([*arguments, "--seed", "5", "--rounding", "gptq", "--resume"]) == 2
    assert "is from a run with other settings (recipe, seed differ). Repeat its settings" in capsys.readouterr().err
    assert parts(work) == finished

    # Killed once more after two new parts: those that were there have not been made again.
    killed([*arguments, "--resume"], work, lambda work: len(parts(work)) >= len(finished) + 2)
    assert finished.items() < parts(work).items()

    assert start([*arguments, "--resume"]).wait(PATIENCE) == 0
    assert out.read_bytes() == unbroken
    assert list(tmp_path.iterdir()) == [out]


def test_by_default_too_a_killed_run_goes_on_with_what_was_measured(prompts: Path, tmp_path: Path) -> None:
    out, work = tmp_path / "a" / "demo.safetensors", tmp_path / "a" / "demo.safetensors.work"
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    arguments, finished = command(prompts, tmp_path / "a", DEFAULT), dict[str, int]()
    for moment in DEFAULT_KILLS.values():
        killed([*arguments, "--resume"], work, moment)
        assert not (work / "bits.json").exists()
        assert finished.items() <= parts(work).items()
        finished = parts(work)
    assert start([*arguments, "--resume"]).wait(3 * PATIENCE) == 0
    assert out.read_bytes() == whole(prompts, tmp_path / "b", DEFAULT)
