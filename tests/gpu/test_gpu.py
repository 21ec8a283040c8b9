"""The kernels on a real card; nothing here runs without one. `pytest tests/gpu` is the whole of it."""

from __future__ import annotations

from dataclasses import replace

import cases
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qarvd.ops import library, reference
from qarvd.ops.codecs import CODECS, cache_codec_of
from qarvd.ops.linear import QuantizedLinear
from qarvd.ops.values import KeyValue, Ring

pytestmark = pytest.mark.gpu
laws = settings(max_examples=100, deadline=None, print_blob=True)
BITS = (8, 4)
seeds = st.integers(0, 2**16)
dtypes = st.sampled_from(["float32", "float16", "bfloat16"])


def equal(actual: Tensor, expected: Tensor) -> bool:
    return torch.equal(actual.cpu(), expected)


Case = tuple[QuantizedLinear, Tensor]


def linear_case(bits: int, rows: int, outputs: int, groups: int, outliers: int, dtype: str, seed: int) -> Case:
    """A rotated layer with a bias, and with zero points or scales of groups, and tokens, on the CPU."""
    n_outlier, codec = 32 * min(outliers, groups // 2), CODECS[{8: "int8", 4: "int4g16"}[bits]]
    weight = cases.weight_of(codec, outputs, 32 * groups, n_outlier, True, seed, rotation=256)
    layer = QuantizedLinear(weight, torch.randn(outputs, generator=cases.draw(seed)))
    return layer, cases.tokens_of(rows, weight, dtype, seed + 1)


def expected_of(layer: QuantizedLinear, x: Tensor) -> Tensor:
    """What the reference makes of `x`."""
    weight = layer.weight
    tokens = reference.quantize_activation(x, weight.columns, weight.guard)
    return reference.dual_scale_linear(tokens, weight.decoded, layer.bias, x.dtype)


@pytest.mark.parametrize("bits", BITS)
@laws
@given(
    rows=st.integers(9, 400),
    outputs=st.integers(1, 400),
    groups=st.integers(1, 20),
    outliers=st.integers(0, 10),
    dtype=dtypes,
    seed=seeds,
)
def test_linears_equal_the_reference(
    card: torch.device, bits: int, rows: int, outputs: int, groups: int, outliers: int, dtype: str, seed: int
) -> None:
    layer, x = linear_case(bits, rows, outputs, groups, outliers, dtype, seed)
    expected = expected_of(layer, x)
    assert equal(layer.to(card)(x.to(card)), expected)


@pytest.mark.parametrize("bits", BITS)
def test_linears_of_wan_equal_the_reference(card: torch.device, bits: int) -> None:
    layer, x = linear_case(bits, 1560, 1536, 280, 2, "bfloat16", 0)
    expected = expected_of(layer, x)
    assert equal(layer.to(card)(x.to(card)), expected)


@pytest.mark.parametrize("name", [name for name, codec in CODECS.items() if codec.bits < 8])
def test_weights_are_decoded_as_the_reference_says(card: torch.device, name: str) -> None:
    weight = cases.weight_of(CODECS[name], 72, 1536, 192, True, 0)
    assert equal(library.decode_weight(weight.to(card).packed), weight.decoded.codes)


def test_few_tokens_are_multiplied_as_they_are(card: torch.device) -> None:
    layer, x = linear_case(8, 3, 64, 8, 1, "bfloat16", 0)
    expected = F.linear(x.float(), layer.weight.dequantize(), layer.bias)
    actual = layer.to(card)(x.to(card)).float().cpu()
    assert (actual - expected).norm() < 1e-2 * expected.norm()


@pytest.mark.parametrize("bits", BITS)
@laws
@given(
    tokens=st.integers(1, 90),
    position=st.integers(0, 300),
    head_dim=st.sampled_from([64, 128]),
    dtype=dtypes,
    seed=seeds,
)
def test_rings_equal_the_reference(
    card: torch.device, bits: int, tokens: int, position: int, head_dim: int, dtype: str, seed: int
) -> None:
    key, value = (cases.chunk(2, 3, tokens, head_dim, dtype, seed + i, fused=True) for i in range(2))
    offset = torch.randn(2, 3, head_dim, generator=cases.draw(seed))
    expected = cases.empty_ring(bits, 2, 3, 100, head_dim)
    actual = expected.to(card)
    reference.kv_append(key, value, offset, expected, position)
    library.kv_append(key.to(card), value.to(card), offset.to(card), actual, position)
    assert all(equal(a, b) for a, b in zip(actual.tensors, expected.tensors, strict=True))


def ring_of(bits: int, length: int, head_dim: int, offset: Tensor | None, seed: int) -> Ring:
    ring = cases.empty_ring(bits, 1, 2, length + 3, head_dim)
    key, value = (cases.chunk(1, 2, length, head_dim, "float32", seed + i) for i in range(2))
    reference.kv_append(key, value, offset, ring, 0)
    return ring


@pytest.mark.parametrize("bits", BITS)
@laws
@given(
    rows=st.integers(1, 200),
    length=st.integers(1, 700),
    sink=st.integers(0, 100),
    new=st.integers(0, 200),
    head_dim=st.sampled_from([64, 128]),
    dtype=st.sampled_from(["float16", "bfloat16"]),
    seed=seeds,
)
def test_attention_errs_less_than_twice_plain_torch(
    card: torch.device, bits: int, rows: int, length: int, sink: int, new: int, head_dim: int, dtype: str, seed: int
) -> None:
    """Both against float32, on the same ring; torch dequantizes it to the same 16-bit dtype."""
    offset = torch.randn(1, 2, head_dim, generator=cases.draw(seed))
    ring = ring_of(bits, length, head_dim, offset, seed)
    query = cases.chunk(1, 2, rows, head_dim, dtype, seed + 2, fused=True)
    held = [cases.held_pair(1, 2, n, head_dim, dtype, seed + 3 + 2 * i) for i, n in enumerate((sink, new))]
    wide = [None if pair is None else KeyValue(*(x.float() for x in pair)) for pair in held]
    expected = reference.kv_attention(query.float(), ring, length, offset, *wide)
    there = [None if pair is None else KeyValue(*(x.to(card) for x in pair)) for pair in held]
    actual = library.kv_attention(query.to(card), ring.to(card), length, offset.to(card), *there).float().cpu()
    plain = _dequantized_sdpa(card, query, ring, length, offset, held).float().cpu()
    assert (actual - expected).norm() <= 2 * (plain - expected).norm() + 1e-6 * expected.norm()
    allowed = cases.allowed(query.float(), ring, length, offset, wide, query.dtype)
    assert ((actual - expected).abs() <= allowed).all()


def _dequantized_sdpa(
    card: torch.device,
    query: Tensor,
    ring: Ring,
    length: int,
    offset: Tensor,
    held: list[KeyValue | None],
) -> Tensor:
    unpack = cache_codec_of(ring.bits).unpack
    keys = unpack(ring.key_codes[:, :, :length]).float() * ring.key_scale[:, :, :length, None] + offset.unsqueeze(2)
    values = unpack(ring.value_codes[:, :, :length]).float() * ring.value_scale[:, :, :length, None]
    for pair in held:
        if pair is not None:
            keys, values = torch.cat([keys, pair.key.float()], dim=2), torch.cat([values, pair.value.float()], dim=2)
    query, keys, values = (x.to(card, query.dtype) for x in (query, keys, values))
    return F.scaled_dot_product_attention(query, keys, values)


@pytest.mark.parametrize("bits", BITS)
def test_a_misaligned_view_is_copied_and_loses_no_context(card: torch.device, bits: int) -> None:
    """Launched as it is, it would be an error that ends the process's use of the card."""
    layer, x = linear_case(bits, 100, 64, 8, 1, "float16", 0)
    expected = expected_of(layer, x)
    weight = layer.weight.to(card)
    room = torch.zeros(weight.codes.numel() + 1, dtype=weight.codes.dtype, device=card)
    odd = room[1:].view(weight.codes.shape).copy_(weight.codes)
    shifted = QuantizedLinear(replace(weight, codes=odd), None if layer.bias is None else layer.bias.to(card))
    assert equal(shifted(x.to(card)), expected)
    tokens = torch.zeros(x.numel() + 1, dtype=x.dtype, device=card)[1:].view(x.shape).copy_(x)
    assert equal(shifted(tokens), expected)


@pytest.mark.parametrize("rows", [3, 200])  # few tokens are multiplied by weights that are dequantized
@pytest.mark.parametrize("bits", BITS)
def test_a_captured_graph_gives_what_calls_give(card: torch.device, bits: int, rows: int) -> None:
    layer, x = linear_case(bits, rows, 256, 8, 2, "float16", 0)
    layer, x = layer.to(card), x.to(card)
    layer.prepare()
    ring = ring_of(bits, 300, 64, None, 1).to(card)
    query = cases.chunk(1, 2, 70, 64, "float16", 2).to(card)

    def work() -> tuple[Tensor, Tensor]:
        return layer(x), library.kv_attention(query, ring, 300, None, None, None)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()  # as torch asks for; cuBLAS takes its workspace here
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = work()
    x.mul_(0.5)
    query.neg_()
    graph.replay()
    for actual, expected in zip(captured, work(), strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_prepared_linear_is_captured_at_its_first_call(card: torch.device, bits: int) -> None:
    layer, x = linear_case(bits, 200, 256, 8, 2, "float16", 0)
    layer, x = layer.to(card), x.to(card)
    layer.prepare()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = layer(x)
    graph.replay()
    assert torch.equal(captured, layer(x))


def test_kernels_run_on_the_stream_that_torch_works_on(card: torch.device) -> None:
    layer, x = linear_case(8, 300, 512, 16, 2, "float16", 0)
    layer = layer.to(card)
    expected = layer(x.to(card))
    streams = [torch.cuda.Stream() for _ in range(2)]
    results = []
    for stream in streams:
        with torch.cuda.stream(stream):
            late = x.to(card)
            torch.cuda._sleep(50_000_000)
            late = late + 0  # ready only after the sleep on this stream
            results.append(layer(late))
    torch.cuda.synchronize()
    assert all(torch.equal(actual, expected) for actual in results)


def test_every_card_has_kernels_of_its_own(card: torch.device) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two NVIDIA cards")
    layer, x = linear_case(8, 100, 128, 8, 1, "float16", 0)
    expected = expected_of(layer, x)
    for index in range(2):
        where = torch.device("cuda", index)
        assert equal(layer.to(where)(x.to(where)), expected)


@pytest.mark.parametrize("prepared", [True, False])
def test_a_linear_compiles_into_one_graph(card: torch.device, prepared: bool) -> None:
    layer, x = linear_case(4, 100, 128, 8, 1, "float16", 0)
    layer, x = layer.to(card), x.to(card)
    torch._dynamo.reset()
    if prepared:
        layer.prepare()
    assert torch.equal(torch.compile(layer, fullgraph=True)(x), layer(x))


def test_ops_keep_the_rules_of_torch(card: torch.device) -> None:
    layer, x = linear_case(8, 20, 32, 2, 1, "float16", 0)
    weight, x = layer.weight.to(card), x.to(card)
    n = weight.split.n_outlier
    torch.library.opcheck(
        torch.ops.qarvd.quantize_activation, (x, weight.order, n, weight.guard, weight.split.rotation)
    )
    tokens = library.quantize_activation(x, weight.columns, weight.guard)
    arguments = (*tokens, weight.codes, weight.scale, weight.zero, None, n, torch.float16)
    torch.library.opcheck(torch.ops.qarvd.dual_scale_linear, arguments)
