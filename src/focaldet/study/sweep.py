"""Tables 1a, 1b and 1d of the paper on your own data: a short training for every γ and α, and for OHEM."""

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from focaldet import config as configs
from focaldet.data.dataset import ImageSource
from focaldet.errors import ConfigError, NonFiniteLossError
from focaldet.files import write_json
from focaldet.models import named_config
from focaldet.ops.sampling import MiningConfig
from focaldet.runtime import num_processes
from focaldet.study.sweep_page import SweepRow, compare_balance, sweep_sentences, write_sweep
from focaldet.training.config import RunConfig
from focaldet.training.run_folder import RunFolder, continues_record, identity, remove_folder
from focaldet.training.sources import open_sources
from focaldet.training.trainer import train

SWEEP_GAMMAS = (0.0, 0.5, 1.0, 2.0, 5.0)
SWEEP_ALPHAS = (0.25, 0.5, 0.75, None)
MININGS = (MiningConfig(128), MiningConfig(256), MiningConfig(128, ratio=3.0))
VARIED = ("loss.gamma", "loss.alpha", "loss.mining", "classifier")
RECORD, RESULT, RUNS = "sweep.json", "result.json", "runs"


@dataclass(frozen=True, slots=True)
class SweepStudy:
    """The results of a sweep. `page` is None where it was interrupted; the same call then continues it."""

    out: Path
    page: Path | None
    rows: tuple[SweepRow, ...]
    sentences: tuple[str, ...]
    interrupted: bool


def study_sweep(
    run: RunConfig,
    *,
    gammas: Sequence[float] = SWEEP_GAMMAS,
    alphas: Sequence[float | None] = SWEEP_ALPHAS,
    ohem: bool = False,
    softmax: bool = False,
    sources: tuple[ImageSource, ImageSource] | None = None,
    log: Callable[[str], None] | None = None,
) -> SweepStudy:
    """Train `run` once for every γ and α with the same seed and length, and write their AP side by side to `run.out`.

    Each setting has a run folder in `runs`; its AP is that of its last evaluation, not of its best, which would be
    chosen on the images that it is evaluated on. `sweep.json` and `.csv`, `ap.svg` and `.png` and `index.html` have the
    results. Called again, the sweep keeps finished settings and resumes an interrupted one, and gives the numbers of an
    uninterrupted sweep; `run.overwrite` starts over. A setting whose loss becomes NaN or infinite is a row that
    diverged.

    Args:
        run: the settings of every training, without γ, α, mining and classifier in its architecture.
        gammas: exponents of the focal loss; 0 is cross entropy.
        alphas: weights of objects; None is the focal loss without balance (eq. 4).
        ohem: also cross entropy with online hard example mining (table 1d).
        softmax: also softmax cross entropy with a background class.
        sources: images to train on and to evaluate on, instead of those in `run.data`.
        log: called with a line before and after every setting.

    Raises:
        ConfigError: a setting is out of range or one that the sweep varies, `run.out` is not the folder of a sweep, or
            that sweep has other settings or data; names them.
        DataError, CheckpointError, OutOfMemoryError: as in `train`.
    """
    log = log or (lambda _: None)
    settings = sweep_settings(gammas, alphas, ohem=ohem, softmax=softmax)
    plans = _plan_trainings(run, settings)
    if sources is None:
        train_source, val_source, messages = open_sources(replace(run, overfit=None), None)
        sources = train_source, val_source
        for message in messages:
            log(message)
    fingerprints = {"train": sources[0].dataset.fingerprint(), "validation": sources[1].dataset.fingerprint()}
    sweep_identity = identity(run, fingerprints=fingerprints)
    _open_sweep(run.out, sweep_identity, overwrite=run.overwrite)
    results, seconds = list[SweepRow](), list[float]()
    for number, (setting, plan) in enumerate(zip(settings, plans, strict=True), 1):
        progress = f"setting {number}/{len(plans)}"
        row = _read_result(plan.out / RESULT, setting)
        if row is None:
            log(f"{progress}  {setting.name}{_remaining_time(seconds, len(plans) - number + 1)}")
            begin = time.monotonic()
            row = _train_setting(plan, setting, sources)
            seconds.append(time.monotonic() - begin)
            if row is None:
                again = "the same command without --overwrite" if run.overwrite else "the same command"
                log(f"stopped in {progress}, {setting.name}; {again} continues")
                return SweepStudy(run.out, None, tuple(results), (), interrupted=True)
            _write_sweep_json(plan.out / RESULT, configs.to_dict(row))
        results.append(row)
        log(f"{progress}  {row.name}  {row.summary()}")
    rows, lines = tuple(results), sweep_sentences(results)
    record = {"identity": sweep_identity, "rows": [configs.to_dict(row) for row in rows], "seeds": [run.seed]}
    balance = [configs.to_dict(one) for one in compare_balance(rows)]
    _write_sweep_json(run.out / RECORD, {**record, "balance": balance, "sentences": lines})
    page = write_sweep(run.out, rows, run=run, num_images=len(open_sources(run, sources)[1].dataset))
    return SweepStudy(run.out, page, rows, lines, interrupted=False)


def sweep_settings(
    gammas: Sequence[float], alphas: Sequence[float | None], *, ohem: bool, softmax: bool
) -> tuple[SweepRow, ...]:
    """The settings in the order in which they are trained, each once, as rows without results.

    Raises:
        ConfigError: no γ or no α is given.
    """
    for name, values in (("gamma", gammas), ("alpha", alphas)):
        if not values:
            raise ConfigError(f"{name}: a sweep needs at least one value")
    pairs = dict.fromkeys(itertools.product(gammas, alphas))
    settings = [
        SweepRow(f"gamma_{gamma:g}_alpha_{'none' if alpha is None else f'{alpha:g}'}", gamma, alpha)
        for gamma, alpha in pairs
    ]
    for mining in MININGS if ohem else ():
        ratio = "" if mining.ratio is None else f"_1to{mining.ratio:g}"
        name = f"ohem_{mining.batch}_nms_{mining.nms_iou:g}{ratio}"
        settings.append(SweepRow(name, 0.0, None, mining.batch, mining.nms_iou, mining.ratio))
    if softmax:
        settings.append(SweepRow("softmax", 0.0, None, classifier="softmax"))
    return tuple(settings)


def _plan_trainings(run: RunConfig, settings: Sequence[SweepRow]) -> list[RunConfig]:
    """The training of every setting, checked before the first one begins.

    Raises:
        ConfigError: see `study_sweep`.
    """
    if num_processes() > 1:
        raise ConfigError("a sweep runs in one process; start it without torchrun or SLURM tasks")
    if run.phases:
        raise ConfigError("phases: a sweep trains every setting without phases; remove them")
    if run.evaluate_every is None:
        raise ConfigError("evaluate_every: a sweep compares AP, so there must be evaluations")
    given = configs.flatten(run.architecture)
    for name in VARIED:
        if any(f"{key}.".startswith(f"{name}.") for key in given):
            raise ConfigError(f"architecture.{name}: is varied by the sweep; remove it")
    asked = configs.to_dict(named_config(run.model, architecture=run.architecture))
    # γ, α and mining are those of targets 0 and 1.
    hard_targets = {"loss": {"quality": False}} if asked.get("loss", {}).get("quality") else {}
    plans = []
    for setting in settings:
        architecture = configs.merge(configs.merge(run.architecture, hard_targets), setting.architecture())
        named_config(run.model, architecture=architecture)
        out = run.out / RUNS / setting.name
        plans.append(replace(run, out=out, architecture=architecture, resume=False, overwrite=False))
    return plans


def _open_sweep(out: Path, sweep_identity: Mapping[str, Any], *, overwrite: bool) -> None:
    """Make `out` the folder of this sweep; the runs of an earlier one are removed with `overwrite`.

    Raises:
        ConfigError: see `study_sweep`.
    """
    record = out / RECORD
    if continues_record(out, record, sweep_identity, kind="sweep", overwrite=overwrite):
        return
    remove_folder(out / RUNS)
    _write_sweep_json(record, {"identity": sweep_identity})


def _write_sweep_json(path: Path, value: Any) -> None:
    write_json(path, value)


def _read_result(path: Path, setting: SweepRow) -> SweepRow | None:
    """The row of a finished setting; None where it is not finished.

    Raises:
        ConfigError: the file is of another setting.
    """
    if not path.exists():
        return None
    row = configs.from_dict(SweepRow, configs.read_mapping(path), source=str(path))
    if replace(row, ap=None, ap50=None, ap75=None, epochs=0, seconds=0.0, diverged=None) != setting:
        raise ConfigError(f"{path}: is of another setting than {setting.name}; start over with --overwrite")
    return row


def _train_setting(plan: RunConfig, setting: SweepRow, sources: tuple[ImageSource, ImageSource]) -> SweepRow | None:
    """Train one setting, or resume it, and return its row; None where it was interrupted."""
    try:
        result = train(replace(plan, resume=RunFolder(plan.out).config.exists()), sources=sources)
    except NonFiniteLossError as error:
        return replace(setting, diverged=str(error))
    if result.interrupted:
        return None
    if (last := result.last) is None:
        return setting
    return replace(
        setting, ap=last.ap, ap50=last.ap50, ap75=last.ap75, epochs=result.epochs, seconds=result.seconds_training
    )


def _remaining_time(seconds: Sequence[float], num_settings: int) -> str:
    """The time for so many settings in words, from that of the settings trained before; empty without any."""
    if not seconds:
        return ""
    minutes = num_settings * sum(seconds) / len(seconds) / 60
    return f"  about {minutes:.0f} min left" if minutes >= 1 else "  less than a minute left"
