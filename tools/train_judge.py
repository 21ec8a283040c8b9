"""Train the digit judge of the demo: `python tools/train_judge.py --out qarvd/demo/judge.safetensors`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from digits import SEEN, Glyphs, render
from safetensors.torch import save_file

from qarvd.demo.judge import DigitReader, crops
from qarvd.demo.motion import FRAME, GLYPH


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4000)
    args = parser.parse_args()

    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    glyphs = Glyphs()
    reader = DigitReader()
    optimizer = torch.optim.AdamW(reader.parameters(), lr=2e-3, weight_decay=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps)

    def view(chosen: torch.Tensor) -> torch.Tensor:
        corners = torch.randint(FRAME - GLYPH + 1, (len(chosen), 1, 2), generator=generator)
        return render(glyphs.images[chosen], corners)[:, 0]

    for _ in range(args.steps):
        chosen = torch.randint(SEEN, (128,), generator=generator)
        frames = view(chosen)
        soft = F.avg_pool2d(frames[:, None], 3, 1, 1)[:, 0]  # generated digits may be softer or noisier than real ones
        mix = torch.rand(len(chosen), 1, 1, generator=generator) * 0.6
        frames = frames * (1 - mix) + soft * mix + 0.04 * torch.randn(frames.shape, generator=generator)
        loss = F.cross_entropy(reader(crops(frames.clamp(0, 1))), glyphs.labels[chosen], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()

    unseen = torch.arange(SEEN, len(glyphs.labels)).repeat(10)
    with torch.no_grad():
        accuracy = (reader(crops(view(unseen))).argmax(1) == glyphs.labels[unseen]).float().mean().item()
    print(f"judge: {accuracy:.4f} on {len(glyphs.labels) - SEEN} unseen digits at 10 random places each")
    metadata = {
        "judge": json.dumps({"accuracy_on_unseen_digits": accuracy, "unseen_digits": len(glyphs.labels) - SEEN})
    }
    save_file({k: v.contiguous() for k, v in reader.state_dict().items()}, args.out, metadata)


if __name__ == "__main__":
    main()
