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
@pytest.mark.parametrize("outliers", [(), tuple(range(3, 67, 2))])
def test_the_documented_code_decodes_a_linear(
    documented: dict[str, Any], codec: str, outliers: tuple[int, ...]
) -> None:
    weight = torch.randn(40, 96, generator=torch.Generator().manual_seed(0))
    quantized = ROUNDING["nearest"](Task(weight, ChannelSplit(96, outliers), CODECS[codec]))
    stored = dict(write_linear("layer", quantized))

    codes = stored["layer.weight"]
    if stored["layer.comfy_quant"].numpy().tobytes() == b'{"format": "qarvd_w4a8"}':
        codes = documented["unpack"](codes)
    decoded = documented["dequantize"](codes, stored["layer.weight_scale"], stored["layer.weight_outlier_idx"])
    torch.testing.assert_close(decoded, quantized.dequantize(), rtol=0, atol=0)
