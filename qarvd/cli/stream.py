"""`stream MODEL --prompt ... --chunks N --out video.mp4`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from ..checkpoint.inputs import numbered, read_latents, read_one_prompt
from ..checkpoint.model import Model
from ..demo import bundle, pixels, prompts
from ..errors import SettingError
from ..files import replacing
from ..report.video import VideoWriter
from ..stream.presets import CACHES, Preset
from ..stream.preview import rgb_preview
from ..stream.rollout import check_guidance, roll_out
from ..stream.sampler import Chunk, check_prompts
from .common import (
    DEVICE_HELP,
    add_model,
    add_size,
    check_out,
    latent_size,
    load_model,
    model_path,
    ready,
    say,
    wanted_frames,
)

HELP = "stream a video: each chunk is written as soon as it is done; Ctrl-C keeps what there is"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser, "model")
    parser.add_argument(
        "--prompt",
        required=True,
        help="text for the demo model; for others a file that `encode` wrote, FILE#2 for the second of its prompts",
    )
    parser.add_argument(
        "--then",
        nargs=2,
        action="append",
        default=[],
        metavar=("CHUNK", "PROMPT"),
        help="continue with another prompt from chunk CHUNK on (the first chunk is 1); may be given several times",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--chunks", type=int, help="the number of chunks to generate (7)")
    length.add_argument(
        "--frames", type=int, help="the number of latent frames to generate; the last chunk may be shorter"
    )
    length.add_argument("--endless", action="store_true", help="continue until Ctrl-C; needs a window")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise (0)")
    parser.add_argument("--out", type=Path, required=True, help="the .mp4 file to write")
    parser.add_argument("--latents", type=Path, help="also write the latents to this .safetensors file")
    parser.add_argument(
        "--initial",
        type=Path,
        help="latents to continue from (an encoded image, an earlier clip); without --size, the video has their size",
    )
    add_size(parser)
    parser.add_argument(
        "--window",
        type=int,
        help="latent frames in the cache, including the sink and the current chunk (as the family has it)",
    )
    parser.add_argument(
        "--sink",
        type=int,
        help="the number of first latent frames that always stay in the cache (as the family has it)",
    )
    parser.add_argument("--cache", choices=CACHES, default="16-bit", help="how the cache keeps older frames (16-bit)")
    parser.add_argument("--cfg", type=float, default=1.0, help="must be 1, because these models are distilled")
    parser.add_argument("--device", default="auto", help=DEVICE_HELP)


def run(args: argparse.Namespace) -> None:
    check_guidance(args.cfg)
    check_files(args)
    then = changing(args.then)
    model = load_model(args.model, args.preset)
    preset = windowed(model.preset, args.window, args.sink)
    frames = None if args.endless else wanted_frames(args.chunks, args.frames, preset)
    total = None if frames is None else -(-frames // preset.chunk_frames)
    check_prompts(then, total)
    chunks = started(args, model, preset, frames, then)

    demo = model.preset_name == "demo"
    latents: list[Tensor] = []
    fps, scale = (bundle.FRAMES_PER_SECOND, 8) if demo else (4, 4)  # Wan: 16 pixel frames a second, 4 per latent frame
    stopped = False
    began = time.perf_counter()
    with VideoWriter(args.out, fps, scale) as video, tqdm(total=total, unit="chunk") as bar:
        try:
            for chunk in chunks:
                video.write(pixels.decode(chunk.latents)[0] if demo else rgb_preview(chunk.latents[0]))
                if args.latents:
                    latents.append(chunk.latents.cpu())
                pace = preset.scale.pixel_frames(video.frames) / (time.perf_counter() - began)
                bar.set_postfix_str(f"{pace:.2f} pixel frames/s")
                bar.update()
        except KeyboardInterrupt:
            stopped = True
    if latents:
        with replacing(args.latents) as temporary:
            save_file({"latents": torch.cat(latents, dim=2)}, temporary)
        say(f"wrote {args.latents}")
    note = "" if demo else " (a small preview: decode the latents with Wan's VAE)"
    say(f"stopped after {video.frames} latent frames" if stopped else f"streamed {video.frames} latent frames")
    if video.frames:
        say(f"wrote {args.out}{note}")
    if stopped:
        raise KeyboardInterrupt


def check_files(args: argparse.Namespace) -> None:
    """Raise SettingError, before the work, for files that cannot be written, or that are read too."""
    texts = (numbered(prompt)[0] for prompt in (args.prompt, *(prompt for _, prompt in args.then)))
    inputs = (model_path(args.model), args.initial, *texts)
    check_out(args.out, ".mp4", *inputs)
    if args.endless and args.latents:
        raise SettingError("--latents keeps the whole clip in memory, which --endless cannot; give --chunks.")
    if args.latents:
        check_out(args.latents, ".safetensors", *inputs)


def started(
    args: argparse.Namespace, model: Model, preset: Preset, frames: int | None, then: Mapping[int, str]
) -> Iterator[Chunk]:
    """The stream of `frames` latent frames that the arguments ask for."""
    demo = model.preset_name == "demo"
    embeddings = encoded(args.prompt, demo)
    changes = {at: encoded(prompt, demo) for at, prompt in then.items()}
    initial = read_latents(args.initial) if args.initial else None
    size = latent_size(args.size, model, initial)
    ready(model, args.device)
    weight = model.tree.patch_embedding.weight
    held = None if frames is None else frames + (0 if initial is None else initial.shape[2])
    return roll_out(
        model.tree,
        model.config,
        preset,
        embeddings.to(weight),
        size,
        frames,
        [args.seed],
        preset.cache(held, args.cache),
        initial,
        prompts=changes,
    )


def windowed(preset: Preset, window: int | None, sink: int | None) -> Preset:
    """The preset with the user's window and sink."""
    preset = replace(preset, window=preset.window if window is None else window)
    return replace(preset, sink=preset.sink if sink is None else sink)


def changing(then: Sequence[tuple[str, str]]) -> dict[int, str]:
    """Prompts by the index of the chunk, from 0, at which they take over."""
    found: dict[int, str] = {}
    for number, prompt in then:
        if not number.isdecimal():
            raise SettingError(f"--then takes the number of a chunk and a prompt, but {number!r} is not a number.")
        if int(number) - 1 in found:
            raise SettingError(f"--then gives chunk {number} two prompts; give it one.")
        found[int(number) - 1] = prompt
    return found


def encoded(prompt: str, demo: bool) -> Tensor:
    """Embeddings [1, tokens, text_dim] of a prompt of the demo model, or from a file."""
    return bundle.embed([prompts.parse(prompt)]) if demo else read_one_prompt(prompt)
