"""What is wrong is told in a sentence on the node where it is wrong, and the server goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from harness import models
from harness.client import Client, Refused
from harness.graph import Nodes, prompt_of

SIZE = {"width": 32, "height": 32}
DEMO: Nodes = {"demo": ("QarvdDemoModel", {})}
STREAM = {"model": ["demo", 0], "positive": ["demo", 1], "chunks": 1, **SIZE}
PROMPTS: Nodes = {"prompts": ("QarvdEncodePrompts", {"clip": ["demo", 3], "limit": 4})}
THREE = {"source": "the text below", "text": "a 1 moving up\na 2 moving up\n\na 3 moving up"}
STOCK = "int8_tensorwise (ComfyUI loads it without this pack)"


def streamed(**inputs: Any) -> Nodes:
    return DEMO | {"stream": ("QarvdStream", STREAM | inputs)}


def shown(nodes: Nodes, source: str) -> Nodes:
    """The nodes, and one that makes ComfyUI run `source`."""
    return nodes | {"shown": ("PreviewAny", {"source": [source, 0]})}


def loaded(file: str, family: str = "automatic") -> Nodes:
    return {"model": ("QarvdLoadModel", {"file": file, "family": family})}


def sampled(width: int = 64, cfg: float | None = None, schedule: str = "schedule", model: str = "demo") -> Nodes:
    """With ComfyUI's own nodes for sampling."""
    guider = ("BasicGuider", {"model": [model, 0], "conditioning": ["demo", 1]})
    if cfg is not None:
        guider = ("CFGGuider", {"model": ["demo", 0], "positive": ["demo", 1], "negative": ["demo", 1], "cfg": cfg})
    parts = {
        "noise": ("RandomNoise", {"noise_seed": 1}),
        "guider": guider,
        "schedule": ("QarvdSchedule", {"family": "demo"}),
        "one step": ("QarvdSchedule", {"family": "demo", "steps": "1000"}),
        "sampler": ("QarvdSampler", {"schedule": [schedule, 1]}),
        "empty": ("EmptyHunyuanLatentVideo", {"width": width, "height": 64, "length": 9}),
    }
    wired = {name: [name, 0] for name in ("noise", "guider", "sampler")}
    wired |= {"sigmas": ["schedule", 0], "latent_image": ["empty", 0]}
    return shown(DEMO | parts | {"sample": ("SamplerCustomAdvanced", wired)}, "sample")


def calibrated(model: str = "demo") -> Nodes:
    inputs = {"model": [model, 0], "prompts": ["prompts", 0], "chunks": 1, **SIZE}
    return shown(DEMO | PROMPTS | {"calibrate": ("QarvdCalibrate", inputs)}, "calibrate")


def quantized(**inputs: Any) -> Nodes:
    wired = {"model": ["demo", 0], "recipe": ["recipe", 0]} | inputs
    return DEMO | {"recipe": ("QarvdRecipe", {}), "quantize": ("QarvdQuantize", wired)}


def saved(model: str, **inputs: Any) -> Nodes:
    return DEMO | {"save": ("QarvdSaveModel", {"model": [model, 0]} | inputs)}


@dataclass(frozen=True)
class Bad:
    nodes: Nodes
    at: str
    """The node that tells it."""
    words: tuple[str, ...]


CASES: Mapping[str, Bad] = {
    "a truncated file": Bad(
        shown(loaded(models.TRUNCATED), "model"), "model", (models.TRUNCATED, "is truncated", "Download")
    ),
    "a Wan model that may be bidirectional": Bad(
        shown(loaded(models.STRANGER), "model"), "model", ("bidirectional", "family", "self-forcing")
    ),
    "another family than the file's": Bad(
        shown(loaded(models.DEMO, "causvid"), "model"), "model", ("in the file is 'demo'", "'causvid' was asked for")
    ),
    "guidance": Bad(sampled(cfg=5.0), "sample", ("cfg 5.0", "use cfg 1")),
    "latents that are no whole patches": Bad(
        loaded(models.STRANGER, "self-forcing") | sampled(width=72, model="model"),
        "sample",
        ("8x9", "patches of 2x2", "16 pixels"),
    ),
    "latents of a size that the demo does not have": Bad(
        sampled(width=832), "sample", ("104 x 8, but the demo model draws 8 x 8", "width and height", "to 64")
    ),
    "a size that the demo does not have": Bad(streamed(width=36), "stream", ("36 x 32", "32 x 32 pixels")),
    "a cache that no memory can hold": Bad(
        streamed(batch_size=64, chunks=100_000, window=10_000),
        "stream",
        ("cache of keys and values takes", "GB are free", "smaller window"),
    ),
    "latents of another model": Bad(
        DEMO
        | {
            "empty": ("EmptyHunyuanLatentVideo", {"width": 128, "height": 128, "length": 9}),
            "decode": ("VAEDecode", {"samples": ["empty", 0], "vae": ["demo", 2]}),
            "preview": ("PreviewImage", {"images": ["decode", 0]}),
        },
        "decode",
        ("decoder of the demo model", "(1, 16, 3, 16, 16)", "VAE of their own model"),
    ),
    "a start image without a VAE": Bad(
        streamed(start_image=["image", 0]) | {"image": ("EmptyImage", {})}, "stream", ("start_image", "Connect vae")
    ),
    "a start image with the VAE of an image model": Bad(
        streamed(start_image=["image", 0], vae=["vae", 0])
        | {"image": ("EmptyImage", {}), "vae": ("VAELoader", {"vae_name": "pixel_space"})},
        "stream",
        ("but a video needs five axes", "video VAE"),
    ),
    "initial latents of another VAE": Bad(
        streamed(initial=["empty", 0]) | {"empty": ("EmptyLatentImage", {})},
        "stream",
        ("initial latents have shape (1, 4, 64, 64)", "with the VAE of this model"),
    ),
    "sigmas of another schedule": Bad(
        sampled(schedule="one step"), "sample", ("differ from those of the schedule", "from the same AR Schedule")
    ),
    "statistics of another model": Bad(
        calibrated()
        | {**loaded(models.OTHER), **quantized(model=["model", 0], statistics=["calibrate", 0])}
        | {"shown": ("PreviewAny", {"source": ["quantize", 1]})},
        "quantize",
        ("statistics are those of another model", "calibrate this one"),
    ),
    "three prompts": Bad(
        shown(DEMO | {"prompts": ("QarvdEncodePrompts", {"clip": ["demo", 3], **THREE})}, "prompts"),
        "prompts",
        ("at least 4 prompts", "has 3"),
    ),
    "calibration prompts of another text encoder": Bad(
        calibrated("model") | loaded(models.STRANGER, "self-forcing"),
        "calibrate",
        ("64 numbers a token", "takes 32", "its own text encoder"),
    ),
    "a prompt of another text encoder": Bad(
        streamed(model=["model", 0]) | loaded(models.STRANGER, "self-forcing"),
        "stream",
        ("(1, 8, 64)", "32]", "its text encoder"),
    ),
    "a model in full precision to save": Bad(
        saved("demo"), "save", ("full precision", "Quantize it with Dual-Scale Quantize first")
    ),
    "two scales in a format of one": Bad(
        quantized() | saved("quantize", format=STOCK),
        "save",
        ("4-bit weights in groups of 16", "ComfyUI's own formats can't hold", "a recipe whose format is"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_told_in_a_sentence_on_its_node(
    name: str, comfy: Client, object_info: dict[str, Any], model_files: None
) -> None:
    case = CASES[name]
    run = comfy.run(prompt_of(case.nodes, object_info))
    assert run.end == "error" and run.error is not None
    assert run.error["node_id"] == case.at, run.sentence
    assert [word for word in case.words if word not in run.sentence] == [], run.sentence
    assert "\n" not in run.sentence and run.sentence.endswith(".")
    assert run.error["exception_type"].startswith("qarvd.")
    after = comfy.run(prompt_of(streamed(seed=sum(name.encode())), object_info))
    assert after.end == "success" and len(after.told("qarvd.chunk")) == 1


def test_an_input_that_is_not_wired_is_told_before_anything_runs(comfy: Client, object_info: dict[str, Any]) -> None:
    prompt = prompt_of(streamed(), object_info)
    del prompt["stream"]["inputs"]["model"]
    with pytest.raises(Refused) as caught:
        comfy.run(prompt)
    assert caught.value.errors == {"stream": ["Required input is missing: model"]}
