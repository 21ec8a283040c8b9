"""Cards that the model of benchmarks/roofline.py knows, and what it assumes. Numbers have a source or are assumed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """Numbers are NVIDIA's published ones for the reference card."""

    name: str
    architecture: str
    multiprocessors: int
    ghz: float
    """Boost clock. A card that runs hot or is power-limited is slower, in all parts alike."""
    gigabytes_per_second: float
    """Of its memory."""
    cache_megabytes: int
    """L2."""


CARDS = (
    Card("RTX 3060", "sm_86", 28, 1.777, 360, 3),
    Card("RTX 3090", "sm_86", 82, 1.695, 936, 6),
    Card("RTX 4060 Ti", "sm_89", 34, 2.535, 288, 32),
    Card("RTX 4090", "sm_89", 128, 2.520, 1008, 72),
    Card("RTX 5090", "sm_120", 170, 2.407, 1792, 96),
)

OUR_LINEAR_REACH = 0.70
"""Assumed: what our linear reaches of the bound that its machine code sets. Well-tuned kernels of others reach about
0.85 (below); ours was never run on a card, so it gets less."""
OUR_ATTENTION_REACH = 0.65
"""Assumed, likewise: softmax and products wait for each other, and two blocks of a multiprocessor hide part of that."""
CUBLAS_REACH = 0.85
"""Assumed: cuBLAS at these sizes on GeForce cards, of the dense float16 rate."""
FLASH_REACH = 0.90
"""Assumed: FlashAttention-2 through torch's SDPA, of the dense float16 rate with float32 sums."""
MEMORY_REACH = 0.80
"""Assumed: what a streaming kernel reaches of the memory's published rate."""
CACHED = 0.5
"""Assumed: what a kernel writes stays in the L2 for the next one if it is at most this much of it."""
LAUNCH_MICROSECONDS = 2.0
"""Assumed: what starting and draining one kernel costs on the card, for theirs and ours alike."""
FLOAT16_SUMS = 2
"""Float16 sums double the rate of GeForce tensor cores (Ampere GA102, Ada and Blackwell whitepapers)."""
LIBRARY_TILES = ((256, 128), (128, 256), (128, 128), (128, 64), (64, 128), (64, 64))
"""Assumed: cuBLAS takes the best of these, one block of a multiprocessor at a time."""
FLASH_ROWS = 128
"""Queries of a block of FlashAttention-2 with heads of 128 channels."""
ELEMENTWISE_PASSES = 30
"""Assumed: how often one block of Wan reads or writes a [tokens, dim] tensor of 16 bits outside linears and attention:
three norms with modulation, q and k norms, rotary positions, gates and residuals. Equal for theirs and ours."""
TEXT_TOKENS = 512
"""Keys of the cross-attention (Wan2.1). Its k and v come from the text alone and are not computed again."""
