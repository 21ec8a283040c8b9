"""Train the demo model from scratch: `python tools/train_demo.py --out build/demo` (resumes where it stopped).

Two stages of teacher forcing on moving digits: short clips that fill the window, then longer ones that roll it.
Every batch is a function of its step number, so an interrupted run goes on exactly as it would have.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from digits import Glyphs, clips
from safetensors.torch import load_file, save_file
from teacher_forcing import WindowedAttention
from torch import Tensor

from qarvd.checkpoint.model import Model, save
from qarvd.demo import bundle
from qarvd.demo.judge import DigitReader, digit_correct, motion_correct
from qarvd.demo.pixels import decode, encode
from qarvd.demo.prompts import VOCABULARY, Prompt, split_prompts
from qarvd.stream.presets import PRESETS
from qarvd.stream.rollout import roll_out
from qarvd.wan.config import WanConfig
from qarvd.wan.forward import encode_text, predict
from qarvd.wan.tree import WanTree

CONFIG = WanConfig(dim=256, ffn_dim=1024, num_heads=4, num_layers=4, text_dim=64, text_len=8)
PRESET = PRESETS["demo"]
CHUNK, SCHEDULE = PRESET.chunk_frames, PRESET.schedule
FRAME_TOKENS = 16
EMBEDDINGS = torch.randn(len(VOCABULARY), CONFIG.text_dim, generator=torch.Generator().manual_seed(1234))


@dataclass(frozen=True)
class Stage:
    chunks: int
    batch: int
    steps: int


def embed(prompts: list[Prompt]) -> Tensor:
    return torch.stack([EMBEDDINGS[p.words] for p in prompts])


def draw_sigmas(batch: int, chunks: int, generator: torch.Generator) -> Tensor:
    """One sigma a chunk: the sampler's own, or shifted uniform; pure noise often, so that the text is heeded."""
    u = torch.rand(batch, chunks, generator=generator)
    sigmas = SCHEDULE.shift * u / (1 + (SCHEDULE.shift - 1) * u)
    steps = torch.tensor([SCHEDULE.sigma(t) for t in SCHEDULE.timesteps])
    own = steps[torch.randint(len(steps), (batch, chunks), generator=generator)]
    sigmas = torch.where(torch.rand(batch, chunks, generator=generator) < 0.7, own, sigmas)
    pure = torch.full((chunks,), 0.25)
    pure[0] = 0.5
    return torch.where(torch.rand(batch, chunks, generator=generator) < pure, 1.0, sigmas)


def loss_at(tree: WanTree, glyphs: Glyphs, stage: Stage, attend: WindowedAttention, step: int, bf16: bool) -> Tensor:
    """Velocity error of every noisy chunk, given noised-up clean context."""
    generator = torch.Generator().manual_seed(1_000_000 + step)
    prompts = Random(step).choices(split_prompts()[0], k=stage.batch)
    frames = stage.chunks * CHUNK
    clean = encode(clips(glyphs, prompts, frames, generator))  # [batch, 16, frames, 8, 8]
    sigmas = draw_sigmas(stage.batch, stage.chunks, generator).repeat_interleave(CHUNK, 1)
    noise = torch.randn(clean.shape, generator=generator)
    s = sigmas[:, None, :, None, None]
    noisy = (1 - s) * clean + s * noise

    past = clean[:, :, :-CHUNK]
    spoilt = torch.rand(stage.batch, 1, 1, 1, 1, generator=generator) * 0.1
    past = past + spoilt * torch.randn(past.shape, generator=generator)

    latents = torch.cat([past, noisy], dim=2)
    timesteps = torch.cat([torch.zeros(stage.batch, frames - CHUNK), sigmas * 1000], dim=1)
    positions = torch.cat([torch.arange(frames - CHUNK), torch.arange(frames)])
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        text = encode_text(tree, CONFIG, embed(prompts))
        velocity = predict(tree, CONFIG, latents, timesteps, text, attend, positions)
    return F.mse_loss(velocity[:, :, -frames:].float(), noise - clean)


@torch.no_grad()
def sample(tree: WanTree, prompts: list[Prompt], chunks: int, seed: int) -> Tensor:
    """Stream `chunks` chunks as a user would: pixels [batch, frames, 32, 32]."""
    seeds = [seed + i for i in range(len(prompts))]
    frames = chunks * CHUNK
    stream = roll_out(tree, CONFIG, PRESET, embed(prompts), (8, 8), frames, seeds)
    return decode(torch.cat([chunk.latents for chunk in stream], dim=2))


def evaluate(tree: WanTree, reader: DigitReader, prompts: list[Prompt], chunks: int, seed: int) -> dict[str, object]:
    """Digit and motion accuracy per chunk on held-out prompts."""
    pixels = sample(tree, prompts, chunks, seed)
    digit = digit_correct(reader, pixels, prompts).float().unflatten(1, (chunks, CHUNK)).mean((0, 2))
    motion = motion_correct(pixels, prompts).float()
    motion = torch.stack([motion[:, max(0, c * CHUNK - 1) : (c + 1) * CHUNK - 1].mean() for c in range(chunks)])
    return {"digit": [round(v, 4) for v in digit.tolist()], "motion": [round(v, 4) for v in motion.tolist()]}


def export(tree: WanTree, training: dict[str, object], folder: Path) -> None:
    """Write the files that ship: the model in float16 and the prompt table."""
    dtypes = dict.fromkeys(tree.state_dict(), torch.float16)
    save(Model(tree, CONFIG, "demo", dtypes, notes={"training": training}), folder / bundle.MODEL.name)
    save_file({"words": EMBEDDINGS}, folder / bundle.PROMPTS.name, {"vocabulary": "\n".join(VOCABULARY)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the state, the log and, at the end, the files that ship"
    )
    parser.add_argument("--judge", type=Path, default=Path("qarvd/demo/judge.safetensors"))
    parser.add_argument("--short-steps", type=int, default=1200)
    parser.add_argument("--long-steps", type=int, default=1800)
    parser.add_argument("--save-every", type=int, default=300, help="steps between states, each judged")
    parser.add_argument("--judged", type=int, default=64, help="held-out prompts that each state is judged on")
    parser.add_argument("--float32", action="store_true", help="train in float32 instead of bfloat16 autocast")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    stages = [Stage(4, 16, args.short_steps), Stage(8, 8, args.long_steps)]
    total = sum(stage.steps for stage in stages)

    torch.manual_seed(0)
    glyphs = Glyphs()
    reader = DigitReader()
    reader.load_state_dict(load_file(args.judge))
    tree = WanTree(CONFIG)
    average = copy.deepcopy(tree)
    matrices = [p for name, p in tree.named_parameters() if name.startswith("blocks") and p.ndim == 2]
    others = [p for name, p in tree.named_parameters() if not (name.startswith("blocks") and p.ndim == 2)]
    optimizers: list[tuple[torch.optim.Optimizer, float]] = [
        (torch.optim.Muon(matrices, weight_decay=0.0, momentum=0.95), 0.02),
        (torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0), 2e-3),
    ]
    step, seconds = 0, 0.0
    state_file, log_file = args.out / "state.pt", args.out / "log.jsonl"
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        step, seconds = state["step"], state["seconds"]
        tree.load_state_dict(state["tree"])
        average.load_state_dict(state["average"])
        for (optimizer, _), saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        kept = [line for line in log_file.read_text().splitlines() if json.loads(line)["step"] <= step]
        log_file.write_text("".join(f"{line}\n" for line in kept))
        print(f"resuming at step {step} of {total}")

    def save() -> None:
        state = {
            "step": step,
            "seconds": seconds,
            "tree": tree.state_dict(),
            "average": average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer, _ in optimizers],
        }
        torch.save(state, state_file.with_suffix(".new"))
        os.replace(state_file.with_suffix(".new"), state_file)

    def note(entry: dict[str, object]) -> None:
        with log_file.open("a") as log:
            log.write(json.dumps(entry) + "\n")
        print(entry, flush=True)

    losses: list[float] = []
    attends = [WindowedAttention(s.chunks, CHUNK, CHUNK * FRAME_TOKENS, CONFIG.head_dim) for s in stages]
    while step < total:
        began = time.perf_counter()
        which = 0 if step < stages[0].steps else 1
        warm_up, left = min(1.0, (step + 1) / 100), 1 - max(0, step - stages[0].steps) / stages[1].steps
        for optimizer, rate in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * warm_up * (0.02 + 0.98 * left)
        loss = loss_at(tree, glyphs, stages[which], attends[which], step, not args.float32)
        tree.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tree.parameters(), 1.0)
        for optimizer, _ in optimizers:
            optimizer.step()
        step += 1
        keep = min(0.998, step / (10 + step))
        with torch.no_grad():
            for mean, value in zip(average.parameters(), tree.parameters(), strict=True):
                mean.lerp_(value, 1 - keep)
        seconds += time.perf_counter() - began
        losses.append(loss.item())
        if step % 50 == 0:
            left_minutes = (total - step) * seconds / step / 60
            note({"step": step, "seconds": round(seconds), "loss": round(sum(losses) / len(losses), 4),
                  "minutes_left": round(left_minutes, 1)})  # fmt: skip
            losses.clear()
        if step % args.save_every == 0 or step == total:
            save()
            note({"step": step, **evaluate(average, reader, split_prompts()[1][: args.judged], 7, seed=0)})
    export(average, {"steps": step, "minutes": round(seconds / 60)}, args.out)
    print(f"trained in {seconds / 60:.1f} minutes; copy {args.out}/*.safetensors to {bundle.FOLDER} to ship them")


if __name__ == "__main__":
    torch.set_flush_denormal(True)  # of the whole process
    main()
