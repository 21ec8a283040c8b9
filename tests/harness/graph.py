"""Turn a workflow as the page saves it into a prompt as the server runs it, as the page's Run button does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from harness.client import Prompt

WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
DYNAMIC = "COMFY_DYNAMICCOMBO_V3"
"""A choice that has widgets of its own for each of its options (ComfyUI's io.DynamicCombo)."""
NOTES = ("Note", "MarkdownNote")
NEVER, BYPASS = 2, 4  # modes of a node


def to_prompt(workflow: dict[str, Any], object_info: dict[str, Any]) -> Prompt:
    """A prompt of every node that runs; raises ValueError for what no shipped workflow needs (subgraphs, reroutes)."""
    if workflow.get("definitions", {}).get("subgraphs"):
        raise ValueError("the workflow has subgraphs, which are not translated")
    nodes = {node["id"]: node for node in workflow["nodes"]}
    links = {link[0]: link for link in workflow["links"]}  # [id, from, from slot, to, to slot, type]
    prompt: Prompt = {}
    for node in workflow["nodes"]:
        if node["type"] in NOTES or node.get("mode", 0) in (NEVER, BYPASS):
            continue
        if node["type"] not in object_info:
            raise ValueError(f"node {node['id']} is of type {node['type']}, which this ComfyUI doesn't have")
        inputs = widget_values(node, object_info[node["type"]])
        for socket in node.get("inputs", []):
            if socket.get("link") is not None:
                source = _source(links[socket["link"]], nodes, links)
                inputs.pop(socket["name"], None)
                if source:
                    inputs[socket["name"]] = list(source)
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


Nodes = dict[str, tuple[str, dict[str, Any]]]
"""By an id of one's choice: a node's type, and the inputs that are not left as they are."""


def prompt_of(nodes: Nodes, object_info: dict[str, Any]) -> Prompt:
    """A prompt that no page has seen."""
    return {
        id: {"class_type": kind, "inputs": widget_values({}, object_info[kind]) | inputs}
        for id, (kind, inputs) in nodes.items()
    }


def numbers(prompt: Prompt, kind: str) -> list[str]:
    """Ids of the nodes of one type, in the order of the prompt."""
    return [id for id, node in prompt.items() if node["class_type"] == kind]


def number(prompt: Prompt, kind: str) -> str:
    """Id of the only node of its type."""
    (id,) = numbers(prompt, kind)
    return id


def widget_values(node: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
    """By name, the values that the page saves by position, with defaults for widgets newer than the workflow."""
    return dict(_values(list(node.get("widgets_values") or []), info))


def _values(saved: list[Any], info: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Takes them from `saved`, first to last; widgets of a chosen option follow it, as `choice.widget`."""
    for name, spec in declared(info):
        if not _is_widget(spec):
            continue
        options, choices = spec[1] if len(spec) > 1 else {}, _choices(spec)
        if saved:
            value = saved.pop(0)
            # The page puts a widget of its own behind a seed: what becomes of it after a run.
            if options.get("control_after_generate") or (spec[0] == "INT" and name in ("seed", "noise_seed")):
                del saved[:1]
        elif "default" in options or choices:
            value = options.get("default", next(iter(choices), None))
        else:
            continue
        yield prefix + name, value
        if spec[0] == DYNAMIC:
            (chosen,) = (option["inputs"] for option in options["options"] if option["key"] == value)
            yield from _values(saved, {"input": chosen}, f"{prefix}{name}.")


def declared(info: dict[str, Any]) -> list[tuple[str, list[Any]]]:
    """A node's inputs in the order of the page, from its entry in /object_info."""
    return [(name, info["input"][part][name]) for part in ("required", "optional") for name in _order(info, part)]


def _order(info: dict[str, Any], part: str) -> list[str]:
    return info.get("input_order", {}).get(part, list(info["input"].get(part, {})))


def _is_widget(spec: list[Any]) -> bool:
    options = spec[1] if len(spec) > 1 else {}
    return (isinstance(spec[0], list) or spec[0] in (*WIDGETS, DYNAMIC)) and not options.get("forceInput")


def _choices(spec: list[Any]) -> list[Any]:
    if isinstance(spec[0], list):
        return spec[0]
    options = spec[1].get("options", []) if len(spec) > 1 else []
    return [option["key"] for option in options] if spec[0] == DYNAMIC else options


def _source(link: list[Any], nodes: dict[int, Any], links: dict[int, Any]) -> tuple[str, int] | None:
    """Where a link comes from, seen through bypassed nodes; None where nothing feeds it."""
    _, start, slot, _, _, type = link
    node = nodes[start]
    if node["type"] in ("Reroute", "PrimitiveNode"):
        raise ValueError(f"node {start} is a {node['type']}, which is not translated")
    mode = node.get("mode", 0)
    if mode == NEVER:
        return None
    if mode != BYPASS:
        return str(start), slot
    same = [socket for socket in node.get("inputs", []) if socket["type"] == type and socket.get("link") is not None]
    return _source(links[same[0]["link"]], nodes, links) if same else None
