"""What the library says aside is in ComfyUI's log: under the pack's name, and once."""

import logging
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest

Part = Callable[[str], ModuleType]


@pytest.fixture
def copied(part: Part) -> Iterator[Callable[[], None]]:
    """As if a second copy of the pack were loaded."""
    logger, before = logging.getLogger("qarvd"), list(logging.getLogger("qarvd").filters)
    yield part("nodes.log").name_messages
    logger.filters[:] = before


def test_a_warning_is_in_comfyuis_log_once_and_named(
    part: Part, copied: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    log = part("qarvd.log")
    for _ in range(2):
        log.warn_once("Nothing is slower here.")
        log.LOGGER.warning("%d of %d tensors fit.", 1, 2)
    copied()
    log.warn_once("100 % of this is a test.")
    said = ["qarvd: Nothing is slower here.", *["qarvd: 1 of 2 tensors fit."] * 2, "qarvd: 100 % of this is a test."]
    assert caplog.messages == said  # of the root logger, whose handlers ComfyUI sets up
    assert {record.levelno for record in caplog.records} == {logging.WARNING}
