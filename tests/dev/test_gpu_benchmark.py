"""What benchmarks/gpu.py times on a card runs here on the CPU, so that it is not a card's owner who finds a slip."""

import subprocess
import sys
from pathlib import Path

import gpu
import pytest
import torch
from torch import Tensor

CPU = torch.device("cpu")


def test_every_linear_of_the_benchmark_runs() -> None:
    runs = gpu.linears(128, 48, CPU, tokens=5)
    assert {"cuBLAS fp16", "qarvd w8a8", "qarvd w4a8", "qarvd w4a8, quantizer shared"} <= set(runs)
    for run in runs.values():
        y = run()
        assert isinstance(y, Tensor) and y.shape == (5, 48) and y.isfinite().all()


def test_every_attention_of_the_benchmark_runs_and_agrees() -> None:
    torch.manual_seed(0)
    runs = gpu.attentions(2, 4, CPU, frame_tokens=10)
    exact = runs["SDPA fp16"]()
    assert isinstance(exact, Tensor) and exact.shape == (1, 2, 30, 128)
    for bits, limit in ((8, 0.02), (4, 0.3)):
        actual = runs[f"qarvd int{bits} ring"]()
        assert isinstance(actual, Tensor)
        assert (actual - exact).norm() < limit * exact.norm()
        assert runs[f"qarvd append int{bits}, a chunk"]() is None


def test_without_a_card_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["gpu.py", "--smoke"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gpu.main()
    assert capsys.readouterr().out == "There is no NVIDIA card here: nothing was measured.\n"


def test_whoever_has_a_card_needs_little_to_run_what_is_for_it() -> None:
    """Torch, numpy, safetensors, tqdm, pytest and hypothesis; what else the library and other tests take is hidden."""
    code = (
        "import sys, pytest\n"
        "sys.modules.update(dict.fromkeys(['av', 'playwright', 'scipy', 'sklearn', 'tensor_layouts', 'websockets']))\n"
        "sys.path.insert(0, 'benchmarks')\n"
        "import gpu\n"
        "sys.exit(pytest.main(['tests/gpu', '--collect-only', '-q', '-p', 'no:cacheprovider']))\n"
    )
    root = Path(gpu.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_gpu.py::test_every_card_has_kernels_of_its_own" in done.stdout
