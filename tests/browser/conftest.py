"""A page of ComfyUI in Chromium, for each of its two renderers."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.browser import Canvas, Open, canvas, executable, launch
from harness.inside import missing
from harness.server import Server
from playwright.sync_api import Browser


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = executable()
    if path is None:
        missing("needs Chromium: install it so that `chromium` or `google-chrome` is on the PATH")
    with launch(path) as running:
        yield running


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """QARVD_SCREENSHOTS, else a folder of this run."""
    named = os.environ.get("QARVD_SCREENSHOTS")
    folder = Path(named).absolute() if named else tmp_path_factory.mktemp("screenshots", numbered=False)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(params=["canvas", "vue"])
def renderer(request: pytest.FixtureRequest) -> str:
    """The legacy renderer, which draws nodes on a canvas, or the one that makes them of Vue components."""
    return request.param


@pytest.fixture
def open_page(browser: Browser, server: Server, screenshots: Path, renderer: str) -> Open:
    """Opens a page with more settings, where wanted; on leaving it, anything that was thrown in it fails the test."""

    @contextlib.contextmanager
    def opened(settings: dict[str, Any] | None = None) -> Iterator[Canvas]:
        chosen = {"Comfy.VueNodes.Enabled": renderer == "vue", "Comfy.Workflow.Persist": False} | (settings or {})
        with canvas(browser, server, screenshots, chosen) as page:
            yield page
            assert page.errors == []

    return opened


@pytest.fixture
def page(open_page: Open) -> Iterator[Canvas]:
    """A page, opened; anything that was thrown in it fails the test."""
    with open_page() as opened:
        yield opened
