"""Every workflow of the pack opens whole on the page: no missing node, no red box, no value that is not to be had."""

from __future__ import annotations

import json

import pytest
import torch
from harness.browser import Canvas
from harness.client import Client
from harness.graph import NOTES, to_prompt
from harness.install import PACK
from harness.server import Server
from playwright.sync_api import expect
from workflow_parts import EXPORTED, FILES, QUANTIZED

from qarvd.report.png import png_bytes

WORKFLOWS = [*sorted((PACK / "workflows").glob("*.json")), *sorted((PACK / "tests" / "golden").glob("workflow-*.json"))]
UNHAD = """() => window.app.graph.nodes.flatMap(node => (node.widgets ?? [])
  .filter(({type, options, value}) => type === "combo" && ![options.values].flat().includes(value))
  .map(({name, value}) => `${node.id} ${node.type} ${name}: ${value}`))"""
SETTLED = 500  # milliseconds, in which the page asks which of a workflow's files are there


@pytest.fixture(scope="session")
def published_files(server: Server, model_files: None) -> None:
    """Empty files in place of those that the workflows would have a user download or make, and an image."""
    folders = {name: folder for name, (_, folder) in FILES.items()}
    for name, folder in (folders | dict.fromkeys((QUANTIZED, EXPORTED), "diffusion_models")).items():
        (server.base / "models" / folder).mkdir(parents=True, exist_ok=True)
        (server.base / "models" / folder / name).touch()
    (server.base / "input").mkdir(exist_ok=True)
    (server.base / "input" / "example.png").write_bytes(png_bytes(torch.rand(32, 32, 3)))


def test_every_workflow_opens_whole_and_means_what_it_says(page: Canvas, comfy: Client, published_files: None) -> None:
    info = comfy.object_info()
    for path in WORKFLOWS:
        page.drop(path)
        page.page.wait_for_timeout(SETTLED)
        workflow = json.loads(path.read_text())
        lacking = [f"{node['id']} {node['type']}" for node in workflow["nodes"] if node["type"] not in {*info, *NOTES}]
        assert not any("Qarvd" in node for node in lacking)
        assert page.faults() == lacking, path.stem  # what an older ComfyUI lacks
        expect(page.page.locator("[data-testid=error-overlay]"), path.stem).to_have_count(int(bool(lacking)))
        assert page.page.evaluate(UNHAD) == [], path.stem
        if not lacking:
            sent = {id: {key: node[key] for key in ("class_type", "inputs")} for id, node in page.prompt().items()}
            assert sent == to_prompt(workflow, info), path.stem
