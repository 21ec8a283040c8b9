"""Teacher forcing with a rolling window: one pass trains every chunk as the stream would compute it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from qarvd.wan.rope import rotate, time_shift


class WindowedAttention:
    """Self-attention over the sequence [clean chunks 0 .. K-2 | noisy chunks 0 .. K-1].

    Chunk c sees the clean sink (chunk 0), the clean chunks c-2 and c-1, and itself: a window of four chunks, one
    of them the sink, whose keys follow the window as they do while streaming (`KVCache`, `sink_follows`).
    """

    PAST = 2

    def __init__(self, chunks: int, chunk_frames: int, chunk_tokens: int, head_dim: int) -> None:
        self.chunks, self.tokens = chunks, chunk_tokens
        order = [*range(chunks - 1), *range(chunks)]  # chunk of each group of tokens
        table, valid = [], []
        for group, c in enumerate(order):
            past = [c - back for back in range(self.PAST, 0, -1)]
            table.append([0, *(max(p, 0) for p in past), group])
            valid.append([c > 0, *(p > 0 for p in past), True])
        self.table = torch.tensor(table)  # [groups, 4] groups that each group reads
        hidden = ~torch.tensor(valid).repeat_interleave(chunk_tokens, dim=1)
        bias = torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf)
        self.bias = bias[None, :, None].repeat(1, 1, chunk_tokens, 1)  # [1, groups, tokens, 4 * tokens]
        evicted = torch.tensor([max(0, c - self.PAST - 1) * chunk_frames for c in order])
        self.sink_turn = time_shift(evicted, head_dim)[:, None]  # [groups, 1, head_dim / 2, 2]

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """All tensors are [batch, heads, groups * tokens, head_dim]."""
        q, k, v = (x.flatten(0, 1).unflatten(1, (-1, self.tokens)) for x in (query, key, value))
        sink = rotate(k[:, :1].expand(-1, len(self.table), -1, -1), self.sink_turn)
        keys = torch.cat([sink, k[:, self.table[:, 1:]].flatten(2, 3)], dim=2)
        values = v[:, self.table].flatten(2, 3)
        out = F.scaled_dot_product_attention(q, keys, values, attn_mask=self.bias.to(q.dtype))
        return out.flatten(1, 2).view_as(query)
