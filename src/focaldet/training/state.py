"""What learns: the detector with its average, its optimiser, and whatever else training changes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from focaldet import config as configs
from focaldet.data.dataset import Classes
from focaldet.models import DETECTORS, Detector, LossContext, build, named_config
from focaldet.ops.losses.normalize import sum_over_ranks
from focaldet.runtime import Autocast, build_autocast, seed_everything
from focaldet.training.config import BASE_BATCH, RunConfig
from focaldet.training.ema import Ema
from focaldet.training.optim import build_optimizer
from focaldet.types import Resize
from focaldet.weights import LoadReport, load_into

# For networks whose statistics come from elsewhere and need none, such as torchvision's.
RANDOM_NORM_EPS = 1e-5


@dataclass
class TrainState:
    """The parts of a run that a step changes.

    `licence` is that of the initial weights, which goes with what is learnt from them.
    """

    detector: Detector
    ema: Ema | None
    optimizer: torch.optim.Optimizer
    autocast: Autocast
    context: LossContext
    licence: str | None = None

    @property
    def evaluated(self) -> Detector:
        """The detector that is evaluated and kept: the moving average where there is one."""
        return self.ema.detector if self.ema is not None else self.detector

    def state(self) -> dict[str, Any]:
        """Tensors and plain values that `restore` takes."""
        scaler = self.autocast.scaler
        return {
            "architecture": configs.to_dict(self.detector.config),
            "preprocessing": configs.to_dict(self.detector.preprocessing),
            "detector": self.detector.state_dict(),
            "ema": self.ema.detector.state_dict() if self.ema is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "licence": self.licence,
            "context": {"images_seen": self.context.images_seen, "averages": dict(self.context.averages)},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Put everything back as it was when `state` was taken."""
        self.detector.load_state_dict(state["detector"])
        if self.ema is not None:
            self.ema.detector.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.autocast.scaler is not None:
            self.autocast.scaler.load_state_dict(state["scaler"])
        self.licence = state["licence"]
        self.context.images_seen = state["context"]["images_seen"]
        self.context.averages.update(state["context"]["averages"])


def build_state(
    config: RunConfig, *, classes: Classes, fabric: Any, state: dict[str, Any] | None
) -> tuple[TrainState, tuple[str, ...]]:
    """The learner with its initial weights, or as `state` has it, and an account of the weights that were loaded.

    Raises:
        ConfigError: an unknown detector, or a setting out of range.
        CheckpointError: weights that do not fit.
    """
    seed_everything(config.seed)
    detector, loaded = _build_detector(config, classes, state)
    ranks = fabric.world_size
    context = LossContext(all_reduce_sum=sum_over_ranks if ranks > 1 else None, num_ranks=ranks)
    learner = _learner(detector, config, context=context, fabric=fabric)
    learner.licence = loaded.license if loaded is not None else None
    if state is not None:
        learner.restore(state)
        return learner, ()  # the initial weights were told when the run began
    if loaded is None:
        return learner, (f"no weights given: starts from random ones ({_normed(learner.detector)})",)
    return learner, loaded.sentences()


def next_state(learner: TrainState, config: RunConfig, *, before: RunConfig, fabric: Any) -> TrainState:
    """The learner of the phase that `config` describes, with the weights that the phase `before` keeps.

    These are the moving average's where there is one. Optimiser and average begin anew; what the losses count and
    average goes on.
    """
    seed_everything(config.seed)
    kept = learner.evaluated
    # Not the settings as they were asked for alone: the initial weights and the data decided some of those that hold.
    changed = _changes(*(configs.to_dict(asked_architecture(settings)) for settings in (before, config)))
    architecture = configs.merge(configs.to_dict(kept.config), changed)
    detector = build(config.model, class_names=kept.class_names, architecture=architecture)
    detector.preprocessing = replace(kept.preprocessing, resize=_resize(detector, config))
    # BatchNorm's counters of batches may come or go; all other tensors are the same (`phases.planned`).
    detector.load_state_dict(kept.state_dict(), strict=False)
    detector = fabric.to_device(detector)
    if fabric.world_size > 1:  # each process has counted its own statistics of the last batch; the first one's are kept
        for value in detector.state_dict().values():
            torch.distributed.broadcast(value, src=0)
    following = _learner(detector, config, context=learner.context, fabric=fabric)
    following.licence = learner.licence
    return following


def _learner(detector: Detector, config: RunConfig, *, context: LossContext, fabric: Any) -> TrainState:
    """The learner of `detector` as it stands, at its first step."""
    detector = fabric.to_device(detector).train()
    if config.channels_last:
        detector = detector.to(memory_format=torch.channels_last)
    return TrainState(
        detector,
        ema=Ema(detector, decay=config.ema) if config.ema is not None else None,
        optimizer=build_optimizer(detector, config),
        autocast=build_autocast(config.precision, device=fabric.device),
        context=context,
    )


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The values of `after` that are others in `before`, nested as they are there."""
    found = {}
    for name, value in after.items():
        old = before.get(name)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            value = _changes(old, value)  # noqa: PLW2901
            old = {}
        if value != old:
            found[name] = value
    return found


def _build_detector(
    config: RunConfig, classes: Classes, state: dict[str, Any] | None
) -> tuple[Detector, LoadReport | None]:
    """The detector, filled from `config.weights` if there are any and they are not replaced by `state`."""
    # Initial weights may have changed the settings: BatchNorm's epsilon is that of whoever trained them.
    architecture = initial_architecture(config) if state is None else state["architecture"]
    detector = build(config.model, class_names=classes.names, architecture=architecture)
    if state is not None:
        detector.preprocessing = configs.from_dict(type(detector.preprocessing), state["preprocessing"])
        return detector, None
    loaded = load_into(detector, config.weights, input=config.weights_input) if config.weights is not None else None
    detector.preprocessing = replace(detector.preprocessing, resize=_resize(detector, config))
    return detector, loaded


def _resize(detector: Detector, config: RunConfig) -> Resize:
    """The resizing that `config` asks for, of a detector that still has its own."""
    own = detector.preprocessing.resize
    return own.with_sides(size=config.size, short_side=config.short_side, max_side=config.max_side)


def asked_architecture(config: RunConfig) -> Any:
    """The config of the detector as the settings ask for it, before weights and data have their say.

    Raises:
        ConfigError: the name or a setting is unknown or out of range.
    """
    return named_config(config.model, architecture=initial_architecture(config))


def initial_architecture(config: RunConfig) -> dict[str, Any]:
    """The overrides of the detector's config. Random weights have nothing worth freezing: unless somebody asks for it,
    all their stages are trained, and BatchNorm too where the detector would freeze it.
    """
    named = DETECTORS.get(config.model)
    settings: dict[str, Any] = {}
    if config.weights is None:
        fitting = {"frozen_stages": 0, "norm_eps": getattr(named, "norm_eps", 0) or RANDOM_NORM_EPS}
        settings = {name: value for name, value in fitting.items() if hasattr(named, name)}
        if getattr(named, "norm", None) == "frozen":
            settings["norm"] = "batch"
    if config.frozen_stages is not None:
        settings["frozen_stages"] = config.frozen_stages
    return {**settings, **config.architecture}


def _normed(detector: Detector) -> str:
    kind = getattr(detector.config, "norm", "own")
    if kind == "frozen":
        return "frozen BatchNorm has no statistics then; --architecture.norm batch trains it"
    return f"{kind} norm, {getattr(detector.config, 'frozen_stages', 0)} stages frozen"


def described(config: RunConfig, learner: TrainState, *, steps_per_epoch: int, fabric: Any) -> list[str]:
    """What people want to see before they wait: size, learning rate, length, place."""
    detector = learner.detector
    trained = sum(parameter.numel() for parameter in detector.parameters() if parameter.requires_grad)
    ratio = f"{config.batch_size} / {BASE_BATCH}"
    scale = f"({ratio})" if config.optimizer == "sgd" else f"√({ratio})"
    return [
        f"model: {config.model}, {len(detector.class_names)} classes, {trained / 1e6:.1f} M trained parameters, "
        f"{detector.preprocessing.resize}",
        f"learning rate: {config.scaled_learning_rate:.3g} = {config.learning_rate:g} × {scale} "
        f"for {config.batch_size} images per update, {config.optimizer}, {config.schedule}; "
        f"backbone × {config.backbone_factor:g}",
        f"{steps_per_epoch * config.epochs} steps in {config.epochs} epochs on {fabric.device}, "
        f"{learner.autocast.precision}, {fabric.world_size} process{'es' if fabric.world_size > 1 else ''}; "
        f"run folder {config.out}",
    ]


def steps_per_epoch(num_batches: int, config: RunConfig) -> int:
    """Updates in an epoch of `num_batches` batches; the last may be of fewer parts than `accumulate`."""
    return math.ceil(num_batches / config.accumulate)
