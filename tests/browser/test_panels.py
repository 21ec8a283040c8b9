"""Panels on the page: previews arrive while a stream runs, results are shown, kept, and reached from the keyboard."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

import pytest
from harness.browser import Canvas, Open
from harness.install import PACK

KINDS = ("sensitivity", "outliers", "quantized", "stream", "sampler", "compare")
READY = "() => document.documentElement.dataset.qarvd === 'ready'"
# What panels go through, in order: `${panel} ${state}` and `${panel} ${frames}`.
WATCH = """() => {
  window.seen = [];
  new MutationObserver(changes => {
    for (const {target} of changes) {
      const panel = target.closest(".qarvd-panel")?.dataset;
      if (panel) window.seen.push(`${panel.qarvdPanel} ${target.dataset.state ?? target.dataset.frames}`);
    }
  }).observe(document.body, {subtree: true, attributeFilter: ["data-state", "data-frames"]});
}"""
FIT = """() => {
  const {nodes} = window.app.graph, {ds, canvas} = window.app.canvas;
  const left = Math.min(...nodes.map(n => n.pos[0])), top = Math.min(...nodes.map(n => n.pos[1])) - 40;
  const wide = Math.max(...nodes.map(n => n.pos[0] + n.size[0])) - left;
  const high = Math.max(...nodes.map(n => n.pos[1] + n.size[1])) - top;
  ds.scale = Math.min((canvas.clientWidth - 120) / wide, (canvas.clientHeight - 120) / high);
  [ds.offset[0], ds.offset[1]] = [70 / ds.scale - left, 70 / ds.scale - top];
  window.app.canvas.setDirty(true, true);
}"""
CANVAS = "document.querySelector('[data-qarvd-panel=sampler] canvas')"
CHUNKS = 6


def edited(path: Path, folder: Path, **values: Any) -> Path:
    """A copy of a workflow with other widgets: by type of node, a widget's place and its value."""
    workflow = json.loads(path.read_text())
    for node in workflow["nodes"]:
        for place, value in values.get(node["type"], {}).items():
            node["widgets_values"][place] = value
    (folder / path.name).write_text(json.dumps(workflow))
    return folder / path.name


@pytest.fixture
def every_node(tmp_path: Path, model_files: None) -> Path:
    """A workflow of every node, whose streams are longer, and were not run before."""
    seed, frozen = secrets.randbelow(2**31), max((PACK / "tests" / "golden").glob("workflow-*.json"))
    length = {"QarvdStream": {0: seed, 4: CHUNKS}, "EmptyHunyuanLatentVideo": {2: 12 * CHUNKS - 3}}
    return edited(frozen, tmp_path, RandomNoise={0: seed}, **length)


def show(page: Canvas, workflow: Path, *panels: str) -> None:
    """Drop a workflow and fit it into the window; returns when its panels are there."""
    page.page.wait_for_function(READY)
    page.drop(workflow)
    page.page.evaluate(FIT)  # the legacy renderer has no elements for nodes that are out of sight
    there = "panels => panels.every(name => document.querySelector(`[data-qarvd-panel=${name}]`))"
    page.page.wait_for_function(there, arg=list(panels))


def states(page: Canvas) -> dict[str, str]:
    return page.page.evaluate(
        "() => Object.fromEntries([...document.querySelectorAll('.qarvd-panel')]"
        ".map(({dataset}) => [dataset.qarvdPanel, dataset.state]))"
    )


def texts(page: Canvas) -> dict[str, str]:
    """What each panel says in words."""
    said = "section => [section.dataset.qarvdPanel, [...section.querySelectorAll('.qarvd-readout, .qarvd-status')]"
    return page.page.evaluate(
        f"() => Object.fromEntries([...document.querySelectorAll('.qarvd-panel')].map({said}"
        ".map(line => line.textContent).join('; ')]))"
    )


def run(page: Canvas) -> dict[str, Any]:
    """Press Run, and wait until every panel shows something; what the nodes told the page, by their type."""
    page.page.evaluate(WATCH)
    types = {id: node["class_type"] for id, node in page.prompt().items()}
    entry = page.wait(page.press_run())
    assert entry["status"]["status_str"] == "success", entry["status"]
    page.page.wait_for_function("() => !document.querySelector('.qarvd-panel:not([data-state=shown])')")
    return {types[id]: output for id, output in entry["outputs"].items()}


def many(number: int) -> str:
    return f"{number:,}".replace(",", "\u202f")


def assert_told(texts: dict[str, str], outputs: dict[str, Any]) -> None:
    """That panels say what the nodes told."""

    def told(kind: str, name: str) -> Any:
        return outputs[kind][f"qarvd_{name}"][0]

    share = told("QarvdFrameSensitivity", "sensitivity")["share"]
    assert texts["sensitivity"].startswith(f"Chunk {share.index(max(share)) + 1} matters most")
    for panel, kind in (("outliers", "QarvdDetectOutliers"), ("quantized", "QarvdQuantize")):
        layers = told(kind, "outliers")["layers"]
        channels = sum(layer["count"] for layer in layers)
        assert texts[panel].startswith(f"{many(channels)} outlier channels in {len(layers)} layers")
    assert texts["stream"] == texts["sampler"] == f"{CHUNKS} chunks{3 * CHUNKS} frames"
    assert texts["compare"].startswith(f"{len(told('QarvdCompare', 'compare')['psnr'])} frames: mean PSNR")


def test_pressing_run_fills_every_panel_while_nodes_run_and_a_file_keeps_them(
    page: Canvas, every_node: Path, renderer: str, tmp_path: Path
) -> None:
    show(page, every_node, *KINDS)
    assert states(page) == dict.fromkeys(KINDS, "empty")
    outputs = run(page)
    seen = page.page.evaluate("() => window.seen")
    for panel in ("stream", "sampler"):
        running, first, shown = (seen.index(f"{panel} {what}") for what in ("running", "3", "shown"))
        assert running < first < shown, seen
        page.page.wait_for_selector(f"[data-qarvd-panel={panel}] canvas[data-frames='{3 * CHUNKS}']")
    said = texts(page)
    assert_told(said, outputs)
    rows = page.page.locator("[data-qarvd-panel=quantized] tbody tr").count()
    assert rows == len(outputs["QarvdQuantize"]["qarvd_table"][0]["rows"]) > 5
    assert page.screenshot(f"panels-{renderer}").stat().st_size > 50_000

    workflow = page.page.evaluate("() => window.app.graph.serialize()")
    workflow["id"] = "00000000-0000-4000-8000-000000000000"  # for the page another one, of which it remembers nothing
    (tmp_path / "saved.json").write_text(json.dumps(workflow))
    show(page, tmp_path / "saved.json", *KINDS)
    assert states(page) == dict.fromkeys(KINDS, "shown")
    assert texts(page) == said
    loaded = "() => document.querySelector('[data-qarvd-panel=stream] img').naturalWidth === 32"
    page.page.wait_for_function(loaded)
    assert "not kept" in page.page.locator("[data-qarvd-panel=sampler] .qarvd-note").inner_text()


def with_data(workflow: Path, name: str, **data: Any) -> Path:
    """The workflow beside itself under another name, as if nodes of these types had shown `data`."""
    content = json.loads(workflow.read_text())
    for node in content["nodes"]:
        if node["type"] in data:
            node["properties"]["qarvd"] = data[node["type"]]
    (workflow.parent / name).write_text(json.dumps(content))
    return workflow.parent / name


def test_the_outlier_map_is_read_from_the_keyboard(page: Canvas, every_node: Path) -> None:
    layers = [
        {"name": f"blocks.{depth}.{type}", "type": type, "depth": depth, "channels": 256, "count": 10 * depth + row}
        for row, type in enumerate(("q", "o"))
        for depth in range(3)
    ]
    data = {"qarvd_outliers": {"layers": layers}, "qarvd_table": {"columns": ["linears"], "rows": [["q"]]}}
    show(page, with_data(every_node, "map.json", QarvdQuantize=data), "quantized")
    panel = page.page.locator("[data-qarvd-panel=quantized]")
    line, places = panel.locator(".qarvd-readout"), "() => window.app.graph.nodes.map(node => [...node.pos])"
    whole, before = line.inner_text(), page.page.evaluate(places)
    panel.locator(".qarvd-table").focus()
    read = []
    for key in ("Shift+Tab", "ArrowRight", "ArrowDown", "End", "ArrowUp", "Home"):  # from the table into the map
        page.page.keyboard.press(key)
        read.append(line.inner_text())
        assert panel.locator("[data-at]:focus").get_attribute("aria-label") == read[-1]
    counts = {"0.q": 0, "1.q": 10, "1.o": 11, "2.o": 21, "2.q": 20}
    assert read == [f"blocks.{at}: {counts[at]} of 256 channels" for at in ("0.q", "1.q", "1.o", "2.o", "2.q", "0.q")]
    page.page.keyboard.press("Tab")
    assert line.inner_text() == whole
    assert page.page.evaluate(places) == before  # the canvas has its own use for arrows


def test_the_sampler_workflow_streams_and_its_panel_survives_a_reload(
    open_page: Open, renderer: str, tmp_path: Path
) -> None:
    workflow = edited(PACK / "workflows" / "demo-sampler.json", tmp_path, RandomNoise={0: secrets.randbelow(2**31)})
    with open_page({"Comfy.Workflow.Persist": True}) as page:
        show(page, workflow, "sampler")
        run(page)
        said = texts(page)
        assert said == {"sampler": "7 chunks21 frames"}
        page.page.wait_for_function(f"() => {CANVAS}.dataset.frame > 3")  # it plays
        button = page.page.locator("[data-qarvd-panel=sampler] .qarvd-play")
        button.press("Enter")
        assert button.get_attribute("aria-label") == "Play"
        frame = page.page.evaluate(f"() => {CANVAS}.dataset.frame")
        page.page.wait_for_timeout(300)
        assert page.page.evaluate(f"() => {CANVAS}.dataset.frame") == frame
        page.open()
        page.page.wait_for_selector("[data-qarvd-panel=sampler][data-state=shown]")
        assert texts(page) == said
        page.screenshot(f"reloaded-{renderer}")


def test_a_run_that_fails_leaves_nothing_of_the_one_before(page: Canvas, tmp_path: Path) -> None:
    told = {"chunks": 3, "pixel_frames": 9, "first_frame_seconds": 1, "pixel_frames_per_second": 2}
    workflow = edited(PACK / "workflows" / "demo.json", tmp_path, QarvdStream={2: 48})  # a width that the demo lacks
    content = json.loads(workflow.read_text())
    kept = [node["id"] for node in content["nodes"] if node["type"] in ("QarvdDemoModel", "QarvdStream")][:2]
    content["nodes"] = [node for node in content["nodes"] if node["id"] in kept]
    content["links"] = [link for link in content["links"] if link[1] in kept and link[3] in kept]
    workflow.write_text(json.dumps(content))
    show(page, with_data(workflow, "again.json", QarvdStream={"qarvd_stream": told}), "stream")
    assert states(page) == {"stream": "shown"}
    entry = page.wait(page.press_run())
    assert entry["status"]["status_str"] == "error"
    page.page.wait_for_function("() => document.querySelector('[data-qarvd-panel=stream][data-state=empty]')")


HOSTILE = '<img src="x" onerror="window.thrown = true">'


def test_markup_in_a_strangers_workflow_is_text_and_nonsense_is_nothing(page: Canvas, every_node: Path) -> None:
    layers = [{"name": f"blocks.0.{HOSTILE}", "type": HOSTILE, "depth": 0, "channels": 8, "count": 4}]
    table = {"columns": ["linears", HOSTILE], "rows": [[HOSTILE, 1.5], [HOSTILE, HOSTILE]]}
    preview = {"filename": HOSTILE, "subfolder": "../..", "type": "temp"}
    stream = {"chunks": 3, "pixel_frames": 9, "first_frame_seconds": 1, "pixel_frames_per_second": 2}
    saved = {
        "QarvdDetectOutliers": {"qarvd_outliers": {"layers": layers}},
        "QarvdQuantize": {"qarvd_outliers": {"layers": layers}, "qarvd_table": table},
        "QarvdStream": {"qarvd_stream": stream | {"preview": preview}},
        "QarvdSampler": {"qarvd_stream": stream | {"chunks": HOSTILE}},
        "QarvdFrameSensitivity": {"qarvd_sensitivity": {"share": [HOSTILE], "prompts": 3, "rate": 1}},
        "QarvdCompare": {"qarvd_compare": {"psnr": {"length": 2}, "ssim": [1, 2], "drift": [[1]]}},
    }
    show(page, with_data(every_node, "hostile.json", **saved), *KINDS)
    shown = dict.fromkeys(("outliers", "quantized", "stream"), "shown")
    assert states(page) == dict.fromkeys(KINDS, "empty") | shown
    for panel, place in (("outliers", "[role=rowheader]"), ("quantized", "tbody td"), ("outliers", ".qarvd-readout")):
        assert HOSTILE in page.page.locator(f"[data-qarvd-panel={panel}] {place}").last.inner_text()
    page.page.wait_for_function("() => document.querySelector('[data-qarvd-panel=stream] .qarvd-note').textContent")
    note = page.page.locator("[data-qarvd-panel=stream] .qarvd-note").inner_text()
    assert "no longer there" in note
    assert page.page.locator(".qarvd-panel img[onerror]").count() == 0
    assert page.page.evaluate("() => window.thrown") is None
