"""A small bitmap font, so that a picture can say what it shows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

HEIGHT = 8
"""Rows of a line of text before scaling: seven, and one for descenders."""
SPACE = 3
"""Columns of a blank."""

_SHAPES = r"""
a2054545478 b7f44444438 c3844444428 d384444447f e3854545418 f087e0901 g18a4a4a47c h7f04040478 i7d j80847d k7f102844
l3f40 m7c04780478 n7c04040478 o3844444438 pfc24242418 q18242424fc r7c080404 s48545424 t043f4420 u3c4040207c
v1c2040201c w3c4030403c x4428102844 y1ca0a0a07c z4464544c44 A7e1111117e B7f49494936 C3e41414122 D7f4141413e
E7f49494941 F7f09090901 G3e4149493a H7f0808087f I417f41 J304040403f K7f08142241 L7f40404040 M7f020c027f N7f0408107f
O3e4141413e P7f09090906 Q3e4151215e R7f09192946 S2649494932 T01017f0101 U3f4040403f V1f2040201f W3f4038403f
X6314081463 Y0708700807 Z6151494543 03e5149453e 1427f40 26251494946 32241494936 41814127f10 52745454539 63c4a494930
70171090503 83649494936 9064949291e .60 :36 ;8076 !5f ?0201510906 '03 "030003 -080808 +08083e0808 =1414141414
*14083e0814 /6018060300 %2313086462 (1c2241 )41221c [7f4141 ]41417f _4040404040 <081422 >221408 #147f147f14
&3649552250 @3e415d551e |7f ~0804080804 ^020102 $242a7f2a12 \030c3060 `0102 {083641 }413608 ,8060
"""
GLYPHS = {entry[0]: bytes.fromhex(entry[1:]) for entry in _SHAPES.split()}
"""Columns of each character from left to right; bit 0 is the top row."""
UNKNOWN = bytes.fromhex("7f41414141417f")


@cache
def _bitmap(content: str) -> Tensor:
    """`content` before scaling: bool [HEIGHT, width]."""
    columns: list[int] = []
    for character in content:
        columns += [*(bytes(SPACE) if character == " " else GLYPHS.get(character, UNKNOWN)), 0]
    bits = torch.tensor(columns[:-1], dtype=torch.uint8)  # [width]
    return (bits >> torch.arange(HEIGHT, dtype=torch.uint8)[:, None] & 1).bool()


def text_width(content: str, scale: int = 1) -> int:
    """Pixels that `content` takes from left to right."""
    return _bitmap(content).shape[1] * scale


def fit(content: str, width: int, scale: int = 1) -> str:
    """`content`, cut short with dots where it is wider than `width` pixels."""
    if text_width(content, scale) <= width:
        return content
    kept = next((n for n in range(len(content), 0, -1) if text_width(content[:n] + "...", scale) <= width), 0)
    return content[:kept].rstrip() + "..."


def draw_text(image: Tensor, content: str, x: int, y: int, scale: int, colour: Sequence[float]) -> None:
    """Draw `content` into `image` [height, width, 3], its top left corner at (x, y); what falls outside is cut off."""
    bitmap = _bitmap(content).repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    top, left = max(0, -y), max(0, -x)
    place = image[max(0, y) :, max(0, x) :]
    ink = bitmap[top : top + place.shape[0], left : left + place.shape[1]]
    place[: ink.shape[0], : ink.shape[1]][ink] = torch.tensor(colour, dtype=image.dtype, device=image.device)
