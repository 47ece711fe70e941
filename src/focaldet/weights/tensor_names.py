"""Compare the names and shapes of a file's tensors with those of a network, before anything is allocated or copied."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from focaldet.data.formats.text import list_names
from focaldet.errors import CheckpointError
from focaldet.models import Detector, DetectorConfig, from_config
from focaldet.runtime import total_memory
from focaldet.text import printable
from focaldet.types import Preprocessing

COUNTER = ".num_batches_tracked"
"""End of the names of BatchNorm's batch counters: other programs keep or drop them, inference never reads them."""

VARIANCES = (".running_var", "moving_variance")
"""Ends of the names of what BatchNorm takes the root of."""

TensorShapes = Mapping[str, tuple[int, ...]]


def shapes_of(
    module: torch.nn.Module, *, counters: bool = True, prefixes: tuple[str, ...] = ("",)
) -> dict[str, tuple[int, ...]]:
    """The shapes of a network's tensors by name, of those whose names begin with one of `prefixes`.

    `counters` says whether BatchNorm's batch counters are among them.
    """
    state = {name: value for name, value in module.state_dict().items() if name.startswith(prefixes)}
    return tensor_shapes(state if counters else without_counters(state))


def tensor_shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shapes of named tensors by name."""
    return {name: tuple(value.shape) for name, value in tensors.items()}


def without_counters(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors but for BatchNorm's batch counters."""
    return {name: value for name, value in tensors.items() if not name.endswith(COUNTER)}


def num_rows(tensors: Mapping[str, Tensor], name: str) -> int:
    """The length of a tensor's first axis; 0 without such a tensor or axis."""
    return len(tensors[name]) if name in tensors and tensors[name].ndim else 0


def build_on_meta(config: DetectorConfig) -> Detector:
    """The detector that `config` describes with names and shapes only: nothing is allocated for its tensors."""
    with torch.device("meta"):
        return from_config(config, class_names=(), preprocessing=Preprocessing())


def class_layer_tensors(detector: Detector) -> tuple[str, ...]:
    """The names of the tensors whose shape follows the number of classes."""
    count = detector.config.num_classes
    # Fewer where that is possible: a softmax whose prior fits K classes may have no room for more.
    shapes = shapes_of(build_on_meta(detector.config.replace(num_classes=count - 1 if count > 1 else 2)))
    return tuple(name for name, shape in shapes_of(detector).items() if shapes[name] != shape)


def require_fit(expected: TensorShapes, actual: TensorShapes, *, source: str) -> None:
    """Compare the shapes in a file with those of a network, tensor by tensor.

    Raises:
        CheckpointError: a tensor is missing, left over or of another shape; names `source` and the tensors.
    """
    problems = []
    if missing := [name for name in expected if name not in actual]:
        problems.append(f"missing {list_names(missing)}")
    if unknown := [name for name in actual if name not in expected]:
        problems.append(f"left over {list_names(unknown)}")
    differing = [name for name in expected if name in actual and expected[name] != actual[name]]
    if differing:
        first = differing[0]
        more = f" (and {len(differing) - 1} more of other shapes)" if len(differing) > 1 else ""
        problems.append(f"{first} has shape {actual[first]} in the file, {expected[first]} in the network{more}")
    if problems:
        raise CheckpointError(f"{source}: made for another network: {'; '.join(problems)}")


def require_finite(tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Refuse weights with which nothing can be computed: NaN, infinite, too large for float32, negative variances.

    Raises:
        CheckpointError: names `source` and the tensor.
    """
    for name, value in tensors.items():
        if not value.is_floating_point() or not value.numel():
            continue
        low, high = (float(bound) for bound in value.float().aminmax())
        problem = "NaN" if math.isnan(low) else "infinite numbers" if max(-low, high) == math.inf else None
        if problem is None and name.endswith(VARIANCES) and low < 0:
            problem = "a negative variance"
        if problem is not None:
            raise CheckpointError(
                f"{source}: {printable(name)}: has {problem}, with which nothing can be computed (to look at it "
                "nevertheless: --allow-nonfinite)"
            )


def require_room(sketch: torch.nn.Module, *, source: str) -> None:
    """Refuse a detector that does not fit into the memory of the machine.

    Raises:
        CheckpointError: gives the estimate.
    """
    needed = sum(value.numel() * value.element_size() for value in sketch.state_dict().values())
    there = total_memory(torch.device("cpu"))
    if there is not None and needed > there:
        raise CheckpointError(
            f"{source}: its detector needs {needed / 1e9:.1f} GB, this machine has {there / 1e9:.1f} GB"
        )


def require_numbers(tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Refuse tensors of integers and truth values where weights are expected.

    Raises:
        CheckpointError: a tensor is not of floating-point numbers; names `source` and the tensor.
    """
    for name, value in tensors.items():
        if not value.is_floating_point():
            raise CheckpointError(f"{source}: {name}: is {value.dtype}, must be floating-point numbers")
