"""`python -m qarvd demo` does the whole job, as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path

import av
import pytest

from qarvd.checkpoint.model import load

VARIANTS = ("full", "w8a8", "w4a8")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "result"
    subprocess.run([sys.executable, "-m", "qarvd", "demo", "--out", str(folder)], check=True, timeout=900)
    return folder


@pytest.fixture(scope="module")
def metrics(out: Path) -> dict[str, dict[str, float]]:
    return json.loads((out / "metrics.json").read_text())


def test_every_file_is_there_and_nothing_else(out: Path) -> None:
    videos = {f"{name}.mp4" for name in VARIANTS}
    models = {f"demo-{name}.safetensors" for name in VARIANTS[1:]}
    expected = {"contact-sheet.png", "report.html", "metrics.json", *videos, *models}
    assert {path.name for path in out.iterdir()} == expected


@pytest.mark.parametrize("name", VARIANTS)
def test_videos_play_to_the_end(out: Path, name: str) -> None:
    with av.open(str(out / f"{name}.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) == 21


def test_the_model_draws_what_it_is_told_and_8_bits_keep_it(metrics: dict[str, dict[str, float]]) -> None:
    full, w8a8, w4a8 = (metrics[name] for name in VARIANTS)
    for entry in (full, w8a8):
        assert min(entry[key] for key in ("digit_accuracy_first", "digit_accuracy_last", "motion_accuracy")) > 0.9
    assert full["psnr_db"] is None
    assert w8a8["psnr_db"] > w4a8["psnr_db"] > 10
    assert w8a8["samples"] == w4a8["samples"] == full["samples"] == 64


def test_the_sizes_told_are_the_sizes_on_disk(out: Path, metrics: dict[str, dict[str, float]]) -> None:
    for name in VARIANTS[1:]:
        assert metrics[name]["bytes"] == (out / f"demo-{name}.safetensors").stat().st_size
    assert 8 < metrics["w8a8"]["weight_bits"] < 8.32
    assert 4.5 < metrics["w4a8"]["weight_bits"] < 4.65  # half a bit is scales of groups
    assert metrics["full"]["weight_bits"] == 16


def test_the_quantized_files_say_how_they_were_made(out: Path) -> None:
    for name in VARIANTS[1:]:
        model = load(out / f"demo-{name}.safetensors")
        assert model.recipe is not None and f"w{model.recipe.weight_bits}a8" == name
        assert model.preset_name == "demo"


def test_the_report_stands_alone(out: Path) -> None:
    page = (out / "report.html").read_text()
    assert page.count("<video") == 3 and page.count("data:video/mp4") == 3
    assert "Outlier channels per layer, w4a8" in page and "Error per chunk" in page
    assert 'src="http' not in page and 'href="http' not in page
