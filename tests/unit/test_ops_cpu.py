"""The CPU backend is the reference within half a unit of the normal range, on processors with and without VNNI."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny.weights import KINDS, weight_with
from torch import Tensor

from qarvd.ops.backends import cpu
from qarvd.ops.backends.base import quantize
from qarvd.ops.backends.registry import REFERENCE, choose
from qarvd.ops.codecs import CODECS, Codec
from qarvd.ops.linear import QuantizedLinear
from qarvd.ops.split import ChannelSplit
from qarvd.ops.weight import QuantizedWeight

laws = settings(max_examples=40, deadline=None)
every_codec = pytest.mark.parametrize("codec", KINDS.values(), ids=KINDS)
ROUNDING = 8 * 2.0**-23
"""Room for float32 roundings, relative to the sum of magnitudes."""


def exact_product(x: Tensor, codes: Tensor) -> Tensor:
    return (x.double() @ codes.double().T).float()


def random_codes(rows: int, columns: int, most: int, seed: int) -> Tensor:
    """Codes up to +-`most`, the extremes often among them."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-most, most + 1, (rows, columns), dtype=torch.int8, generator=generator)
    extreme = torch.rand(rows, columns, generator=generator) < 0.3
    return torch.where(extreme, codes.sign() * most, codes).to(torch.int8)


def random_weight(codec: Codec, out: int, groups: int, heads: int, zero: bool, seed: int) -> QuantizedWeight:
    generator = torch.Generator().manual_seed(seed)
    split = ChannelSplit.of(32 * groups, torch.randperm(32 * groups, generator=generator)[: 32 * heads].tolist())
    normal = torch.rand(out, generator=generator) + 0.01
    scale = torch.stack([normal * 256 ** torch.rand(out, generator=generator), normal], dim=1)
    zeros = torch.randint(codec.low, codec.high + 1, (out, 2), dtype=torch.int8, generator=generator) if zero else None
    if codec.group:
        return weight_with(codec, split, scale, None, generator)
    return QuantizedWeight(codec, split, codec.pack(random_codes(out, 32 * groups, codec.high, seed)), scale, zeros)


@laws
@given(
    codec=st.sampled_from(list(KINDS.values())),
    rows=st.integers(1, 40),
    out=st.integers(1, 70),
    groups=st.integers(1, 10),
    share=st.floats(0, 0.5),
    zero=st.booleans(),
    biased=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_the_cpu_equals_the_reference_within_half_a_unit_of_the_normal_range(
    codec: Codec, rows: int, out: int, groups: int, share: float, zero: bool, biased: bool, seed: int
) -> None:
    weight = random_weight(codec, out, groups, int(share * groups), zero, seed)
    generator, n = torch.Generator().manual_seed(seed), weight.split.n_outlier
    bias = torch.randn(out, generator=generator) if biased else None
    x = torch.randn(rows, 32 * groups, generator=generator) * 10 ** torch.randn(32 * groups, generator=generator)
    quantized = quantize(x, weight, weight.guard)
    runs = [backend.prepare(weight).run_quantized for backend in (cpu.CPU, REFERENCE)]
    actual, expected = (run(quantized, bias) for run in runs if run is not None)
    assert actual.dtype == expected.dtype == torch.float32

    tokens = quantized.tokens
    codes, signed = tokens.codes.double().abs(), weight.decoded.codes.double().abs()
    steps = tokens.scale.unsqueeze(1).double() * weight.scale.double()  # [M, N, 2]
    zeros = torch.zeros(out, 2) if weight.zero is None else weight.zero.double().abs()
    terms = torch.stack([codes[:, a] @ signed[:, a].T for a in (slice(n), slice(n, None))], dim=-1)
    terms += tokens.sums.unsqueeze(1).double().abs() * zeros
    magnitude = (steps * terms).sum(-1) + (0 if bias is None else bias.abs())
    fold = 0.5 * steps[..., 1] if n else 0
    assert ((actual.double() - expected.double()).abs() <= fold + ROUNDING * magnitude).all()


@every_codec
def test_the_cpu_backend_is_chosen_on_the_cpu_and_refuses_other_devices(codec: Codec) -> None:
    weight = random_weight(codec, 4, 2, 1, False, 0)
    assert choose(weight).name == "cpu"
    elsewhere = weight.to("meta")
    assert cpu.refuses(elsewhere) == "the weight is on meta"
    assert choose(elsewhere).name == "weight-only"


@every_codec
@pytest.mark.parametrize("exact", [False, True])
def test_a_slow_path_says_so(codec: Codec, exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "sums_exactly", lambda: exact)
    large, small = (cpu.CPU.caveat(random_weight(codec, out, 16, 1, False, 0)) for out in (256, 255))
    assert ("VNNI" in str(large)) == (codec.high == 127 and not exact)
    assert small == (large or small) and small
    assert REFERENCE.caveat(random_weight(codec, 4, 2, 1, False, 0))


@pytest.mark.parametrize("exact", [False, True])
def test_without_vnni_only_8_bit_weights_run_as_whole_floats(exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    monkeypatch.setattr(cpu, "sums_exactly", lambda: exact)
    monkeypatch.setattr(cpu, "_byte_product", lambda codes, scale: used.append("bytes"))
    monkeypatch.setattr(cpu, "_whole_float_product", lambda codes, scale: used.append("floats"))
    for name in ("int4", "int8"):
        cpu.prepare(random_weight(CODECS[name], 4, 2, 0, False, 0))
    assert used == ["bytes", "bytes" if exact else "floats"]


CPUINFO = Path("/proc/cpuinfo")
AMX = CPUINFO.exists() and "amx_int8" in CPUINFO.read_text()


@laws
@given(
    rows=st.integers(1, 20),
    out=st.integers(1, 40),
    columns=st.sampled_from([1, 32, 96, 1040, 1056, 2080, 2112, 8960]),
    seed=st.integers(0, 2**32),
)
def test_products_of_whole_floats_are_exact(rows: int, out: int, columns: int, seed: int) -> None:
    x, codes = random_codes(rows, columns, 127, seed), random_codes(out, columns, 127, seed + 1)
    x[0], codes[0] = 127, 127
    actual = cpu._whole_float_product(codes, torch.ones(out))(x)
    assert torch.equal(actual, exact_product(x, codes))
    if cpu.sums_exactly():
        # With AMX, sums of bytes from 0 to 255 are rounded to float32 where they pass 2^24; without, nothing is.
        most = 255 * 127 * columns
        slack = 2 * most / 2**24 if AMX and most > 2**24 else 0
        assert (cpu._byte_product(codes, torch.ones(out))(x) - actual).abs().max() <= slack


@laws
@given(
    rows=st.integers(1, 40),
    out=st.integers(1, 70),
    columns=st.sampled_from([32, 64, 96, 1504, 8960]),
    seed=st.integers(0, 2**32),
)
def test_byte_products_are_exact_for_small_weights_everywhere(rows: int, out: int, columns: int, seed: int) -> None:
    x, codes = random_codes(rows, columns, 127, seed), random_codes(out, columns, 8, seed + 1)
    assert torch.equal(cpu._byte_product(codes, torch.ones(out))(x), exact_product(x, codes))


PROBE = """
import torch
from qarvd.ops.backends import cpu
generator = torch.Generator().manual_seed(0)
for rows, out, columns in ((1, 16, 64), (1, 64, 1536), (33, 48, 96), (64, 70, 1504), (130, 96, 2048)):
    x = torch.randint(-127, 128, (rows, columns), dtype=torch.int8, generator=generator)
    for most in (8, 127):
        codes = torch.randint(-most, most + 1, (out, columns), dtype=torch.int8, generator=generator)
        actual = cpu._byte_product(codes, torch.ones(out))(x)
        exact = torch.equal(actual, (x.double() @ codes.double().T).float())
        assert exact == (most == 8 or cpu.sums_exactly()), (rows, out, columns, most, cpu.sums_exactly())
"""


@pytest.mark.parametrize("isa", ["DEFAULT", "AVX512_CORE", "AVX2"])
def test_the_probe_tells_whether_8_bit_products_are_exact(isa: str) -> None:
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": isa, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_outputs_have_the_dtype_of_the_tokens(dtype: torch.dtype) -> None:
    weight = random_weight(CODECS["int8"], 5, 3, 1, True, 0)
    linear = QuantizedLinear(weight, torch.zeros(5))
    x = torch.randn(2, 3, 96, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(linear(x), linear(x.float()).to(dtype))


def test_activations_are_not_changed_by_a_product() -> None:
    weight = random_weight(CODECS["int8"], 5, 3, 1, True, 0)
    linear = QuantizedLinear(weight, None)
    quantized = quantize(torch.randn(4, 96), weight, weight.guard)
    before = [t.clone() for t in quantized.tokens]
    first = linear(quantized)
    assert all(torch.equal(a, b) for a, b in zip(quantized.tokens, before, strict=True))
    assert torch.equal(linear(quantized), first)
