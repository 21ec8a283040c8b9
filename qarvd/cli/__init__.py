"""`python -m qarvd VERB`: one module of this folder per verb, with `HELP`, `add_arguments` and `run`.

What `run` returns, if anything, is the exit code.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

import torch

from ..errors import QarvdError
from ..ops.linear import configure
from .common import work_folder
from .messages import on_stderr

VERBS = ("demo", "encode", "calibrate", "quantize", "stream", "inspect", "compare", "report", "doctor")

ADVICE = {
    "calibrate": "take a smaller --size, fewer --chunks, or --device cpu",
    "quantize": "take a smaller --size, fewer --chunks, or --device cpu",
    "stream": "take a smaller --window or --size, or --cache int8 or int4",
    "report": "take a smaller --size or fewer --chunks",
}
"""What to do when memory runs out, by verb."""


class Parser(argparse.ArgumentParser):
    """One that says what is wrong in a sentence, without listing every option."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"qarvd: {message}; `{self.prog} --help` lists what there is.\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; bad input ends in one sentence on stderr and exit code 2."""
    parser = Parser(
        prog="python -m qarvd", description="Quantize autoregressive video diffusion models and stream them."
    )
    debug = Parser(add_help=False)
    shows = "show the traceback of an error, and which backend runs each linear"
    debug.add_argument("--debug", action="store_true", help=shows)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    modules = {verb: import_module(f".{verb}", __name__) for verb in VERBS}
    for verb, module in modules.items():
        module.add_arguments(verbs.add_parser(verb, help=module.HELP, description=module.HELP, parents=[debug]))
    args = parser.parse_args(argv)
    try:
        configure(os.environ)
        with on_stderr(logging.DEBUG if args.debug else logging.WARNING):
            code = modules[args.verb].run(args) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever reads, `head` for instance, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that no one flushes into it at the end
        return 1
    except (QarvdError, OSError, torch.OutOfMemoryError) as error:
        if args.debug:
            raise
        print(f"qarvd: {_sentence(error, args.verb)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        kept = "resume" in args and work_folder(args.out).is_dir()
        print(f"qarvd: stopped{'; the same command with --resume continues' if kept else ''}", file=sys.stderr)
        return 130


def _sentence(error: BaseException, verb: str) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return f"Memory ran out; {ADVICE.get(verb, 'end other programs that use it, and try again')}."
    if isinstance(error, OSError):
        return f"{error.filename or 'A file'} could not be read or written: {error.strerror or error}."
    return str(error)
