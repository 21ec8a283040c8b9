"""A workflow that was saved with an earlier version, with every node that it had, opens and runs in this one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from harness.client import Client
from harness.graph import number, to_prompt
from harness.server import Server

from qarvd.checkpoint.model import load

FROZEN = sorted((Path(__file__).parents[1] / "golden").glob("workflow-*.json"))


@pytest.mark.parametrize("path", FROZEN, ids=lambda path: path.stem)
def test_it_means_what_it_meant_and_runs(
    path: Path, comfy: Client, object_info: dict[str, Any], server: Server, model_files: None
) -> None:
    workflow = json.loads(path.read_text())
    prompt = to_prompt(workflow, object_info)
    meant = workflow["extra"]["prompt"]
    assert prompt.keys() == meant.keys()
    for id, node in meant.items():
        assert prompt[id]["class_type"] == node["class_type"]
        assert prompt[id]["inputs"].items() >= node["inputs"].items(), node["class_type"]
    run = comfy.run(prompt, timeout=600)
    assert run.end == "success", run.error
    told = {meant[id]["class_type"]: set(output) for id, output in run.outputs.items()}
    assert told["QarvdQuantize"] == {"qarvd_outliers", "qarvd_table"}
    panels = {kind: {f"qarvd_{kind[5:].lower()}"} for kind in ("QarvdStream", "QarvdCompare")}
    panels |= {"QarvdFrameSensitivity": {"qarvd_sensitivity"}, "QarvdDetectOutliers": {"qarvd_outliers"}}
    assert told.items() >= panels.items()
    chunks = [event["node"] for event in run.told("qarvd.chunk")]
    assert sorted(chunks) == sorted([number(meant, "QarvdStream"), number(meant, "QarvdSampler")] * 2)
    (saved,) = run.outputs[number(meant, "QarvdSaveModel")]["text"]
    model = load(server.base / "output" / "diffusion_models" / saved.split(":")[0])
    assert model.recipe is not None and model.recipe.target == "6.5 bits"
