"""The folder in which a long job leaves what it has finished, so that it can be taken up again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..calibrate.calibration import Batch, Calibration
from ..checkpoint.calibration import load_calibration, save_calibration
from ..checkpoint.quantized import quantized_names, read_linear, write_linear
from ..errors import CheckpointError, SettingError
from ..files import replacing
from ..ops.linear import QuantizedLinear
from ..quantize.blockwise import Results
from ..quantize.model import LayerReport

ABOUT = "about.json"
REPORTS = "reports"


class Work:
    """Finished parts of one job, each a file that appears whole or not at all."""

    def __init__(self, folder: Path, about: Mapping[str, Any], resume: bool) -> None:
        """Open or make `folder`; `about` says what the job is.

        Raises SettingError where it holds finished parts and `resume` is not set, or where they are of another job.
        """
        self.folder = folder
        about = json.loads(json.dumps(about))
        if (folder / ABOUT).is_file():
            if not resume:
                raise SettingError(
                    f"{folder} holds what an interrupted run had finished. Go on with it (--resume), or delete it."
                )
            try:
                stored = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
            except ValueError as error:
                raise SettingError(f"{folder / ABOUT} is damaged; delete the folder and start again.") from error
            if different := sorted(key for key in {*stored, *about} if stored.get(key) != about.get(key)):
                raise SettingError(
                    f"{folder} is of another run: {', '.join(different)} differ. Repeat its arguments, or delete it."
                )
        elif folder.is_dir() and any(folder.iterdir()):
            raise SettingError(f"{folder} is a folder with other files in it; name another file to write.")
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / ABOUT) as temporary:
            temporary.write_text(json.dumps(about), encoding="utf-8")

    def note(self, name: str, value: Any | None = None) -> Any | None:
        """A decision that must be the same after a resume: the stored one, else `value`, which is stored."""
        path = self.folder / f"{name}.json"
        if path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))
        if value is not None:
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(value), encoding="utf-8")
        return value

    def recall_batch(self, first: int) -> Batch | None:
        """The calibration batch that begins with prompt `first`, where it was finished."""
        path = self.folder / f"batch-{first:04}.safetensors"
        if not path.is_file():
            return None
        found = load_calibration(path)
        return Batch(found.rollouts[0], found.errors if len(found.errors) else None)

    def keep_batch(self, first: int, batch: Batch, like: Calibration) -> None:
        """Store a finished calibration batch of the job `like`."""
        chunks = like.errors.shape[1]
        errors = torch.zeros(0, chunks, chunks, dtype=torch.float64) if batch.errors is None else batch.errors
        part = replace(like, rollouts=(batch.rollout,), errors=errors)
        save_calibration(part, self.folder / f"batch-{first:04}.safetensors")

    def recall_group(self, names: tuple[str, ...]) -> Results | None:
        """The quantized linears `names`, where they were finished."""
        path = self.folder / f"{names[0]}.safetensors"
        if not path.is_file():
            return None
        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            reports = {r["name"]: report_from(r) for r in json.loads(file.metadata()[REPORTS])}
        if set(reports) != set(names):
            raise CheckpointError(f"{path} holds {', '.join(reports)}; it is of another run. Delete {self.folder}.")
        weights = {name: read_linear(name, tensors) for name in quantized_names(tensors)}
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

    def spill(self) -> Path:
        """An empty folder for tensors that do not fit memory."""
        folder = self.folder / "spill"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    def finish(self) -> None:
        """The job's result is written: remove the parts."""
        with suppress(OSError):
            shutil.rmtree(self.folder)


def report_from(values: Mapping[str, Any]) -> LayerReport:
    """A report as JSON gives it back."""
    fixed: dict[str, Any] = {"shape": tuple(values["shape"])}
    for key in ("tried", "effects"):
        if values.get(key):
            fixed[key] = {int(number): error for number, error in values[key].items()}
    return LayerReport(**{**values, **fixed})
