"""The run folder: its files, when it may be used, and whether a run that is resumed is the one that was started."""

import importlib.metadata
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from focaldet import config as configs
from focaldet.errors import CheckpointError, ConfigError, TakenError
from focaldet.files import read_bytes, to_json_text, write_json, write_text
from focaldet.text import printable
from focaldet.training.config import FREE_ON_RESUME, RunConfig
from focaldet.training.state import initial_weights

MOST_ENVIRONMENT_BYTES = 1_000_000
LOCK, HOLDER, MOST_HOLDER_BYTES = ".training.lock", ".training.json", 10_000
"""The hidden files of a run folder that a training holds, and that says which one it is."""


class RunFolder:
    """The files of a run; docs/guide/training.md says what each holds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.csv"
        self.events = path / "events.jsonl"
        self.environment = path / "environment.json"
        self.predictions = path / "predictions.json"
        self.report = path / "report.html"
        self.monitor = path / "monitor.html"
        self.last = path / "weights" / "last.safetensors"
        self.best = path / "weights" / "best.safetensors"
        self.state = path / "state" / "last" / "checkpoint.pt"
        self.ranked = path / "state" / "best"

    def create(self, config: RunConfig) -> None:
        """Create the folders and write the settings; with `overwrite`, first remove what an earlier run left.

        Raises:
            ConfigError: no folder can be made there.
        """
        configs.make_folder(self.path)
        if config.overwrite:
            self._clear()
        configs.save({**configs.to_dict(config), "resume": False, "overwrite": False}, self.config)
        configs.make_folder(self.last.parent)
        configs.make_folder(self.state.parent)

    def num_processes(self) -> int | None:
        """With how many processes the run was trained last; None where nobody has written it down."""
        try:
            count = json.loads(read_bytes(self.environment, most=MOST_ENVIRONMENT_BYTES))["processes"]
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return None
        return count if type(count) is int else None

    def _clear(self) -> None:
        """Remove the files of a run, and nothing else."""
        pages = self.report, self.monitor
        for file in (self.config, self.metrics, self.events, self.environment, self.predictions, *pages):
            file.unlink(missing_ok=True)
        for folder in ("weights", "state", "tensorboard", "mlruns", "wandb"):
            shutil.rmtree(self.path / folder, ignore_errors=True)
        for name in ("profile.txt", "profile.json"):
            (self.path / name).unlink(missing_ok=True)


def open_folder(config: RunConfig) -> RunFolder:
    """The folder of the run that `config` describes, checked but not changed.

    A run that was killed before its first save is resumed from its beginning.

    Raises:
        ConfigError: it is not empty and neither `resume` nor `overwrite` was asked for, its content is not a run, it or
            a parent is a file, or permission is missing.
        CheckpointError: there is nothing to resume.
    """
    folder = RunFolder(config.out)
    contents = _visible_names(config.out)
    is_run = not contents or folder.config.name in contents
    if config.resume and not (config.out.is_dir() and is_run):
        raise CheckpointError(f"{config.out}: no run to resume there")
    if config.overwrite and not is_run:
        raise ConfigError(f"out: {config.out} is not a run folder, it contains {contents[0]!r}: it is not overwritten")
    if contents and not (config.resume or config.overwrite):
        raise ConfigError(
            f"out: {config.out} already exists; continue it with --resume, or replace it with --overwrite"
        )
    return folder


@contextmanager
def lock_run(out: Path) -> Iterator[None]:
    """Hold the folder of a run for this process alone; the lock of a process that is dead is taken over.

    A folder that was made for the lock and has nothing else in the end is removed again.

    Raises:
        TakenError: another training writes to it, whose process, machine and start are named.
        ConfigError: no folder can be made there.
    """
    is_new, lock, holder = not out.exists(), FileLock(out / LOCK), out / HOLDER
    configs.make_folder(out)
    if not _acquire(lock):
        if not _is_dead(holder):
            raise TakenError(f"out: another training writes to {out}: {_describe_holder(holder)}; take another --out")
        (out / LOCK).unlink(missing_ok=True)  # its children still have it, and end on their own
        if not _acquire(lock):
            raise TakenError(f"out: another training has just begun to write to {out}; take another --out")
    start = time.strftime("%Y-%m-%d %H:%M:%S")
    try:
        write_json(holder, {"process": os.getpid(), "machine": platform.node(), "start": start})
        yield
    finally:
        for file in (holder, out / LOCK):
            with suppress(OSError):
                file.unlink()
        lock.release()
        if is_new:
            with suppress(OSError):
                out.rmdir()


def _acquire(lock: FileLock) -> bool:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    return True


def _read_holder(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(read_bytes(file, most=MOST_HOLDER_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _describe_holder(file: Path) -> str:
    known = {name: printable(value) for name, value in _read_holder(file).items()}
    process, machine, start = (known.get(name, "?") for name in ("process", "machine", "start"))
    return f"process {process} on {machine}, since {start}"


def _is_dead(file: Path) -> bool:
    """Whether the process that holds a lock was of this machine and has ended."""
    known = _read_holder(file)
    process, machine = known.get("process"), known.get("machine")
    if machine != platform.node() or type(process) is not int or not 0 < process < 2**31:
        return False
    return not runs_on_this_machine(process, machine)


def runs_on_this_machine(process: int, machine: str) -> bool:
    """Whether the process of that number is one of this machine, by its name, and alive."""
    if machine != platform.node():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return True


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


def identity(config: RunConfig, *, fingerprints: Mapping[str, str]) -> dict[str, Any]:
    """What must not change between the parts of a run: the settings that decide what it learns, and its data."""
    settings = {name: value for name, value in configs.to_dict(config).items() if name not in FREE_ON_RESUME}
    settings["weights"] = initial_weights(config)
    return {"settings": settings, "data": dict(fingerprints)}


def check_identity(now: Mapping[str, Any], then: Mapping[str, Any], *, folder: Path) -> None:
    """Make sure that a run is resumed with the settings and data that it was started with.

    Only a `constant` run may get more epochs. The other schedules and `multi_scale_end` depend on the length of the
    run, and in a run with phases the next one has begun where one ended: more epochs need a new run that starts from
    the weights of this one.

    Raises:
        CheckpointError: names every setting that changed, or the data.
    """
    then = {**then, "settings": _current_settings(then["settings"])}
    new, old = now["settings"], then["settings"]
    has_end = new.get("schedule") != "constant" or new.get("multi_scale_end") or new.get("phases")
    if not has_end and new["epochs"] >= old.get("epochs", 0):
        then = {**then, "settings": {**old, "epochs": new["epochs"]}}
    if changed := differences(now, then):
        way = f"Its settings are in {folder / 'config.yaml'}"
        if new["epochs"] > old.get("epochs", 0):
            more, last = new["epochs"] - old.get("epochs", 0), folder / "weights" / "last.safetensors"
            longer = f"start a new run from its weights: --weights {last} --out ANOTHER --epochs {more}"
            way = f"To train on, {longer} (only a schedule of constant can be made longer). {way}"
        raise CheckpointError(
            f"{folder}: cannot be resumed with other settings or data than it was started with: {'; '.join(changed)}. "
            f"{way}"
        )


def _current_settings(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Settings of a saved identity as this version spells them; as they are where it cannot read them."""
    try:
        config = configs.from_dict(RunConfig, settings, warn_renamed=False)
        current: dict[str, Any] = identity(config, fingerprints={})["settings"]
    except ConfigError:
        return settings
    return current


def differences(now: Mapping[str, Any], then: Mapping[str, Any]) -> list[str]:
    """Every setting in which two values of `identity` differ, and the data if they do, as text."""
    new, old = (
        configs.flatten({name: value for name, value in mark["settings"].items() if value != []})
        for mark in (now, then)
    )
    changed = [
        f"{name} was {old.get(name)!r}, is {new.get(name)!r}"
        for name in sorted({*new, *old})
        if new.get(name) != old.get(name)
    ]
    return changed + [
        f"the {name} data changed" for name, mark in now["data"].items() if then["data"].get(name) != mark
    ]


def continues_record(out: Path, file: Path, identity: Mapping[str, Any], *, kind: str, overwrite: bool) -> bool:
    """Make `out` the folder of many trainings with one record, such as a sweep; whether an earlier call is continued.

    Args:
        out: the folder.
        file: its record, which has the settings and data under `identity`.
        identity: those of this call.
        kind: what the trainings together are called.
        overwrite: whether to begin anew.

    Raises:
        ConfigError: it contains something else, or a `kind` with other settings or data.
    """
    configs.make_folder(out)
    if (names := _visible_names(out)) and not file.exists():
        raise ConfigError(f"out: {out} contains {names[0]!r} and is not the folder of a {kind}")
    if not file.exists() or overwrite:
        return False
    before = configs.read_mapping(file).get("identity")
    if not isinstance(before, Mapping):
        raise ConfigError(f"{file}: the settings of the {kind} are missing; start over with --overwrite")
    if changed := differences(identity, before):
        raise ConfigError(
            f"out: {out} contains a {kind} with other settings: {'; '.join(changed)}; continue with its settings, "
            "take another --out, or start over with --overwrite"
        )
    return True


def remove_folder(path: Path) -> None:
    """Remove a folder, if it is there, first out of sight in one move: a kill leaves nothing half removed behind."""
    old = path.with_name(f".{path.name}.overwritten")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
        shutil.rmtree(old)


def write_environment(
    folder: RunFolder, config: RunConfig, *, fingerprints: Mapping[str, str], fabric: Any, ended: bool
) -> None:
    """Write versions, seed, commit, machine and the fingerprints of the data as JSON.

    Those of a run that has `ended`, in which nothing is left to train, stay as they are.
    """
    if ended and folder.environment.exists():
        return
    versions = {
        name: importlib.metadata.version(name)
        for name in ("focaldet", "torch", "torchvision", "lightning-fabric", "numpy")
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
    write_text(folder.environment, to_json_text(environment, indent=2) + "\n")


def source_commit() -> str | None:
    """The commit that the package was imported from, read without git; None outside a checkout."""
    git = Path(__file__).resolve().parents[3] / ".git"
    try:
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        return (git / head[5:]).read_text(encoding="utf-8").strip() if head.startswith("ref: ") else head
    except OSError:
        return None
