"""The page as the other tests use it: what is dropped on it runs, and what is wrong in it is seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from harness.browser import Canvas, Open
from harness.client import Client
from harness.graph import to_prompt
from playwright.sync_api import Error


def write(path: Path, color: int, last: str = "SaveImage") -> Path:
    """A workflow of two of ComfyUI's own nodes."""
    at = {"size": [280, 140], "flags": {}, "mode": 0, "properties": {}}
    socket = {"name": "images", "type": "IMAGE", "link": 1}
    nodes: list[dict[str, Any]] = [
        {
            "id": 1,
            "type": "EmptyImage",
            "pos": [60, 160],
            "order": 0,
            "widgets_values": [32, 16, 1, color],
            "inputs": [],
        },
        {"id": 2, "type": last, "pos": [500, 160], "order": 1, "widgets_values": ["page"], "inputs": [socket]},
    ]
    nodes[0]["outputs"] = [{"name": "IMAGE", "type": "IMAGE", "links": [1]}]
    nodes[1]["outputs"] = []
    links = [[1, 1, 0, 2, 0, "IMAGE"]]
    path.write_text(json.dumps({"version": 0.4, "nodes": [at | node for node in nodes], "links": links}))
    return path


def test_a_dropped_workflow_runs_and_api_tests_send_the_same(
    page: Canvas, comfy: Client, tmp_path: Path, renderer: str
) -> None:
    workflow = write(tmp_path / "dropped.json", color=len(renderer))
    page.drop(workflow)
    assert page.faults() == []
    sent = {id: {key: node[key] for key in ("class_type", "inputs")} for id, node in page.prompt().items()}
    assert sent == to_prompt(json.loads(workflow.read_text()), comfy.object_info())
    entry = page.wait(page.press_run())
    assert entry["status"]["status_str"] == "success"
    assert entry["outputs"]["2"]["images"]
    assert page.screenshot(f"harness-{renderer}").stat().st_size > 10_000


def test_a_missing_node_is_a_fault(page: Canvas, tmp_path: Path) -> None:
    page.drop(write(tmp_path / "good.json", color=1))
    page.drop(write(tmp_path / "missing.json", color=1, last="NobodyHasThis"))
    assert page.faults() == ["2 NobodyHasThis"]
    with pytest.raises(AssertionError, match="the server refused the prompt"):
        page.press_run()


@pytest.mark.parametrize("renderer", ["vue"], indirect=True)
def test_what_a_script_throws_fails_the_test_and_only_the_server_is_reached(open_page: Open) -> None:
    with pytest.raises(AssertionError, match="thrown on purpose"), open_page() as page:
        with page.page.expect_event("pageerror"):
            page.page.evaluate("() => setTimeout(() => { throw new Error('thrown on purpose'); })")
        with pytest.raises(Error, match="ERR_FAILED"):
            page.page.goto("http://192.0.2.1/")
        assert page.refused == ["http://192.0.2.1/"]
