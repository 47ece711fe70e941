"""From settings to the parts of a run: data, learner, log, and the position that they stand at."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import UInt8
from torch import Tensor

from focaldet import config as configs
from focaldet.data.augment.augmenter import AugmentConfig
from focaldet.data.dataset import Dataset, FileSource, ImageSource
from focaldet.data.loading.loader import Loader
from focaldet.data.splits import open_splits
from focaldet.evaluation.coco import HEADLINES
from focaldet.training.config import RunConfig
from focaldet.training.logs import Display, EventsFile, MetricsFile, RunLog, Sink, Trackers
from focaldet.training.phases import Phase
from focaldet.training.run_folder import Position, RunFolder, check_identity, identity, load_state, write_environment
from focaldet.training.signals import StopSignal
from focaldet.training.state import TrainState, build_state, described, next_state, steps_per_epoch
from focaldet.training.step import Update
from focaldet.types import Preprocessing, Target

# An epoch of `overfit` shows its few images again and again, up to this many updates.
OVERFIT_UPDATES = 16


@dataclass
class Work:
    """What one phase of a run works with.

    `first_step` is the number of updates of the run before it, `introduction` what to tell when it begins.
    """

    phase: Phase
    learner: TrainState
    update: Update
    loader: Loader
    first_step: int
    steps_per_epoch: int
    introduction: list[str]


@dataclass
class Parts:
    """What a run works with. `identity` is what must stay the same when it is resumed, `work` the phase under way."""

    fabric: Any
    wish: StopSignal
    phases: tuple[Phase, ...]
    source: ImageSource
    validation: ImageSource
    log: RunLog
    position: Position
    identity: dict[str, Any]
    introduction: list[str]
    work: Work

    def begin_next_phase(self) -> None:
        """Go on from the phase that has ended to the next one, with the weights that it leaves."""
        ended, self.position.phase = self.work, self.position.phase + 1
        phase = self.phases[self.position.phase]
        learner = next_state(ended.learner, phase.config, before=ended.phase.config, fabric=self.fabric)
        self.work = prepare(
            phase, learner, source=self.source, first_step=self.position.step, fabric=self.fabric, wish=self.wish
        )


@dataclass(frozen=True, slots=True)
class ChosenImages:
    """Some images of a source by their positions, which may repeat; always as the source shows them in epoch 0."""

    dataset: Dataset
    source: ImageSource
    positions: tuple[int, ...]

    def load(self, i: int, *, epoch: int) -> tuple[UInt8[Tensor, "3 H W"], Target]:
        """Picture i of the choice and its boxes."""
        del epoch
        return self.source.load(self.positions[i], epoch=0)


def assemble(
    config: RunConfig,
    *,
    phases: tuple[Phase, ...],
    folder: RunFolder,
    fabric: Any,
    wish: StopSignal,
    sources: tuple[ImageSource, ImageSource] | None,
) -> Parts:
    """The parts of the run that `config` describes, in their first state or in that of the run that is resumed.

    Raises:
        CheckpointError: the run to resume was started with other settings or data, or its state is damaged.
        ConfigError, DataError: see `train`.
    """
    train_source, validation, chosen = open_sources(config, sources)
    fingerprints = {"train": train_source.dataset.fingerprint(), "validation": validation.dataset.fingerprint()}
    own = identity(config, fingerprints=fingerprints)
    state = None
    if config.resume and folder.state.exists():
        state = load_state(folder.state, device=fabric.device)
        check_identity(own, json.loads(state["identity"]), folder=folder.path)
    position = Position(**state["position"]) if state is not None else Position()
    phase = phases[position.phase]
    learner, account = build_state(phase.config, classes=validation.dataset.classes, fabric=fabric, state=state)
    steps = [_num_steps(phase, train_source, learner.detector.preprocessing, fabric=fabric) for phase in phases]
    work = prepare(
        phase, learner, source=train_source, first_step=sum(steps[: position.phase]), fabric=fabric, wish=wish
    )
    if fabric.is_global_zero:
        folder.create(config)
        write_environment(folder.environment, config=config, fingerprints=fingerprints, fabric=fabric)
    log = RunLog()
    if fabric.is_global_zero:
        log = _open_log(config, folder=folder, position=position, total_steps=sum(steps))
    return Parts(
        fabric, wish, phases, train_source, validation, log, position, own, introduction=[*chosen, *account], work=work
    )


def prepare(
    phase: Phase, learner: TrainState, *, source: ImageSource, first_step: int, fabric: Any, wish: StopSignal
) -> Work:
    """What `phase` works with, given the learner that it trains."""
    config = phase.config
    if config.compile:
        learner.detector.compile()
    update = Update(
        learner,
        module=fabric.strategy.setup_module(learner.detector),
        config=config,
        rank=fabric.global_rank,
        first_step=first_step,
        stop_asked=lambda: bool(wish),
    )
    loader = _build_loader(phase, source, learner.detector.preprocessing, fabric=fabric)
    steps = steps_per_epoch(len(loader), config)
    lines = described(config, learner, steps_per_epoch=steps, fabric=fabric)
    return Work(phase, learner, update, loader, first_step, steps, introduction=lines)


def open_sources(
    config: RunConfig, sources: tuple[ImageSource, ImageSource] | None
) -> tuple[ImageSource, ImageSource, list[str]]:
    """Where to train, where to evaluate, and what to tell about it; `overfit` makes both of a few training images."""
    lines = []
    if sources is None:
        splits = open_splits(config.data, seed=config.seed)
        sources = FileSource(splits.train), FileSource(splits.val)
        lines = [splits.chosen]
        lines += [
            f"{dataset.name}: {line}" for dataset in (splits.train, splits.val) for line in dataset.problems.lines()
        ]
    if config.overfit is None:
        return *sources, lines
    dataset = sources[0].dataset
    with_boxes = (dataset.offsets.diff() > 0).nonzero().flatten().tolist()
    few = with_boxes[: config.overfit] or list(range(min(config.overfit, len(dataset))))
    repeats = math.ceil(OVERFIT_UPDATES * config.batch_size / len(few))
    lines.append(f"overfit: training and scoring on the same {len(few)} images, {repeats} times an epoch")
    return _choose(sources[0], few * repeats), _choose(sources[0], few), lines


def _choose(source: ImageSource, positions: Sequence[int]) -> ChosenImages:
    return ChosenImages(source.dataset.subset(positions, "overfit"), source, tuple(positions))


def _num_steps(phase: Phase, source: ImageSource, preprocessing: Preprocessing, *, fabric: Any) -> int:
    """The updates of a phase, however its pictures are resized."""
    loader = _build_loader(phase, source, preprocessing, fabric=fabric)
    return steps_per_epoch(len(loader), phase.config) * phase.config.epochs


def _build_loader(phase: Phase, source: ImageSource, preprocessing: Preprocessing, *, fabric: Any) -> Loader:
    config = phase.config
    overfit = config.overfit is not None
    return Loader(
        source,
        preprocessing=preprocessing,
        batch_size=config.batch_size // (fabric.world_size * config.accumulate),
        seed=config.seed,
        augment=AugmentConfig(preset="none") if overfit else config.augment,
        num_epochs=config.epochs,
        first_epoch=phase.first_epoch,
        workers=config.workers,
        rank=fabric.global_rank,
        num_ranks=fabric.world_size,
        sampling="uniform" if overfit else config.sampling,
        multi_scale=None if overfit else config.multi_scale,
        multi_scale_end=config.multi_scale_end,
    )


def _open_log(config: RunConfig, *, folder: RunFolder, position: Position, total_steps: int) -> RunLog:
    # Trackers come first: they may be missing, and then no file must be open.
    settings = configs.to_dict(config)
    trackers: list[Sink] = [Trackers(config.loggers, folder=folder.path, settings=settings)] if config.loggers else []
    metrics = MetricsFile(
        folder.metrics, evaluation_columns=tuple(HEADLINES), log_every=config.log_every, keep_rows=position.num_rows
    )
    display = Display(total_steps=total_steps, done_steps=position.step)
    return RunLog(*trackers, metrics, EventsFile(folder.events), display)
