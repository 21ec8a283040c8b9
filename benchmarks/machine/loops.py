"""Loops of a function's machine code, from its control flow: blocks, dominators, back edges."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .code import BYTES, Instruction

LAST = ("EXIT", "RET", "BRX", "JMX", "KILL")
"""Nothing that is known follows."""


@dataclass(frozen=True)
class Block:
    """Instructions that run one after the other."""

    code: tuple[Instruction, ...]
    successors: tuple[int, ...]
    """Addresses of the blocks that may follow."""


@dataclass(frozen=True)
class Loop:
    """A natural loop: what can reach a jump back to its header without leaving through the header."""

    header: int
    every: tuple[Instruction, ...]
    """All instructions of the loop, also of branches that rarely run."""
    usual: tuple[Instruction, ...]
    """Of one path through it: all that can be done of the work, by the fewest instructions."""


def blocks(code: Sequence[Instruction]) -> dict[int, Block]:
    """Blocks by their first address. A call of another function counts as one instruction."""
    jumps = {i.address: _target(i) for i in code if _jumps(i)}
    ends = {i.address for i in code if i.opcode.split(".")[0] in LAST} | set(jumps)
    starts = {0, *jumps.values(), *(address + BYTES for address in ends)}
    made: dict[int, Block] = {}
    pending: list[Instruction] = []
    for instruction in code:
        pending.append(instruction)
        after = instruction.address + BYTES
        if after in starts or instruction is code[-1]:
            following = [] if _leaves(instruction) or instruction is code[-1] else [after]
            if instruction.address in jumps:
                following.append(jumps[instruction.address])
            made[pending[0].address] = Block(tuple(pending), tuple(dict.fromkeys(following)))
            pending = []
    return made


def _jumps(instruction: Instruction) -> bool:
    """Compilers also "call" addresses of the same function, from which nothing returns."""
    name = instruction.opcode.split(".")[0]
    return name in ("BRA", "JMP") or (name == "CALL" and instruction.operands.startswith("0x"))


def _target(jump: Instruction) -> int:
    return int(re.findall(r"0x[0-9a-f]+", jump.operands)[-1], 16)


def _leaves(instruction: Instruction) -> bool:
    """Whether the next instruction is never the one behind this."""
    conditional = instruction.predicated or "," in instruction.operands or ".DIV" in instruction.opcode
    return (_jumps(instruction) or instruction.opcode.split(".")[0] in LAST) and not conditional


def loops(code: Sequence[Instruction], work: Callable[[Instruction], bool]) -> list[Loop]:
    """All natural loops, those with one header as one; `work` says which instructions the usual path must not miss."""
    graph = blocks(code)
    order, parents = _reverse_postorder(graph), _predecessors(graph)
    dominator = _dominators(order, parents)
    place = {block: i for i, block in enumerate(order)}

    def dominates(upper: int, lower: int) -> bool:
        while place[lower] > place[upper]:
            lower = dominator[lower]
        return lower == upper

    back: dict[int, set[int]] = {}
    for block in order:
        for after in graph[block].successors:
            if dominates(after, block):
                back.setdefault(after, set()).add(block)
    found = []
    for header, latches in back.items():
        body = {header}
        pending = list(latches)
        while pending:
            block = pending.pop()
            if block not in body:
                body.add(block)
                pending += [parent for parent in parents[block] if parent in place]
        inside = [block for block in order if block in body]
        path = _usual(inside, graph, place, header, latches, work)
        found.append(Loop(header, _joined(graph, sorted(body)), _joined(graph, path)))
    return found


def _joined(graph: dict[int, Block], chosen: Sequence[int]) -> tuple[Instruction, ...]:
    return tuple(instruction for block in chosen for instruction in graph[block].code)


def _usual(
    inside: Sequence[int],
    graph: dict[int, Block],
    place: dict[int, int],
    header: int,
    latches: set[int],
    work: Callable[[Instruction], bool],
) -> list[int]:
    """Blocks from the header to a jump back: the most work, then the fewest instructions."""
    body = set(inside)
    value = {block: (sum(map(work, graph[block].code)), -len(graph[block].code)) for block in inside}
    best = {header: value[header]}
    before: dict[int, int] = {}
    for block in inside:
        if block not in best:
            continue  # only within an inner loop
        for after in graph[block].successors:
            if after in body and place[after] > place[block]:
                reached = (best[block][0] + value[after][0], best[block][1] + value[after][1])
                if after not in best or reached > best[after]:
                    best[after], before[after] = reached, block
    path = [max((latch for latch in latches if latch in best), key=lambda latch: best[latch])]
    while path[-1] != header:
        path.append(before[path[-1]])
    return path[::-1]


def _reverse_postorder(graph: dict[int, Block]) -> list[int]:
    done: list[int] = []
    seen = {0}
    pending = [(0, iter(graph[0].successors))]
    while pending:
        block, following = pending[-1]
        after = next((a for a in following if a in graph and a not in seen), None)
        if after is None:
            done.append(block)
            pending.pop()
        else:
            seen.add(after)
            pending.append((after, iter(graph[after].successors)))
    return done[::-1]


def _predecessors(graph: dict[int, Block]) -> dict[int, list[int]]:
    parents: dict[int, list[int]] = {block: [] for block in graph}
    for block, made in graph.items():
        for after in made.successors:
            parents[after].append(block)
    return parents


def _dominators(order: Sequence[int], parents: dict[int, list[int]]) -> dict[int, int]:
    """The immediate dominator of each block (Cooper, Harvey and Kennedy, "A Simple, Fast Dominance Algorithm")."""
    place = {block: i for i, block in enumerate(order)}
    dominator = {order[0]: order[0]}
    changed = True
    while changed:
        changed = False
        for block in order[1:]:
            new = None
            for parent in parents[block]:
                if parent not in dominator:
                    continue
                if new is None:
                    new = parent
                    continue
                other = parent
                while new != other:
                    if place[new] > place[other]:
                        new = dominator[new]
                    else:
                        other = dominator[other]
            if new is not None and dominator.get(block) != new:
                dominator[block] = new
                changed = True
    return dominator
