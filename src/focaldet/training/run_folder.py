"""The run folder, and the one file from which a killed run goes on.

`state/last/checkpoint.pt` is replaced as a whole (temporary file, flush, fsync, rename, fsync of the folder): whenever
the process dies, the old state or the new one is there. What follows from the seed and the step is not stored:
learning rate, order and changes of the images, and the random generators, which are seeded before every step.
"""

import importlib.metadata
import io
import json
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from focaldet import config as configs
from focaldet.errors import CheckpointError, ConfigError
from focaldet.training.config import FREE_ON_RESUME, RunConfig
from focaldet.weights.formats.files import write_atomically

STATE_FORMAT = 1


@dataclass
class Position:
    """Where a run stands. `batch` counts the batches of the epoch that were used, `step` the updates of the whole run.

    `phase` counts from 0; between two phases it is the one that ended. `best` and `last` are metrics as plain values,
    `num_rows` the rows of metrics.csv.
    """

    phase: int = 0
    epoch: int = 0
    batch: int = 0
    step: int = 0
    best: dict[str, Any] | None = None
    last: dict[str, Any] | None = None
    evaluations_without_gain: int = 0
    num_rows: int = 0
    seconds_training: float = 0.0


@dataclass(frozen=True)
class RunFolder:
    """The files of a run (DESIGN.md, section 5)."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def environment(self) -> Path:
        return self.path / "environment.json"

    @property
    def predictions(self) -> Path:
        return self.path / "predictions.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def last(self) -> Path:
        return self.path / "weights" / "last.safetensors"

    @property
    def best(self) -> Path:
        return self.path / "weights" / "best.safetensors"

    @property
    def state(self) -> Path:
        return self.path / "state" / "last" / "checkpoint.pt"

    def create(self, config: RunConfig) -> None:
        """Make the folders and write the settings; with `overwrite`, what an earlier run left goes first.

        Raises:
            ConfigError: no folder can be made there.
        """
        configs.make_folder(self.path)
        if config.overwrite:
            self._clear()
        # In one move, because the settings are also written anew when a run is resumed.
        part = self.path / ".config.yaml.partial"
        configs.save(replace(config, resume=False, overwrite=False), part)
        part.replace(self.config)
        configs.make_folder(self.last.parent)
        configs.make_folder(self.state.parent)

    def _clear(self) -> None:
        """Remove what a run leaves, and nothing else."""
        for file in (self.config, self.metrics, self.events, self.environment, self.predictions, self.report):
            file.unlink(missing_ok=True)
        for folder in ("weights", "state", "tensorboard", "mlruns", "wandb"):
            shutil.rmtree(self.path / folder, ignore_errors=True)


def open_folder(config: RunConfig) -> RunFolder:
    """The folder of the run that `config` describes, checked but not changed.

    A run that was killed before its first save is resumed from its beginning.

    Raises:
        ConfigError: it holds something and neither `resume` nor `overwrite` was asked for, what it holds is no run, a
            file is in its place or in that of a parent, or there is no permission.
        CheckpointError: there is nothing to resume.
    """
    folder = RunFolder(config.out)
    contents = _visible_names(config.out)
    is_run = not contents or folder.config.name in contents
    if config.resume and not (config.out.is_dir() and is_run):
        raise CheckpointError(f"{config.out}: holds no run to resume")
    if config.overwrite and not is_run:
        raise ConfigError(f"out: {config.out} holds {contents[0]!r} and no run: it is not overwritten")
    if contents and not (config.resume or config.overwrite):
        raise ConfigError(f"out: {config.out} already exists; go on with --resume, or replace it with --overwrite")
    return folder


def _visible_names(out: Path) -> list[str]:
    """The sorted names in the folder `out`; none where there is nothing yet.

    Hidden files do not count: a kill may have left half a `.config.yaml.partial` and nothing else.
    """
    try:
        in_the_way = next((path for path in (out, *out.parents) if path.exists() and not path.is_dir()), None)
        names = [entry.name for entry in out.iterdir()] if out.is_dir() else []
    except OSError as error:
        raise ConfigError(f"out: {out}: cannot be looked into: {error.strerror}") from None
    if in_the_way is not None:
        raise ConfigError(f"out: {in_the_way} is a file, not a folder")
    return sorted(name for name in names if not name.startswith("."))


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Replace the state at `path`.

    Raises:
        CheckpointError: it cannot be written; what was at `path` is still there.
    """
    buffer = io.BytesIO()
    torch.save({"format": STATE_FORMAT, **state}, buffer)
    write_atomically(path, buffer.getvalue())


def load_state(path: Path, *, device: torch.device) -> dict[str, Any]:
    """The state that `save_state` wrote.

    Raises:
        CheckpointError: the file is damaged or from another version of focaldet.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    # The restricted unpickler raises whatever the bytes of a strange file lead it to.
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(f"{path}: cannot be read: {reason}") from error
    if not isinstance(state, dict) or state.get("format") != STATE_FORMAT:
        raise CheckpointError(f"{path}: was not written by this version of focaldet")
    return state


def identity(config: RunConfig, *, fingerprints: Mapping[str, str]) -> dict[str, Any]:
    """What must not change between the parts of a run: the settings that matter and what the data hold."""
    settings = {name: value for name, value in configs.to_dict(config).items() if name not in FREE_ON_RESUME}
    return {"settings": settings, "data": dict(fingerprints)}


def check_identity(now: Mapping[str, Any], then: Mapping[str, Any], *, folder: Path) -> None:
    """Make sure that a run is resumed as it was started.

    The learning rate of all schedules but `constant` depends on the length of the run, as does `multi_scale_end`, and
    nothing can make a run longer that has already come down: more epochs need a new run with `weights` set to what this
    one has learnt. Nor does a run with phases grow: where one ended, the next has begun.

    Raises:
        CheckpointError: names every setting that changed, or the data.
    """
    new, old = now["settings"], then["settings"]
    has_end = new.get("schedule") != "constant" or new.get("multi_scale_end") or new.get("phases")
    if not has_end and new["epochs"] >= old.get("epochs", 0):
        then = {**then, "settings": {**old, "epochs": new["epochs"]}}
    if changed := differences(now, then):
        raise CheckpointError(
            f"{folder}: cannot go on, this is not the run that was started: {'; '.join(changed)}. "
            f"Its settings are in {folder / 'config.yaml'}"
        )


def differences(now: Mapping[str, Any], then: Mapping[str, Any]) -> list[str]:
    """In words, every setting in which two values of `identity` differ, and the data if they do."""
    new, old = configs.flatten(now["settings"]), configs.flatten(then["settings"])
    changed = [
        f"{name} was {old.get(name)!r}, is {new.get(name)!r}"
        for name in sorted({*new, *old})
        if new.get(name) != old.get(name)
    ]
    return changed + [
        f"the {name} data changed" for name, mark in now["data"].items() if then["data"].get(name) != mark
    ]


def write_environment(path: Path, *, config: RunConfig, fingerprints: Mapping[str, str], fabric: Any) -> None:
    """Write versions, seed, commit, machine and the fingerprints of the data as JSON."""
    versions = {
        name: importlib.metadata.version(name) for name in ("focaldet", "torch", "torchvision", "lightning", "numpy")
    }
    environment = {
        "versions": {"python": platform.python_version(), **versions},
        "commit": source_commit(),
        "seed": config.seed,
        "device": str(fabric.device),
        "processes": fabric.world_size,
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "data": dict(fingerprints),
    }
    path.write_text(json.dumps(environment, indent=2) + "\n", encoding="utf-8")


def source_commit() -> str | None:
    """The commit that the package was imported from, read without git; None outside a checkout."""
    git = Path(__file__).resolve().parents[3] / ".git"
    try:
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        return (git / head[5:]).read_text(encoding="utf-8").strip() if head.startswith("ref: ") else head
    except OSError:
        return None
