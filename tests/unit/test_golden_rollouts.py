"""The streaming engine reproduces the published inference (tests/golden/README.md)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from qarvd.stream.cache import FloatCache
from qarvd.stream.noise import from_tensors
from qarvd.stream.sampler import Denoiser, Step, stream
from qarvd.stream.schedule import Schedule
from qarvd.wan.config import WanConfig
from qarvd.wan.forward import encode_text
from qarvd.wan.tree import WanTree

GOLDEN = Path(__file__).parents[1] / "golden"
ROLLOUTS = sorted(p.stem for p in GOLDEN.glob("*.safetensors") if p.stem not in ("outliers", "quantizer"))


def numbered(tensors: dict[str, torch.Tensor], prefix: str) -> list[torch.Tensor]:
    return [tensors[f"{prefix}.{i}"] for i in range(sum(key.startswith(f"{prefix}.") for key in tensors))]


@pytest.mark.parametrize("name", ROLLOUTS)
def test_a_rollout_equals_the_published_one_at_every_model_call(name: str) -> None:
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        golden = json.loads(file.metadata()["config"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    weights = {key.removeprefix("model."): t for key, t in tensors.items() if key.startswith("model.")}
    config = WanConfig.from_shapes({key: t.shape for key, t in weights.items()}, golden)
    tree = WanTree(config)
    tree.load_state_dict(weights)

    schedule = Schedule.from_steps(
        golden["denoising_steps"], golden["timestep_shift"], context_noise=golden["context_noise"]
    )
    assert schedule.timesteps == tuple(golden["warped_timesteps"])

    noise, chunk = tensors["noise"], golden["frames_per_block"]
    initial = tensors.get("initial_latents", noise[:, :, :0])
    window = golden["local_window_frames"]
    cache = FloatCache(window if window > 0 else initial.shape[2] + noise.shape[2], golden["sink_frames"])
    with torch.no_grad():
        text = encode_text(tree, config, tensors["text_embeds"])
    steps: list[Step] = []
    chunks = stream(
        Denoiser(tree, config, text, cache),
        noise.split(chunk, dim=2),
        schedule,
        from_tensors(numbered(tensors, "renoise")),
        initial.split(chunk, dim=2) if initial.shape[2] else (),
        steps.append,
    )
    latents = torch.cat([initial, *(c.latents for c in chunks)], dim=2)

    # The published code writes the last chunk into the cache too, for no one.
    assert [s.timestep for s in steps] == [call["timestep"] for call in golden["calls"][:-1]]
    for step, expected in zip(steps, numbered(tensors, "x0")[:-1], strict=True):
        torch.testing.assert_close(step.clean, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(latents, tensors["latents"], rtol=0, atol=1e-4)


def test_all_six_golden_rollouts_are_here() -> None:
    assert len(ROLLOUTS) == 6
