"""The settings of a comparison that are not those of its trainings."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field

from focaldet.comparison.systems import SMALL_DETECTORS
from focaldet.config import validate_fields
from focaldet.errors import ConfigError
from focaldet.ranges import NonNegativeFloat, PositiveFloat, PositiveInt

DEFAULT_MINUTES = 10.0


@validate_fields
@dataclass(frozen=True)
class CompareConfig:
    """Which detectors are compared, and how accuracy and time are measured."""

    models: tuple[str, ...] = SMALL_DETECTORS
    """Names of the detectors to train (`focaldet models` lists them)."""

    seeds: PositiveInt = 3
    """Trainings of each detector, with seeds from that of the run on."""

    split: str = "val"
    """The images to evaluate on: val, test, or a split's name in the data."""

    add: tuple[Path, ...] = ()
    """Runs that were trained before: run folders, or folders of comparisons of the same data and settings."""

    results: dict[str, Path] = field(default_factory=dict)
    """Result files of other programs in COCO's format, by the name to show."""

    times: dict[str, PositiveFloat] = field(default_factory=dict)
    """Milliseconds an image of those programs, by the same names."""

    shard: str | None = None
    """Which part of the trainings to run, and of how many parts, such as 2/8; the page is made without it."""

    retry: bool = False
    """Train detectors again that failed before."""

    rounds: PositiveInt = 10
    """Rounds of the time measurement; each goes through all detectors."""

    timed_images: PositiveInt = 8
    """Images of each round."""

    throughput_batch: PositiveInt = 8
    """Images per batch where throughput is measured."""

    resamples: Annotated[int, Field(ge=100, le=1_000_000)] = 2000
    """Resampled splits of the bootstrap."""

    cluster: str | None = None
    """Regular expression whose first group in an image's path is its cluster, where images are not independent (the
    frames of a film): the bootstrap draws whole clusters."""

    seed_deviation: NonNegativeFloat | None = None
    """Standard deviation of AP between seeds, in points, to assume where there is one seed only. None: 1.0."""

    budget_ms: PositiveFloat | None = None
    """Milliseconds an image that are allowed: the page also names the best detector within them."""

    def __post_init__(self) -> None:
        if self.shard is not None and not 1 <= self.part[0] <= self.part[1]:
            raise ConfigError(f"shard: must be a part of so many, such as 2/8, got {self.shard!r}")
        if unknown := [name for name in self.times if name not in self.results]:
            raise ConfigError(f"times: {unknown[0]!r} is not among the results")
        if self.seed_deviation is not None and self.seeds > 1:
            raise ConfigError(f"seed_deviation: has no effect with {self.seeds} seeds, which measure it; leave it out")
        if len({*self.models}) < len(self.models):
            raise ConfigError(f"models: named twice: {', '.join(self.models)}")
        if self.cluster is not None:
            try:
                re.compile(self.cluster)
            except re.error as error:
                raise ConfigError(f"cluster: {self.cluster!r} is not a regular expression: {error}") from None

    @property
    def part(self) -> tuple[int, int]:
        """`shard` as numbers: which part, from 1, of how many; (0, 0) for a text that is neither."""
        match = re.fullmatch(r"(\d+)/(\d+)", self.shard or "1/1")
        return (int(match[1]), int(match[2])) if match else (0, 0)
