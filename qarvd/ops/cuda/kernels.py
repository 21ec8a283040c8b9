"""The ops of the linear as launches: which kernel, what grid, what it takes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..codecs import CODECS, Codec, codec_of
from ..split import Columns
from ..values import DecodedWeight, PackedWeight, Tokens
from .arguments import TYPES, ActivationArguments, DecodeArguments, LinearArguments, aligned, pointer
from .launcher import THREADS, Launcher, in_rows

ACTIVATION = ("qarvd_quantize_activation", "qarvd_quantize_activation_wide")
"""For up to 16 units, and for up to `MOST_UNITS`."""
ACTIVATION_THREADS, SHARE, UNIT, MOST_UNITS = 256, 16, 256, 64
DECODE_THREADS, PIECE = 256, 32
K_TILE = 64
CHANNEL_GROUP = 32
"""Both ranges of a linear's input are multiples of this."""


def refuses_activation(x: Tensor, columns: Columns) -> str | None:
    """Why tokens [..., channels] can't be quantized, or None."""
    channels, n_outlier = x.shape[-1], columns.n_outlier
    if channels % SHARE or n_outlier % SHARE:
        return f"{n_outlier} outliers of {channels} channels; both must be multiples of {SHARE}"
    if _units(channels, n_outlier) > MOST_UNITS:
        return f"{channels} channels; there may be {MOST_UNITS * UNIT} at most"
    return None


def _units(channels: int, n_outlier: int) -> int:
    """Groups of at most 256 columns, of which none lies in both ranges; half a warp has each."""
    return math.ceil(n_outlier / UNIT) + math.ceil((channels - n_outlier) / UNIT)


def prepare_activation(launcher: Launcher) -> None:
    for kernel in ACTIVATION:
        launcher.prepare(kernel, 0)


def quantize_activation(launcher: Launcher, stream: int, x: Tensor, columns: Columns, guard: float) -> Tokens:
    """As `reference.quantize_activation`, to the bit, for what `refuses_activation` lets pass."""
    channels, (order, n_outlier, _) = x.shape[-1], columns
    rows = in_rows(x.reshape(-1, channels))
    count = rows.shape[0]
    made = Tokens(
        rows.new_empty((count, channels), dtype=torch.int8),
        rows.new_empty((count, 2), dtype=torch.float32),
        rows.new_empty((count, 2), dtype=torch.int32),
    )
    if count:
        order = aligned(None if order is None else order.to(torch.int32))
        held = map(pointer, (rows, order, *made))
        widths = tuple(columns.width(size) if size else 1 for size in (n_outlier, channels - n_outlier))
        arguments = ActivationArguments(
            *held, rows.stride(0), channels, n_outlier, widths, tuple(w**-0.5 for w in widths), guard, TYPES[rows.dtype]
        )
        units = _units(channels, n_outlier)
        narrow, wide = ACTIVATION
        kernel = narrow if units * 16 <= ACTIVATION_THREADS else wide
        threads = min(ACTIVATION_THREADS, math.ceil(units / 2) * 32)
        launcher.launch(kernel, (count, 1, 1), threads, 0, arguments, stream)
    return made


def prepare_decode(launcher: Launcher) -> None:
    for codec in CODECS.values():
        if codec.bits < 8:
            launcher.prepare(decode_kernel(codec), 0)


def decode_kernel(codec: Codec) -> str:
    return f"qarvd_decode_w{codec.bits}{'g' if codec.group else ''}"


def decode_weight(launcher: Launcher, stream: int, weight: PackedWeight) -> Tensor:
    """As `reference.decode_weight`, to the bit; the weight has fewer than 8 bits."""
    codes, group_scale, table, bits = weight
    rows, channels = len(codes), codes.shape[1] * 8 // bits
    group = 0 if group_scale is None else channels // group_scale.shape[1]
    out = codes.new_empty((rows, channels), dtype=torch.int8)
    if out.numel():
        held = [aligned(x) for x in (codes, group_scale, table)]
        pieces, wide = rows * channels // PIECE, group_scale is not None and group_scale.dtype == torch.float32
        arguments = DecodeArguments(*map(pointer, (*held, out)), pieces, channels, group, wide)
        kernel = decode_kernel(codec_of(bits, group))
        launcher.launch(kernel, (math.ceil(pieces / DECODE_THREADS), 1, 1), DECODE_THREADS, 0, arguments, stream)
    return out


@dataclass(frozen=True)
class Tile:
    """A block's share of a linear's result, and how many steps of K are loaded ahead."""

    size: str
    rows: int
    outputs: int
    stages: int

    @property
    def kernel(self) -> str:
        return f"qarvd_linear_{self.size}"

    @property
    def shared(self) -> int:
        """Bytes of dynamic shared memory."""
        return self.stages * (self.rows + self.outputs) * K_TILE

    def blocks(self, rows: int, outputs: int) -> tuple[int, int]:
        return math.ceil(outputs / self.outputs), math.ceil(rows / self.rows)


TILES = (Tile("large", 128, 128, 3), Tile("small", 64, 64, 4))
"""The one with the highest throughput first."""


def refuses_linear(channels: int, n_outlier: int) -> str | None:
    """Why there is no linear for a weight of so many input channels, or None."""
    if channels % CHANNEL_GROUP or n_outlier % CHANNEL_GROUP:
        return f"{n_outlier} outliers of {channels} channels; both must be multiples of {CHANNEL_GROUP}"
    return None


def prepare_linear(launcher: Launcher) -> None:
    for tile in TILES:
        launcher.prepare(tile.kernel, tile.shared)


def choose_tile(rows: int, outputs: int, multiprocessors: int) -> Tile:
    """Large tiles where they keep every multiprocessor busy."""
    large, small = TILES
    return large if math.prod(large.blocks(rows, outputs)) >= multiprocessors else small


def dual_scale_linear(
    launcher: Launcher,
    stream: int,
    tile: Tile,
    tokens: Tokens,
    weight: DecodedWeight,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """As `reference.dual_scale_linear`, to the bit, for what `refuses_linear` lets pass."""
    (rows, channels), outputs = tokens.codes.shape, len(weight.codes)
    out = tokens.codes.new_empty((rows, outputs), dtype=dtype)
    if out.numel():
        bias = None if bias is None else bias.float()
        given = (tokens.codes, weight.codes, tokens.scale, tokens.sums, weight.scale, weight.zero, bias)
        held = [aligned(x) for x in given]
        arguments = LinearArguments(
            *map(pointer, (*held, out)), rows, outputs, channels, weight.n_outlier, TYPES[dtype]
        )
        across, down = tile.blocks(rows, outputs)
        launcher.launch(tile.kernel, (across, down, 1), THREADS, tile.shared, arguments, stream)
    return out
