"""The folder in which a long job leaves what it has finished, so that it can be taken up again."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..calibrate.calibration import Batch, Calibration
from ..checkpoint.calibration import load_calibration, save_calibration
from ..checkpoint.quantized import quantized_names, read_linear, write_linear
from ..checkpoint.write import save_file
from ..errors import CheckpointError, SettingError
from ..files import replacing, written_file
from ..ops.linear import QuantizedLinear
from ..quantize.model import LayerReport
from ..quantize.walk import Results

ABOUT = "about.json"
REPORTS = "reports"
OFFLOAD = "offload"


class Work:
    """Finished parts of one job, each a file that appears whole or not at all; the folder, with the first of them."""

    def __init__(self, folder: Path, about: Mapping[str, Any], resume: bool) -> None:
        """Look into `folder`; `about` says what the job is.

        Raises SettingError where it holds finished parts and `resume` is not set, or where they are of another job.
        """
        self._folder = folder
        self._about = about = json.loads(json.dumps(about))
        if folder.is_dir() and [path.name for path in folder.iterdir()] == [ABOUT]:
            (folder / ABOUT).unlink()  # a run that was stopped before it had finished anything
        if (folder / ABOUT).is_file():
            if not resume:
                raise SettingError(
                    f"{folder} holds the finished parts of an interrupted run. Add --resume to continue it, or delete "
                    "the folder."
                )
            stored = read_json(folder / ABOUT)
            if not isinstance(stored, dict):
                raise SettingError(f"{folder / ABOUT} is damaged; delete the folder and start again.")
            if different := sorted(key for key in {*stored, *about} if stored.get(key) != about.get(key)):
                raise SettingError(
                    f"{folder} is from a run with other settings ({', '.join(different)} differ). Repeat its settings, "
                    "or delete the folder."
                )
        elif folder.exists() and not (folder.is_dir() and all(path.name.startswith(".") for path in folder.iterdir())):
            raise SettingError(
                f"{folder} already exists and is not from an interrupted run; give another name to write."
            )
        shutil.rmtree(folder / OFFLOAD, ignore_errors=True)  # a killed run's; there may be no room before it is gone

    @property
    def begun(self) -> bool:
        """Whether anything is finished."""
        return (self._folder / ABOUT).is_file()

    @property
    def folder(self) -> Path:
        """The folder, made when first asked for: a job that is refused at once leaves nothing behind."""
        self._folder.mkdir(exist_ok=True)
        if not self.begun:
            write_json(self._folder / ABOUT, self._about)
        return self._folder

    def note(self, name: str, value: Any | None = None) -> Any | None:
        """A decision that must be the same after a resume: the stored one, else `value`, which is stored."""
        path = self._folder / f"{name}.json"
        if path.is_file():
            return read_json(path)
        if value is not None:
            write_json(self.folder / path.name, value)
        return value

    def update(self, name: str, value: Any) -> None:
        """Store what changes as the job goes on."""
        write_json(self.folder / f"{name}.json", value)

    def has_batch(self, first: int) -> bool:
        """Whether `recall_batch` would find one."""
        return (self._folder / batch_name(first)).is_file()

    def recall_batch(self, first: int) -> Batch | None:
        """The calibration batch that begins with prompt `first`, where it was finished."""
        path = self._folder / batch_name(first)
        if not path.is_file():
            return None
        try:
            found = load_calibration(path)
        except CheckpointError as error:
            raise damaged(path, error) from error
        return Batch(found.rollouts[0], found.errors if len(found.errors) else None)

    def keep_batch(self, first: int, batch: Batch, like: Calibration) -> None:
        """Store a finished calibration batch of the job `like`."""
        chunks = like.errors.shape[1]
        errors = torch.zeros(0, chunks, chunks, dtype=torch.float64) if batch.errors is None else batch.errors
        part = replace(like, rollouts=(batch.rollout,), errors=errors)
        save_calibration(part, self.folder / batch_name(first))

    def recall_group(self, names: tuple[str, ...]) -> Results | None:
        """The quantized linears `names`, where they were finished."""
        path = self._folder / f"{names[0]}.safetensors"
        if not path.is_file():
            return None
        try:
            tensors = load_file(path)
            with safe_open(path, "pt") as file:
                reports = {r["name"]: report_from(r) for r in json.loads(file.metadata()[REPORTS])}
            weights = {name: read_linear(name, tensors) for name in quantized_names(tensors)}
        except (SafetensorError, CheckpointError, OSError, ValueError, TypeError, KeyError) as error:
            raise damaged(path, error) from error
        if set(reports) != set(names):
            raise CheckpointError(f"{path} holds {', '.join(reports)}; it is of another run. Delete {self._folder}.")
        return [
            (QuantizedLinear(weights[name], tensors.get(f"{name}.bias")) if name in weights else None, reports[name])
            for name in names
        ]

    def keep_group(self, names: tuple[str, ...], results: Results) -> None:
        """Store finished linears."""
        tensors: dict[str, Tensor] = {}
        for linear, report in results:
            if linear is not None:
                tensors.update(write_linear(report.name, linear.weight))
                if linear.bias is not None:
                    tensors[f"{report.name}.bias"] = linear.bias
        tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        with replacing(self.folder / f"{names[0]}.safetensors") as temporary:
            save_file(tensors, temporary, {REPORTS: json.dumps([asdict(report) for _, report in results])})

    @contextmanager
    def offload_folder(self) -> Iterator[Path]:
        """An empty folder, for as long as the block lasts, for tensors that do not fit memory."""
        folder = self.folder / OFFLOAD
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def finish(self, write: Callable[[Path], object], path: Path) -> None:
        """Have the job's result written, put it in its place `path` and remove the parts.

        It is written among them, so that a run that is killed leaves nothing else behind.
        """
        result = self.folder / "result"
        result.mkdir(exist_ok=True)
        write(result / path.name)
        os.replace(result / path.name, written_file(path))
        with suppress(OSError):
            shutil.rmtree(self._folder)


def batch_name(first: int) -> str:
    """The file of the calibration batch that begins with prompt `first`."""
    return f"batch-{first:04}.safetensors"


def read_json(path: Path) -> Any:
    """What `write_json` wrote. Raises SettingError for a damaged file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SettingError(f"{path} is damaged; delete the folder and start again.") from error


def write_json(path: Path, value: Any) -> None:
    """Write `value`, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value), encoding="utf-8")


def damaged(path: Path, error: Exception) -> CheckpointError:
    """Of a finished part that cannot be read."""
    return CheckpointError(f"{path}, a finished part, cannot be read ({error}). Delete it, and it is made again.")


def report_from(values: Mapping[str, Any]) -> LayerReport:
    """A report as JSON gives it back."""
    fixed: dict[str, Any] = {"shape": tuple(values["shape"])}
    if values.get("tried"):
        fixed["tried"] = {int(number): error for number, error in values["tried"].items()}
    fixed["bits"] = str(values["bits"])  # a number in files of older versions
    return LayerReport(**{**values, **fixed})
