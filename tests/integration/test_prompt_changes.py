"""Change Prompt: both streaming nodes go on with another prompt as the library does, and their bars count all calls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from harness.client import Client, Run
from harness.graph import Nodes, prompt_of
from harness.latents import read_latents
from torch import Tensor

from qarvd.checkpoint.model import load
from qarvd.demo import bundle
from qarvd.demo.prompts import parse
from qarvd.stream.rollout import roll_out

CHUNKS, SEED = 6, 3
FIRST, SECOND, THIRD = "a 7 moving left fast", "a 1 moving up slow", "a 7 moving down slow"
SIZE = {"width": 32, "height": 32}


def said(name: str, text: str) -> Nodes:
    return {name: ("CLIPTextEncode", {"clip": ["demo", 3], "text": text})}


def changed(chunk: int, positive: str, earlier: str | None = None) -> tuple[str, dict[str, Any]]:
    before = {} if earlier is None else {"earlier": [earlier, 0]}
    return "QarvdChangePrompt", {"positive": [positive, 0], "chunk": chunk} | before


PROMPTS: Nodes = {
    "demo": ("QarvdDemoModel", {}),
    **said("first", FIRST),
    **said("second", SECOND),
    **said("third", THIRD),
    # In the other order than they come.
    "later": changed(5, "third"),
    "change": changed(3, "second", "later"),
}
STREAM = {"model": ["demo", 0], "positive": ["first", 0], "seed": SEED, "chunks": CHUNKS, **SIZE}


def kept(name: str) -> Nodes:
    return {f"{name} file": ("SaveLatent", {"samples": [name, 0], "filename_prefix": name.replace(" ", "-")})}


def sampled(name: str, **changes: Any) -> Nodes:
    """With ComfyUI's own nodes for sampling; `EmptyHunyuanLatentVideo` makes whole chunks of the demo."""
    return {
        f"{name} sampler": ("QarvdSampler", changes),
        name: (
            "SamplerCustomAdvanced",
            {node: [node, 0] for node in ("noise", "guider", "sigmas")}
            | {"sampler": [f"{name} sampler", 0], "latent_image": ["empty", 0]},
        ),
        **kept(name),
    }


@pytest.fixture(scope="module")
def run(shared_comfy: Client, object_info: dict[str, Any]) -> Run:
    nodes = PROMPTS | {
        "stream": ("QarvdStream", STREAM | {"changes": ["change", 0]}),
        **kept("stream"),
        "noise": ("RandomNoise", {"noise_seed": SEED}),
        "guider": ("BasicGuider", {"model": ["demo", 0], "conditioning": ["first", 0]}),
        "sigmas": ("QarvdSchedule", {"family": "demo"}),
        "empty": ("EmptyHunyuanLatentVideo", {"width": 64, "height": 64, "length": 12 * CHUNKS - 3}),
        **sampled("one prompt"),
        **sampled("three prompts", changes=["change", 0]),
    }
    run = shared_comfy.run(prompt_of(nodes, object_info), timeout=300)
    assert run.end == "success", run.error
    return run


def latents(comfy: Client, run: Run, name: str) -> Tensor:
    (entry,) = run.outputs[f"{name} file"]["latents"]
    return read_latents(comfy.server.base / "output" / entry["subfolder"] / entry["filename"])


def test_the_stream_is_that_of_the_library(shared_comfy: Client, run: Run, one_thread: None) -> None:
    model = load(bundle.MODEL)
    model.tree.float()
    first, second, third = (bundle.embed([parse(text)]) for text in (FIRST, SECOND, THIRD))
    chunks = roll_out(
        *(model.tree, model.config, model.preset, first, (8, 8), 3 * CHUNKS, [SEED]), prompts={2: second, 4: third}
    )
    expected = torch.cat([chunk.latents for chunk in chunks], dim=2)
    assert torch.allclose(latents(shared_comfy, run, "stream"), expected, atol=1e-5)


def test_the_sampler_makes_the_chunks_before_a_change_as_without_it(shared_comfy: Client, run: Run) -> None:
    one, three = (latents(shared_comfy, run, name).split(3, dim=2) for name in ("one prompt", "three prompts"))
    equal = [torch.equal(a, b) for a, b in zip(one, three, strict=True)]
    assert equal == [True, True, *[False] * (CHUNKS - 2)]


def test_bars_count_the_calls_that_write_the_window_anew(run: Run) -> None:
    plain = 5 * CHUNKS - 1
    # The sink is chunk 1. Before chunk 3 the window holds chunk 2; before chunk 5, chunks 2 to 4.
    for node, expected in (("stream", plain + 1 + 3), ("one prompt", plain), ("three prompts", plain + 1 + 3)):
        bar = [event for event in run.told("progress") if event["node"] == node]
        values = [event["value"] for event in bar]  # newer versions of ComfyUI leave some out
        assert {event["max"] for event in bar} == {expected} and values == sorted(values) and values[-1] == expected


@pytest.mark.parametrize(
    ("nodes", "at", "words"),
    [
        ({"again": changed(3, "third", "change")}, "again", "Two prompts are set for chunk 3"),
        (
            {"again": changed(CHUNKS + 1, "third")},
            "stream",
            f"at chunk {CHUNKS + 1}, because the video ends with chunk",
        ),
    ],
)
def test_a_change_that_cannot_be_is_told_in_a_sentence(
    comfy: Client, object_info: dict[str, Any], nodes: Nodes, at: str, words: str
) -> None:
    run = comfy.run(
        prompt_of(PROMPTS | nodes | {"stream": ("QarvdStream", STREAM | {"changes": ["again", 0]})}, object_info)
    )
    assert run.error is not None and run.error["node_id"] == at
    assert words in run.sentence and run.sentence.endswith(".")
