"""A card is offered prebuilt kernels first, then what was kept, then what a compiler makes."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from qarvd.errors import DeviceError
from qarvd.ops.cuda import cache
from qarvd.ops.cuda.cubins import Cubin
from qarvd.ops.cuda.nvrtc import Nvrtc
from qarvd.ops.cuda.offers import Offer, keep, offers

from .fake_card import PREBUILT, SOURCE, FakeNvrtc


def offered(
    capability: tuple[int, int],
    prebuilt: Path,
    *found: Nvrtc | str,
    folder: Path | None = None,
    said: list[str] | None = None,
) -> list[Offer | str]:
    """Everything, where each is refused."""
    said = [] if said is None else said
    return list(offers(capability, folder, said.append, SOURCE, prebuilt, lambda: iter(found)))


def test_prebuilt_kernels_come_first_and_nothing_looks_for_a_compiler_before_they_are_refused(prebuilt: Path) -> None:
    found = offers((8, 6), None, pytest.fail, SOURCE, prebuilt, lambda: pytest.fail("looked for NVRTC"))
    assert next(found) == Offer(PREBUILT, "prebuilt for sm_86 with NVRTC 12.9")
    with pytest.raises(pytest.fail.Exception, match="looked for NVRTC"):
        next(found)


def test_what_is_not_prebuilt_is_compiled_and_that_is_said_before(prebuilt: Path) -> None:
    said: list[str] = []
    assert offered((8, 7), prebuilt, FakeNvrtc(), said=said) == [
        "no kernels are prebuilt for compute capability 8.7",
        Offer(
            Cubin("sm_87", SOURCE.hash, "NVRTC 12.9", b"compiled by 12.9"), "compiled for sm_87 with NVRTC 12.9", True
        ),
    ]
    assert said == ["Compiling the CUDA kernels for sm_87, which takes up to a minute and is done once."]


def test_what_was_kept_comes_before_the_compiler_is_asked_again(prebuilt: Path, tmp_path: Path) -> None:
    compiler, folder = FakeNvrtc(), tmp_path / "cache"
    made = offered((8, 7), prebuilt, compiler)[-1]
    assert isinstance(made, Offer) and keep(folder, made.cubin) == f"kept in {folder}"
    found = offers((8, 7), folder, pytest.fail, SOURCE, prebuilt, lambda: iter([compiler]))
    assert list(islice(found, 2))[1] == Offer(made.cubin, "compiled earlier for sm_87 with NVRTC 12.9")
    assert compiler.compiled == 1


@pytest.mark.parametrize("of_now", [b"compiled by 12.9", b"compiled by another 12.9"])
def test_kept_kernels_that_are_refused_are_compiled_again_and_offered_if_they_differ(
    prebuilt: Path, tmp_path: Path, of_now: bytes
) -> None:
    kept = Cubin("sm_87", SOURCE.hash, "NVRTC 12.9", of_now)
    cache.put(tmp_path / "cache", kept)
    compiler = FakeNvrtc()
    found = [x for x in offered((8, 7), prebuilt, compiler, folder=tmp_path / "cache") if isinstance(x, Offer)]
    assert found[0].cubin == kept and compiler.compiled == 1
    assert [(x.cubin.image, x.new) for x in found[1:]] == (
        [] if of_now == b"compiled by 12.9" else [(b"compiled by 12.9", True)]
    )


def test_a_damaged_cache_entry_and_another_version_of_the_compiler_compile_again(
    prebuilt: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    cache.put(folder, FakeNvrtc().compile(SOURCE, "sm_87"))
    _, newer = offered((8, 7), prebuilt, FakeNvrtc((13, 0)), folder=folder)
    assert isinstance(newer, Offer) and newer.new and newer.cubin.compiler == "NVRTC 13.0"
    (path,) = folder.iterdir()
    path.write_bytes(path.read_bytes()[:-5])
    _, again = offered((8, 7), prebuilt, FakeNvrtc(), folder=folder)
    assert isinstance(again, Offer) and again.new


def test_stale_prebuilt_kernels_are_compiled_for_the_very_card(prebuilt: Path) -> None:
    (prebuilt / "sm_86.xz").write_bytes(replace(PREBUILT, source="0" * 64).pack())
    why, made = offered((8, 6), prebuilt, FakeNvrtc())
    assert why == "the prebuilt sm_86.xz was made from another source"
    assert isinstance(made, Offer) and made.cubin.architecture == "sm_86"


def test_a_compiler_that_cannot_serve_the_card_gives_way_to_the_next(prebuilt: Path) -> None:
    broken = FakeNvrtc((12, 4), trouble="NVRTC_ERROR_BUILTIN_OPERATION_FAILURE.")
    same = FakeNvrtc((12, 9))
    *why, made = offered((8, 7), prebuilt, "a.so can't be used", FakeNvrtc((11, 2), "sm_80"), broken, FakeNvrtc(), same)
    assert why[1:] == [
        "a.so can't be used",
        "NVRTC 11.2 of libnvrtc.so.11 does not know sm_87",
        "NVRTC 12.4 can't compile the kernels for sm_87: NVRTC_ERROR_BUILTIN_OPERATION_FAILURE",
    ]
    assert isinstance(made, Offer) and made.origin == "compiled for sm_87 with NVRTC 12.9"
    assert same.compiled == 0, "the same version would make the same kernels"


def test_a_card_that_is_too_old_is_told_so(prebuilt: Path) -> None:
    with pytest.raises(DeviceError, match=r"compute capability 7\.0 are too old; the kernels need 7\.5"):
        offered((7, 0), prebuilt, FakeNvrtc())
