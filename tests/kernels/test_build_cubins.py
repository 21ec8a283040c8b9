"""tools/build_cubins.py makes the same files each time, and those that are shipped."""

from __future__ import annotations

from pathlib import Path

import build_cubins
import pytest

from qarvd.errors import DeviceError
from qarvd.ops.cuda import cubins
from qarvd.ops.cuda.cubins import SERVES, Cubin
from qarvd.ops.cuda.nvrtc import Nvrtc
from qarvd.ops.cuda.source import Source, read

SMALL = Source({"kernels.cu": 'extern "C" __global__ void twice(float* x) { *x *= 2; }'})


@pytest.fixture(scope="module")
def builder() -> Nvrtc:
    try:
        return build_cubins.find(None)
    except DeviceError as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_prebuilt_kernels_are_those_that_the_tool_builds(builder: Nvrtc) -> None:
    """One architecture stands for all: compiling takes half a minute each."""
    kept = cubins.shipped((7, 5), read().hash)
    assert isinstance(kept, Cubin), f"{kept}; run python tools/build_cubins.py"
    assert builder.compile(read(), "sm_75") == kept


def test_building_twice_writes_the_same_files(
    builder: Nvrtc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build_cubins.source, "read", lambda: SMALL)
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        assert build_cubins.main(["--out", str(folder), "--check"]) == 1 and not folder.exists()
        assert build_cubins.main(["--out", str(folder)]) == 0
        assert build_cubins.main(["--out", str(folder), "--check"]) == 0
    files = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders]
    assert files[0] == files[1] and set(files[0]) == {f"{name}.xz" for name in SERVES}
    assert "unchanged" in capsys.readouterr().out
    for served in SERVES.values():
        assert isinstance(cubins.shipped(served[0], SMALL.hash, tmp_path / "first"), Cubin)


def test_the_tool_says_how_to_get_the_compiler_that_it_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build_cubins.main(["--nvrtc", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "pip install" in capsys.readouterr().err and not (tmp_path / "out").exists()
