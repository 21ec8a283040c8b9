"""The streaming engine reproduces the published inference, and another implementation's (tests/golden/README.md)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from qarvd.stream.noise import from_tensors
from qarvd.stream.presets import Preset
from qarvd.stream.sampler import Denoiser, Step, stream
from qarvd.wan.config import WanConfig
from qarvd.wan.forward import encode_text
from qarvd.wan.tree import WanTree

GOLDEN = Path(__file__).parents[1] / "golden"
TOLERANCE = 1e-4


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """How a roll-out was made, and its tensors."""
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["config"]), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def is_rollout(path: Path) -> bool:
    with safe_open(path, "pt") as file:
        return "config" in (file.metadata() or {})


ROLLOUTS = [path for path in sorted(GOLDEN.glob("*.safetensors")) if is_rollout(path)]


def numbered(tensors: dict[str, Tensor], prefix: str) -> list[Tensor]:
    return [tensors[f"{prefix}.{i}"] for i in range(sum(key.startswith(f"{prefix}.") for key in tensors))]


def preset_of(golden: dict[str, Any]) -> Preset:
    steps, window = golden["denoising_steps"], golden["local_window_frames"]
    return Preset(
        chunk_frames=golden["frames_per_block"],
        steps=tuple(steps),
        shift=golden["timestep_shift"],
        warp=(golden.get("warped_timesteps") or steps) != steps,
        window=window if window > 0 else None,
        sink=golden["sink_frames"],
        sink_follows=golden.get("sink_follows", False),
        context_noise=golden["context_noise"],
    )


def run(preset: Preset, golden: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[list[Step], Tensor]:
    """Every model call, and the final latents, initial ones included."""
    weights = {key.removeprefix("model."): t for key, t in tensors.items() if key.startswith("model.")}
    config = WanConfig.from_shapes({key: t.shape for key, t in weights.items()}, golden)
    tree = WanTree(config)
    tree.load_state_dict(weights)

    noise = tensors["noise"]
    initial = tensors.get("initial_latents", noise[:, :, :0])
    cache = preset.cache(initial.shape[2] + noise.shape[2])
    with torch.no_grad():
        text = encode_text(tree, config, tensors["text_embeds"])
    steps: list[Step] = []
    chunks = stream(
        Denoiser(tree, config, text, cache),
        noise.split(preset.chunk_frames, dim=2),
        preset.schedule,
        from_tensors(numbered(tensors, "renoise")),
        initial.split(preset.chunk_frames, dim=2) if initial.shape[2] else (),
        steps.append,
    )
    return steps, torch.cat([initial, *(c.latents for c in chunks)], dim=2)


def assert_equals_golden(path: Path) -> None:
    golden, tensors = read(path)
    preset = preset_of(golden)
    assert preset.schedule.timesteps == tuple(golden.get("warped_timesteps") or golden["denoising_steps"])
    steps, latents = run(preset, golden, tensors)
    # Both implementations write the last chunk into the cache too, for no one.
    assert [s.timestep for s in steps] == [call["timestep"] for call in golden["calls"][:-1]]
    for step, expected in zip(steps, numbered(tensors, "x0")[:-1], strict=True):
        torch.testing.assert_close(step.clean, expected, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(latents, tensors["latents"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("path", ROLLOUTS, ids=lambda path: path.stem)
def test_a_rollout_equals_the_golden_one_at_every_model_call(path: Path) -> None:
    assert_equals_golden(path)


def test_no_golden_rollout_is_lost() -> None:
    """Others may be added."""
    published = {"chunkwise", "chunkwise_window_sink", "framewise", "framewise_window"}
    published |= {"image_to_video", "batch_context_noise_two_step"}
    assert published | {"flashdreams_plain", "relative_window_sink"} <= {path.stem for path in ROLLOUTS}


@pytest.mark.parametrize("listed", ["missing", "the same"])
def test_a_rollout_of_unwarped_steps_is_taken_as_it_is(listed: str, tmp_path: Path) -> None:
    golden, tensors = read(GOLDEN / "chunkwise_window_sink.safetensors")
    golden |= {"denoising_steps": [1000, 757, 522, 300], "timestep_shift": 8.0, "sink_follows": True}
    del golden["warped_timesteps"]
    if listed == "the same":
        golden["warped_timesteps"] = golden["denoising_steps"]
    unwarped = replace(preset_of(golden), warp=False)
    steps, latents = run(unwarped, golden, tensors)
    for call, step in zip(golden["calls"], steps, strict=False):
        call["timestep"] = step.timestep
    assert {step.timestep for step in steps} == {1000, 757, 522, 300, 0}
    made = {f"x0.{i}": step.clean for i, step in enumerate(steps)}
    save_file(tensors | made | {"latents": latents}, tmp_path / "made.safetensors", {"config": json.dumps(golden)})
    assert_equals_golden(tmp_path / "made.safetensors")


def test_a_sink_in_the_wrong_mode_is_far_from_the_golden_one() -> None:
    golden, tensors = read(GOLDEN / "relative_window_sink.safetensors")
    steps, _ = run(replace(preset_of(golden), sink_follows=False), golden, tensors)
    far = [(s.clean - x0).abs().max().item() for s, x0 in zip(steps, numbered(tensors, "x0")[:-1], strict=True)]
    assert max(far) > 0.05
