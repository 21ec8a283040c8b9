"""Options of `calibrate` and `quantize` that make no sense, or none together, are refused before any work."""

from pathlib import Path

import pytest
from tiny.commands import CLIP, Run

import qarvd.cli.calibrate as calibrate_verb
from qarvd.cli import main
from qarvd.errors import SettingError
from qarvd.ops.codecs import CODECS, codec_of
from qarvd.recipe import GROUPS, Recipe


@pytest.mark.usefixtures("no_work")
def test_calibrate_asks_for_the_prompts_of_a_real_model(refused: Run, model_file: Path, out: Path) -> None:
    said = refused("calibrate", model_file, "--out", out)
    assert "--prompts is missing" in said and "prompts.txt" in said


def test_a_choice_that_there_is_not_is_told_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["quantize", "demo", "--recipe", "w2a2", "--out", "out.safetensors"])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and said.count("\n") == 1
    assert said.startswith("qarvd: ") and "'w8a8', 'w6a8', 'w4a8', 'w3a8'" in said and "quantize --help" in said


BAD_OPTIONS: dict[str, tuple[tuple[str, ...], str]] = {
    "target in words": (("--target", "small"), "not understood"),
    "empty target": (("--target", ""), "not understood"),
    "target 0": (("--target", "0MB"), "not understood"),
    "negative target": (("--target", "-3 bits"), "not understood"),
    "target too small": (("--target", "1KB"), "1KB is too small"),
    "target too small for the linears": (("--target", "180KB"), "Ask for a larger size"),
    "target below 4 bits": (("--target", "3.9 bits"), "Ask for a larger size"),
    "target of everything": (("--target", "16 bits"), "leaves every linear in 16 bits, which take 16.00 bits"),
    "target larger than the model": (("--target", "1GB"), "Ask for a smaller size"),
    "no data for a target": (("--target", "6 bits", "--data-free"), "--target need it"),
    "prompts for nothing": (("--data-free",), "--prompts, --chunks, --size need it"),
    "rounding without data": (("--data-free", "--rounding", "gptq"), "--rounding gptq need it"),
    "outliers without data": (("--data-free", "--outliers", "search"), "--outliers search need it"),
    "no chunks": (("--chunks", "0"), "--chunks must be at least 1"),
    "time below 0": (("--budget-minutes", "-1"), "--budget-minutes must be 0 (all prompts) or above"),
    "time NaN": (("--budget-minutes", "nan"), "--budget-minutes must be 0 (all prompts) or above"),
    "size in words": (("--size", "large"), "not WIDTHxHEIGHT in pixels"),
    "size that does not divide": (("--size", "60x104"), "60 x 104 pixels (width x height) can't be made"),
    "device": (("--device", "abacus"), "abacus"),
    "statistics and prompts": (("--stats", "stats.safetensors"), "--prompts, --chunks, --size and --stats were both"),
    "stream shorter than the clips": (
        ("--stream-chunks", "1"),
        "(--stream-chunks) have 1 chunks, but the calibration clips have 2",
    ),
    "stream of nothing": (("--stream-chunks", "0"), "streams (--stream-chunks) of 0 chunks; choose 1 to 100,000"),
    "stream without data": (("--stream-chunks", "9", "--data-free"), "--stream-chunks need it"),
    "two ways to say one thing": (("--single-scale", "--outliers", "search"), "--single-scale and --outliers search"),
    "chunks without end": (("--chunks", "99999999999"), "--chunks 99999999999 makes 299,999,999,997 latent frames"),
}


@pytest.mark.parametrize("bad", BAD_OPTIONS)
@pytest.mark.usefixtures("no_work")
def test_quantize_refuses_a_bad_option_before_any_work(
    refused: Run, model_file: Path, prompts: Path, out: Path, bad: str
) -> None:
    options, expected = BAD_OPTIONS[bad]
    assert expected in refused("quantize", model_file, "--prompts", prompts, *CLIP, "--out", out, *options)


@pytest.mark.parametrize(
    "option",
    [("--chunks", "7"), ("--size", "48x32"), ("--reach", "full"), ("--budget-minutes", "9"), ("--seed", "0")],
    ids=lambda option: option[0],
)
@pytest.mark.usefixtures("no_work")
def test_an_option_that_another_makes_useless_is_refused_with_both_names(
    refused: Run, model_file: Path, out: Path, option: tuple[str, str]
) -> None:
    def said(*more: str) -> str:
        return refused("quantize", model_file, *option, *more, "--out", out)

    assert f"--data-free means no calibration, but {option[0]} needs it" in said("--data-free")
    assert f"{option[0]} and --stats were both given" in said("--stats", "stats.safetensors")
    assert f"{option[0]} needs calibration on prompts; give --prompts or --stats" in said()


@pytest.mark.usefixtures("no_work")
def test_the_demo_has_a_size_of_its_own(refused: Run, out: Path, tmp_path: Path) -> None:
    sized = ("--size", "832x480", "--out")
    for command in (
        *(("calibrate", "demo", *sized, out), ("quantize", "demo", *sized, out)),
        ("stream", "demo", "--prompt", "a 7 moving left", *sized, tmp_path / "clip.mp4"),
        ("report", "demo", out, *sized, tmp_path / "page.html"),
    ):
        said = refused(*command)
        assert "This model draws 32 x 32 pixels" in said and "832 x 480 were asked for" in said


@pytest.mark.usefixtures("no_work")
def test_resuming_what_takes_no_time_is_refused(refused: Run, model_file: Path, out: Path) -> None:
    assert "--resume needs it" in refused("quantize", model_file, "--data-free", "--resume", "--out", out)


@pytest.mark.usefixtures("no_work")
def test_an_input_is_never_written_to(refused: Run, model_file: Path, prompts: Path, tmp_path: Path) -> None:
    beside = tmp_path / "folder" / ".." / model_file.name
    (tmp_path / "folder").mkdir()
    for verb in ("calibrate", "quantize"):
        for out in (model_file, beside, prompts):
            said = refused(verb, model_file, "--prompts", prompts, "--out", out)
            assert f"{out} is also an input, and writing would destroy it" in said
    assert "is also an input" in refused("quantize", model_file, "--stats", prompts, "--out", prompts)
    assert "is also an input" in refused("quantize", "demo", "--out", calibrate_verb.bundle.MODEL)
    clip = ("--prompt", prompts, "--out", tmp_path / "clip.mp4")
    for path in (model_file, prompts):
        assert "is also an input" in refused("stream", model_file, *clip, "--latents", path)
    assert "is also an input" in refused("stream", model_file, *clip, "--initial", prompts, "--latents", prompts)
    page = tmp_path / "quality.html"
    page.write_text("{}")
    assert "is also an input" in refused("report", model_file, model_file, "--quality", page, "--out", page)


@pytest.mark.usefixtures("no_work")
def test_a_target_without_prompts_is_refused(refused: Run, model_file: Path, out: Path) -> None:
    said = refused("quantize", model_file, "--target", "6 bits", "--out", out)
    assert "--target" in said and "give --prompts or --stats" in said


def test_a_seed_beyond_64_bits_is_refused(refused: Run, model_file: Path, prompts: Path, out: Path) -> None:
    more = ("--seed", 2**64 - 2)  # that of the third prompt is too large
    assert "64 bits" in refused("calibrate", model_file, "--prompts", prompts, *CLIP, "--out", out, *more)


@pytest.mark.parametrize("bits", [0, 5, 16, True, "8"])
def test_a_bit_width_that_no_codec_has_is_refused(bits: object) -> None:
    with pytest.raises(SettingError, match="3, 4, 6, 8 are supported"):
        Recipe(weight_bits=bits)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="There are no -1-bit weights"):
        codec_of(-1)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"weight_bits": 8, "group": 16}, r"asks for groups of 16; with 8-bit weights, it can be 0 \(none\)\."),
        ({"weight_bits": 3}, r"asks for groups of 0; with 3-bit weights, it can be 16, 32, 64\."),
        ({"weight_bits": 4, "group": True}, "asks for groups of True"),
        ({"rotation": 48}, r"asks for a rotation by 48; it can be 0 \(none\), 16, 32, 64, 128, 256\."),
    ],
)
def test_groups_and_rotations_that_there_are_not_are_refused(fields: dict[str, int], says: str) -> None:
    with pytest.raises(SettingError, match=says):
        Recipe(**fields)  # type: ignore[arg-type]


def test_a_recipe_can_ask_for_every_codec_and_for_no_other() -> None:
    assert {(bits, group) for bits, groups in GROUPS.items() for group in groups} == {
        (codec.bits, codec.group) for codec in CODECS.values()
    }
