"""`encode` makes what Wan's text encoder makes of a prompt, and other verbs take it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tiny.commands import CLIP, Run
from tiny.model import CONFIG

from qarvd.checkpoint.calibration import load_calibration

transformers: Any = pytest.importorskip("transformers", reason="needs transformers, which encode runs")
WORDS = ("a", "red", "fox", "runs", "far", "away")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny UMT5 with random weights, in the layout of a release."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder = tmp_path_factory.mktemp("release")
    words = {word: number for number, word in enumerate(("<pad>", "</s>", "<unk>", *WORDS))}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, **special).save_pretrained(folder / "tokenizer")
    torch.manual_seed(0)
    small = {"d_model": CONFIG.text_dim, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 16}
    transformers.UMT5EncoderModel(transformers.UMT5Config(**small)).save_pretrained(folder / "text_encoder")
    return folder


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("a red fox\n\n  far   away \nred\na fox runs\n", encoding="utf-8")
    return path


@pytest.fixture
def encoded(run: Run, encoder: Path, sentences: Path, tmp_path: Path) -> Path:
    run("encode", sentences, "--encoder", encoder, "--out", tmp_path / "prompts.safetensors", "--device", "cpu")
    return tmp_path / "prompts.safetensors"


def test_embeddings_are_those_of_the_encoder_with_padding_masked(encoded: Path, encoder: Path) -> None:
    lines = ["a red fox", "far away", "red", "a fox runs"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder / "tokenizer")
    model = transformers.UMT5EncoderModel.from_pretrained(encoder / "text_encoder")
    padded = tokenizer(lines, padding="max_length", max_length=9, return_tensors="pt")
    with torch.no_grad():
        states = model(padded.input_ids, padded.attention_mask).last_hidden_state
    wanted = states * padded.attention_mask[..., None]
    with safe_open(encoded, "pt") as file:
        found, told = file.get_tensor("text_embeds"), file.metadata()["prompts"]
    assert told == "\n".join(lines)
    assert found.shape == (4, 4, CONFIG.text_dim)  # the longest prompt and its end
    assert wanted[:, 4:].count_nonzero() == 0
    torch.testing.assert_close(found, wanted[:, :4], rtol=1e-5, atol=1e-5)


def test_what_encode_writes_calibrates(run: Run, encoded: Path, model_file: Path, tmp_path: Path) -> None:
    stats = tmp_path / "stats.safetensors"
    run("calibrate", model_file, "--prompts", encoded, *CLIP, "--out", stats)
    assert load_calibration(stats).prompts == 4


def test_bad_input_is_refused_in_a_sentence(
    refused: Run, sentences: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to = ("--out", tmp_path / "out.safetensors", "--device", "cpu")
    (tmp_path / "empty.txt").write_text("\n")
    assert "empty.txt holds no prompts; write one a line." in refused(
        "encode", tmp_path / "empty.txt", "--encoder", encoder, *to
    )
    assert f"There is no folder {tmp_path / 'none'}; download" in refused(
        "encode", sentences, "--encoder", tmp_path / "none", *to
    )
    said = refused("encode", sentences, "--encoder", tmp_path, *to)
    assert f"{tmp_path} has no subfolder tokenizer and no text_encoder; give the folder of a release" in said
    (tmp_path / "hollow" / "tokenizer").mkdir(parents=True)
    (tmp_path / "hollow" / "text_encoder").mkdir()
    assert "hollow cannot be read (" in refused("encode", sentences, "--encoder", tmp_path / "hollow", *to)
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert 'needs the transformers package: pip install "transformers' in refused(
        "encode", sentences, "--encoder", encoder, *to
    )
