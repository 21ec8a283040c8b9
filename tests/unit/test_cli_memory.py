"""When memory runs out, the advice is one that the verb can take."""

import argparse
import re
from importlib import import_module

import pytest
import torch

from qarvd.cli import VERBS, main

NEEDED = {
    "calibrate": ["a", "--out", "b"],
    "quantize": ["a", "--out", "b"],
    "stream": ["a", "--prompt", "b", "--out", "c"],
    "inspect": ["a"],
    "compare": ["a", "b"],
    "encode": ["a", "--encoder", "b", "--out", "c"],
    "report": ["a", "b", "--out", "c"],
}
"""Arguments that a verb cannot do without."""


def out_of_memory(args: argparse.Namespace) -> None:
    raise torch.OutOfMemoryError


@pytest.mark.parametrize("verb", VERBS)
def test_only_options_that_the_verb_has_are_named(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, parser = import_module(f"qarvd.cli.{verb}"), argparse.ArgumentParser()
    module.add_arguments(parser)
    monkeypatch.setattr(module, "run", out_of_memory)
    assert main([verb, *NEEDED.get(verb, [])]) == 2
    said = capsys.readouterr().err
    assert said.startswith("qarvd: Memory ran out; ") and set(re.findall(r"--\w+", said)) <= set(options(parser))


def options(parser: argparse.ArgumentParser) -> list[str]:
    return [option for action in parser._actions for option in action.option_strings]
