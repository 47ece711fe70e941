"""Tables 1a, 1b and 1d of the paper in small, on one's own data: a short training for every γ and α, and for OHEM."""

import itertools
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from focaldet import config as configs
from focaldet.data.dataset import ImageSource
from focaldet.errors import ConfigError, NonFiniteLossError
from focaldet.models import named_config
from focaldet.ops.classifier import Classifier
from focaldet.ops.sampling import MiningConfig
from focaldet.runtime import num_processes
from focaldet.study.sweep_page import Row, comparisons, sentences, write_files
from focaldet.training.config import RunConfig
from focaldet.training.run_folder import RunFolder, differences, identity
from focaldet.training.sources import open_sources
from focaldet.training.trainer import train
from focaldet.weights.formats.files import write_atomically

GAMMAS = (0.0, 0.5, 1.0, 2.0, 5.0)
ALPHAS = (0.25, 0.5, 0.75, None)
MININGS = (MiningConfig(128), MiningConfig(256), MiningConfig(128, ratio=3.0))
VARIED = ("loss.gamma", "loss.alpha", "loss.mining", "classifier")
RECORD, RESULT, RUNS = "sweep.json", "result.json", "runs"

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to learn classes; `name` is its folder in `runs`."""

    name: str
    gamma: float
    alpha: float | None
    mining: MiningConfig | None = None
    classifier: Classifier = "sigmoid"

    def architecture(self) -> dict[str, Any]:
        """What the setting changes of a detector."""
        loss: dict[str, Any] = {"gamma": self.gamma, "alpha": self.alpha}
        if self.mining is not None:
            loss["mining"] = configs.to_dict(self.mining)
        return {"loss": loss} if self.classifier == "sigmoid" else {"loss": loss, "classifier": self.classifier}


@dataclass(frozen=True, slots=True)
class SweepStudy:
    """What a sweep found. `page` is None where it was interrupted; then the same call goes on."""

    out: Path
    page: Path | None
    rows: tuple[Row, ...]
    sentences: tuple[str, ...]
    interrupted: bool


def study_sweep(
    run: RunConfig,
    *,
    gammas: Sequence[float] = GAMMAS,
    alphas: Sequence[float | None] = ALPHAS,
    ohem: bool = False,
    softmax: bool = False,
    sources: tuple[ImageSource, ImageSource] | None = None,
    tell: Tell | None = None,
) -> SweepStudy:
    """Train `run` once for every γ and α with the same seed and length, compare their AP, and leave all in `run.out`.

    Each setting is a run folder in `runs`; its AP is that of its last evaluation, not of its best, which would be
    chosen on the images that judge it. `sweep.json` and `.csv`, `ap.svg` and `.png` and `index.html` tell what came
    out. Called again, finished settings stay as they are and a broken-off one goes on, to the numbers an unbroken sweep
    gives; `run.overwrite` begins anew. A setting whose loss stops being finite is a row too: it diverged.

    Args:
        run: the settings of every training; γ, α, mining and classifier of its architecture are the sweep's.
        gammas: exponents of the focal loss; 0 is cross entropy.
        alphas: weights of objects; None leaves the balance out (eq. 4).
        ohem: also cross entropy with online hard example mining (table 1d).
        softmax: also softmax cross entropy with a background class.
        sources: images to train on and to evaluate on, instead of those in `run.data`.
        tell: takes a line before and after every setting.

    Raises:
        ConfigError: a setting is out of range or is the sweep's own, `run.out` holds something else, or the sweep there
            was begun with other settings or data; names them.
        DataError, CheckpointError, OutOfMemoryError: as in `train`.
    """
    say = tell or (lambda _: None)
    settings = sweep_settings(gammas, alphas, ohem=ohem, softmax=softmax)
    plans = _plans(run, settings)
    if sources is None:
        *pair, lines = open_sources(replace(run, overfit=None), None)
        sources = (pair[0], pair[1])
        for line in lines:
            say(line)
    marks = {"train": sources[0].dataset.fingerprint(), "validation": sources[1].dataset.fingerprint()}
    begun = identity(run, fingerprints=marks)
    _open(run.out, begun, overwrite=run.overwrite)
    rows: list[Row] = []
    clock = _Clock(len(plans))
    for number, (setting, plan) in enumerate(zip(settings, plans, strict=True), 1):
        place = f"setting {number}/{len(plans)}"
        row = _read_row(plan.out / RESULT, setting)
        if row is None:
            say(f"{place}  {setting.name}{clock.left(number)}")
            with clock:
                row = _trained(plan, setting, sources)
            if row is None:
                again = "the same command without --overwrite" if run.overwrite else "the same command"
                say(f"stopped in {place}, {setting.name}; {again} goes on")
                return SweepStudy(run.out, None, tuple(rows), (), interrupted=True)
            _write_json(plan.out / RESULT, configs.to_dict(row))
        rows.append(row)
        say(f"{place}  {row.name}  {row.in_words()}")
    found = tuple(rows)
    record = {"identity": begun, "rows": [configs.to_dict(row) for row in rows], "seeds": [run.seed]}
    compared = [configs.to_dict(one) for one in comparisons(found)]
    _write_json(run.out / RECORD, {**record, "balance": compared, "sentences": sentences(found)})
    page = write_files(run.out, found, run=run, num_images=len(open_sources(run, sources)[1].dataset))
    return SweepStudy(run.out, page, found, sentences(found), interrupted=False)


def sweep_settings(
    gammas: Sequence[float], alphas: Sequence[float | None], *, ohem: bool, softmax: bool
) -> tuple[Setting, ...]:
    """The settings in the order in which they are trained; each once.

    Raises:
        ConfigError: no γ or no α is given.
    """
    for name, values in (("gamma", gammas), ("alpha", alphas)):
        if not values:
            raise ConfigError(f"{name}: a sweep needs at least one value")
    pairs = dict.fromkeys(itertools.product(gammas, alphas))
    found = [Setting(f"gamma_{gamma:g}_alpha_{_word(alpha)}", gamma, alpha) for gamma, alpha in pairs]
    for mining in MININGS if ohem else ():
        ratio = "" if mining.ratio is None else f"_1to{mining.ratio:g}"
        found.append(Setting(f"ohem_{mining.batch}_nms_{mining.nms_iou:g}{ratio}", 0.0, None, mining))
    if softmax:
        found.append(Setting("softmax", 0.0, None, classifier="softmax"))
    return tuple(found)


def _word(alpha: float | None) -> str:
    return "none" if alpha is None else f"{alpha:g}"


def _plans(run: RunConfig, settings: Sequence[Setting]) -> list[RunConfig]:
    """The training of every setting, checked before the first one begins.

    Raises:
        ConfigError: see `study_sweep`.
    """
    if num_processes() > 1:
        raise ConfigError("a sweep runs in one process; start it without torchrun or SLURM tasks")
    if run.phases:
        raise ConfigError("phases: every setting of a sweep is trained in one piece; leave them out")
    if run.evaluate_every is None:
        raise ConfigError("evaluate_every: a sweep compares AP, so there must be evaluations")
    for name in VARIED:
        if _has(run.architecture, name.split(".")):
            raise ConfigError(f"architecture.{name}: is what a sweep varies; leave it out")
    plans = []
    for setting in settings:
        architecture = configs.merge(run.architecture, setting.architecture())
        named_config(run.model, architecture=architecture)
        out = run.out / RUNS / setting.name
        plans.append(replace(run, out=out, architecture=architecture, resume=False, overwrite=False))
    return plans


def _has(values: Any, names: Sequence[str]) -> bool:
    """Whether nested mappings hold something under these names."""
    for name in names:
        if not isinstance(values, Mapping) or name not in values:
            return False
        values = values[name]
    return True


def _open(out: Path, begun: Mapping[str, Any], *, overwrite: bool) -> None:
    """Make `out` the folder of this sweep; what an earlier one left goes with `overwrite`."""
    configs.make_folder(out)
    record, runs, old = out / RECORD, out / RUNS, out / ".runs.overwritten"
    names = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
    if names and not record.exists():
        raise ConfigError(f"out: {out} holds {names[0]!r} and no sweep")
    if record.exists() and not overwrite:
        then = configs.read_mapping(record).get("identity")
        if not isinstance(then, Mapping):
            raise ConfigError(f"{record}: does not say with what the sweep was begun; begin anew with --overwrite")
        if changed := differences(begun, then):
            raise ConfigError(
                f"out: {out} holds a sweep that was begun otherwise: {'; '.join(changed)}; go on with its settings, "
                "take another --out, or begin anew with --overwrite"
            )
        return
    # First out of sight in one move: a kill in between leaves no half-removed run behind.
    shutil.rmtree(old, ignore_errors=True)
    if runs.exists():
        runs.rename(old)
        shutil.rmtree(old)
    _write_json(record, {"identity": begun})


def _write_json(path: Path, value: Any) -> None:
    write_atomically(path, (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode())


def _read_row(path: Path, setting: Setting) -> Row | None:
    """What a finished setting left; None where it is not finished.

    Raises:
        ConfigError: it was trained as another setting.
    """
    if not path.exists():
        return None
    row = configs.from_dict(Row, configs.read_mapping(path), source=str(path))
    if row != _row_of(setting, row):
        raise ConfigError(f"{path}: is of another setting than {setting.name}; begin anew with --overwrite")
    return row


def _row_of(setting: Setting, measured: Row) -> Row:
    """`measured` with the name and the values of `setting`."""
    mining = setting.mining
    return replace(
        measured,
        name=setting.name,
        gamma=setting.gamma,
        alpha=setting.alpha,
        batch=None if mining is None else mining.batch,
        nms_iou=None if mining is None else mining.nms_iou,
        ratio=None if mining is None else mining.ratio,
        classifier=setting.classifier,
    )


def _trained(plan: RunConfig, setting: Setting, sources: tuple[ImageSource, ImageSource]) -> Row | None:
    """Train one setting, or go on with it; None where it was interrupted."""
    empty = _row_of(setting, Row(setting.name, setting.gamma, setting.alpha))
    try:
        result = train(replace(plan, resume=RunFolder(plan.out).config.exists()), sources=sources)
    except NonFiniteLossError as error:
        return replace(empty, diverged=str(error))
    if result.interrupted:
        return None
    if (last := result.last) is None:
        return empty
    return replace(
        empty, ap=last.ap, ap50=last.ap50, ap75=last.ap75, epochs=result.epochs, seconds=result.seconds_training
    )


class _Clock:
    """How long the settings that were trained in this call took, as a context around each; guesses the rest."""

    def __init__(self, num_settings: int) -> None:
        self.num_settings, self.spent = num_settings, list[float]()

    def __enter__(self) -> None:
        self.begin = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.spent.append(time.monotonic() - self.begin)

    def left(self, number: int) -> str:
        """What is left from setting `number` on, in words; empty before anything was trained."""
        if not self.spent:
            return ""
        minutes = (self.num_settings - number + 1) * sum(self.spent) / len(self.spent) / 60
        return f"  about {minutes:.0f} min left" if minutes >= 1 else "  less than a minute left"
