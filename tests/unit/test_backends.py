"""Who runs a linear, and that each backend which can compute here passes the self-test that `doctor` prints."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from tiny.weights import KINDS, weight_with
from torch import Tensor

from qarvd import log
from qarvd.cli import main
from qarvd.errors import SettingError
from qarvd.ops import self_test
from qarvd.ops.backends import registry
from qarvd.ops.backends.base import Backend
from qarvd.ops.backends.registry import BACKENDS, VARIABLE, choose, force, forced, who_runs
from qarvd.ops.codecs import CODECS, Codec
from qarvd.ops.linear import QuantizedLinear, prepare, run_linear
from qarvd.ops.split import ChannelSplit
from qarvd.ops.values import Prepared
from qarvd.ops.weight import QuantizedWeight

CPU = torch.device("cpu")
every_codec = pytest.mark.parametrize("codec", KINDS.values(), ids=KINDS)


@pytest.fixture(autouse=True)
def unforced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(log, "_said", set())
    yield
    force(None)


def named(name: str) -> Backend:
    (found,) = (backend for backend in BACKENDS if backend.name == name)
    return found


def weight_of(codec: Codec, seed: int = 0) -> QuantizedWeight:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(24, 2, generator=generator) + 0.01
    return weight_with(codec, ChannelSplit.of(96, range(1, 65, 2)), scale, None, generator)


@pytest.mark.parametrize("name", ["cpu", "reference", "weight-only", "comfy-kitchen"])
def test_doctor_tests_every_backend_with_the_tokens_that_it_takes(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A backend for cards is let in on the CPU, as if the ones before it refused the card."""
    monkeypatch.setattr(registry, "BACKENDS", (replace(named(name), refuses=lambda weight: None),))
    code = main(["doctor"])
    printed = capsys.readouterr().out
    assert code == 0 and "All self-tests passed." in printed
    assert all(line.split()[1] == name for line in printed.splitlines() if line.startswith("dual_scale_linear"))


def without_bias(prepared: Prepared) -> Prepared:
    return Prepared(lambda x, bias: prepared.run(x, None))


def in_another_order(prepared: Prepared) -> Prepared:
    return Prepared(lambda x, bias: prepared.run(x.flip(-1), bias))


def twice_as_coarse(prepared: Prepared) -> Prepared:
    def run(x: Tensor, bias: Tensor | None) -> Tensor:
        step = x.abs().amax(-1, keepdim=True) / 15
        return prepared.run((x / step).round() * step, bias)

    return Prepared(run)


@pytest.mark.parametrize("spoil", [without_bias, in_another_order, twice_as_coarse])
@pytest.mark.parametrize("name", ["weight-only", "comfy-kitchen"])
def test_the_self_test_sees_faults_of_backends_that_take_floats(
    spoil: object, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = named(name)
    assert callable(spoil)
    spoiled = replace(right, prepare=lambda weight: spoil(right.prepare(weight)))
    for backend, passes in ((right, True), (spoiled, False)):
        monkeypatch.setattr(self_test, "choose", lambda weight, backend=backend: backend)
        assert (self_test.checks()["dual_scale_linear"](CPU, torch.float32) <= 1) == passes


@every_codec
def test_a_forced_backend_runs_whatever_is_prepared_from_then_on(codec: Codec) -> None:
    weight = weight_of(codec)
    assert choose(weight).name == "cpu"
    with forced("reference"):
        assert choose(weight).name == "reference"
    assert choose(weight).name == "cpu"


def test_a_forced_backend_that_cannot_run_or_does_not_exist_is_an_error_that_names_it() -> None:
    force("cuda")
    with pytest.raises(SettingError, match=rf"cuda was asked for \({VARIABLE}\), but it can't run: the tensors are on"):
        choose(weight_of(CODECS["int8"]))
    with pytest.raises(SettingError, match=r"no backend 'cudda'.*choose one of cpu, cuda, comfy-kitchen"):
        force("cudda")
    force("")  # a variable that is set to nothing
    assert choose(weight_of(CODECS["int8"])).name == "cpu"


@pytest.mark.parametrize(("name", "code", "runs"), [("reference", 0, "reference"), ("cuda", 1, "nothing")])
def test_the_environment_forces_one(
    name: str, code: int, runs: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(VARIABLE, name)
    assert main(["doctor"]) == code
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in printed if line.startswith("dual_scale_linear")] == [runs]
    verdict = "Some ops do not run: QARVD_BACKEND forces a backend that refuses them."
    assert printed[-1] == (verdict if code else "All self-tests passed.")
    monkeypatch.setenv(VARIABLE, "none of them")
    assert main(["doctor"]) == 2 and "no backend 'none of them'" in capsys.readouterr().err


def test_the_log_says_which_backend_runs_a_layer_and_why_no_faster_one(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="qarvd")
    prepare(weight_of(CODECS["int4"]))
    assert "96 -> 24, w4, on cpu: cpu (the first choice)" in caplog.text
    with forced("reference"):
        prepare(weight_of(CODECS["int4"]))
    assert "on cpu: reference (forced)" in caplog.text
    prepare(weight_of(CODECS["int8"]).to("meta"))
    assert "w8, on meta: weight-only (cpu: the weight is on meta; cuda: the tensors are on meta; comfy" in caplog.text


def test_a_caveat_is_said_once_whatever_the_number_of_layers(caplog: pytest.LogCaptureFixture) -> None:
    with forced("reference"):
        for seed in range(3):
            prepare(weight_of(CODECS["int8"], seed))
    assert caplog.text.count("Quantized linears run in plain torch here") == 1


@every_codec
@pytest.mark.parametrize("prepared", [True, False])
def test_a_freshly_moved_layer_compiles_into_one_graph(codec: Codec, prepared: bool) -> None:
    """Nothing that its weight needs is computed from numbers at the first call, in a graph or in its capture."""
    torch._dynamo.reset()
    layer = QuantizedLinear(weight_of(codec), torch.ones(24)).to("cpu")
    x = torch.randn(2, 5, 96, generator=torch.Generator().manual_seed(0))
    if prepared:
        layer.prepare()
    actual = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
    expected = layer(x)
    assert torch.equal(actual, expected) if prepared else (actual - expected).norm() < 1e-2 * expected.norm()
    assert layer.weight.prepared is not None, "what a trace made is not kept"


@pytest.mark.parametrize("name", ["cpu", "weight-only", "comfy-kitchen", "reference"])
@every_codec
def test_a_layer_that_has_run_compiles_into_one_graph(codec: Codec, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    backend = replace(named(name), refuses=lambda weight: None)
    monkeypatch.setattr(registry, "BACKENDS", (backend,))
    layer = QuantizedLinear(weight_of(codec), torch.ones(24))
    x = torch.randn(2, 5, 96, generator=torch.Generator().manual_seed(0))
    expected = layer(x)
    actual = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
    assert (actual - expected).norm() < 1e-2 * expected.norm()


@pytest.mark.parametrize(
    ("where", "name", "calls"),
    [("meta", None, False), ("meta", "reference", True), ("cpu", None, True), ("cpu", "weight-only", False)],
)
def test_a_graph_calls_the_op_where_a_kernel_runs_it_and_else_dequantizes(
    where: str, name: str | None, calls: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The op in plain torch is many times slower than dequantized weights: on a card without kernels, say."""
    torch._dynamo.reset()
    force(name)
    weight = weight_of(CODECS["int4"]).to(where)
    graphs: list[str] = []

    def capture(graph: torch.fx.GraphModule, inputs: object) -> object:
        graphs.append(str(graph.graph))
        return graph.forward

    linear = torch.compile(lambda x: run_linear(x, weight, None), fullgraph=True, backend=capture)
    linear(torch.ones(64, 96, device=where))
    assert ("qarvd.dual_scale_linear" in graphs[0]) == calls
    assert ("dequantized at every call" in caplog.text) == (not calls)


@pytest.mark.parametrize("name", ["cpu", "reference", "weight-only", "comfy-kitchen"])
@every_codec
def test_no_tokens_are_no_error(codec: Codec, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "BACKENDS", (replace(named(name), refuses=lambda weight: None),))
    assert run_linear(torch.ones(3, 0, 96), weight_of(codec), torch.ones(24)).shape == (3, 0, 24)


@every_codec
def test_a_move_carries_what_was_derived(codec: Codec) -> None:
    weight = weight_of(codec)
    moved = weight.to("meta")
    assert moved.guard == weight.guard > 0
    assert moved.order is not None and moved.order.device.type == "meta"
    run_linear(torch.zeros(1, 96), weight, None)
    assert weight.prepared is not None and weight.to("cpu").prepared is None


def test_the_table_says_for_every_op_what_torch_will_run() -> None:
    table = who_runs(torch.device("cpu"))
    assert set(table) == {
        "quantize_activation", "decode_weight", "dual_scale_linear", "kv_append", "kv_attention"
    }  # fmt: skip
    for op, standings in table.items():
        chosen = next(standing for standing in standings if standing.refusal is None)
        assert standings[-1] == ("reference", None)
        if not op.startswith("dual"):
            own = torch._C._dispatch_has_kernel_for_dispatch_key(f"qarvd::{op}", "CPU")
            assert chosen.backend == ("cpu" if own else "reference")
            assert standings[0] == ("cuda", "the tensors are on cpu")
    for op, standings in who_runs(torch.device("meta")).items():
        willing = [standing.backend for standing in standings if standing.refusal is None]
        assert willing == (["weight-only", "reference"] if op.startswith("dual") else ["reference"])
