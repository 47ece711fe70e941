"""From settings to the parts of a run: data, detector, optimiser, logs, and the state they are in."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from focaldet import config as configs
from focaldet.data.index import Classes, FileSource, Index, Source
from focaldet.data.loader import Loader
from focaldet.data.splits import open_splits
from focaldet.data.transforms import AugmentConfig
from focaldet.evaluate.coco import HEADLINES
from focaldet.evaluate.inference import resize_asked
from focaldet.models import DETECTORS, Detector, LossContext, build
from focaldet.train.config import BASE_BATCH, RunConfig
from focaldet.train.ema import Ema
from focaldet.train.interrupts import StopWish
from focaldet.train.launch import Autocast, build_autocast, seed_everything, sum_over_ranks
from focaldet.train.logs import Display, EventsFile, MetricsFile, RunLog, Sink, Trackers
from focaldet.train.optim import build_optimizer
from focaldet.train.resume import Position, RunFolder, check_identity, identity, load_state, write_environment
from focaldet.train.step import Update
from focaldet.types import Target
from focaldet.weights import load_into

# An epoch of `overfit` shows its few images again and again, up to this many updates.
OVERFIT_UPDATES = 16


@dataclass
class Parts:
    """What a run works with."""

    fabric: Any
    detector: Detector
    ema: Ema | None
    optimizer: torch.optim.Optimizer
    autocast: Autocast
    context: LossContext
    update: Update
    loader: Loader
    validation: Source
    batch_size: int
    log: RunLog
    position: Position
    identity: dict[str, Any]
    introduction: list[str]

    @property
    def classes(self) -> Classes:
        """The classes of the data."""
        return self.validation.index.classes

    def state(self) -> dict[str, Any]:
        """Everything that training changes, but for the position."""
        scaler = self.autocast.scaler
        return {
            "identity": json.dumps(self.identity),
            "preprocessing": configs.to_dict(self.detector.preprocessing),
            "detector": self.detector.state_dict(),
            "ema": self.ema.detector.state_dict() if self.ema is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "context": {"images_seen": self.context.images_seen, "averages": dict(self.context.averages)},
        }


@dataclass(frozen=True, slots=True)
class ChosenImages:
    """Some images of a source by their positions, which may repeat; always as the source shows them in epoch 0."""

    index: Index
    source: Source
    positions: tuple[int, ...]

    def load(self, i: int, *, epoch: int) -> tuple[UInt8[Tensor, "3 H W"], Target]:
        """Picture i of the choice and its boxes."""
        del epoch
        return self.source.load(self.positions[i], epoch=0)


def assemble(
    config: RunConfig, *, folder: RunFolder, fabric: Any, wish: StopWish, sources: tuple[Source, Source] | None
) -> Parts:
    """The parts of the run that `config` describes, in their first state or in that of the run that is resumed.

    Raises:
        CheckpointError: the run to resume was started with other settings or data, or its state is damaged.
        ConfigError, DataError: see `train`.
    """
    train_source, validation, chosen = _open_sources(config, sources)
    fingerprints = {"train": train_source.index.fingerprint(), "validation": validation.index.fingerprint()}
    own = identity(config, fingerprints=fingerprints)
    state = None
    if config.resume and folder.state.exists():
        state = load_state(folder.state, device=fabric.device)
        check_identity(own, json.loads(state["identity"]), folder=folder.path)
    seed_everything(config.seed)
    detector, account = _build_detector(config, validation.index.classes, state)
    detector = fabric.to_device(detector).train()
    if config.channels_last:
        detector = detector.to(memory_format=torch.channels_last)
    ema = Ema(detector, decay=config.ema) if config.ema is not None else None
    optimizer = build_optimizer(detector, config)
    autocast = build_autocast(config.precision, device=fabric.device)
    ranks = fabric.world_size
    context = LossContext(all_reduce_sum=sum_over_ranks if ranks > 1 else None, num_ranks=ranks)
    position = Position()
    if state is not None:
        position = _restore(state, detector=detector, ema=ema, optimizer=optimizer, autocast=autocast, context=context)
    if config.compile:
        detector.compile()
    update = Update(
        detector,
        module=fabric.strategy.setup_module(detector),
        optimizer=optimizer,
        ema=ema,
        context=context,
        autocast=autocast,
        config=config,
        rank=fabric.global_rank,
        stop_asked=lambda: bool(wish),
    )
    batch_size = config.batch_size // (ranks * config.accumulate)
    loader = _build_loader(config, train_source, detector, batch_size=batch_size, fabric=fabric)
    total_steps = math.ceil(len(loader) / config.accumulate) * config.epochs
    if fabric.is_global_zero:
        folder.create(config)
        write_environment(folder.environment, config=config, fingerprints=fingerprints, fabric=fabric)
    log = _open_log(config, folder=folder, fabric=fabric, position=position, total_steps=total_steps)
    introduction = [*chosen, *account]
    parts = Parts(
        fabric,
        detector,
        ema,
        optimizer,
        autocast,
        context,
        update,
        loader,
        validation,
        batch_size,
        log,
        position,
        own,
        introduction,
    )
    introduction += _described(config, parts, total_steps=total_steps)
    return parts


def _open_sources(config: RunConfig, sources: tuple[Source, Source] | None) -> tuple[Source, Source, list[str]]:
    """Where to train, where to evaluate, and what to tell about it."""
    lines = []
    if sources is None:
        splits = open_splits(config.data, seed=config.seed)
        sources = FileSource(splits.train), FileSource(splits.val)
        lines = [splits.chosen]
    if config.overfit is None:
        return *sources, lines
    index = sources[0].index
    with_boxes = (index.offsets.diff() > 0).nonzero().flatten().tolist()
    few = with_boxes[: config.overfit] or list(range(min(config.overfit, len(index))))
    repeats = math.ceil(OVERFIT_UPDATES * config.batch_size / len(few))
    lines.append(f"overfit: training and scoring on the same {len(few)} images, {repeats} times an epoch")
    return _choose(sources[0], few * repeats), _choose(sources[0], few), lines


def _choose(source: Source, positions: Sequence[int]) -> ChosenImages:
    return ChosenImages(source.index.subset(positions, "overfit"), source, tuple(positions))


def _build_detector(
    config: RunConfig, classes: Classes, state: dict[str, Any] | None
) -> tuple[Detector, tuple[str, ...]]:
    """The detector with its initial weights, or as `state` describes it, and an account of the weights."""
    detector = build(config.model, class_names=classes.names, architecture=_architecture(config))
    account: tuple[str, ...] = ()
    if state is not None:
        detector.preprocessing = configs.from_dict(type(detector.preprocessing), state["preprocessing"])
    else:
        if config.weights is not None:
            account = load_into(detector, config.weights, input=config.weights_input).sentences()
        resize = resize_asked(
            detector.preprocessing.resize, size=config.size, short_side=config.short_side, max_side=config.max_side
        )
        detector.preprocessing = replace(detector.preprocessing, resize=resize)
    return detector, account


def _architecture(config: RunConfig) -> dict[str, Any]:
    """The overrides of the detector's config. Random weights are never frozen unless somebody asks for it."""
    frozen = config.frozen_stages
    if frozen is None and config.weights is None and hasattr(DETECTORS.get(config.model), "frozen_stages"):
        frozen = 0
    return config.architecture if frozen is None else {"frozen_stages": frozen, **config.architecture}


def _restore(
    state: dict[str, Any],
    *,
    detector: Detector,
    ema: Ema | None,
    optimizer: torch.optim.Optimizer,
    autocast: Autocast,
    context: LossContext,
) -> Position:
    """Put everything into the state that was saved; where the run stood then."""
    detector.load_state_dict(state["detector"])
    if ema is not None:
        ema.detector.load_state_dict(state["ema"])
    optimizer.load_state_dict(state["optimizer"])
    if autocast.scaler is not None and state["scaler"] is not None:
        autocast.scaler.load_state_dict(state["scaler"])
    context.images_seen = state["context"]["images_seen"]
    context.averages.update(state["context"]["averages"])
    return Position(**state["position"])


def _build_loader(config: RunConfig, source: Source, detector: Detector, *, batch_size: int, fabric: Any) -> Loader:
    overfit = config.overfit is not None
    return Loader(
        source,
        preprocessing=detector.preprocessing,
        batch_size=batch_size,
        seed=config.seed,
        augment=AugmentConfig(preset="none") if overfit else config.augment,
        num_epochs=config.epochs,
        workers=config.workers,
        rank=fabric.global_rank,
        num_ranks=fabric.world_size,
        sampling="uniform" if overfit else config.sampling,
    )


def _open_log(config: RunConfig, *, folder: RunFolder, fabric: Any, position: Position, total_steps: int) -> RunLog:
    if not fabric.is_global_zero:
        return RunLog()
    # Trackers come first: they may be missing, and then no file must be open.
    settings = configs.to_dict(config)
    trackers: list[Sink] = [Trackers(config.loggers, folder=folder.path, settings=settings)] if config.loggers else []
    metrics = MetricsFile(
        folder.metrics, evaluation_columns=tuple(HEADLINES), log_every=config.log_every, keep_rows=position.num_rows
    )
    display = Display(total_steps=total_steps, done_steps=position.step)
    return RunLog(*trackers, metrics, EventsFile(folder.events), display)


def _described(config: RunConfig, parts: Parts, *, total_steps: int) -> list[str]:
    """What people want to see before they wait."""
    trained = sum(parameter.numel() for parameter in parts.update.trained)
    ratio = f"{config.batch_size} / {BASE_BATCH}"
    scale = f"({ratio})" if config.optimizer == "sgd" else f"√({ratio})"
    resize = parts.detector.preprocessing.resize
    return [
        f"model: {config.model}, {len(parts.classes)} classes, {trained / 1e6:.1f} M trained parameters, "
        f"{resize.mode} side {resize.size} px",
        f"learning rate: {config.scaled_learning_rate:.3g} = {config.learning_rate:g} × {scale} "
        f"for {config.batch_size} images per update, {config.optimizer}, {config.schedule}; "
        f"backbone × {config.backbone_factor:g}",
        f"{total_steps} steps in {config.epochs} epochs on {parts.fabric.device}, {parts.autocast.precision}, "
        f"{parts.fabric.world_size} process{'es' if parts.fabric.world_size > 1 else ''}; run folder {config.out}",
    ]
