"""The training run, from settings to a run folder, to be read from top to bottom.

train → Trainer     build   data, initial or saved state, log
        Trainer.run phases → epochs → steps → evaluation → save → end
"""

import copy
import itertools
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from focaldet import config as configs
from focaldet.cores import CoreWatch, usable_cores
from focaldet.data.dataset import ImageSource
from focaldet.data.formats.text import quantity
from focaldet.data.loading.loader import Loader, explain_worker_death
from focaldet.errors import CheckpointError, ConfigError, LostProcessError, OutOfMemoryError
from focaldet.evaluation.coco import HEADLINES, Metrics, evaluate_detections, percent
from focaldet.evaluation.evaluate import detect_all
from focaldet.evaluation.limits import answer_limit
from focaldet.evaluation.results import write_results
from focaldet.models import Detector
from focaldet.report.run_report import write_report
from focaldet.runtime import (
    gather_objects,
    is_first_process,
    is_lost_process,
    is_out_of_memory,
    launch_fabric,
    num_processes,
    pick_device,
    torch_settings,
)
from focaldet.training.averaging import average_files, rank_evaluation, remove_others, weights_path
from focaldet.training.batch_norm import (
    EARLY_UPDATES,
    NUM_BATCHES,
    has_trained_norm,
    images_to_measure,
    measure_norm,
    share_buffers,
)
from focaldet.training.checkpoint import load_state, save_state
from focaldet.training.config import RunConfig, check_processes
from focaldet.training.diagnosis import explain_zero_ap
from focaldet.training.evaluation_time import time_detection
from focaldet.training.logs import MetricsFile, RunLog, clock, open_trackers
from focaldet.training.minutes import describe_plan, first_plan, revise_plan
from focaldet.training.optim import rate_factor
from focaldet.training.phases import check_phases, describe_phase
from focaldet.training.preflight import (
    ONE_VALUE,
    describe_one_value,
    describe_training,
    require_norm_values,
    require_objects,
    require_training_memory,
)
from focaldet.training.profile import StepProfile
from focaldet.training.run_folder import RunFolder, check_identity, identity, lock_run, open_folder, write_environment
from focaldet.training.signals import StopSignal, stop_signal
from focaldet.training.sources import build_loader, open_sources
from focaldet.training.state import build_state, initial_weights, next_state
from focaldet.training.step import train_step
from focaldet.training.timing import EVALUATION, LOADING, OTHER, Pace, Stopwatch, describe_epoch, read_clock
from focaldet.types import Batch, Detections
from focaldet.weights import save_detector
from focaldet.weights.thresholds import THRESHOLDS_KEY


@dataclass(frozen=True)
class TrainResult:
    """What a training run reached.

    Attributes:
        out: the run folder.
        best: the metrics of the best evaluation; None without an evaluation.
        last: those of the last evaluation.
        epochs: the epochs that are done.
        seconds_training: the time of all steps, loading included, without evaluation, saving and set-up.
        interrupted: whether the run was stopped before its end; it was saved and can be resumed.
        seconds: the time of everything, breaks not counted.
    """

    out: Path
    best: Metrics | None
    last: Metrics | None
    epochs: int
    seconds_training: float
    interrupted: bool
    seconds: float = 0.0

    def __repr__(self) -> str:
        best, last = (None if metrics is None else metrics.ap for metrics in (self.best, self.last))
        return (
            f"TrainResult(out={str(self.out)!r}, best AP {percent(best)}, last AP {percent(last)}, "
            f"epochs={self.epochs}, seconds_training={self.seconds_training:.1f}, interrupted={self.interrupted})"
        )


def train(
    config: RunConfig,
    *,
    sources: tuple[ImageSource, ImageSource] | None = None,
    notes: Sequence[str] = (),
    begin: float | None = None,
) -> TrainResult:
    """Train a detector and write a run folder; with `resume`, continue to the weights that an unbroken run reaches.

    Under `torchrun` or SLURM every process calls this and takes its part of each batch. SIGINT and SIGTERM end the
    run after the step it is in, saved.

    Args:
        config: all settings.
        sources: images to train on and to evaluate on, instead of those in `config.data`.
        notes: lines to log at the beginning.
        begin: the moment of `timing.read_clock` from which on the minutes count; by default that of the call.

    Raises:
        ConfigError: a setting is out of range, or the folder is taken.
        DataError: data that cannot be read.
        CheckpointError: weights or a state that do not fit or cannot be written.
        NonFiniteLossError: the loss or its gradient is not finite.
        OutOfMemoryError: out of memory.
    """
    begin = read_clock() if begin is None else begin
    check_processes(config, num_processes=num_processes())
    folder = open_folder(config)
    check_phases(config)
    torch_state = torch_settings(threads=count_threads(config), deterministic=config.deterministic)
    held = lock_run(config.out) if is_first_process() else nullcontext()
    with explain_errors(config), explain_worker_death(), held, torch_state, stop_signal() as stop:
        if is_first_process():
            open_folder(config)  # as it is now that no other training changes it
        # Every process has looked at the folder before the first one changes it: launching waits for all.
        fabric = launch_fabric(pick_device(config.device))
        trainer = Trainer(config, folder=folder, fabric=fabric, stop=stop, sources=sources, begin=begin)
        trainer.notes[:0] = notes
        return trainer.run()


def count_threads(config: RunConfig) -> int:
    """The threads that a training begins with: torch does not know the quota of a container."""
    return config.threads or min(torch.get_num_threads(), usable_cores())


class Trainer:
    """One training run: built from its settings or from its saved state, then trained to its end.

    Attributes:
        config: the settings of the whole run; `settings` are those of the phase under way.
        state: all that training changes and that is saved.
        num_steps: the updates of each phase; `first_step` is the number of those before the phase under way,
            `epoch_steps` those of an epoch of the first phase. For a run of some minutes they say what `config.epochs`
            would take, and `state.plan` how long it is.
        begin: the time of `timing.read_clock` at which the run would have begun without a break.
        measured: after some step, the detector with BatchNorm measured anew.
        stopwatch: where the time of the present epoch goes; `pace` is the speed, `epoch_start` the images seen before.
        identity: what must stay the same when the run is resumed.
        log: where the run is written down; None in all processes but the first.
        profile: measures some steps operation by operation, where it was asked for.
        cores: how many threads to compute with beside other programs; None on a GPU.
    """

    # -- build ---------------------------------------------------------------------------------------------------------

    def __init__(
        self,
        config: RunConfig,
        *,
        folder: RunFolder,
        fabric: Any,
        stop: StopSignal,
        sources: tuple[ImageSource, ImageSource] | None,
        begin: float,
    ) -> None:
        """Load data and weights, then create the run folder.

        Raises:
            CheckpointError: the run to resume was started with other settings or data, or its state is damaged.
            ConfigError, DataError: see `train`.
        """
        self.config, self.folder, self.fabric, self.stop = config, folder, fabric, stop
        self.log: RunLog | None = None
        is_profiled, self.has_explained = config.profile and fabric.is_global_zero, False
        self.profile = StepProfile(folder.path, device=fabric.device) if is_profiled else None
        self.cores = CoreWatch(torch.get_num_threads()) if fabric.device.type == "cpu" else None
        source, validation, notes = open_sources(config, sources)
        self.source, self.validation, self.has_files = source, validation, sources is None
        require_objects(source.dataset)
        fingerprints = {"train": source.dataset.fingerprint(), "validation": validation.dataset.fingerprint()}
        self.identity = identity(config, fingerprints=fingerprints)
        saved = None
        if config.resume and folder.state.exists():
            saved = load_state(folder.state, device=fabric.device)
            check_identity(self.identity, json.loads(saved["identity"]), folder=folder.path)
        phases, classes = config.phase_configs, validation.dataset.classes
        settings = phases[saved["position"]["phase"]] if saved is not None else phases[0]
        self.state, weights_notes = build_state(settings, classes=classes, fabric=fabric, saved=saved)
        self.notes = [*notes, *weights_notes, *(_compare_processes(folder, fabric) if saved is not None else ())]
        self.num_steps = [self._steps_per_epoch(number) * phase.epochs for number, phase in enumerate(phases)]
        require_training_memory(config, self.state.detector, source.dataset, device=fabric.device)
        self.epoch_steps = self.num_steps[0] // phases[0].epochs
        if config.minutes is not None and self.state.plan is None:
            self.state.plan = first_plan(steps_per_epoch=self.epoch_steps, epochs=config.epochs)
        self._begin_phase()
        self.begin, self.last_save = begin - self.state.seconds_spent, time.monotonic()
        if fabric.is_global_zero:
            folder.create(config)
            write_environment(
                folder, config, fingerprints=fingerprints, fabric=fabric, ended=self.state.epoch >= self.num_epochs
            )
            self.log = self._open_log()

    def _begin_phase(self) -> None:
        """Set up what belongs to the phase that the state is in."""
        state, phases, fabric, number = self.state, self.config.phase_configs, self.fabric, self.state.phase
        self.settings = phases[number]
        self.first_epoch = sum(phase.epochs for phase in phases[:number])
        self.end_epoch = self.first_epoch + self.settings.epochs
        self.first_step = sum(self.num_steps[:number])
        require_norm_values(state.detector, self.settings, self.source.dataset, autocast=state.autocast)
        if self.settings.compile:
            state.detector.compile()
        self.module = fabric.strategy.setup_module(state.detector)
        self.loader = self._build_loader(number)
        self.measured: dict[int, Detector] = {}
        self.stopwatch, self.epoch_start = Stopwatch(), state.context.images_seen
        self.pace = Pace(
            images_per_step=self.settings.batch_size // fabric.world_size,
            validation_images=math.ceil(len(self.validation.dataset) / fabric.world_size),
            evaluation=state.evaluation_seconds,
            norm_images=images_to_measure(state.evaluated, self.loader.batch_size) if state.measures_norm else 0,
        )
        self._follow_plan()

    def _build_loader(self, number: int) -> Loader:
        """The loader of training images of phase `number`, from 0."""
        detector = self.state.detector
        return build_loader(self.config, number, self.source, preprocessing=detector.preprocessing, ranks=self.fabric)

    def _steps_per_epoch(self, number: int) -> int:
        """Updates in an epoch of phase `number`; the last may be of fewer batches than `accumulate`."""
        return math.ceil(len(self._build_loader(number)) / self.config.phase_configs[number].accumulate)

    def _open_log(self) -> RunLog:
        config, folder, state = self.config, self.folder, self.state
        # Trackers come first: they may be missing, and then no file must be open.
        trackers = open_trackers(config.loggers, folder=folder.path, settings=configs.to_dict(config))
        columns = tuple(HEADLINES)
        metrics = MetricsFile(
            folder.metrics, evaluation_columns=columns, log_every=config.log_every, keep_rows=state.num_rows
        )
        total = self.total_steps
        return RunLog(metrics, events=folder.events, total_steps=total, done_steps=state.step, trackers=trackers)

    @property
    def total_steps(self) -> int:
        """The updates of the whole run, as far as is known."""
        plan = self.state.plan
        return sum(self.num_steps) if plan is None else plan.end_step

    @property
    def num_epochs(self) -> int:
        """The epochs of the whole run, as far as is known."""
        return self.config.epochs if self.state.plan is None else self.end_epoch

    # -- phases and epochs ---------------------------------------------------------------------------------------------

    def run(self) -> TrainResult:
        """Train up to the last epoch, or until the run is asked to stop or no longer improves."""
        try:
            self._log_start()
            interrupted = not self._train_phase()
            while not interrupted and self.state.phase + 1 < len(self.num_steps):
                before, following = self.settings, self.config.phase_configs[self.state.phase + 1]
                kept = self._measured_detector()
                self.state = next_state(self.state, following, before=before, kept=kept, fabric=self.fabric)
                self._begin_phase()
                self._log_phase()
                interrupted = not self._train_phase()
            interrupted = interrupted or not self._average_best()
            if self.profile is not None and (text := self.profile.end()) is not None:
                self._write("note", step=self.state.step, text=text)
            return self._end(interrupted=interrupted)
        finally:
            if self.profile is not None:
                self.profile.stop()
            if self.log is not None:
                self.log.close()

    def _train_phase(self) -> bool:
        """Train to the end of the phase, or until it no longer improves. False when asked to stop."""
        while self.state.epoch < self.end_epoch and not self._has_stalled():
            if not (self._train_epoch() and self._evaluate()):
                return False
            if self.state.epoch + 1 == self.end_epoch:
                self._measured_detector()
            self.state.epoch, self.state.batch = self.state.epoch + 1, 0
            if self.state.epoch < self.end_epoch:
                self._revise_plan()
            self.save()
            self._log_epoch()
        return True

    def _has_stalled(self) -> bool:
        patience = self.config.patience
        return patience is not None and self.state.evaluations_without_gain >= patience

    def _train_epoch(self) -> bool:
        """Train to the end of the epoch. False when asked to stop, with everything saved."""
        state, settings, stopwatch = self.state, self.settings, self.stopwatch
        self._limit_epochs()
        batches = self.loader.epoch(state.epoch, start_batch=state.batch)
        pause = stopwatch.lap(OTHER)
        for group in _group_batches(batches, settings.accumulate):
            begin, loading_seconds = stopwatch.last, stopwatch.lap(LOADING)
            if state.step >= self.total_steps:  # of a run of some minutes, within an epoch
                break
            rate = self._rate()
            images_before = state.context.images_seen
            losses, gradient_norm, stopping = train_step(
                state,
                group,
                module=self.module,
                config=settings,
                rate=rate,
                rank=self.fabric.global_rank,
                first_step=self.first_step,
                stop=self.stop,
                stopwatch=stopwatch,
            )
            state.batch += len(group)
            seconds = stopwatch.last - begin
            state.seconds_training += seconds
            self.pace.count_step(pause + seconds)
            self._write(
                "step",
                **self._phase_number(),
                epoch=state.epoch + 1,
                step=state.step,
                seconds=seconds,
                loading_seconds=loading_seconds,
                images_per_second=(state.context.images_seen - images_before) / seconds,
                learning_rate=rate,
                gradient_norm=gradient_norm,
                loss=sum(losses.values()),
                losses=losses,
                eta=clock(self._seconds_left()),
            )
            if self._revision_is_due():  # also when it is to stop: an unbroken run would do so here
                self._revise_plan()
            if stopping or self._save_is_due():
                self.save()
            if stopping:
                return False
            self._observe_step()
            pause = stopwatch.lap(OTHER)
        return True

    def _observe_step(self) -> None:
        """Count the step for the profile, if there is one, and look at the cores."""
        if self.profile is not None and (text := self.profile.count_step()) is not None:
            self._write("note", step=self.state.step, text=text)
        self._share_cores()

    def _share_cores(self) -> None:
        """Compute with fewer threads while other programs need the cores; where the number is fixed, say so once."""
        cores = self.cores
        if cores is None or not cores.look():
            return
        if self.config.threads is not None or self.config.deterministic or "OMP_NUM_THREADS" in os.environ:
            text = f"other programs use the cores, and {cores.most} threads wait for each other: "
            self._write("note", step=self.state.step, text=f"{text}--threads {cores.threads} would be faster")
            self.cores = None
            return
        is_fewer = cores.threads < torch.get_num_threads()
        torch.set_num_threads(cores.threads)
        why = "other programs use the cores" if is_fewer else "there are free cores again"
        text = f"{why}: {quantity(cores.threads, 'thread')} from here on (--threads {cores.most} keeps that number)"
        self._write("note", step=self.state.step, text=text)

    def _rate(self) -> float:
        """The learning rate of the next step."""
        state, settings = self.state, self.settings
        step, total = state.step - self.first_step, self.num_steps[state.phase]
        progress = None if state.plan is None else state.plan.progress(state.step)
        return settings.scaled_learning_rate * rate_factor(step, settings, total_steps=total, progress=progress)

    # -- time ----------------------------------------------------------------------------------------------------------

    def _seconds_left(self) -> float:
        """Seconds to the end of the run at the present speed, evaluations included; at most those of `minutes`."""
        every, epochs = self.settings.evaluate_every, self.num_epochs - self.state.epoch
        evaluations = 0 if every is None else math.ceil(epochs / every)
        seconds = self.pace.seconds_for(steps=self.total_steps - self.state.step, evaluations=evaluations)
        if self.config.minutes is not None:
            seconds = min(seconds, max(0.0, 60 * self.config.minutes - (read_clock() - self.begin)))
        return seconds

    def _revision_is_due(self) -> bool:
        """Whether the plan of a run of some minutes must be revised within the epoch; it always is after one."""
        plan, state = self.state.plan, self.state
        return plan is not None and state.step >= plan.revision_step and state.batch < len(self.loader)

    def _revise_plan(self) -> None:
        """Fit the rest of a run of some minutes to the time that is left."""
        state, minutes, before = self.state, self.config.minutes, self.state.plan
        if before is None or minutes is None:
            return
        total = 60 * minutes
        if self.pace.is_guess:
            seconds = time_detection(state, self.validation, batch_size=self.loader.batch_size, total=total)
            self.pace.count_detection(seconds)
            self.stopwatch.lap(EVALUATION)
        plan = revise_plan(
            before,
            step=state.step,
            left=total - (read_clock() - self.begin),
            total=total,
            pace=self.pace,
            steps_per_epoch=self.epoch_steps,
            evaluate_every=self.config.evaluate_every,
            closing=self._closing_seconds(),
        )
        # Each process has its own clock; that of the first one holds.
        state.plan = gather_objects(plan, num_ranks=self.fabric.world_size)[0]
        self._follow_plan()
        if (text := describe_plan(before, plan, pace=self.pace, steps_per_epoch=self.epoch_steps)) is not None:
            self._write("note", step=state.step, text=text)

    def _follow_plan(self) -> None:
        """End the run where the plan does, if there is one."""
        if (plan := self.state.plan) is not None:
            self.end_epoch = plan.num_epochs(self.epoch_steps)
            if self.log is not None:
                self.log.set_total(self.total_steps)

    def _limit_epochs(self) -> None:
        """Tell the loader how long the run was to be when this epoch began: it may leave out mosaics at its end."""
        state = self.state
        if state.plan is not None and state.batch == 0:
            state.plan = state.plan._replace(epoch_limit=self.end_epoch)
        if state.plan is not None:
            self.loader.set_num_epochs(state.plan.epoch_limit)

    def _log_epoch(self) -> None:
        """Say where the time of the epoch went."""
        self.stopwatch.lap(OTHER)
        seconds, seen = self.stopwatch.reset(), self.state.context
        images, self.epoch_start = seen.images_seen - self.epoch_start, seen.images_seen
        epoch = f"epoch {self.state.epoch}/{self.num_epochs}"
        text = describe_epoch(
            seconds, num_images=images, left=self._seconds_left(), workers=self.settings.workers, epoch=epoch
        )
        self._write("epoch", **self._phase_number(), epoch=self.state.epoch, seconds=seconds, text=text)

    # -- evaluation ----------------------------------------------------------------------------------------------------

    def _evaluate(self) -> bool:
        """Evaluate after this epoch if it is time to. False when asked to stop, with everything saved."""
        every, state, epoch = self.settings.evaluate_every, self.state, self.state.epoch + 1
        if every is None or ((epoch - self.first_epoch) % every and epoch != self.end_epoch):
            return True
        self.stopwatch.lap(OTHER)
        try:
            detector = self._measured_detector()
            metrics, detections = self._measure(detector)
        except _StopRequestedError:
            self.save()
            return False
        is_best = self._is_best(metrics)
        before, state.last = state.last, metrics.to_dict()
        state.evaluations_without_gain = 0 if is_best else state.evaluations_without_gain + 1
        if is_best:
            self._keep_best(metrics, detections, detector)
        self._rank(metrics.ap or 0.0, epoch, detector)
        state.evaluation_seconds = self.stopwatch.lap(EVALUATION)
        self.pace.count_evaluation(state.evaluation_seconds)
        remark = "" if not is_best else "  (best so far)" if metrics.ap else "  (AP tells nothing: best is the last)"
        text = f"epoch {epoch}/{self.num_epochs}  {_summarize_metrics(metrics)}{remark}"
        numbers = {name: value for name, value in state.last.items() if name in (*HEADLINES, "notes")}
        self._write(
            "evaluation", **self._phase_number(), epoch=epoch, step=state.step, best=is_best, text=text, **numbers
        )
        if metrics.ap == 0 and before is not None and before["ap"] == 0 and not self.has_explained:
            self._explain_zero_ap()
        return True

    def _measured_detector(self) -> Detector:
        """The detector that is evaluated and kept, after an epoch: early in a run with BatchNorm measured anew."""
        state = self.state
        if state.step - self.first_step >= EARLY_UPDATES or not state.measures_norm:
            return state.evaluated
        if state.step not in self.measured:
            self.measured = {state.step: self._measure_norm(state.evaluated)}
        return self.measured[state.step]

    def _closing_seconds(self) -> float:
        """A guess of what follows the last step beside its evaluation and the report: BatchNorm, and `average_best`."""
        config, state = self.config, self.state
        is_early = state.measures_norm and state.step - self.first_step < EARLY_UPDATES
        seconds = self.pace.norm if is_early and config.evaluate_every is None else 0.0  # else a part of the evaluation
        if config.average_best is not None and not state.has_average:
            seconds += self.pace.norm + self.pace.evaluation
        return seconds

    def _measure_norm(self, detector: Detector) -> Detector:
        """The detector with the statistics of BatchNorm under its weights, if it has trained ones."""
        if not has_trained_norm(detector):
            return detector
        # Those of the epoch that has just ended, also when a run is resumed between two phases.
        epoch = self.state.epoch if self.state.batch else self.state.epoch - 1
        batches = itertools.islice(self.loader.epoch(epoch), NUM_BATCHES)
        measured = measure_norm(detector, batches, autocast=self.state.autocast)
        share_buffers(measured, num_ranks=self.fabric.world_size)
        return measured

    def _measure(self, detector: Detector) -> tuple[Metrics, dict[int, Detections]]:
        """The metrics of `detector` on the validation images, and its detections by the index of the image."""
        fabric, settings, autocast = self.fabric, self.settings, self.state.autocast
        result = detect_all(
            detector,
            self.validation,
            batch_size=settings.batch_size // (fabric.world_size * settings.accumulate),
            precision=autocast.precision,
            workers=settings.workers,
            fabric=fabric if fabric.world_size > 1 else None,
            progress=self._observe_evaluation if fabric.world_size == 1 else None,
        )
        detections = dict(enumerate(result.detections))
        return evaluate_detections(self.validation.dataset, detections, image_limit=answer_limit(detector)), detections

    def _keep_best(self, metrics: Metrics, detections: dict[int, Detections], detector: Detector) -> None:
        """Write the detections and weights of the best evaluation so far."""
        self.state.best = metrics.to_dict()
        if self.fabric.is_global_zero:
            write_results(self.folder.predictions, self.validation.dataset, detections)
            self._save_weights(self.folder.best, detector, metrics)

    def _rank(self, ap: float, epoch: int, detector: Detector) -> None:
        """Keep the weights of an evaluation for `average_best` while it is one of the best."""
        state, most = self.state, self.config.average_best
        if most is None:
            return
        state.best_epochs = rank_evaluation(state.best_epochs, ap=ap, epoch=epoch, most=most)
        if self.fabric.is_global_zero and epoch in [ranked for _, ranked in state.best_epochs]:
            configs.make_folder(self.folder.ranked)
            self._save_weights(weights_path(self.folder.ranked, epoch), detector)

    def _average_best(self) -> bool:
        """Evaluate the average of the best weights, and keep it if it is better. False when asked to stop."""
        state, fabric = self.state, self.fabric
        if self.config.average_best is None or len(state.best_epochs) < 2 or state.has_average:
            return True
        gather_objects(None, num_ranks=fabric.world_size)  # the first process has written the last file by then
        epochs = [epoch for _, epoch in state.best_epochs]
        average = copy.deepcopy(state.evaluated)
        tensors = average_files([weights_path(self.folder.ranked, epoch) for epoch in epochs])
        average.load_state_dict(tensors, strict=False)
        average = self._measure_norm(average)
        try:
            metrics, detections = self._measure(average)
        except _StopRequestedError:
            return False
        is_best = (metrics.ap or 0.0) > max(ap for ap, _ in state.best_epochs)
        what = "the average of the weights after epochs " + ", ".join(map(str, sorted(epochs)))
        if is_best:
            text = f"{what}: {_summarize_metrics(metrics)}, better than each; it is best.safetensors"
            self._keep_best(metrics, detections, average)
        else:
            text = f"{what}: {_summarize_metrics(metrics)}, not better than the best; best.safetensors stays"
        state.has_average = True
        self._write("average", epochs=sorted(epochs), ap=metrics.ap, best=is_best, text=text)
        self.save()
        return True

    def _explain_zero_ap(self) -> None:
        """Say once why AP may still be 0."""
        state, self.has_explained = self.state, True
        from_random = initial_weights(self.config) is None
        text = explain_zero_ap(state.detector, self.source.dataset, updates=state.step, from_random=from_random)
        self._write("note", step=state.step, text=text)

    def _is_best(self, metrics: Metrics) -> bool:
        """Whether no evaluation was better; while AP is 0 or cannot be computed, the last one is the best."""
        best = self.state.best
        return best is None or not best["ap"] or (metrics.ap or 0.0) > best["ap"]

    def _observe_evaluation(self, done: int, total: int | None) -> None:
        """Look at the cores, and leave the evaluation when the run is asked to stop: a resumed run evaluates again."""
        del done, total
        self._share_cores()
        if self.stop:
            raise _StopRequestedError

    # -- saving --------------------------------------------------------------------------------------------------------

    def _save_is_due(self) -> bool:
        every = self.config.save_steps
        minutes = (time.monotonic() - self.last_save) / 60
        return (every is not None and self.state.step % every == 0) or minutes >= self.config.save_minutes

    def save(self) -> None:
        """Replace the last weights and the full state; only the first process writes.

        The state comes last: a run that is killed between the two goes on from the older one and writes both again.
        """
        self.last_save = time.monotonic()
        if self.log is not None:
            self.state.num_rows = self.log.num_rows
            self.state.seconds_spent = read_clock() - self.begin
            self._save_weights(self.folder.last, self.measured.get(self.state.step, self.state.evaluated))
            save_state(self.folder.state, {"identity": json.dumps(self.identity), **self.state.state_dict()})
            remove_others(self.folder.ranked, self.state.best_epochs)

    def _save_weights(self, path: Path, detector: Detector, metrics: Metrics | None = None) -> None:
        """Write a detector and, where `metrics` are its own, the scores with the largest F1."""
        dataset, thresholds = self.validation.dataset, None if metrics is None else metrics.score_thresholds
        extra = {THRESHOLDS_KEY: thresholds.to_text()} if thresholds is not None else {}
        save_detector(path, detector, classes=dataset.classes, license=self.state.license, extra=extra)

    # -- the log, and the end ------------------------------------------------------------------------------------------

    def _write(self, kind: str, **values: Any) -> None:
        if self.log is not None:
            self.log.write(kind, **values)

    def _phase_number(self) -> dict[str, int]:
        """The number of the phase as a part of a record; nothing in a run without phases."""
        return {"phase": self.state.phase + 1} if self.config.phases else {}

    def _log_start(self) -> None:
        state, epochs = self.state, self.num_epochs
        for line in self.notes:
            self._write("note", text=line)
        validation = self.validation.dataset
        if not bool((validation.flags == 0).any()):
            text = f'warning: "{validation.name}" has no box, so AP tells nothing: the best weights are the last ones'
            self._write("note", text=f"{text}, and patience ends nothing")
        self._log_phase()
        self._write("resumed" if state.step else "started", step=state.step, epoch=state.epoch)
        if state.epoch >= epochs:
            self._write(
                "note", text=f"nothing left to train: all epochs of this run are done ({quantity(epochs, 'epoch')})"
            )

    def _log_phase(self) -> None:
        """What one wants to know before the wait: size, learning rate, length, device."""
        if self.config.phases:
            text = describe_phase(self.config, self.state.phase + 1)
            self._write("phase", **self._phase_number(), step=self.state.step, text=text)
        num_steps = self.num_steps[self.state.phase]
        for line in describe_training(self.settings, self.state, num_steps=num_steps, fabric=self.fabric):
            self._write("note", text=line)

    def _end(self, *, interrupted: bool) -> TrainResult:
        """Write the report and say how the run ended."""
        state, best = self.state, metrics_from(self.state.best)
        seconds = read_clock() - self.begin
        if best is not None and not interrupted and self.log is not None:
            write_report(self.folder.path, self.validation, metrics=best, training=self.source.dataset)
        if interrupted:
            text = f"stopped by {self.stop.signal_name or 'another process'} after step {state.step}"
            if self.has_files:
                text += f"; continue with: focaldet train {self.folder.path} --resume"
            self._write("interrupted", step=state.step, text=text)
        else:
            stalled = " (no better AP for a while)" if self._has_stalled() else ""
            epochs = quantity(state.epoch, "epoch")
            text = f"finished after {epochs}{stalled}, {state.seconds_training:.0f} s of training"
            if best is not None and not best.ap:
                ap = "could not be computed without a box" if best.ap is None else "was 0 throughout"
                self._write("note", text=f"AP {ap}; best.safetensors are the last weights")
                if best.ap == 0 and not self.has_explained:
                    self._explain_zero_ap()
            spent = {"seconds_training": state.seconds_training, "seconds": seconds}
            self._write("finished", step=state.step, images_seen=state.context.images_seen, **spent, text=text)
        return TrainResult(
            out=self.folder.path,
            best=best,
            last=metrics_from(state.last),
            epochs=state.epoch,
            seconds_training=state.seconds_training,
            interrupted=interrupted,
            seconds=seconds,
        )


class _StopRequestedError(Exception):
    """Leaves an evaluation under way; never leaves this file."""


@contextmanager
def explain_errors(config: RunConfig) -> Iterator[None]:
    """Turn a lack of memory or of disk space into an error that says what helps.

    Raises:
        OutOfMemoryError: the device or the machine has no memory left.
        CheckpointError: the disk is full.
        LostProcessError: another process of this training has ended.
    """
    try:
        yield
    except ValueError as error:
        if ONE_VALUE not in str(error):
            raise
        raise ConfigError(describe_one_value("met in training")) from error
    except (RuntimeError, MemoryError) as error:
        if is_lost_process(error):
            raise LostProcessError(
                "another process of this training has ended, as its own messages say, or was killed (out of memory?); "
                f"what was saved is in {config.out}: continue with --resume"
            ) from error
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"out of memory with {quantity(config.batch_size, 'image')} per update: "
            f"try accumulate={config.accumulate * 2} (the same update in smaller parts), "
            "a smaller size, a smaller batch_size, or precision=bf16"
        ) from error
    except OSError as error:
        if error.errno not in configs.NO_SPACE:
            raise
        raise CheckpointError(
            f"{error.filename or config.out}: no space left on the disk; the state saved before is intact: make room, "
            "then continue with --resume"
        ) from error


def metrics_from(values: dict[str, Any] | None) -> Metrics | None:
    """The metrics that a state holds as plain values."""
    return None if values is None else configs.from_dict(Metrics, values)


def _group_batches(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    """Lists of `size` batches; the last may be shorter."""
    while group := list(itertools.islice(batches, size)):
        yield group


def _compare_processes(folder: RunFolder, fabric: Any) -> list[str]:
    """What it means that a run is resumed with more or fewer processes than it had."""
    before, now = folder.num_processes(), fabric.world_size
    if before in (None, now):
        return []
    return [
        f"resumed with {quantity(now, 'process', 'processes')}, before with {before}: the same images in every "
        "update, and weights that differ by rounding; BatchNorm, where it is trained, sees the images of one process"
    ]


def _summarize_metrics(metrics: Metrics) -> str:
    named = {"AP": metrics.ap, "AP50": metrics.ap50, "AP75": metrics.ap75}
    return "  ".join(f"{name} {percent(value)}" for name, value in named.items())
