"""The main loops of the compiled CUDA kernels stay bound by tensor cores on Ampere and Ada; counted, not timed.

Every number is from machine code and published rates, see benchmarks/sass.py.
"""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from machine.architectures import ARCHITECTURES
from machine.code import BYTES, Instruction, NoTools, find_tools
from machine.loops import loops
from roofline import RECORD
from sass import Kernel, own

from qarvd.errors import DeviceError
from qarvd.ops.cuda.cubins import SHIPPED

LEAST_BLOCKS = 2
"""Of a multiprocessor, so that one computes while another waits."""
ISSUE, SHARED = 0.5, 1.0
"""The most issue slots of what is not a product, and clocks of shared memory, for each tensor cycle."""
CARDS = ("sm_80", "sm_86", "sm_89")
LINEARS = ("qarvd_linear_large",)
ATTENTIONS = tuple(f"qarvd_attention_128_{dtype}_kv{bits}" for dtype in ("fp16", "bf16") for bits in (8, 4))
NOT_REACHED = {
    # A100's tensor cores take 8 clocks for what takes GeForce cards 16 and, in 16 bits, 32; the rest takes as many.
    ("sm_80", "qarvd_attention_128_fp16_kv8", "bytes"): (0.70, SHARED),
    ("sm_80", "qarvd_attention_128_bf16_kv8", "bytes"): (0.70, SHARED),
    ("sm_80", "qarvd_attention_128_fp16_kv4", "bytes"): (0.87, SHARED),
    ("sm_80", "qarvd_attention_128_bf16_kv4", "bytes"): (0.87, SHARED),
    # With 16 queries a warp, keys and values of 16 bits are read from shared memory too often for it.
    ("sm_80", "qarvd_attention_128_fp16_kv8", "floats"): (0.60, 1.41),
    ("sm_80", "qarvd_attention_128_fp16_kv4", "floats"): (0.60, 1.41),
    ("sm_80", "qarvd_attention_128_bf16_kv8", "floats"): (0.60, 1.41),
    ("sm_80", "qarvd_attention_128_bf16_kv4", "floats"): (0.60, 1.41),
}
"""What misses the limits, by card, kernel and loop: as it is measured, so that it does not get worse."""


@pytest.fixture(scope="module")
def kernels() -> dict[tuple[str, str], Kernel]:
    chosen = [ARCHITECTURES[name] for name in CARDS]
    try:
        made = list(own(find_tools(), chosen, SHIPPED, None, compile_it=False))
    except (NoTools, DeviceError) as error:
        pytest.skip(str(error))
    return {(kernel.architecture, kernel.name): kernel for kernel in made}


@pytest.mark.parametrize("name", [*LINEARS, *ATTENTIONS])
@pytest.mark.parametrize("card", CARDS)
def test_main_loops_are_bound_by_tensor_cores(kernels: dict[tuple[str, str], Kernel], card: str, name: str) -> None:
    kernel = kernels[card, name]
    assert (kernel.stack, kernel.spills) == (0, 0)
    assert kernel.blocks >= LEAST_BLOCKS
    assert kernel.turns
    for turn in kernel.turns:
        issue, shared = NOT_REACHED.get((card, name, turn.kind), (ISSUE, SHARED))
        assert turn.tensor_cycles is not None
        assert turn.usual - turn.tensor <= issue * turn.tensor_cycles, turn
        assert turn.shared_cycles <= shared * turn.tensor_cycles, turn


def test_the_record_of_the_docs_is_what_the_shipped_code_counts(kernels: dict[tuple[str, str], Kernel]) -> None:
    recorded = {(made["architecture"], made["name"]): made for made in json.loads(RECORD.read_text())["qarvd"]}
    for place, kernel in kernels.items():
        assert json.loads(json.dumps(asdict(kernel))) == recorded[place]


def _code(*lines: str) -> list[Instruction]:
    """Lines such as `@BRA 4`: predicated, to the fourth instruction."""
    made = []
    for i, line in enumerate(lines):
        opcode, *operands = line.removeprefix("@").split()
        targets = ",".join(hex(int(operand) * BYTES) for operand in operands)
        made.append(Instruction(i * BYTES, opcode, targets, line.startswith("@")))
    return made


def _names(code: tuple[Instruction, ...]) -> list[str]:
    return [instruction.opcode for instruction in code]


def test_the_usual_path_does_the_work_and_leaves_out_what_may_be_skipped() -> None:
    code = _code(
        "MOV",
        "@BRA 4",  # 1, the loop's header: may skip a copy
        "LDGSTS",
        "IADD3",
        "IMMA",  # 4
        "@BRA 8",  # may skip rescaling
        "FMUL",
        "FMUL",
        "@BRA 1",  # 8
        "EXIT",
    )
    (loop,) = loops(code, lambda i: i.opcode in ("IMMA", "LDGSTS"))
    assert loop.header == BYTES
    assert _names(loop.every) == ["BRA", "LDGSTS", "IADD3", "IMMA", "BRA", "FMUL", "FMUL", "BRA"]
    assert _names(loop.usual) == ["BRA", "LDGSTS", "IADD3", "IMMA", "BRA", "BRA"]


def test_code_behind_the_loop_that_jumps_back_into_it_belongs_to_it_but_is_not_usual() -> None:
    code = _code("IMMA", "@BRA 4", "@BRA 0", "EXIT", "FMUL", "BRA 2")
    (loop,) = loops(code, lambda i: i.opcode == "IMMA")
    assert _names(loop.every) == ["IMMA", "BRA", "BRA", "FMUL", "BRA"]
    assert _names(loop.usual) == ["IMMA", "BRA", "BRA"]


def test_loops_may_lie_in_loops_and_end_in_calls_that_never_return() -> None:
    code = _code("MOV", "IMMA", "@CALL 4", "BRA 1", "@BRA 0", "EXIT")
    outer, inner = sorted(loops(code, lambda i: i.opcode == "IMMA"), key=lambda loop: loop.header)
    assert _names(inner.every) == ["IMMA", "CALL", "BRA"]
    assert len(outer.every) == 5
