"""Record docs/comfyui.webp: a workflow runs in ComfyUI's page, and its panels fill.

Start ComfyUI with this pack, then: python tools/record_graph.py --url http://127.0.0.1:8188
Needs playwright, and Chromium on the PATH. While no panel changes, time runs faster: a second may have been a minute.
"""

from __future__ import annotations

import argparse
import io
import json
import time
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import groupby
from pathlib import Path
from shutil import which
from typing import Any

import av
import numpy as np
from playwright.sync_api import Page, ViewportSize, sync_playwright

ROOT = Path(__file__).parents[1]
WORKFLOW, OUT = ROOT / "workflows" / "demo.json", ROOT / "docs" / "comfyui.webp"
WINDOW: ViewportSize = {"width": 1720, "height": 1180}
WIDTH = 1440
"""Of the page, and of the animation, in pixels."""
EVERY, AFTER, LAST = 0.15, 4.0, 2.0
"""Seconds between pictures, that are recorded after the end, and for which the last picture stays."""
WAITING, PAUSE = 8, 0.4
"""Pictures of a stretch in which no panel changes, at most about, and the seconds that each is shown."""
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False, "Comfy.VueNodes.Enabled": True,
            "Comfy.Workflow.Persist": False, "Comfy.Notification.ShowVersionUpdates": False}  # fmt: skip
DROP = """text => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([text], "demo.json", {type: "application/json"}));
  const canvas = document.querySelector("#graph-canvas");
  const at = {bubbles: true, cancelable: true, dataTransfer: transfer, clientX: 500, clientY: 400};
  for (const type of ["dragenter", "dragover", "drop"]) canvas.dispatchEvent(new DragEvent(type, at));
}"""
FIT = """() => {
  const {nodes} = window.app.graph, {ds, canvas} = window.app.canvas;
  const left = Math.min(...nodes.map(n => n.pos[0])), top = Math.min(...nodes.map(n => n.pos[1])) - 30;
  const wide = Math.max(...nodes.map(n => n.pos[0] + n.size[0])) - left;
  const high = Math.max(...nodes.map(n => n.pos[1] + n.size[1])) - top;
  ds.scale = (canvas.clientWidth - 100) / wide;
  [ds.offset[0], ds.offset[1]] = [75 / ds.scale - left, 110 / ds.scale - top];
  window.app.canvas.setDirty(true, true);
  return {x: 60, y: 45, width: wide * ds.scale + 30, height: Math.min(high * ds.scale + 80, canvas.clientHeight - 50)};
}"""
PANELS = "() => [...document.querySelectorAll('.qarvd-panel')].map(({dataset}) => dataset.state).join() + "
PANELS += "[...document.querySelectorAll('.qarvd-panel canvas')].map(({dataset}) => dataset.frames).join()"
"""What the panels show, as a word that changes with it."""


def request(url: str, body: Any = None) -> Any:
    """What the server answers to GET, or to POST of a body."""
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, {"Content-Type": "application/json"})) as answer:
        said = answer.read()
        return json.loads(said) if said else None


@dataclass(frozen=True)
class Picture:
    """The page at a time in seconds."""

    at: float
    pixels: np.ndarray
    """[height, width, 3]"""
    panels: str | None
    """What they show; None after the end."""


def pictures(page: Page, url: str) -> Iterator[Picture]:
    """Of the page from before Run is pressed until some time after the end."""
    page.evaluate(DROP, WORKFLOW.read_text())
    count = len(json.loads(WORKFLOW.read_text())["nodes"])
    page.wait_for_function("count => window.app.graph.nodes.length === count", arg=count)
    clip = page.evaluate(FIT)
    page.wait_for_timeout(1500)
    with page.expect_response(lambda answer: answer.url.endswith("/prompt")) as sent:
        page.locator("[data-testid=queue-button]").first.click()
    prompt, ended = sent.value.json()["prompt_id"], None
    while ended is None or time.monotonic() < ended + AFTER:
        now = time.monotonic()
        with av.open(io.BytesIO(page.screenshot(clip=clip)), "r") as png:
            pixels = next(png.decode(video=0)).to_ndarray(format="rgb24")
        yield Picture(now, pixels, page.evaluate(PANELS) if ended is None else None)
        if ended is None and prompt in request(f"{url}/history/{prompt}"):
            ended = time.monotonic()
        page.wait_for_timeout(max(0.0, 1000 * (now + EVERY - time.monotonic())))


def shortened(taken: Iterable[Picture]) -> list[Picture]:
    """All pictures on which a panel changed, a few of the others before the end, and all after it, with new times."""
    kept: list[Picture] = []
    clock = 0.0
    for panels, stretch in groupby(taken, key=lambda picture: picture.panels):
        every = list(stretch)
        chosen = every if panels is None else every[:: max(1, len(every) // WAITING)]
        for picture, following in zip(chosen, [*chosen[1:], every[-1]], strict=True):
            kept.append(replace(picture, at=clock))
            clock += following.at - picture.at if panels is None else PAUSE
    return kept


def write(frames: list[Picture], path: Path, quality: int) -> None:
    """An animation that starts again at its end."""
    height, width = frames[0].pixels.shape[:2]
    with av.open(str(path), "w", options={"loop": "0"}) as container:
        stream = container.add_stream("libwebp_anim", rate=Fraction(1000), options={"quality": str(quality)})
        stream.width, stream.height, stream.pix_fmt = WIDTH, round(height * WIDTH / width / 2) * 2, "yuv420p"
        stream.time_base = Fraction(1, 1000)
        for picture in [*frames, replace(frames[-1], at=frames[-1].at + LAST)]:
            frame = av.VideoFrame.from_ndarray(picture.pixels, format="rgb24")
            frame = frame.reformat(WIDTH, stream.height, "yuv420p", interpolation="LANCZOS")
            frame.pts, frame.time_base = round(1000 * picture.at), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="of a running ComfyUI that has this pack")
    parser.add_argument("--quality", type=int, default=75, help="of the pictures, 0 to 100")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    request(f"{args.url}/api/settings", SETTINGS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=which("chromium"), args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport=WINDOW)
        page.set_default_timeout(300_000)
        page.goto(args.url, wait_until="domcontentloaded")
        page.wait_for_function("() => window.app?.graph && !document.querySelector('#splash-loader, .p-blockui-mask')")
        page.wait_for_function("() => document.documentElement.dataset.qarvd === 'ready'")
        frames = shortened(pictures(page, args.url))
        browser.close()
    write(frames, args.out, args.quality)
    print(f"wrote {args.out}: {len(frames)} pictures, {frames[-1].at:.0f} s, {args.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
