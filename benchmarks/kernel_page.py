"""Write the tables of docs/kernels.md from docs/kernels.json: what sass.py counted, and the model of roofline.py.

A table stands between `<!-- table NAME -->` and `<!-- end -->`, and is replaced. After a change of the kernels:

    python benchmarks/sass.py --peer FOLDER_OF_COMFY_KITCHEN --json docs/kernels.json
    python benchmarks/kernel_page.py
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from machine.tables import markdown
from roofline import RECORD, attention_table, clip_table, linear_table

PAGE = RECORD.with_suffix(".md")
MARKED = re.compile(r"(<!-- table (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
OURS = (
    "attention_128_bf16_kv8",
    "attention_128_fp16_kv4",
    "attention_128_fp16_kv8",
    "linear_large",
)
ATTENTIONS = ("int8_attention 64x128, head 128", "int8_attention 128x128, head 128")
LINEARS = (
    "int8_linear 64x128x64, 4 stages",
    "int8_linear 64x128x128, 3 stages",
    "int8_linear 64x256x64, 3 stages",
    "int8_linear 128x128x64, 4 stages",
    "int8_linear 128x256x64, 3 stages",
)
HEAD = (
    "kernel", "registers", "stack", "shared", "blocks", "products of", "all / usual",
    "tensor / LDSM / LDGSTS / LDS / other", "tensor cycles", "shared cycles", "special cycles", "issue share",
)  # fmt: skip
Table = Callable[[Path], Sequence[Sequence[str]]]


def counts(whose: str, architecture: str, names: Sequence[str]) -> Table:
    """The main loops of those of `names` that were counted."""

    def table(record: Path) -> list[tuple[str, ...]]:
        found = {made["name"].removeprefix("qarvd_"): made for made in json.loads(record.read_text())[whose]
                 if made["architecture"] == architecture}  # fmt: skip
        return [HEAD, *(row for name in names if name in found for row in _rows(name, found[name]))]

    return table


def _rows(name: str, made: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    shared = "?" if made["shared"] is None else made["shared"]
    head = (name, *(str(held) for held in (made["registers"], made["stack"], shared, made["blocks"])))
    for turn in made["turns"]:
        parts = [turn[part] for part in ("tensor", "ldsm", "ldgsts", "lds")]
        cycles = turn["tensor_cycles"]
        yield (
            *head,
            turn["kind"],
            f"{turn['every']} / {turn['usual']}",
            " / ".join(map(str, (*parts, turn["usual"] - sum(parts)))),
            "?" if cycles is None else f"{cycles:.0f}",
            str(turn["shared_cycles"]),
            str(turn["special_cycles"]),
            "?" if cycles is None else f"{(turn['usual'] - turn['tensor']) / cycles:.2f}",
        )
        head = ("",) * len(head)


TABLES: dict[str, Table] = {
    **{name: counts("qarvd", name, OURS) for name in ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")},
    **{f"peer-{name}": counts("comfy-kitchen", name, ATTENTIONS + LINEARS) for name in ("sm_80", "sm_86")},
    "peer-sm_89": counts("comfy-kitchen", "sm_89", ATTENTIONS),  # its linears run the code for sm_80
    "linears": linear_table,
    "attention": attention_table,
    "clip": clip_table,
}


def filled(page: str, record: Path = RECORD) -> str:
    """`page` with every marked table made anew."""
    return MARKED.sub(lambda m: f"{m[1]}\n{markdown(TABLES[m[2]](record))}\n\n{m[4]}", page)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="write nothing; exit code 1 unless the page is up to date")
    args = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    new = filled(page)
    if args.smoke and new != page:
        parser.exit(1, f"{PAGE.name} does not show {RECORD.name}; run `python benchmarks/kernel_page.py`.\n")
    if not args.smoke:
        PAGE.write_text(new, encoding="utf-8")
    print(f"{PAGE.name}: {len(MARKED.findall(page))} tables {'written' if new != page else 'are up to date'}")


if __name__ == "__main__":
    main()
