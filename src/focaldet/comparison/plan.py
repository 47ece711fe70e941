"""What a comparison trains: one job for each detector and seed, all with the same images, order and budget."""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from focaldet import config as configs
from focaldet.comparison.config import CompareConfig
from focaldet.data.dataset import Dataset, ImageSource
from focaldet.data.loading.loader import Loader
from focaldet.errors import ConfigError, FocaldetError
from focaldet.models import named_config
from focaldet.runtime import launch_fabric, num_processes, pick_device, torch_settings
from focaldet.training.auto import choose_anchors, may_fit_anchors
from focaldet.training.config import RunConfig
from focaldet.training.state import build_state
from focaldet.training.step import train_step

RUNS, JOBS = "runs", "jobs"
SAVE_MINUTES = 1.0  # so that a kill costs little
EVALUATED_ONCE = "has no effect: the last weights are evaluated, once"
SAVED_OFTEN = f"has no effect: the state is saved every {SAVE_MINUTES:g} min or more often, so that a kill costs little"
NUM_STEPS = 3  # that an estimate takes, the first of which does not count


@dataclass(frozen=True, slots=True)
class Job:
    """One training: its name is that of its folder in `runs`, and `run` its settings."""

    name: str
    run: RunConfig


def plan_jobs(run: RunConfig, config: CompareConfig) -> list[Job]:
    """The trainings in the order in which they are run: all detectors with the first seed, then with the next.

    Raises:
        ConfigError: a detector is unknown or cannot be built as asked for, a setting would make the trainings unequal
            or would have no effect, or several processes were started together.
    """
    if num_processes() > 1:
        raise ConfigError(
            "compare: runs its trainings one after another in one process; write them down with --write-jobs and start "
            "each under torchrun or SLURM"
        )
    for name, reason in {
        "phases": "all detectors are trained alike, in one phase" if run.phases else "",
        "patience": "all detectors have the same budget" if run.patience else "",
        "average_best": "the last weights are compared, none chosen on the images" if run.average_best else "",
        "overfit": "accuracy is compared on images that were not trained on" if run.overfit else "",
        "evaluate_every": EVALUATED_ONCE if run.evaluate_every not in (None, RunConfig.evaluate_every) else "",
        "save_minutes": SAVED_OFTEN if SAVE_MINUTES < run.save_minutes != RunConfig.save_minutes else "",
    }.items():
        if reason:
            raise ConfigError(f"{name}: {reason}; remove it")
    for model in config.models:
        named_config(model, architecture=run.architecture)
    save_minutes = min(run.save_minutes, SAVE_MINUTES)
    jobs = []
    for seed, model in itertools.product(range(run.seed, run.seed + config.seeds), config.models):
        name = f"{model}-seed{seed}"
        held_out_seed = run.data.split_seed if seed == run.seed or run.data.split_seed is not None else run.seed
        settings = replace(
            run,
            data=replace(run.data, split_seed=held_out_seed),  # every seed leaves out the same images
            model=model,
            seed=seed,
            out=run.out / RUNS / name,
            evaluate_every=None,
            resume=False,
            overwrite=False,
            save_minutes=save_minutes,
        )
        jobs.append(Job(name, settings))
    return jobs


def fit_anchors(jobs: Sequence[Job], dataset: Dataset, *, log: Callable[[str], None] = lambda _: None) -> list[Job]:
    """The trainings, those of small RetinaNets with the anchors that `focaldet train` would choose for these images.

    `log` is called with a line for each such detector.
    """
    fitted, lines = [], dict[str, None]()
    for job in jobs:
        run = job.run
        if may_fit_anchors(run, configs.flatten({"architecture": run.architecture})):
            choice = choose_anchors(run, dataset)
            anchors = {"anchors": {"base_scale": choice.value}}
            run = replace(run, architecture=configs.merge(run.architecture, anchors))
            lines[f"{run.model}: {choice}"] = None
        fitted.append(replace(job, run=run))
    for line in lines:
        log(line)
    return fitted


def shard_jobs(jobs: Sequence[Job], part: tuple[int, int]) -> list[Job]:
    """Part i of n of the jobs, i from 1."""
    number, count = part
    return list(jobs[number - 1 :: count])


def write_jobs(out: Path, jobs: Sequence[Job]) -> list[Path]:
    """Write the settings of each training to `jobs/<name>.yaml`, for `focaldet train --config`; their paths."""
    folder = configs.make_folder(out / JOBS)
    paths = []
    for job in jobs:
        paths.append(folder / f"{job.name}.yaml")
        configs.save(job.run, paths[-1])
    return paths


def count_job_processes(run: RunConfig) -> int:
    """The GPUs of this machine among which the images of an update can be divided; 1 where there are not several."""
    num_devices = torch.cuda.device_count() if run.device in (None, "cuda") else 1
    images = run.batch_size // run.accumulate
    return max(count for count in range(1, max(1, num_devices) + 1) if images % count == 0)


def estimate_minutes(job: Job, sources: tuple[ImageSource, ImageSource]) -> float | None:
    """The minutes that a training will take: its budget, or what its epochs take at the speed of a few steps.

    Nothing is written. None where the detector cannot be trained.
    """
    run = job.run
    if run.minutes is not None:
        return run.minutes
    try:
        with torch_settings(threads=run.threads, deterministic=False):
            seconds = _seconds_per_image(run, sources)
    except (FocaldetError, RuntimeError):
        return None
    return seconds * run.epochs * len(sources[0].dataset) / 60


def _seconds_per_image(run: RunConfig, sources: tuple[ImageSource, ImageSource]) -> float:
    """The time of a training step, loading included, for each of its images."""
    source, validation = sources
    fabric = launch_fabric(pick_device(run.device))
    state, _ = build_state(run, classes=validation.dataset.classes, fabric=fabric, saved=None)
    loader = Loader(
        source,
        preprocessing=state.detector.preprocessing,
        batch_size=run.batch_size // run.accumulate,
        seed=run.seed,
        augment=run.augment,
        workers=run.workers,
    )
    batches = itertools.chain.from_iterable(loader.epoch(epoch) for epoch in itertools.count())
    seconds = []
    for _ in range(NUM_STEPS):
        begin = time.perf_counter()
        group = list(itertools.islice(batches, run.accumulate))
        train_step(state, group, module=state.detector, config=run, rate=0.0)
        seconds.append((time.perf_counter() - begin) / sum(len(batch.indices) for batch in group))
    return min(seconds[1:])
