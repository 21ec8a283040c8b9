"""A saved workflow becomes the prompt that the page would send."""

from __future__ import annotations

from typing import Any

import pytest
from build_workflows import built
from harness.graph import DYNAMIC, to_prompt
from workflow_parts import Node, Out


def choice(**options: dict[str, Any]) -> list[Any]:
    """One that has other widgets for each of its options."""
    return [DYNAMIC, {"options": [{"key": key, "inputs": {"required": found}} for key, found in options.items()]}]


INFO: dict[str, Any] = {
    "Noise": {
        "input": {
            "required": {
                "size": ["INT", {"default": 8}],
                "seed": ["INT", {"control_after_generate": True}],
                "kind": [["white", "pink"]],
                "image": ["IMAGE"],
            },
            "optional": {"shift": ["FLOAT", {"default": 5.0}], "mode": ["COMBO", {"options": ["a", "b"]}]},
        },
        "input_order": {"required": ["size", "seed", "kind", "image"], "optional": ["shift", "mode"]},
    },
    "Save": {
        "input": {
            "required": {
                "format": choice(auto={}, mp4={"codec": choice(h264={"crf": ["FLOAT", {"default": 23.0}]}, av1={})}),
                "name": ["STRING", {"default": "video"}],
            }
        },
    },
    "Show": {"input": {"required": {"image": ["IMAGE"]}}, "input_order": {"required": ["image"]}},
}


def node(id: int, type: str, values: list[Any] | None = None, mode: int = 0, **links: int) -> dict[str, Any]:
    inputs = [{"name": name, "type": "IMAGE", "link": link} for name, link in links.items()]
    return {"id": id, "type": type, "widgets_values": values or [], "mode": mode, "inputs": inputs}


def workflow(*nodes: dict[str, Any], links: list[list[Any]] | None = None) -> dict[str, Any]:
    return {"nodes": list(nodes), "links": links or []}


def test_values_go_by_position_past_what_follows_a_seed() -> None:
    prompt = to_prompt(workflow(node(4, "Noise", [16, 7, "randomize", "pink", 3.0, "b"])), INFO)
    inputs = {"size": 16, "seed": 7, "kind": "pink", "shift": 3.0, "mode": "b"}
    assert prompt == {"4": {"class_type": "Noise", "inputs": inputs}}


def test_widgets_newer_than_the_workflow_take_their_defaults() -> None:
    (made,) = to_prompt(workflow(node(4, "Noise", [16, 7, "fixed"])), INFO).values()
    assert made["inputs"] == {"size": 16, "seed": 7, "kind": "white", "shift": 5.0, "mode": "a"}


@pytest.mark.parametrize(
    ("saved", "expected"),
    [
        ([], {"format": "auto", "name": "video"}),
        (["auto", "clip"], {"format": "auto", "name": "clip"}),
        (["mp4"], {"format": "mp4", "format.codec": "h264", "format.codec.crf": 23.0, "name": "video"}),
        (["mp4", "h264", 18.0], {"format": "mp4", "format.codec": "h264", "format.codec.crf": 18.0, "name": "video"}),
        (["mp4", "av1", "clip"], {"format": "mp4", "format.codec": "av1", "name": "clip"}),
    ],
)
def test_a_choice_is_followed_by_the_widgets_of_what_was_chosen(saved: list[Any], expected: dict[str, Any]) -> None:
    (made,) = to_prompt(workflow(node(4, "Save", saved)), INFO).values()
    assert made["inputs"] == expected


def test_a_workflow_that_the_tool_lays_out_means_what_was_described() -> None:
    specs = {kind: {"output": [], "output_name": [], **told} for kind, told in INFO.items()}
    specs["Noise"] |= {"output": ["IMAGE"], "output_name": ["IMAGE"]}
    given: dict[str, dict[str, Any]] = {
        "Noise": {"size": 16, "seed": 7, "kind": "pink", "shift": 3.0, "mode": "b"},
        "Save": {"format": "mp4", "format.codec": "av1", "name": "clip"},
    }
    nodes = {kind: Node(kind, (0, 0), inputs, (300, 100)) for kind, inputs in given.items()}
    prompt = to_prompt(built("drawn", nodes | {"Show": Node("Show", (0, 0), {"image": Out("Noise")})}, specs), INFO)
    assert {node["class_type"]: node["inputs"] for node in prompt.values()} == given | {"Show": {"image": ["1", 0]}}


def test_a_link_replaces_a_widget() -> None:
    values = [16, 7, "fixed", "pink", 3.0, "b"]
    graph = workflow(node(1, "Show"), node(2, "Noise", values, shift=9), links=[[9, 1, 2, 2, 4, "FLOAT"]])
    assert to_prompt(graph, INFO)["2"]["inputs"]["shift"] == ["1", 2]


def test_a_bypassed_node_passes_its_input_on_and_a_muted_one_nothing() -> None:
    values = [16, 7, "fixed", "pink", 3.0, "b"]
    links = [[1, 1, 0, 2, 0, "IMAGE"], [2, 2, 0, 3, 0, "IMAGE"]]
    for mode, expected in ((4, {"image": ["1", 0]}), (2, {}), (0, {"image": ["2", 0]})):
        graph = workflow(
            node(1, "Noise", values), node(2, "Show", mode=mode, image=1), node(3, "Show", image=2), links=links
        )
        prompt = to_prompt(graph, INFO)
        assert prompt["3"]["inputs"] == expected
        assert ("2" in prompt) == (mode == 0)


def test_notes_are_left_out_and_unknown_nodes_named() -> None:
    assert to_prompt(workflow(node(1, "MarkdownNote", ["text"])), INFO) == {}
    with pytest.raises(ValueError, match="node 5 is of type Gone"):
        to_prompt(workflow(node(5, "Gone")), INFO)
