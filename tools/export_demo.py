"""Turn a training state into the files that ship: `python tools/export_demo.py build/demo/state.pt`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from train_demo import CONFIG, EMBEDDINGS

from qarvd.checkpoint.model import Model, save
from qarvd.demo.bundle import MODEL, PROMPTS
from qarvd.demo.prompts import VOCABULARY
from qarvd.wan.tree import WanTree


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("state", type=Path)
    args = parser.parse_args()
    state = torch.load(args.state, weights_only=True)
    tree = WanTree(CONFIG)
    tree.load_state_dict(state["average"])
    training = {"steps": state["step"], "minutes": round(state["seconds"] / 60)}
    dtypes = dict.fromkeys(tree.state_dict(), torch.float16)
    save(Model(tree, CONFIG, "demo", dtypes, notes={"training": training}), MODEL)
    save_file({"words": EMBEDDINGS}, PROMPTS, {"vocabulary": "\n".join(VOCABULARY)})
    print(f"wrote {MODEL} ({MODEL.stat().st_size / 1e6:.1f} MB) and {PROMPTS}")


if __name__ == "__main__":
    main()
