"""What the library says aside goes to one logger, and on the command line to stderr, line by line."""

from __future__ import annotations

import logging

import pytest
from tqdm import tqdm

from qarvd import log
from qarvd.cli.messages import on_stderr


@pytest.fixture(autouse=True)
def silent_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "_said", set())


def test_a_warning_is_logged_once_and_reaches_the_root_logger(caplog: pytest.LogCaptureFixture) -> None:
    for text in ("a 100 % slower path", "another", "a 100 % slower path"):
        log.warn_once(text)
    assert caplog.record_tuples == [
        ("qarvd", logging.WARNING, "a 100 % slower path"),
        ("qarvd", logging.WARNING, "another"),
    ]


def test_messages_stand_on_lines_of_their_own_beside_a_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with on_stderr(), tqdm(total=3) as bar:
        bar.update()
        log.warn_once("slower")
        log.LOGGER.debug("why")
        bar.update()
    shown = capsys.readouterr()
    assert shown.out == "" and "why" not in shown.err
    lines = [line.rpartition("\r")[2] for line in shown.err.split("\n")]
    assert lines[0] == "qarvd: slower" and "2/3" in lines[1]


def test_debug_messages_are_shown_where_they_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with on_stderr(logging.DEBUG):
        log.LOGGER.debug("%d linears", 3)
    log.LOGGER.debug("too late")
    assert capsys.readouterr().err == "qarvd: 3 linears\n"
