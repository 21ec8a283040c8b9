"""The shipped workflows that need no download, run as they are; several tests look at one run of each."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from harness.client import Client, Prompt, Run
from harness.graph import number, numbers, to_prompt
from harness.install import PACK
from harness.latents import read_latents
from harness.server import Server
from torch import Tensor

from qarvd.checkpoint.model import load
from qarvd.demo import bundle
from qarvd.demo.judge import digit_correct, motion_correct
from qarvd.demo.pixels import decode
from qarvd.demo.prompts import Prompt as Words
from qarvd.report.pixels import to_bytes
from qarvd.stream.rollout import roll_out

FRAMES = 21
PSNR = 36.0
"""Decibels of the demo's 4-bit video at least; `python -m qarvd demo` has 40, and 30 comes without statistics."""
CHUNK_FIELDS = {
    *("node", "prompt_id", "chunk", "chunks", "first_frame", "frames", "frames_per_second", "width", "height"),
    *("sprite", "first_frame_seconds", "pixel_frames", "pixel_frames_per_second"),
}


@dataclass(frozen=True)
class Ran:
    """A workflow that was run."""

    prompt: Prompt
    run: Run
    output: Path
    """ComfyUI's output folder."""

    def told(self, kind: str, name: str) -> Any:
        """What the only node of its type told the page under `name`."""
        (data,) = self.run.outputs[number(self.prompt, kind)][name]
        return data

    def files(self, id: str, name: str) -> list[Path]:
        """What a node wrote."""
        return [self.output / entry["subfolder"] / entry["filename"] for entry in self.run.outputs[id][name]]

    def latents(self, id: str) -> Tensor:
        """[1, 16, frames, 8, 8] in the model's space, of a node that saved them."""
        (path,) = self.files(id, "latents")
        return read_latents(path)

    def images(self, id: str) -> Tensor:
        """[frames, height, width, 3] as bytes."""
        return torch.stack([picture(path.read_bytes()) for path in self.files(id, "images")])


def picture(data: bytes) -> Tensor:
    """[height, width, 3] of an image file."""
    with av.open(io.BytesIO(data), "r") as file:
        return torch.from_numpy(next(file.decode(video=0)).to_ndarray(format="rgb24"))


def workflow(name: str, object_info: dict[str, Any]) -> Prompt:
    return to_prompt(json.loads((PACK / "workflows" / f"{name}.json").read_text()), object_info)


def keep(prompt: Prompt, kind: str, socket: str, **sources: str) -> Prompt:
    """The prompt with more nodes, by name, that write what the nodes `sources` give."""
    saving = {
        id: {"class_type": kind, "inputs": {socket: [source, 0], "filename_prefix": id}}
        for id, source in sources.items()
    }
    return prompt | saving


def streams(prompt: Prompt) -> tuple[str, str]:
    """The streaming nodes of the demo: the one in full precision, the quantized one."""
    demo = number(prompt, "QarvdDemoModel")
    full, quantized = sorted(numbers(prompt, "QarvdStream"), key=lambda id: prompt[id]["inputs"]["model"][0] != demo)
    return full, quantized


@pytest.fixture(scope="module")
def demo(shared_comfy: Client, object_info: dict[str, Any]) -> Ran:
    prompt = workflow("demo", object_info)
    full, quantized = streams(prompt)
    compared = prompt[number(prompt, "QarvdCompare")]["inputs"]
    prompt = keep(prompt, "SaveLatent", "samples", full=full, quantized=quantized)
    prompt = keep(prompt, "SaveImage", "images", frames=compared["other"][0])
    run = shared_comfy.run(prompt, timeout=900)
    print(f"the demo workflow took {run.events[-1].at - run.events[0].at:.0f} s")
    return Ran(prompt, run, shared_comfy.server.base / "output")


@pytest.fixture(scope="module")
def sampled(shared_comfy: Client, object_info: dict[str, Any]) -> Ran:
    prompt = workflow("demo-sampler", object_info)
    prompt = keep(prompt, "SaveImage", "images", frames=number(prompt, "VAEDecode"))
    return Ran(prompt, shared_comfy.run(prompt, timeout=300), shared_comfy.server.base / "output")


def words(ran: Ran) -> Words:
    """What the Demo Model was told to show."""
    inputs = ran.prompt[number(ran.prompt, "QarvdDemoModel")]["inputs"]
    return Words(int(inputs["digit"]), *(inputs[key] for key in ("direction", "speed", "start")))


def assert_shows(pixels: Tensor, prompt: Words) -> None:
    """That a judge sees in a video [frames, height, width] what was prompted."""
    reader, _ = bundle.load_judge()
    assert digit_correct(reader, pixels[None], [prompt]).float().mean() > 0.9
    assert motion_correct(pixels[None], [prompt]).float().mean() > 0.9


@pytest.mark.parametrize("name", ["demo", "sampled"])
def test_a_workflow_runs_to_its_end_and_shows_the_digit_it_was_told(name: str, request: Any) -> None:
    ran: Ran = request.getfixturevalue(name)
    assert ran.run.end == "success", ran.run.error
    frames = ran.images("frames")
    assert frames.shape == (FRAMES, 32, 32, 3)
    assert_shows(frames.float().mean(-1) / 255, words(ran))
    (animation,) = ran.files(number(ran.prompt, "SaveAnimatedWEBP"), "images")
    assert animation.read_bytes().count(b"ANMF") == FRAMES


def test_full_and_quantized_branches_of_one_model_are_the_streams_of_the_library(demo: Ran, one_thread: None) -> None:
    def expected(path: Path, id: str) -> Tensor:
        model = load(path)
        model.tree.float()
        seeds = [demo.prompt[id]["inputs"]["seed"]]
        text = bundle.embed([words(demo)])
        chunks = roll_out(model.tree, model.config, model.preset, text, (8, 8), FRAMES, seeds)
        return torch.cat([chunk.latents for chunk in chunks], dim=2)

    full, quantized = demo.latents("full"), demo.latents("quantized")
    stream, stream_quantized = streams(demo.prompt)
    saved = demo.output / "diffusion_models" / "demo-w4a8.safetensors"
    assert torch.allclose(full, expected(bundle.MODEL, stream), atol=1e-5)
    off = (quantized - expected(saved, stream_quantized)).square().mean()
    assert off < 0.01 * (quantized - full).square().mean()
    decoded = decode(quantized)[0, ..., None].expand(-1, -1, -1, 3)
    assert (demo.images("frames").int() - to_bytes(decoded).int()).abs().max() <= 1


def test_the_comparison_tells_every_frame_and_quantizing_keeps_the_video(demo: Ran) -> None:
    told = demo.told("QarvdCompare", "qarvd_compare")
    assert len(told["psnr"]) == len(told["ssim"]) == FRAMES and len(told["drift"]) == 7
    assert PSNR < sum(told["psnr"]) / FRAMES < 60
    assert min(told["ssim"]) > 0.9
    changed = (decode(demo.latents("full")) - decode(demo.latents("quantized"))).square().mean((0, 2, 3))
    assert torch.allclose(-10 * changed.log10(), torch.tensor(told["psnr"]), atol=0.1)


def test_the_saved_file_tells_how_it_was_made(demo: Ran) -> None:
    told = demo.told("QarvdSaveModel", "text")
    model = load(demo.output / "diffusion_models" / told.split(":")[0])
    assert model.recipe is not None and model.preset_name == "demo"
    assert (model.recipe.weight_bits, model.recipe.rounding, model.recipe.outliers) == (4, "gptq", "search")
    assert model.notes["calibration"]["prompts"] == 24  # pyright: ignore[reportIndexIssue]
    share = demo.told("QarvdFrameSensitivity", "qarvd_sensitivity")["share"]
    assert model.notes["frame_weights"]["sensitivity"] == share  # pyright: ignore[reportIndexIssue]
    counts = {layer["name"]: layer["count"] for layer in demo.told("QarvdQuantize", "qarvd_outliers")["layers"]}
    assert counts["blocks.0.ffn.0"] == model.notes["layers"]["blocks.0.ffn.0"]["n_outlier"]  # pyright: ignore


def test_the_share_of_each_chunk_falls(demo: Ran) -> None:
    told = demo.told("QarvdFrameSensitivity", "qarvd_sensitivity")
    assert told["share"] == sorted(told["share"], reverse=True) and len(told["share"]) == 7
    assert sum(told["share"]) == pytest.approx(1)
    assert all(low <= share <= high for low, share, high in zip(told["low"], told["share"], told["high"], strict=True))


def test_each_chunk_is_told_when_it_is_there_with_a_picture_of_it(demo: Ran, sampled: Ran) -> None:
    for ran, kind in ((demo, "QarvdStream"), (sampled, "QarvdSampler")):
        for id in numbers(ran.prompt, kind):
            told = [event for event in ran.run.told("qarvd.chunk") if event["node"] == id]
            assert [event["chunk"] for event in told] == list(range(7))
            assert [event["first_frame"] for event in told] == list(range(0, FRAMES, 3))
            assert [event["pixel_frames"] for event in told] == list(range(3, FRAMES + 1, 3))
            for event in told:
                assert set(event) == CHUNK_FIELDS
                assert (event["chunks"], event["frames"], event["prompt_id"]) == (7, 3, ran.run.prompt_id)
                head, data = event["sprite"].split(",")
                assert head == "data:image/png;base64"
                strip = picture(base64.b64decode(data))
                assert strip.shape == (event["height"], event["frames"] * event["width"], 3) == (32, 96, 3)
                assert strip.max() > 128


def test_previews_come_while_the_node_runs_and_its_bar_counts_model_calls(sampled: Ran) -> None:
    id = number(sampled.prompt, "SamplerCustomAdvanced")
    bar = [event for event in sampled.run.events if event.type == "progress" and event.data["node"] == id]
    chunks = [event.at for event in sampled.run.events if event.type == "qarvd.chunk"]
    assert (bar[-1].data["value"], bar[-1].data["max"]) == (34, 34)
    assert bar[0].at < chunks[0] < chunks[3] < bar[-1].at


def results(server: Server) -> dict[str, int]:
    """Files below output/qarvd and when each was written."""
    folder = server.base / "output" / "qarvd"
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in files}


def test_another_prompt_on_the_same_model_neither_calibrates_nor_quantizes_again(
    demo: Ran, comfy: Client, server: Server
) -> None:
    before = results(server)
    calibrate, quantize = (number(demo.prompt, kind) for kind in ("QarvdCalibrate", "QarvdQuantize"))
    assert {Path(name).parts[0] for name in before} == {"prompts", "statistics", "quantized"}
    prompt = json.loads(json.dumps(demo.prompt))
    prompt[number(prompt, "QarvdDemoModel")]["inputs"]["digit"] = "4"
    run = comfy.run(prompt)
    assert run.end == "success"
    # ComfyUI's own cache of results holds none of these nodes any more: their MODEL is another object.
    assert {calibrate, quantize} <= {event["node"] for event in run.told("executing")}
    assert results(server) == before
