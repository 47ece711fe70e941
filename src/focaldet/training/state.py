"""The state of a training run: the detector with its average, its optimizer, and whatever else training changes."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from focaldet import config as configs
from focaldet.data.dataset import Classes
from focaldet.data.formats.text import quantity
from focaldet.models import Detector, DetectorConfig, LossContext, build, find_preset, from_config, named_config
from focaldet.ops.losses.normalize import sum_over_ranks
from focaldet.runtime import Autocast, build_autocast, seed_everything
from focaldet.training.config import RunConfig
from focaldet.training.minutes import Plan
from focaldet.training.optim import build_ema, build_optimizer
from focaldet.types import Preprocessing
from focaldet.weights import load_into
from focaldet.weights.sources import embedded_weights

# For networks whose statistics come from elsewhere and need none, such as torchvision's.
RANDOM_NORM_EPS = 1e-5

# The fields of a state that say how far the run is.
POSITION = (
    *("phase", "epoch", "batch", "step", "best", "last"),
    *("evaluations_without_gain", "num_rows", "seconds_training", "best_epochs", "has_average", "measures_norm"),
)


@dataclass
class TrainState:
    """Everything that training changes, and all that a saved state holds.

    Attributes:
        detector: the network that is trained.
        ema: a copy whose weights follow those of `detector` slowly (`optim.ema_decay`); None without an average.
        license: that of the initial weights, which goes with what is learned from them.
        phase: the phase under way, from 0; between two phases the one that ended.
        epoch: the epochs that are done.
        batch: the batches of the present epoch that were used.
        step: the updates of the whole run.
        best: metrics of the best evaluation as plain values; `last` those of the last one.
        num_rows: the rows of metrics.csv when the state was saved.
        best_epochs: AP and epoch of the best evaluations whose weights are kept for their average, the best first.
        has_average: whether their average was evaluated, which ends the run.
        measures_norm: whether BatchNorm is measured anew early in the run (`batch_norm`), as in version 0.1 it was not.
        plan: how a run of some minutes goes on, and `seconds_spent` what it has taken of them; None of other runs.
        evaluation_seconds: the time that the last evaluation took.
    """

    detector: Detector
    ema: Detector | None
    optimizer: torch.optim.Optimizer
    autocast: Autocast
    context: LossContext
    license: str | None = None
    phase: int = 0
    epoch: int = 0
    batch: int = 0
    step: int = 0
    best: dict[str, Any] | None = None
    last: dict[str, Any] | None = None
    evaluations_without_gain: int = 0
    num_rows: int = 0
    seconds_training: float = 0.0
    best_epochs: list[tuple[float, int]] = field(default_factory=list)
    has_average: bool = False
    measures_norm: bool = True
    plan: Plan | None = None
    seconds_spent: float = 0.0
    evaluation_seconds: float | None = None
    _ema_pairs: list[tuple[Tensor, Tensor]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # Listed once, because walking over the modules takes longer than the update.
        followed = self.detector.state_dict(keep_vars=True)
        averages = self.evaluated.state_dict(keep_vars=True)
        self._ema_pairs = [(average, followed[name]) for name, average in averages.items()]

    @property
    def evaluated(self) -> Detector:
        """The detector that is evaluated and saved: the moving average if there is one, else the trained network."""
        return self.detector if self.ema is None else self.ema

    @torch.no_grad()
    def update_ema(self, *, decay: float) -> None:
        """Move the average towards the detector: w ← d·w + (1 − d)·source; whole-number buffers are copied."""
        averages, sources = zip(*(pair for pair in self._ema_pairs if pair[0].is_floating_point()), strict=True)
        torch._foreach_lerp_(averages, sources, 1 - decay)
        for average, source in self._ema_pairs:
            if not average.is_floating_point():
                average.copy_(source)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values that `load_state_dict` takes."""
        scaler = self.autocast.scaler
        return {
            "position": {name: getattr(self, name) for name in POSITION},
            "architecture": configs.to_dict(self.detector.config),
            "preprocessing": configs.to_dict(self.detector.preprocessing),
            "detector": self.detector.state_dict(),
            "ema": self.ema.state_dict() if self.ema is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "license": self.license,
            "time": {
                "plan": None if self.plan is None else tuple(self.plan),
                "seconds_spent": self.seconds_spent,
                "evaluation_seconds": self.evaluation_seconds,
            },
            "context": {"images_seen": self.context.images_seen, "averages": dict(self.context.averages)},
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Put everything back as it was when `saved` was taken."""
        scaler, context = self.autocast.scaler, self.context
        self.measures_norm = False  # unless the state says so
        for name, value in saved["position"].items():
            setattr(self, name, value)
        self.detector.load_state_dict(saved["detector"])
        if self.ema is not None:
            self.ema.load_state_dict(saved["ema"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if scaler is not None:
            scaler.load_state_dict(saved["scaler"])
        if (spent := saved.get("time")) is not None:  # which version 0.1 does not have
            self.plan = None if spent["plan"] is None else Plan(*spent["plan"])
            self.seconds_spent, self.evaluation_seconds = spent["seconds_spent"], spent["evaluation_seconds"]
        self.license = saved["license"] if "license" in saved else saved["licence"]  # as version 0.1 spells it
        context.images_seen = saved["context"]["images_seen"]
        context.averages.update(saved["context"]["averages"])


def build_state(
    config: RunConfig, *, classes: Classes, fabric: Any, saved: Mapping[str, Any] | None
) -> tuple[TrainState, tuple[str, ...]]:
    """The state of a run with its initial weights, or as it was saved, and notes on the weights that were loaded.

    Raises:
        ConfigError: an unknown detector, or a setting out of range.
        CheckpointError: weights that do not fit.
    """
    seed_everything(config.seed)
    ranks = fabric.world_size
    context = LossContext(all_reduce_sum=sum_over_ranks if ranks > 1 else None, num_ranks=ranks)
    if saved is not None:
        # Initial weights may have changed the settings: BatchNorm's epsilon is that of the program that trained them.
        # What an earlier version did not know has its default then, not what the preset has now.
        kind, source = type(find_preset(config.model).config), f"architecture of {config.model}"
        architecture = configs.from_dict(kind, saved["architecture"], source=source, warn_renamed=False)
        preprocessing = configs.from_dict(Preprocessing, saved["preprocessing"], source="preprocessing")
        detector = from_config(architecture, class_names=classes.names, preprocessing=preprocessing)
        state = start_state(detector, config, context=context, device=fabric.device)
        state.load_state_dict(saved)
        return state, ()  # the notes on the initial weights were logged when the run began
    detector = build(config.model, class_names=classes.names, architecture=initial_architecture(config))
    weights = initial_weights(config)
    loaded = None if weights is None else load_into(detector, weights, input=config.weights_input)
    detector.preprocessing = replace(detector.preprocessing, resize=config.resize(detector.preprocessing.resize))
    state = start_state(detector, config, context=context, device=fabric.device)
    if loaded is None:
        return state, (f"no weights given: starts from random ones ({_describe_norm(detector)})",)
    state.license = loaded.license
    chosen = () if weights == config.weights else ("no weights given: starts from those that come with focaldet",)
    return state, (*chosen, *loaded.sentences())


def start_state(detector: Detector, config: RunConfig, *, context: LossContext, device: torch.device) -> TrainState:
    """The state at the first step of training `detector` as it is, which is moved to `device`."""
    detector = detector.to(device).train()
    if config.channels_last:
        detector = detector.to(memory_format=torch.channels_last)
    return TrainState(
        detector,
        ema=build_ema(detector) if config.ema is not None else None,
        optimizer=build_optimizer(detector, config),
        autocast=build_autocast(config.precision, device=device),
        context=context,
    )


def next_state(state: TrainState, config: RunConfig, *, before: RunConfig, kept: Detector, fabric: Any) -> TrainState:
    """The state at the start of the phase that `config` describes, from the weights `kept` by the phase `before`.

    These are the moving average's where there is one. Optimizer and average are new; what the losses count and
    average is continued.
    """
    seed_everything(config.seed)
    # Only what differs between the phases: the initial weights and the data decided some of the settings that hold.
    changed = _changes(*(configs.to_dict(asked_architecture(settings)) for settings in (before, config)))
    architecture = configs.merge(configs.to_dict(kept.config), changed)
    following_config = configs.from_dict(type(kept.config), architecture, source=f"architecture of {config.model}")
    own = find_preset(config.model).preprocessing
    detector = from_config(following_config, class_names=kept.class_names, preprocessing=own)
    detector.preprocessing = replace(kept.preprocessing, resize=config.resize(own.resize))
    # BatchNorm's counters of batches may come or go; all other tensors are the same (`phases.check_phases`).
    detector.load_state_dict(kept.state_dict(), strict=False)
    detector = detector.to(fabric.device)
    if fabric.world_size > 1:  # each process has counted its own statistics of the last batch; the first one's are kept
        for value in detector.state_dict().values():
            torch.distributed.broadcast(value, src=0)
    following = start_state(detector, config, context=state.context, device=fabric.device)
    position = {name: getattr(state, name) for name in POSITION}
    return replace(following, **{**position, "phase": state.phase + 1, "license": state.license})


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The values of `after` that differ from those of `before`, nested in the same way."""
    changed = {}
    for name, value in after.items():
        old = before.get(name)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            value = _changes(old, value)  # noqa: PLW2901
            old = {}
        if value != old:
            changed[name] = value
    return changed


def asked_architecture(config: RunConfig) -> DetectorConfig:
    """The config of the detector as the settings ask for it, before weights and data change it.

    Raises:
        ConfigError: the name or a setting is unknown or out of range.
    """
    return named_config(config.model, architecture=initial_architecture(config))


def initial_weights(config: RunConfig) -> str | None:
    """The weights that a run starts from, a file or a name; None for random ones.

    Raises:
        ConfigError: the name of the detector is unknown.
    """
    if config.weights != "auto":
        return config.weights
    backbone = config.architecture.get("backbone", find_preset(config.model).config.backbone)
    return embedded_weights(backbone)


def initial_architecture(config: RunConfig) -> dict[str, Any]:
    """The settings that replace those of the detector's preset.

    Without initial weights there is nothing worth freezing: unless the settings say otherwise, all stages are trained,
    and BatchNorm too where the detector would freeze it.
    """
    preset = find_preset(config.model).config
    settings: dict[str, Any] = {}
    if initial_weights(config) is None:
        if preset.frozen_stages is not None:
            settings["frozen_stages"] = 0
        if preset.norm_eps is not None:
            settings["norm_eps"] = preset.norm_eps or RANDOM_NORM_EPS
        if preset.norm == "frozen":
            settings["norm"] = "batch"
    if config.frozen_stages is not None:
        settings["frozen_stages"] = config.frozen_stages
    return {**settings, **config.architecture}


def _describe_norm(detector: Detector) -> str:
    kind = detector.config.norm or "own"
    if kind == "frozen":
        return "frozen BatchNorm has no statistics then; --architecture.norm batch trains it"
    return f"{kind} norm, {quantity(detector.config.frozen_stages or 0, 'stage')} frozen"
