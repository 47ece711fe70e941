"""The ranges of settings, by what a number stands for: checked where a config is made, whoever wrote it.

A settings or weights file may say anything. Within these ranges a network can be built and a number be computed with;
beyond them it takes hours or all memory, or every result is 0 or NaN. `docs/limits.md` has the table.
"""

from typing import Annotated

from pydantic import AfterValidator, Field

MOST_SIDE_PX, MOST_DIVISOR, LARGEST, SMALLEST = 1_000_000, 1024, 1e6, 1e-6
MOST_FILE_SIDE_PX = 16_384
"""Of the input size that a weights file may state; one that is typed is refused with the memory that it takes."""

PositiveInt = Annotated[int, Field(gt=0, le=10_000_000)]
NonNegativeInt = Annotated[int, Field(ge=0, le=10_000_000)]
PositiveFloat = Annotated[float, Field(gt=0, le=LARGEST)]
NonNegativeFloat = Annotated[float, Field(ge=0, le=LARGEST)]
AnyFloat = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]


def _refuse_tiny(value: float) -> float:
    """`value`, unless boxes that are multiplied or divided by it would be lost to rounding."""
    if value < SMALLEST:
        raise ValueError(f"must be at least {SMALLEST:g}")
    return value


Factor = Annotated[float, Field(gt=0, le=LARGEST), AfterValidator(_refuse_tiny)]
"""A size or ratio that boxes are multiplied or divided by."""

ClassCount = Annotated[int, Field(gt=0, le=100_000)]
Channels = Annotated[int, Field(gt=0, le=16_384)]
EvenChannels = Annotated[int, Field(gt=0, le=16_384, multiple_of=2)]
LayerCount = Annotated[int, Field(ge=0, le=64)]
SomeLayers = Annotated[int, Field(gt=0, le=64)]
SidePx = Annotated[int, Field(gt=0, le=MOST_SIDE_PX)]
Cells = Annotated[int, Field(gt=0, le=64)]
ProcessCount = Annotated[int, Field(ge=0, le=1024)]
ThreadCount = Annotated[int, Field(gt=0, le=1024)]
BatchSize = Annotated[int, Field(gt=0, le=100_000)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
BackboneName = Annotated[str, Field(max_length=200)]

PerLevel = Field(min_length=1, max_length=16)
"""Of a list with a member for each map of a network."""
Shapes = Field(min_length=1, max_length=64)
"""Of a list of boxes on a cell, or of what they are made of."""
