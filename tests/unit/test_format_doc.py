"""docs/format.md is enough to read our files: its own code decodes what we write."""

import re
from pathlib import Path

import pytest
import torch

from qarvd.checkpoint.quantized import write_linear
from qarvd.ops.codecs import CODECS
from qarvd.ops.split import ChannelSplit
from qarvd.quantize.rounding import ROUNDING, Task

DOCUMENT = Path(__file__).parents[2] / "docs" / "format.md"


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("outliers", [(), tuple(range(3, 67, 2))])
def test_the_documented_code_decodes_a_linear(codec: str, outliers: tuple[int, ...]) -> None:
    namespace: dict = {"torch": torch}
    for block in re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL):
        exec(block, namespace)
    weight = torch.randn(40, 96, generator=torch.Generator().manual_seed(0))
    quantized = ROUNDING["nearest"](Task(weight, ChannelSplit(96, outliers), CODECS[codec]))
    stored = dict(write_linear("layer", quantized))

    codes = stored["layer.weight"]
    if stored["layer.comfy_quant"].numpy().tobytes() == b'{"format": "qarvd_w4a8"}':
        codes = namespace["unpack"](codes)
    decoded = namespace["dequantize"](codes, stored["layer.weight_scale"], stored["layer.weight_outlier_idx"])
    torch.testing.assert_close(decoded, quantized.dequantize(), rtol=0, atol=0)
