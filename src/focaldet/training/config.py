"""The settings of one training run. Defaults suit fine-tuning on small data; the paper's schedules are recipes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from focaldet.config import Fraction, current_names, from_dict, merge, to_dict, validate_fields
from focaldet.data.augment.config import AugmentConfig
from focaldet.data.config import DataConfig
from focaldet.data.loading.loader import Sampling
from focaldet.errors import ConfigError
from focaldet.ranges import (
    BatchSize,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ProcessCount,
    Seed,
    SidePx,
    ThreadCount,
)
from focaldet.runtime import Precision
from focaldet.types import Resize

# The number of images per update for which `learning_rate` is stated.
BASE_BATCH = 8

MOST_PARTS_OF_A_RUN = 1000  # phases, and steps of the learning rate

# Of a run without phases; one with phases is as long as they say.
DEFAULT_EPOCHS = 24

Optimizer = Literal["adamw", "sgd"]
Schedule = Literal["one_cycle", "cosine", "step", "constant"]
Logger = Literal["tensorboard", "wandb", "mlflow"]

# What a file of settings or a flag may leave to `training.auto`, and what `focaldet train` leaves to it where neither
# says anything. A `RunConfig` holds what was decided.
AUTO = "auto"
AUTO_SETTINGS = ("model", "size", "batch_size", "epochs", "augment.preset", "sampling")
AUTO_DEFAULTS = ("model", "size", "epochs")

# What may change when a run is resumed: where or how fast it computes and what it reports, not what it learns.
FREE_ON_RESUME = frozenset(
    {"data", "out", "resume", "overwrite", "device", "workers", "threads", "profile"}
    | {"log_every", "loggers", "save_minutes", "save_steps"}
)

# What a phase may set otherwise than its run: whatever decides how it learns, and on which form of the images.
IN_PHASES = frozenset(
    {"epochs", "batch_size", "accumulate", "evaluate_every", "architecture", "frozen_stages", "ema"}
    | {"optimizer", "learning_rate", "backbone_factor", "weight_decay", "momentum", "clip_norm"}
    | {"schedule", "step_at", "warmup_epochs", "warmup_power"}
    | {"size", "short_side", "max_side", "multi_scale", "multi_scale_end", "augment", "sampling"}
)


@validate_fields
@dataclass(frozen=True)
class RunConfig:
    """All settings of a training run; the run folder keeps them as `config.yaml`.

    With `phases`, `epochs` is their sum.
    """

    data: DataConfig = field(default_factory=DataConfig)
    """The images and annotations."""

    model: str = "retinanet_r50_fpn"
    """Name of the detector (`focaldet models` lists them)."""

    weights: str | None = "auto"
    """Initial weights: a file, or a name such as torchvision:coco_v1. "auto" takes those that come with focaldet if
    there are any for the backbone, else random ones; "none" or None starts from random weights."""

    weights_input: str | None = None
    """Input scaling that the initial weights were trained with, if their file does not say so."""

    architecture: dict[str, Any] = field(default_factory=dict)
    """Settings of the detector that replace its own, nested as in its config."""

    out: Path = Path("runs/train")
    """Folder to write the run to."""

    resume: bool = False
    """Continue the run in `out` from its last saved state."""

    overwrite: bool = False
    """Replace the run in `out`."""

    size: SidePx | None = None
    """Long side of the resized image in pixels; the side of the square for a detector with square input."""

    short_side: SidePx | None = None
    """Short side of the resized image in pixels, instead of `size`; the paper uses it together with `max_side`."""

    max_side: SidePx | None = None
    """Largest long side in pixels when `short_side` is given."""

    multi_scale: tuple[SidePx, SidePx] | None = None
    """Smallest and largest size in pixels; every 10 batches use another random multiple of 32 between them."""

    multi_scale_end: Fraction = 0.0
    """Fraction of the run, at its end, that uses only the largest size of `multi_scale`."""

    epochs: PositiveInt = DEFAULT_EPOCHS
    """Passes over the training images; for a recipe with phases, split among them in the recipe's proportions."""

    minutes: PositiveFloat | None = None
    """Minutes that training and evaluation may take, instead of `epochs`; the schedule is fitted to them."""

    phases: tuple[dict[str, Any], ...] = ()
    """Parts of the run, trained one after another, each with its epochs and its own settings. Only in files."""

    batch_size: BatchSize = 8
    """Images per update of the weights, over all processes and accumulated parts."""

    accumulate: PositiveInt = 1
    """Parts that the images of an update are split into to save memory; each part normalizes its loss by itself."""

    optimizer: Optimizer = "adamw"
    """Optimizer of the weights."""

    learning_rate: PositiveFloat = 2e-3
    """Learning rate for 8 images per update; scaled to `batch_size`, linearly for sgd, by the square root for adamw."""

    backbone_factor: Fraction = 0.3
    """Factor on the learning rate for the backbone."""

    weight_decay: NonNegativeFloat = 0.05
    """Weight decay; none for norm layers and biases."""

    momentum: Fraction = 0.9
    """Momentum of sgd; first beta of adamw."""

    schedule: Schedule = "one_cycle"
    """How the learning rate changes over the run. Only a `constant` run can get more epochs when it is resumed."""

    step_at: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (2 / 3, 8 / 9)
    """Fractions of the run at which the `step` schedule divides the learning rate by 10."""

    warmup_epochs: NonNegativeFloat = 1.0
    """Epochs of warm-up; one_cycle has its own, the first 30 % of the run."""

    warmup_power: PositiveFloat = 1.0
    """Power with which the learning rate rises in the warm-up: 1 is linear, 4 is the burn-in of darknet."""

    clip_norm: PositiveFloat | None = 10.0
    """Largest norm of the gradient; larger ones are scaled down. None: no limit."""

    ema: Annotated[float, Field(gt=0, lt=1)] | None = 0.998
    """Decay of the moving average of the weights, which is evaluated and saved instead of them. None: no average."""

    frozen_stages: Annotated[int, Field(ge=0, le=5)] | None = None
    """Stages of the backbone, stem included, that stay fixed. None: the detector's default; 0 without `weights`."""

    precision: Precision | None = None
    """Number type of matrix products; weights and losses stay fp32. None: bf16 if the hardware has it, else fp32."""

    channels_last: bool = True
    """Keep images and weights in channels-last memory order."""

    compile: bool = False
    """Compile the network with torch.compile, for training on a GPU; on the CPU it makes training slower."""

    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Random changes to the training images."""

    sampling: Sampling = "uniform"
    """Draw all images equally often, or those with rare classes more often."""

    overfit: PositiveInt | None = None
    """Train and evaluate on this many images without augmentation: a sound setup reaches an AP near 1 on them."""

    evaluate_every: PositiveInt | None = 1
    """Epochs between evaluations; there is always one after the last epoch. None: no evaluation."""

    average_best: Annotated[int, Field(ge=2, le=1000)] | None = None
    """Average the weights of this many best evaluations at the end; kept as the best if they evaluate better."""

    patience: PositiveInt | None = None
    """Stop after this many evaluations in a row without a better AP."""

    seed: Seed = 0
    """Seed of all random numbers."""

    deterministic: bool = False
    """Refuse operations whose result differs from run to run."""

    device: str | None = None
    """Device, such as cpu, cuda, cuda:1 or mps. None: the best there is."""

    workers: ProcessCount = 0
    """Processes that load images; 0 loads in the main process. The result does not depend on it."""

    threads: ThreadCount | None = None
    """CPU threads for the network. None: as many as torch chooses, and fewer while other programs need the cores."""

    profile: bool = False
    """Measure some steps operation by operation: a table and a trace for chrome://tracing in the run folder."""

    log_every: PositiveInt = 1
    """Steps between rows of metrics.csv."""

    loggers: tuple[Logger, ...] = ()
    """Experiment trackers to write to besides metrics.csv."""

    save_minutes: PositiveFloat = 10.0
    """Minutes between saves of the state within an epoch; it is also saved after every epoch."""

    save_steps: PositiveInt | None = None
    """Steps between saves of the state. None: only `save_minutes` counts."""

    def __post_init__(self) -> None:
        if self.weights == "none":
            object.__setattr__(self, "weights", None)  # of a frozen value, while it is made
        has_rest = self.batch_size % self.accumulate
        contradictions: dict[str, object] = {
            f"phases, step_at: must have at most {MOST_PARTS_OF_A_RUN}": (
                max(len(self.phases), len(self.step_at)) > MOST_PARTS_OF_A_RUN
            ),
            "resume and overwrite exclude each other": self.resume and self.overwrite,
            "patience: needs evaluate_every": self.patience and not self.evaluate_every,
            "patience: a run with phases is as long as they say and cannot end early": self.patience and self.phases,
            "minutes: a run with phases is as long as they say": self.minutes and self.phases,
            f"minutes: the run is as long as they allow, so epochs cannot be {self.epochs} as well": (
                self.minutes and self.epochs != DEFAULT_EPOCHS
            ),
            "average_best: needs evaluate_every": self.average_best and not self.evaluate_every,
            f"step_at: fractions must rise, got {self.step_at}": list(self.step_at) != sorted({*self.step_at}),
        }
        if not self.phases:  # which may set these otherwise
            contradictions |= {
                "multi_scale_end: needs multi_scale": self.multi_scale_end and self.multi_scale is None,
                f"batch_size: {self.batch_size} images per update cannot be divided into {self.accumulate} "
                f"accumulated parts; allowed: a multiple of {self.accumulate}": has_rest,
            }
        for problem, is_there in contradictions.items():
            if is_there:
                raise ConfigError(problem)
        if self.phases:
            total = sum(phase.epochs for phase in self.phase_configs)
            if self.epochs not in (DEFAULT_EPOCHS, total):
                raise ConfigError(f"epochs: {self.epochs}, but the phases together have {total}")
            object.__setattr__(self, "epochs", total)  # of a frozen value, while it is made

    @cached_property
    def phase_configs(self) -> tuple["RunConfig", ...]:
        """The settings of each phase, laid over those of the run (nested ones are merged); without phases this config.

        Raises:
            ConfigError: a phase does not say how long it is, or has a setting that is unknown, of the whole run alone
                or out of range; names the number of the phase and the setting.
        """
        # The architecture as it was given: plain values know no NaN, which its own check must see.
        run = {**to_dict(self), "architecture": self.architecture, "phases": ()}
        run["augment"] = self.augment.overrides()  # so that a phase can lay another preset over it
        phases = []
        for number, phase in enumerate(self.phases, start=1):
            source = f"phase {number}"
            phases.append(from_dict(RunConfig, merge(run, _phase_changes(phase, source=source)), source=source))
        return tuple(phases) or (self,)

    @property
    def scaled_learning_rate(self) -> float:
        """`learning_rate` for `batch_size` images per update instead of `BASE_BATCH`."""
        ratio = self.batch_size / BASE_BATCH
        return self.learning_rate * (ratio if self.optimizer == "sgd" else math.sqrt(ratio))

    def resize(self, own: Resize) -> Resize:
        """The detector's `own` rule with the sides that the settings ask for."""
        return own.with_sides(size=self.size, short_side=self.short_side, max_side=self.max_side)


def check_processes(config: RunConfig, *, num_processes: int) -> None:
    """Make sure that the images of every update can be divided among the processes.

    Raises:
        ConfigError: they cannot; names the phase.
    """
    for number, phase in enumerate(config.phase_configs, start=1):
        where = f"phase {number}: " if config.phases else ""
        parts = phase.accumulate * num_processes
        if phase.batch_size % parts:
            raise ConfigError(
                f"{where}batch_size: {phase.batch_size} images per update cannot be divided among "
                f"{num_processes} processes × {phase.accumulate} accumulated parts; allowed: a multiple of {parts}"
            )


def _phase_changes(phase: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    """The settings of a phase by their present names.

    Raises:
        ConfigError: a setting that is unknown or of the whole run alone, or the length of the phase is missing.
    """
    changes = current_names(RunConfig, phase, source=source)
    if foreign := [name for name in changes if name not in IN_PHASES]:
        raise ConfigError(f"{source}: {foreign[0]}: is a setting of the whole run, not of a phase")
    if "epochs" not in changes:
        raise ConfigError(f"{source}: epochs: is missing; every phase says how long it is")
    return changes
