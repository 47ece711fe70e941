"""Does a file fit a network? Tensor names and shapes compared before anything is allocated or copied."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from focaldet.data.formats.text import list_names
from focaldet.errors import CheckpointError
from focaldet.models import Detector, from_config
from focaldet.types import Preprocessing

COUNTER = ".num_batches_tracked"
"""End of the names of BatchNorm's batch counters: other programs keep or drop them, inference reads them never."""

Shapes = Mapping[str, tuple[int, ...]]


def shapes_of(module: torch.nn.Module, *, counters: bool = True) -> dict[str, tuple[int, ...]]:
    """The shapes of a network's tensors by name; `counters` says whether BatchNorm's batch counters count."""
    state = module.state_dict()
    return {name: tuple(value.shape) for name, value in state.items() if counters or not name.endswith(COUNTER)}


def rows(tensors: Mapping[str, Tensor], name: str) -> int:
    """The length of a tensor's first axis; 0 where there is none."""
    return len(tensors[name]) if name in tensors and tensors[name].ndim else 0


def without_memory(config: Any) -> Detector:
    """The detector that `config` describes, names and shapes only: nothing is allocated for its tensors."""
    with torch.device("meta"):
        return from_config(config, class_names=(), preprocessing=Preprocessing())


def class_layer(detector: Detector) -> tuple[str, ...]:
    """The names of the tensors whose shape follows the number of classes."""
    count = detector.config.num_classes
    # Fewer where that is possible: a softmax whose prior fits K classes may have no room for more.
    shapes = shapes_of(without_memory(replace(detector.config, num_classes=count - 1 if count > 1 else 2)))
    return tuple(name for name, shape in shapes_of(detector).items() if shapes[name] != shape)


def require_fit(expected: Shapes, found: Shapes, *, source: str) -> None:
    """Compare a file with a network, tensor by tensor.

    Raises:
        CheckpointError: a tensor is missing, left over or of another shape; names `source` and the tensors.
    """
    problems = []
    if missing := [name for name in expected if name not in found]:
        problems.append(f"missing {list_names(missing)}")
    if unknown := [name for name in found if name not in expected]:
        problems.append(f"left over {list_names(unknown)}")
    differing = [name for name in expected if name in found and expected[name] != found[name]]
    if differing:
        first = differing[0]
        more = f" (and {len(differing) - 1} more of other shapes)" if len(differing) > 1 else ""
        problems.append(f"{first} has shape {found[first]} in the file, {expected[first]} in the network{more}")
    if problems:
        raise CheckpointError(f"{source}: made for another network: {'; '.join(problems)}")


def renamed(name: str, beginnings: Sequence[tuple[str, str]]) -> str:
    """The name with the first of `beginnings` (theirs, ours) that it has exchanged; itself where it has none."""
    for theirs, ours in beginnings:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name
