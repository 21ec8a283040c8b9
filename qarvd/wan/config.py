"""The shape of a Wan model, read from its tensors where they tell and from metadata where they do not."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from ..errors import CheckpointError, ShapeError


@dataclass(frozen=True)
class WanConfig:
    """Dimensions of a causal Wan transformer; the names are those of ComfyUI's and Wan's constructors."""

    dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    text_dim: int = 4096
    text_len: int = 512
    freq_dim: int = 256
    in_dim: int = 16
    out_dim: int = 16
    patch_size: tuple[int, int, int] = (1, 2, 2)
    eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.dim % self.num_heads or (self.dim // self.num_heads) % 2:
            raise ShapeError(f"dim {self.dim} does not split into {self.num_heads} heads of even size.")

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    def transformer_metadata(self) -> dict[str, object]:
        """Constructor keys of ComfyUI's causal model that cannot be read off the tensors."""
        keys = ("num_heads", "text_dim", "text_len", "freq_dim")
        return {"causal_ar": True, **{key: value for key, value in asdict(self).items() if key in keys}}

    @classmethod
    def from_shapes(
        cls, shapes: Mapping[str, Sequence[int]], transformer: Mapping[str, object] | None = None
    ) -> WanConfig:
        """Derive the dimensions from tensor shapes; `transformer` is the file's `config["transformer"]`.

        Head count and text length are not visible in the tensors; without metadata they are Wan's own
        (heads of 128 channels, 512 text tokens). Raises CheckpointError where a needed tensor is missing.
        """
        transformer = dict(transformer or {})

        def shape(key: str, axes: int = 2) -> Sequence[int]:
            if key not in shapes:
                raise CheckpointError(
                    f"{key} is missing: this is not a Wan video transformer (a LoRA, a VAE and a text encoder have "
                    "loaders of their own)."
                )
            if len(shapes[key]) != axes or not all(shapes[key]):
                raise CheckpointError(
                    f"{key} has shape {tuple(shapes[key])} instead of {axes} axes: this is not a Wan video transformer."
                )
            return shapes[key]

        dim, in_dim, *patch = shape("patch_embedding.weight", axes=5)
        blocks = {int(m[1]) for key in shapes if (m := re.match(r"blocks\.(\d+)\.", key))}
        if not blocks or blocks != set(range(len(blocks))):
            raise CheckpointError(
                f"This is not a Wan video transformer: its blocks are {sorted(blocks)} (0, 1, 2, ... expected)."
            )
        volume = patch[0] * patch[1] * patch[2]
        out_dim = shape("head.head.weight")[0] // volume
        if patch[0] != 1 or in_dim != out_dim:
            raise CheckpointError(
                f"This model takes {in_dim} channels in patches of {patch[0]} frames and returns {out_dim}; only "
                "text-to-video models, with as many channels in as out and patches of one frame, can be streamed."
            )
        return cls(
            dim=dim,
            ffn_dim=shape("blocks.0.ffn.0.weight")[0],
            num_heads=_integer(transformer, "num_heads", max(1, dim // 128)),
            num_layers=len(blocks),
            text_dim=_integer(transformer, "text_dim", shape("text_embedding.0.weight")[1]),
            text_len=_integer(transformer, "text_len", 512),
            freq_dim=shape("time_embedding.0.weight")[1],
            in_dim=in_dim,
            out_dim=out_dim,
            patch_size=(patch[0], patch[1], patch[2]),
        )


def _integer(transformer: Mapping[str, object], key: str, default: int) -> int:
    value = transformer.get(key, default)
    if type(value) is not int or value < 1:
        raise CheckpointError(f"The file's metadata says {key} = {value!r}; a positive whole number was expected.")
    return value
