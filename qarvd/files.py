"""Files that appear whole or not at all: written beside their place, then put into it in one step."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex

from safetensors import SafetensorError

from .errors import SettingError


def no_file(path: Path) -> str:
    """The sentence that says why there is nothing to read at `path`."""
    return f"{path} is a folder; a file was expected." if path.is_dir() else f"There is no file {path}."


def has_suffix(path: Path, *suffixes: str) -> bool:
    """Whether a file's name ends in one of `suffixes`, written small or in capitals."""
    return path.suffix.lower() in suffixes


def written_file(path: Path) -> Path:
    """The file that is written when `path` is: itself, or what a symbolic link leads to, which need not be there yet.

    Raises SettingError for a link that leads round in a circle.
    """
    if not path.is_symlink():
        return path
    found = Path(os.path.realpath(path))
    if found.is_symlink():
        raise SettingError(f"{path} is a symbolic link that leads back to itself; give another name to write.")
    return found


def part_beside(path: Path) -> Path:
    """Create an empty hidden file, of the same suffix, in the folder of the `written_file` of `path`.

    Raises SettingError when nothing can be written there.
    """
    path = written_file(path)
    if path.is_dir():
        raise SettingError(f"{path} is a folder; give the name of a file to write.")
    part = path.with_name(f".{path.stem[:40]}.{token_hex(4)}.part{path.suffix}")
    try:
        part.touch(exist_ok=False)
    except OSError as error:
        why = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be written to ({error.strerror})"
        raise SettingError(
            f"{path.name} was to be written into {path.parent}, which {why}; choose another folder."
        ) from error
    return part


def put_in_place(part: Path, path: Path, mode: int) -> None:
    """Flush `part` to the disk and make it the `written_file` of `path`, replacing what is there."""
    part.chmod(mode)  # some writers swap in a file of their own that only its owner may read
    with part.open("r+b") as file:
        os.fsync(file.fileno())
    os.replace(part, written_file(path))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Hand out a temporary path that becomes `path` when the block ends; after an exception nothing has changed.

    A symbolic link stays, and what it leads to is written.

    Raises SettingError, naming the file, when the folder does not exist or cannot be written to, or the disk is full.
    """
    part = part_beside(path)
    try:
        mode = part.stat().st_mode  # what the umask leaves to a new file
        yield part
        put_in_place(part, path, mode)
    except SafetensorError as error:  # also what safetensors makes of a full disk
        raise SettingError(f"{path} could not be written: {error}.") from error
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(part)):
            raise  # not of this file
        raise SettingError(f"{path} could not be written: {error.strerror}.") from error
    finally:
        part.unlink(missing_ok=True)


def kernel_folder(platform: str, environment: Mapping[str, str], home: Path | None) -> Path | None:
    """Where a user's compiled CUDA kernels are kept; `platform` as in `sys.platform`.

    None for a user who has no home folder, unless the environment names a folder for caches.
    """
    if platform == "win32":
        named, usual = environment.get("LOCALAPPDATA"), Path("AppData", "Local")
    elif platform == "darwin":
        named, usual = None, Path("Library", "Caches")
    else:
        named, usual = environment.get("XDG_CACHE_HOME"), Path(".cache")
        if named and not Path(named).is_absolute():  # the XDG specification ignores those
            named = None
    if named:
        return Path(named, "qarvd", "kernels")
    return None if home is None else home / usual / "qarvd" / "kernels"


def home_folder() -> Path | None:
    """The user's home folder, if there is one."""
    try:
        return Path.home()
    except RuntimeError:  # HOME is not set, and the system does not know the user, as in some containers
        return None
