"""Judge the bundled demo model: `python tools/evaluate_demo.py --chunks 50` prints accuracy per chunk as JSON."""

from __future__ import annotations

import argparse
import json

import torch
from tqdm import tqdm

from qarvd.cli.common import load_model
from qarvd.demo.bundle import load_judge
from qarvd.demo.experiment import clip, samples
from qarvd.demo.judge import digit_correct, motion_correct
from qarvd.demo.pixels import decode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo", help="a checkpoint of the demo's family")
    parser.add_argument("--samples", type=int, default=512, help="64 held-out prompts, seed after seed")
    parser.add_argument("--chunks", type=int, default=7)
    args = parser.parse_args()

    model = load_model(args.model)
    model.tree.float()
    reader, reader_accuracy = load_judge()
    cases = samples(args.samples)
    size = model.preset.chunk_frames
    digit, motion = [], []
    for first in tqdm(range(0, len(cases), 64), unit="batch"):
        batch = cases[first : first + 64]
        latents = torch.cat([chunk.latents for chunk in clip(model, batch, args.chunks)], dim=2)
        prompts, pixels = [prompt for prompt, _ in batch], decode(latents)
        digit.append(digit_correct(reader, pixels, prompts).float())
        steps = motion_correct(pixels, prompts).float()
        motion.append(torch.cat([steps[:, :1], steps], dim=1))  # a frame's step is the one that led to it
    print(
        json.dumps(
            {
                "samples": len(cases),
                "judge_accuracy_on_unseen_digits": round(reader_accuracy, 4),
                "digit_accuracy_per_chunk": _per_chunk(digit, size),
                "motion_accuracy_per_chunk": _per_chunk(motion, size),
            }
        )
    )


def _per_chunk(parts: list[torch.Tensor], size: int) -> list[float]:
    means = torch.cat(parts).unflatten(1, (-1, size)).mean((0, 2))
    return [round(value, 4) for value in means.tolist()]


if __name__ == "__main__":
    main()
