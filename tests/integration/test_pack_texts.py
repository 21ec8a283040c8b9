"""What the pack says of itself: on its nodes, in help pages and texts of the page, in the workflows that it ships."""

from __future__ import annotations

import json
from typing import Any

import av
import pytest
from build_locale import PATH as LOCALE
from build_locale import texts
from build_workflows import built
from harness.graph import NOTES, declared
from harness.install import PACK
from harness.server import Server
from workflow_graphs import WORKFLOWS
from workflow_parts import FILES

from qarvd import __version__

FOLDER = PACK / "workflows"


def test_the_nodes_are_those_that_workflows_and_pages_know(ours: dict[str, Any]) -> None:
    assert {path.stem for path in (PACK / "web" / "docs").glob("*.md")} == set(ours)
    assert len(ours) >= 15


def test_every_node_explains_itself_and_all_that_goes_in_and_out(ours: dict[str, Any]) -> None:
    for kind, told in ours.items():
        assert told["category"] == "qarvd", kind
        assert told["display_name"] not in ("", kind) and told["description"].endswith("."), kind
        for name, (_, options) in declared(told):
            assert len(options["tooltip"]) > 4, f"{kind}.{name}"
        assert len(told["output_tooltips"]) == len(told["output_name"]) and all(told["output_tooltips"]), kind


def test_a_help_page_is_served_for_every_node_and_names_all_that_goes_in_and_out(
    ours: dict[str, Any], server: Server
) -> None:
    for kind, told in ours.items():
        page = server.request(f"/extensions/qarvd/docs/{kind}.md").decode()
        assert page.startswith(f"# {told['display_name']}\n")
        for name in [*(name for name, _ in declared(told)), *told["output_name"]]:
            assert f"**{name}**" in page, f"{kind}.md says nothing of {name}"


def test_the_texts_of_the_page_are_those_of_the_nodes(ours: dict[str, Any], server: Server) -> None:
    made = {kind: texts(told) for kind, told in sorted(ours.items())}
    assert LOCALE.read_text(encoding="utf-8") == f"{json.dumps(made, indent=2, ensure_ascii=False)}\n"
    assert server.request("/i18n")["en"]["nodeDefs"].items() >= made.items()


def read(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_is_what_its_description_makes_of_these_nodes(name: str, object_info: dict[str, Any]) -> None:
    nodes = WORKFLOWS[name]
    lacking = {node.kind for node in nodes.values()} - {*object_info, *NOTES}
    assert not any(kind.startswith("Qarvd") for kind in lacking)
    if lacking:
        pytest.skip(f"this ComfyUI lacks {', '.join(sorted(lacking))}; name a newer one in COMFYUI_DIR")
    stored, made = read(name), built(name, nodes, object_info)
    for each in (stored, made):
        # Nodes of ComfyUI may have other widgets in another version of it.
        each["nodes"] = [node for node in each["nodes"] if node["type"].startswith("Qarvd")]
    assert stored == made


def test_workflows_say_which_pack_and_which_files_they_need() -> None:
    for name in WORKFLOWS:
        for node in read(name)["nodes"]:
            if node["type"] in NOTES:
                continue
            pack = "qarvd" if node["type"].startswith("Qarvd") else "comfy-core"
            assert node["properties"]["cnr_id"] == pack and node["properties"]["ver"], f"{name}: {node['type']}"
            assert pack != "qarvd" or node["properties"]["ver"] == __version__
            published = [value for value in node["widgets_values"] if value in FILES]
            links = [{"name": v, "url": FILES[v][0], "directory": FILES[v][1]} for v in published]
            assert node["properties"].get("models", []) == links, f"{name}: {node['type']}"


def test_the_template_browser_lists_every_workflow_with_a_picture(server: Server) -> None:
    stems = {path.stem for path in FOLDER.iterdir()}
    assert stems == set(WORKFLOWS)
    assert set(server.request("/workflow_templates")["qarvd"]) == stems
    for stem in stems:
        assert server.request(f"/api/workflow_templates/qarvd/{stem}.json") == read(stem)
        served = server.request(f"/api/workflow_templates/qarvd/{stem}.jpg")
        assert served == (FOLDER / f"{stem}.jpg").read_bytes()
        with av.open(str(FOLDER / f"{stem}.jpg")) as picture:
            assert next(picture.decode(video=0)).to_ndarray(format="gray").std() > 10
