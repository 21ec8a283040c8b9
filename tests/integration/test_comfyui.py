"""The real ComfyUI that the pack is tested in: it runs prompts, and says what is wrong with one."""

from __future__ import annotations

import dataclasses

import av
import pytest
from harness.client import Client, Prompt, Refused
from harness.server import Server, ServerError


def grey(value: int, width: int = 24) -> Prompt:
    made = {"class_type": "EmptyImage", "inputs": {"width": width, "height": 16, "batch_size": 1, "color": value}}
    saved = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "grey"}}
    return {"1": made, "2": saved}


def test_a_prompt_runs_and_its_image_lies_in_the_output_folder(comfy: Client, server: Server) -> None:
    run = comfy.run(grey(0x102030))
    assert run.end == "success"
    (image,) = run.outputs["2"]["images"]
    with av.open(str(server.base / "output" / image["filename"])) as saved:
        pixels = next(saved.decode(video=0)).to_ndarray(format="rgb24")
    assert pixels.shape == (16, 24, 3)
    assert pixels[0, 0].tolist() == [0x10, 0x20, 0x30]
    assert {event["node"] for event in run.told("executed")} == {"2"}


def test_a_prompt_with_a_wrong_value_is_refused_on_its_node(comfy: Client) -> None:
    with pytest.raises(Refused) as caught:
        comfy.run(grey(0, width=0))
    assert list(caught.value.errors) == ["1"]
    assert "smaller than min" in caught.value.errors["1"][0]


def test_an_error_while_running_names_the_node_and_the_server_lives_on(comfy: Client) -> None:
    wrong = grey(1)
    wrong["2"]["inputs"]["filename_prefix"] = "../outside"
    run = comfy.run(wrong)
    assert run.end == "error"
    assert run.error is not None and run.error["node_id"] == "2"
    assert "outside the output folder" in run.sentence
    assert comfy.run(grey(2)).end == "success"


def test_a_server_that_does_not_answer_shows_its_log(server: Server) -> None:
    gone = dataclasses.replace(server, port=9)
    with pytest.raises(ServerError) as caught:
        gone.request("/system_stats")
    assert server.log.read_text().splitlines()[-1] in str(caught.value)
