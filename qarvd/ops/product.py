"""Which tensors the linear's two ops take; every backend asks here first, so that all refuse the same in one voice."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ShapeError
from .codecs import codec_of
from .codecs.int4 import GROUP
from .expect import FLOATS, expect


def check_activation(x: Tensor, order: Tensor | None, n_outlier: int) -> None:
    """Raise ShapeError, in a sentence, unless `quantize_activation` can take these tokens [..., channels]."""
    if not x.dim() or not x.shape[-1]:
        raise ShapeError(f"Tokens of shape {tuple(x.shape)} have no channels.")
    expect("Tokens", x, x.shape, FLOATS, x.device)
    channels = x.shape[-1]
    if not 0 <= n_outlier < channels:
        raise ShapeError(f"{n_outlier} of {channels} channels can't be outliers: at least one must be none.")
    if order is not None:
        expect("Channels in the kernel's order", order, (channels,), (torch.int64, torch.int32), x.device)


def check_linear(
    codes: Tensor,
    scale: Tensor,
    sums: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    weight_zero: Tensor | None,
    bias: Tensor | None,
    n_outlier: int,
    bits: int,
    dtype: torch.dtype,
) -> None:
    """Raise ShapeError (SettingError for `bits`), in a sentence, unless `dual_scale_linear` can take these."""
    codec, device = codec_of(bits), codes.device
    expect("The tokens' codes", codes, (None, None), (torch.int8,), device)
    rows, channels = codes.shape
    if bits == 4 and channels % GROUP:
        raise ShapeError(f"4-bit weights need a multiple of {GROUP} channels; {channels} came.")
    expect("The tokens' scales", scale, (rows, 2), (torch.float32,), device)
    expect("The tokens' sums", sums, (rows, 2), (torch.int32,), device)
    expect("The weight's codes", weight, (None, channels * bits // 8), (codec.stored,), device)
    outputs = weight.shape[0]
    expect("The weight's scales", weight_scale, (outputs, 2), (torch.float32,), device)
    if weight_zero is not None:
        expect("The weight's zero points", weight_zero, (outputs, 2), (torch.int8,), device)
    if bias is not None:
        expect("Biases", bias, (outputs,), FLOATS, device)
    if not 0 <= n_outlier <= channels:
        raise ShapeError(f"{n_outlier} of {channels} channels can't be outliers.")
    if dtype not in FLOATS:
        raise ShapeError(f"Results were asked for as {dtype}; expected {' or '.join(map(str, FLOATS))}.")
