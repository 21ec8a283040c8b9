"""What tests of the library share: a tiny model, commands to try it with, and a CUDA driver without a card."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny.commands import arguments, no_work, out, prompts, refused, run, text  # noqa: F401
from tiny.model import CONFIG, embeddings, model, model_file, one_thread, shared_model, tiny_model  # noqa: F401

from .checkpoint_files import quantized, quantized_file  # noqa: F401
from .fake_card import machine, prebuilt  # noqa: F401
from .small_disk import small_disk  # noqa: F401


@pytest.fixture(scope="session")
def fake_libcuda(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CUDA driver that only writes down what it is asked (fake_libcuda.cpp), for tests without a card."""
    compiler = shutil.which("g++")
    if compiler is None or sys.platform != "linux":
        pytest.skip("the fake CUDA driver is built with g++ on Linux")
    path = tmp_path_factory.mktemp("driver") / "libcuda.so.1"
    source = Path(__file__).with_name("fake_libcuda.cpp")
    subprocess.run([compiler, "-std=c++17", "-O1", "-shared", "-fPIC", "-o", path, source], check=True)
    return path
