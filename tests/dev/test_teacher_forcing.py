"""The demo model is trained on exactly what streaming computes (tools/teacher_forcing.py)."""

import torch
from teacher_forcing import WindowedAttention

from qarvd.stream.cache import FloatCache
from qarvd.stream.sampler import Denoiser
from qarvd.wan.config import WanConfig
from qarvd.wan.forward import encode_text, predict
from qarvd.wan.tree import WanTree

CONFIG = WanConfig(dim=64, ffn_dim=96, num_heads=2, num_layers=2, text_dim=8, text_len=4, freq_dim=32)
CHUNK, CHUNKS, SIDE = 3, 7, 4


@torch.no_grad()
def test_every_noisy_chunk_gets_the_velocity_it_would_get_in_the_stream() -> None:
    torch.manual_seed(0)
    tree = WanTree(CONFIG)
    text = encode_text(tree, CONFIG, torch.randn(2, 3, CONFIG.text_dim))
    frames = CHUNKS * CHUNK
    clean, noisy = torch.randn(2, 2, 16, frames, SIDE, SIDE)
    times = (torch.rand(2, CHUNKS) * 1000).repeat_interleave(CHUNK, 1)
    times[1] = times[0]  # the stream denoises a batch at one timestep

    past = frames - CHUNK
    attend = WindowedAttention(CHUNKS, CHUNK, CHUNK * (SIDE // 2) ** 2, CONFIG.head_dim)
    together = predict(
        tree,
        CONFIG,
        torch.cat([clean[:, :, :past], noisy], dim=2),
        torch.cat([torch.zeros(2, past), times], dim=1),
        text,
        attend,
        torch.cat([torch.arange(past), torch.arange(frames)]),
    )[:, :, past:]

    denoiser = Denoiser(tree, CONFIG, text, FloatCache(12, sink=3, sink_follows=True))
    for start in range(0, frames, CHUNK):
        span = slice(start, start + CHUNK)
        streamed = denoiser.velocity(noisy[:, :, span], times[0, start].item(), start)
        torch.testing.assert_close(together[:, :, span], streamed, rtol=1e-4, atol=1e-4)
        denoiser.velocity(clean[:, :, span], 0.0, start)
