"""The demo model's training is one command that resumes as if it had never stopped (tools/train_demo.py)."""

from pathlib import Path

import pytest
import torch
import train_demo

from qarvd.checkpoint.model import load


def train(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--short-steps", "1", "--long-steps", "1", "--save-every", "1", "--judged", "1", "--float32"]
    monkeypatch.setattr("sys.argv", ["train_demo.py", "--out", str(folder), *options])
    train_demo.main()


def test_an_interrupted_run_ends_with_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path / "straight", monkeypatch)

    loss_at = train_demo.loss_at

    def stop_at_second_step(*args) -> torch.Tensor:
        if args[4] == 1:
            raise KeyboardInterrupt
        return loss_at(*args)

    with monkeypatch.context() as patch:
        patch.setattr(train_demo, "loss_at", stop_at_second_step)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "resumed", monkeypatch)
    train(tmp_path / "resumed", monkeypatch)

    one, two = (load(tmp_path / name / "demo.safetensors").tree.state_dict() for name in ("straight", "resumed"))
    assert all(torch.equal(one[key], two[key]) for key in one)
