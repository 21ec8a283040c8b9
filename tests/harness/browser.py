"""ComfyUI's page in headless Chromium: open it, drop a workflow on it, press Run, look at it."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Page, Route, sync_playwright

from harness.server import Server

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]
# What would lie over the graph on a first visit.
QUIET = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Minimap.Visible": False,
    "Comfy.Notification.ShowVersionUpdates": False,
}
READY = """() => window.app?.graph && window.app?.canvas && !document.querySelector("#splash-loader")"""
# A file that is dropped while the page blocks itself, as it does while it opens one, can leave it blocked for good.
UNBLOCKED = """() => !document.querySelector(".p-blockui-mask")"""
DROP = """([text, name]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([text], name, {type: "application/json"}));
  const canvas = document.querySelector("#graph-canvas");
  const {x, y, width, height} = canvas.getBoundingClientRect();
  const at = {bubbles: true, cancelable: true, dataTransfer: transfer, clientX: x + width / 2, clientY: y + height / 2};
  for (const type of ["dragenter", "dragover", "drop"]) canvas.dispatchEvent(new DragEvent(type, at));
}"""

DROPPED = """count => {
  const nodes = window.app.graph.nodes;
  return nodes.length === count && !nodes.some(node => node.before_drop);
}"""
FAULTS = """() => window.app.graph.nodes
  .filter(node => node.has_errors || !(node.constructor.nodeData || node.isVirtualNode))
  .map(node => `${node.id} ${node.type}`)"""


def executable() -> str | None:
    """The browser of this machine."""
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


@contextlib.contextmanager
def launch(path: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=FLAGS)
        yield browser
        browser.close()


@dataclass
class Canvas:
    """ComfyUI's page: what went wrong in it (`errors`), and what it asked of others and didn't get (`refused`)."""

    page: Page
    server: Server
    screenshots: Path
    errors: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def open(self) -> None:
        self.page.goto(self.server.url, wait_until="domcontentloaded")
        self.page.wait_for_function(READY, timeout=60000)

    def drop(self, workflow: Path) -> None:
        """Drop a file on the canvas; returns when its nodes are there."""
        text = workflow.read_text()
        self.page.wait_for_function(UNBLOCKED, timeout=60000)
        self.page.evaluate("() => window.app.graph.nodes.forEach(node => { node.before_drop = true; })")
        self.page.evaluate(DROP, [text, workflow.name])
        self.page.wait_for_function(DROPPED, arg=len(json.loads(text)["nodes"]), timeout=20000)

    def faults(self) -> list[str]:
        """Nodes that the page marks red, or doesn't know."""
        return self.page.evaluate(FAULTS)

    def prompt(self) -> dict[str, Any]:
        """What Run would send, in API format."""
        return self.page.evaluate("async () => (await window.app.graphToPrompt()).output")

    def press_run(self) -> str:
        """Press Run; returns the id of the prompt, or raises what the server said against it."""
        with self.page.expect_response(lambda answer: answer.url.endswith("/prompt")) as sent:
            self.page.locator("[data-testid=queue-button]").first.click()
        answer = sent.value.json()
        if "prompt_id" not in answer:
            raise AssertionError(f"the server refused the prompt: {json.dumps(answer)[:2000]}")
        return answer["prompt_id"]

    def wait(self, prompt_id: str, timeout: float = 240) -> dict[str, Any]:
        """A prompt's entry in the server's history, once it has ended."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            entry = self.server.request(f"/history/{prompt_id}").get(prompt_id)
            if entry:
                return entry
            self.page.wait_for_timeout(200)  # lets the page's events through, which sleeping would not
        raise TimeoutError(f"{prompt_id} has not ended within {timeout:.0f} s:\n{self.server.log_tail()}")

    def screenshot(self, name: str) -> Path:
        path = self.screenshots / f"{re.sub(r'[^A-Za-z0-9]+', '-', name).strip('-')}.png"
        self.page.screenshot(path=path)
        return path


Open = Callable[..., AbstractContextManager[Canvas]]  # takes ComfyUI's settings


@contextlib.contextmanager
def canvas(browser: Browser, server: Server, screenshots: Path, settings: dict[str, Any]) -> Iterator[Canvas]:
    """A page of its own, opened with these settings of ComfyUI; nothing but the server can be reached from it."""
    server.request("/api/settings", QUIET | settings)
    context = browser.new_context(viewport={"width": 1600, "height": 950})
    shown = Canvas(context.new_page(), server, screenshots)

    def local_only(route: Route) -> None:
        if route.request.url.startswith((server.url, "data:", "blob:")):
            route.continue_()
        else:
            shown.refused.append(route.request.url)
            route.abort()

    def on_console(message: ConsoleMessage) -> None:
        # ComfyUI catches what a pack's script throws while it is loaded, and only logs it.
        if message.type == "error" and "/extensions/" in f"{message.text} {message.location.get('url')}":
            shown.errors.append(message.text)

    shown.page.on("pageerror", lambda error: shown.errors.append(str(error)))
    shown.page.on("console", on_console)
    shown.page.route("**/*", local_only)
    try:
        shown.open()
        yield shown
    finally:
        context.close()
