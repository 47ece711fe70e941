"""The training run: from settings to a run folder."""

import itertools
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from focaldet import config as configs
from focaldet.data.dataset import ImageSource
from focaldet.data.loading.loader import explained_worker_death
from focaldet.evaluation.coco import HEADLINES, Metrics, evaluate_detections, percent
from focaldet.evaluation.evaluate import detect_all
from focaldet.evaluation.results import write_results
from focaldet.report.run_report import write_report
from focaldet.runtime import launch_fabric, num_processes, pick_device
from focaldet.training.assembly import Parts, assemble
from focaldet.training.config import RunConfig, checked
from focaldet.training.launch import advice, global_settings
from focaldet.training.logs import RunLog
from focaldet.training.optim import rate_factor
from focaldet.training.phases import Phase, planned
from focaldet.training.run_folder import Position, RunFolder, open_folder, save_state
from focaldet.training.signals import stop_signal
from focaldet.types import Batch
from focaldet.weights import save_detector


@dataclass(frozen=True)
class TrainResult:
    """What came of a run.

    `best` and `last` are the metrics of the best and of the last evaluation. `seconds_training` is the time of all
    steps, loading included, without evaluation, saving and set-up. An `interrupted` run was saved and can be resumed.
    """

    out: Path
    best: Metrics | None
    last: Metrics | None
    epochs: int
    seconds_training: float
    interrupted: bool


def train(config: RunConfig, *, sources: tuple[ImageSource, ImageSource] | None = None) -> TrainResult:
    """Train a detector and leave a run folder behind; with `resume`, go on to the weights an unbroken run would reach.

    Under `torchrun` or SLURM every process calls this and takes its share of each batch. SIGINT and SIGTERM end the
    run after the step it is in, saved.

    Args:
        config: all settings.
        sources: images to train on and to evaluate on, instead of those in `config.data`.

    Raises:
        ConfigError: a setting is out of range, or the folder is taken.
        DataError: data that cannot be read.
        CheckpointError: weights or a state that do not fit or cannot be written.
        NonFiniteLossError: the loss or its gradient is not finite.
        OutOfMemoryError: out of memory.
    """
    config = checked(config, num_ranks=num_processes())
    folder, phases = open_folder(config), planned(config)
    with ExitStack() as stack:
        stack.enter_context(advice(config))
        stack.enter_context(explained_worker_death())
        stack.enter_context(global_settings(config))
        wish = stack.enter_context(stop_signal())
        # Every process has looked at the folder before the first one changes it: launching waits for all.
        fabric = launch_fabric(pick_device(config.device))
        parts = assemble(config, phases=phases, folder=folder, fabric=fabric, wish=wish, sources=sources)
        stack.callback(parts.log.close)
        return Run(config, folder=folder, parts=parts, has_files=sources is None).finish()


class Run:
    """A run under way: epochs of steps, evaluations and saves, from a position on.

    `config` are the settings of the whole run, `settings` those of the phase under way. `has_files` says that the
    images are those of `config.data`, so that the command line can go on with the run.
    """

    def __init__(self, config: RunConfig, *, folder: RunFolder, parts: Parts, has_files: bool) -> None:
        self.config, self.folder, self.parts = config, folder, parts
        self.has_files = has_files
        self.position: Position = parts.position
        self.log: RunLog = parts.log
        self.last_save = time.monotonic()

    @property
    def phase(self) -> Phase:
        """The phase under way."""
        return self.parts.work.phase

    @property
    def settings(self) -> RunConfig:
        """The settings of the phase under way."""
        return self.phase.config

    def finish(self) -> TrainResult:
        """Train up to the last epoch, or until the run is asked to stop or no longer improves."""
        self._tell_start()
        interrupted = not self._train_phase()
        while not interrupted and self.phase.number < self.phase.count:
            self.parts.begin_next_phase()
            self._tell_phase()
            interrupted = not self._train_phase()
        position, best = self.position, metrics_from(self.position.best)
        if best is not None and not interrupted and self.parts.fabric.is_global_zero:
            write_report(self.folder.path, self.parts.validation, metrics=best)
        self._tell_end(interrupted=interrupted)
        return TrainResult(
            out=self.folder.path,
            best=best,
            last=metrics_from(position.last),
            epochs=position.epoch,
            seconds_training=position.seconds_training,
            interrupted=interrupted,
        )

    def _train_phase(self) -> bool:
        """Train to the end of the phase, or until it no longer improves. False when asked to stop."""
        while self.position.epoch < self.phase.end_epoch and not self._has_stalled():
            if not (self._train_epoch() and self._evaluate()):
                return False
            self.position.epoch, self.position.batch = self.position.epoch + 1, 0
            self.save()
        return True

    def _has_stalled(self) -> bool:
        patience = self.config.patience
        return patience is not None and self.position.evaluations_without_gain >= patience

    def _train_epoch(self) -> bool:
        """Train to the end of the epoch. False when asked to stop, with everything saved."""
        position, work = self.position, self.parts.work
        batches = work.loader.epoch(position.epoch, start_batch=position.batch)
        begin = time.perf_counter()
        for group in _grouped(batches, self.settings.accumulate):
            rate = self.settings.scaled_learning_rate * self._rate_factor()
            result = work.update(group, step=position.step, rate=rate)
            position.step += 1
            position.batch += len(group)
            seconds = time.perf_counter() - begin
            position.seconds_training += seconds
            self.log.write(
                "step",
                **self.phase.mark,
                epoch=position.epoch + 1,
                step=position.step,
                seconds=seconds,
                images_per_second=result.num_images / seconds,
                learning_rate=rate,
                gradient_norm=result.gradient_norm,
                loss=sum(result.losses.values()),
                losses=result.losses,
            )
            if result.stop:
                self.save()
                return False
            if self._save_is_due():
                self.save()
            begin = time.perf_counter()
        return True

    def _rate_factor(self) -> float:
        work, settings = self.parts.work, self.settings
        return rate_factor(
            self.position.step - work.first_step,
            total_steps=work.steps_per_epoch * settings.epochs,
            warmup_steps=work.steps_per_epoch * settings.warmup_epochs,
            warmup_power=settings.warmup_power,
            schedule=settings.schedule,
            step_at=settings.step_at,
        )

    def _save_is_due(self) -> bool:
        every = self.config.save_steps
        minutes = (time.monotonic() - self.last_save) / 60
        return (every is not None and self.position.step % every == 0) or minutes >= self.config.save_minutes

    def _evaluate(self) -> bool:
        """Evaluate after this epoch if it is time to. False when asked to stop, with everything saved."""
        every, epoch, phase = self.settings.evaluate_every, self.position.epoch + 1, self.phase
        if every is None or ((epoch - phase.first_epoch) % every and epoch != phase.end_epoch):
            return True
        try:
            metrics = self._measure()
        except _StopAskedError:
            self.save()
            return False
        is_best = self._is_best(metrics)
        self.position.last = metrics.to_dict()
        self.position.evaluations_without_gain = 0 if is_best else self.position.evaluations_without_gain + 1
        if is_best:
            self.position.best = metrics.to_dict()
        numbers = {name: value for name, value in metrics.to_dict().items() if name in HEADLINES}
        text = f"epoch {epoch}/{self.config.epochs}  {_summary(metrics)}{'  (best so far)' if is_best else ''}"
        self.log.write(
            "evaluation", **phase.mark, epoch=epoch, step=self.position.step, best=is_best, text=text, **numbers
        )
        return True

    def _measure(self) -> Metrics:
        """The metrics of the detector as it stands; its detections and weights are kept if none before were better."""
        source, fabric, learner = self.parts.validation, self.parts.fabric, self.parts.work.learner
        found = detect_all(
            learner.evaluated,
            source,
            batch_size=self.settings.batch_size // (fabric.world_size * self.settings.accumulate),
            precision=learner.autocast.precision,
            workers=self.config.workers,
            fabric=fabric if fabric.world_size > 1 else None,
            progress=self._check_wish if fabric.world_size == 1 else None,
        )
        detections = dict(enumerate(found.detections))
        metrics = evaluate_detections(source.dataset, detections)
        if fabric.is_global_zero and self._is_best(metrics):
            write_results(self.folder.predictions, source.dataset, detections)
            self._save_weights(self.folder.best)
        return metrics

    def _is_best(self, metrics: Metrics) -> bool:
        best = self.position.best
        return best is None or (metrics.ap or 0.0) > (best["ap"] or 0.0)

    def _check_wish(self, done: int, total: int | None) -> None:
        """An evaluation is given up when the run is asked to stop: resuming begins it again."""
        del done, total
        if self.parts.wish:
            raise _StopAskedError

    def save(self) -> None:
        """Replace the last weights and the full state; only the first process writes.

        The state comes last: a run that is killed between the two goes on from the older one and writes both again.
        """
        self.last_save = time.monotonic()
        if not self.parts.fabric.is_global_zero:
            return
        self.position.num_rows = self.log.num_rows
        state = {"position": asdict(self.position), "identity": json.dumps(self.parts.identity)}
        self._save_weights(self.folder.last)
        save_state(self.folder.state, {**state, **self.parts.work.learner.state()})

    def _save_weights(self, path: Path) -> None:
        learner, classes = self.parts.work.learner, self.parts.validation.dataset.classes
        save_detector(path, learner.evaluated, classes=classes, license=learner.licence)

    def _tell_start(self) -> None:
        for line in self.parts.introduction:
            self.log.write("note", text=line)
        self._tell_phase()
        kind = "resumed" if self.position.step else "started"
        self.log.write(kind, step=self.position.step, epoch=self.position.epoch)
        if self.position.epoch >= self.config.epochs:
            text = f"nothing to go on with: all {self.config.epochs} epochs of this run are trained"
            self.log.write("note", text=text)

    def _tell_phase(self) -> None:
        if self.config.phases:
            self.log.write("phase", **self.phase.mark, step=self.position.step, text=self.phase.sentence())
        for line in self.parts.work.introduction:
            self.log.write("note", text=line)

    def _tell_end(self, *, interrupted: bool) -> None:
        position = self.position
        if interrupted:
            text = f"stopped by {self.parts.wish.signal_name or 'another process'} after step {position.step}"
            if self.has_files:
                text += f"; go on: focaldet train --config {self.folder.config} --resume"
            self.log.write("interrupted", step=position.step, text=text)
            return
        stalled = " (no better AP for a while)" if self._has_stalled() else ""
        text = f"finished after {position.epoch} epochs{stalled}, {position.seconds_training:.0f} s of training"
        self.log.write("finished", step=position.step, seconds_training=position.seconds_training, text=text)


class _StopAskedError(Exception):
    """Leaves an evaluation under way; never leaves this file."""


def metrics_from(values: dict[str, Any] | None) -> Metrics | None:
    """The metrics that a position holds as plain values."""
    return None if values is None else configs.from_dict(Metrics, values)


def _grouped(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    """Lists of `size` batches; the last may be shorter."""
    while group := list(itertools.islice(batches, size)):
        yield group


def _summary(metrics: Metrics) -> str:
    named = {"AP": metrics.ap, "AP50": metrics.ap50, "AP75": metrics.ap75}
    return "  ".join(f"{name} {percent(value)}" for name, value in named.items())
