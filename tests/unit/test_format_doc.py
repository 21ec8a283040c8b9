"""docs/format.md is enough to read our files: its own code decodes what we write."""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from qarvd.checkpoint.quantized import write_linear
from qarvd.ops.codecs import CODECS
from qarvd.ops.split import ChannelSplit
from qarvd.quantize.rounding import ROUNDING, Task

DOCUMENT = Path(__file__).parents[2] / "docs" / "format.md"


@pytest.fixture
def documented(tmp_path: Path) -> dict[str, Any]:
    """What the document's code defines, run as the file that a reader would make of it."""
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    path = tmp_path / "documented.py"
    path.write_text("\n".join(["import torch", *blocks]))
    return runpy.run_path(str(path))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("rotation", [0, 64])
@pytest.mark.parametrize("outliers", [(), tuple(range(3, 131, 2))])
def test_the_documented_code_decodes_a_linear(
    documented: dict[str, Any], codec: str, rotation: int, outliers: tuple[int, ...]
) -> None:
    weight = torch.randn(40, 192, generator=torch.Generator().manual_seed(0))
    quantized = ROUNDING["nearest"](Task(weight, ChannelSplit(192, outliers, rotation), CODECS[codec]))
    stored = {key.removeprefix("layer."): tensor for key, tensor in write_linear("layer", quantized)}

    codes, bits = stored["weight"], int(codec[3])
    assert stored["comfy_quant"].numpy().tobytes().decode() == f'{{"format": "qarvd_w{codec[3:]}a8"}}'
    if codec == "int4":
        codes = documented["unpack"](codes)
    elif bits < 8:
        codes = documented["unpack_planes"](codes, {3: (2, 1), 4: (4,), 6: (4, 2)}[bits])
        uniform = torch.arange(2.0**bits) - 2 ** (bits - 1)
        if "g" in codec:
            table = stored.get("weight_table", uniform)
            codes = documented["decode"](codes, stored["weight_group_scale"], table)
        else:
            codes = codes - 32
    width = int(stored.get("weight_rotation", 1))
    decoded = documented["dequantize"](codes, stored["weight_scale"], stored["weight_outlier_idx"], width=width)
    torch.testing.assert_close(decoded, quantized.dequantize(), rtol=0, atol=2e-6 if rotation else 0)
