"""Lay out the shipped workflows: what is wired to what is written here, names and order of widgets come from ComfyUI.

Start ComfyUI with this pack, then: python tools/build_workflows.py --url http://127.0.0.1:8188
The one of stock nodes needs a ComfyUI that has them (0.27 or later). Write the others with the oldest ComfyUI that the
pack supports: nodes of a newer one may have outputs and widgets that an older one lacks.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from object_info import object_info
from workflow_graphs import WORKFLOWS
from workflow_parts import FILES, Node, Out

from qarvd import __version__

FOLDER = Path(__file__).parents[1] / "workflows"
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3")
DYNAMIC = WIDGETS[-1]
"""A choice that has widgets of its own for each of its options."""


def kinds(spec: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Name, type and options of a node's inputs, in order; those of a choice are in its `options`."""
    found = []
    for group in ("required", "optional"):
        for name, (kind, *rest) in spec["input"].get(group, {}).items():
            options = rest[0] if rest else {}
            if isinstance(kind, list):
                kind, options = "COMBO", {**options, "options": kind}
            found.append((name, kind, options))
    return found


def widgets(spec: Mapping[str, Any], given: Mapping[str, Any], prefix: str = "") -> list[Any]:
    """Values of all widgets, in order; those of a chosen option follow the choice."""
    values = []
    for name, kind, options in kinds(spec):
        if kind not in WIDGETS or options.get("forceInput"):
            continue
        inputs = {each["key"]: each["inputs"] for each in options["options"]} if kind == DYNAMIC else {}
        choices = list(inputs) or options.get("options") or [""]
        value = given.get(prefix + name, options.get("default", choices[0]))
        values.append(value)
        if options.get("control_after_generate"):
            values.append("fixed")
        if options.get("image_upload"):
            values.append("image")
        if kind == DYNAMIC:
            values += widgets({"input": inputs[value]}, given, f"{prefix}{name}.")
    return values


def built(name: str, nodes: Mapping[str, Node], specs: Mapping[str, Any]) -> dict[str, Any]:
    """A workflow as ComfyUI's page saves it."""
    numbers = {key: number for number, key in enumerate(nodes, 1)}
    links: list[list[Any]] = []
    made: dict[str, dict[str, Any]] = {}
    for order, (key, node) in enumerate(nodes.items()):
        spec = specs.get(node.kind, {"input": {}, "output": [], "output_name": []})
        ours = node.kind.startswith("Qarvd")
        properties: dict[str, Any] = {"Node name for S&R": node.kind}
        if node.kind != "MarkdownNote":
            properties |= {"cnr_id": "qarvd" if ours else "comfy-core", "ver": __version__ if ours else "0.3.75"}
        files = [value for value in node.inputs.values() if isinstance(value, str) and value in FILES]
        if files:
            properties["models"] = [
                {"name": file, "url": FILES[file][0], "directory": FILES[file][1]} for file in files
            ]
        sockets = [(n, k) for n, k, o in kinds(spec) if k not in WIDGETS or o.get("forceInput")]
        inputs = []
        for index, (socket, kind) in enumerate(sockets):
            source, link = node.inputs.get(socket), None
            if isinstance(source, Out):
                link = len(links) + 1
                links.append([link, numbers[source.node], source.index, numbers[key], index, kind])
            inputs.append({"name": socket, "type": kind, "link": link})
        values = [node.inputs["text"]] if node.kind == "MarkdownNote" else widgets(spec, node.inputs)
        made[key] = {
            "id": numbers[key],
            "type": node.kind,
            "pos": list(node.at),
            "size": list(node.size),
            "flags": {},
            "order": order,
            "mode": 0,
            "inputs": inputs,
            "outputs": [
                {"name": title, "type": kind, "links": []}
                for title, kind in zip(spec["output_name"], spec["output"], strict=True)
            ],
            "properties": properties,
            "widgets_values": values,
        }
        if node.title:
            made[key]["title"] = node.title
    for link, source, index, *_ in links:
        output = next(node for node in made.values() if node["id"] == source)["outputs"][index]
        output["links"].append(link)
    return {
        "id": str(uuid5(NAMESPACE_URL, f"qarvd/{name}")),
        "revision": 0,
        "last_node_id": len(nodes),
        "last_link_id": len(links),
        "nodes": list(made.values()),
        "links": links,
        "groups": [],
        "config": {},
        "extra": {"ds": view(list(made.values()))},
        "version": 0.4,
    }


def view(nodes: list[dict[str, Any]]) -> dict[str, Any]:
    """Scale and offset at which a window of 1,600 x 950 shows everything, clear of the page's own buttons.

    Below 0.6 the legacy renderer leaves out all text.
    """
    left, top = (min(node["pos"][axis] for node in nodes) for axis in (0, 1))
    right, bottom = (max(node["pos"][axis] + node["size"][axis] for node in nodes) for axis in (0, 1))
    scale = max(0.6, round(min(0.8, 1480 / (right - left), 800 / (bottom - top)), 2))
    return {"scale": scale, "offset": [round(70 / scale - left), round(120 / scale - top)]}


def main() -> None:
    specs = object_info(__doc__)
    FOLDER.mkdir(exist_ok=True)
    for name, nodes in WORKFLOWS.items():
        missing = {node.kind for node in nodes.values()} - {*specs, "MarkdownNote"}
        if missing:
            print(f"{name}: left as it is, this ComfyUI lacks {', '.join(sorted(missing))}", file=sys.stderr)
            continue
        text = json.dumps(built(name, nodes, specs), indent=1, ensure_ascii=False)
        (FOLDER / f"{name}.json").write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
