"""--budget-minutes covers the whole job, by the pace of its first roll-outs, and an interruption does not reset it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny.model import CONFIG

from qarvd.calibrate import calibration
from qarvd.calibrate.calibration import Calibration
from qarvd.calibrate.call_sensitivity import generated
from qarvd.checkpoint.calibration import load_calibration, save_calibration
from qarvd.checkpoint.model import Model
from qarvd.jobs import time_budget
from qarvd.jobs.calibrate import CalibrationPlan, calibrate, setting_of
from qarvd.jobs.time_budget import CHOOSING, FITTING, NO_REST, RemainingWork
from qarvd.jobs.work import Work
from qarvd.recipe import RECIPES

CHUNKS, FRAMES, SIZE = 2, 6, (4, 4)
MEASURED = CHUNKS + 3
"""Chunks that are generated for a prompt: the clip, and those that its chunks affect."""
PROMPTS = 24


class Watch:
    """A clock on which every chunk takes a minute."""

    now = 0.0

    def monotonic(self) -> float:
        return 60 * self.now


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    found = Watch()
    monkeypatch.setattr(time_budget, "time", found)
    monkeypatch.setattr(calibration, "BATCH_TOKENS", 1)
    return found


def calibrated(
    model: Model,
    watch: Watch,
    minutes: float,
    rest: RemainingWork = NO_REST,
    work: Work | None = None,
    kill: float = torch.inf,
) -> Calibration:
    """Of as many prompts as fit; `kill` is when the job is stopped."""

    def tick(done: int, total: int) -> None:
        watch.now += 1
        if watch.now >= kill:
            raise KeyboardInterrupt

    texts = torch.randn(PROMPTS, 3, CONFIG.text_dim, generator=torch.Generator().manual_seed(0))
    plan = CalibrationPlan(SIZE, FRAMES, RECIPES["w4a8"], most_measured=PROMPTS, minutes=minutes, rest=rest)
    return calibrate(model, texts, plan, work, tick)


@pytest.mark.parametrize("rest", [NO_REST, FITTING, FITTING + CHOOSING], ids=["calibrate", "quantize", "target"])
@pytest.mark.parametrize("fits", [4, 9, 14])
def test_as_many_prompts_are_taken_as_leave_time_for_all_else(
    shared_model: Model, watch: Watch, fits: int, rest: RemainingWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "converged", lambda *_: False)
    later = 2 * generated(setting_of(shared_model, SIZE, FRAMES))

    def whole(prompts: int) -> float:
        return prompts * MEASURED + later + CHUNKS * (rest.per_batch * prompts + rest.fixed)

    assert calibrated(shared_model, watch, whole(fits) + 0.5, rest).prompts == fits
    assert watch.now == fits * MEASURED + later


def test_calls_are_measured_on_no_more_prompts_than_were_taken(
    shared_model: Model, watch: Watch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "BATCH_TOKENS", 6 * 12)  # six clips at once
    found = calibrated(shared_model, watch, 0.001)
    assert found.prompts == len(found.call_errors) == 6
    save_calibration(found, tmp_path / "stats.safetensors")
    assert load_calibration(tmp_path / "stats.safetensors").prompts == 6


def test_there_are_always_enough_to_know_their_spread(shared_model: Model, watch: Watch) -> None:
    assert calibrated(shared_model, watch, 0.001).prompts == 4


def test_an_interrupted_job_goes_on_with_the_time_that_is_left(
    shared_model: Model, watch: Watch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "converged", lambda *_: False)
    minutes = 6 * MEASURED + 2 * generated(setting_of(shared_model, SIZE, FRAMES)) + 0.5
    expected = calibrated(shared_model, watch, minutes).prompts
    assert expected == 6
    for resume, kill in ((False, 2.5 * MEASURED), (True, 3 * MEASURED), (True, torch.inf)):
        watch.now = watch.now if resume else 0.0
        work = Work(tmp_path / "work", {}, resume)
        try:
            found = calibrated(shared_model, watch, minutes, work=work, kill=kill).prompts
        except KeyboardInterrupt:
            continue
        assert found == expected


def test_what_was_rolled_out_is_taken_up_even_when_time_is_up(
    shared_model: Model, watch: Watch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "converged", lambda *_: False)
    work = Work(tmp_path / "work", {}, resume=False)
    with pytest.raises(KeyboardInterrupt):
        calibrated(shared_model, watch, 1000, work=work, kill=7.5 * MEASURED)
    work.update(time_budget.SPENT, (1e6, 7 * MEASURED))
    assert calibrated(shared_model, watch, 1000, work=Work(tmp_path / "work", {}, resume=True)).prompts == 7
