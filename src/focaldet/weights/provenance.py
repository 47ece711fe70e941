"""Which tensors of a file a tensor was made of, whatever a reader did with them on the way."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from focaldet.weights.formats.files import TensorFile


class TrackedTensor(Tensor):
    """A tensor that knows the names it came from; what is computed from several knows the names of all."""

    made_of: tuple[str, ...]

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """As for any tensor; the names of the operands go over to the results."""
        result = super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]
        names = _source_names(tree_leaves((args, kwargs)))
        for part in tree_leaves(result):
            if isinstance(part, TrackedTensor):
                part.made_of = names
        return result


def track_names(file: TensorFile) -> TensorFile:
    """The same file, whose tensors know their names; nothing is copied."""
    tensors: dict[str, Tensor] = {}
    for name, value in file.tensors.items():
        tensors[name] = tracked = value.as_subclass(TrackedTensor)
        tracked.made_of = (name,)
    return TensorFile(tensors, file.statements)


def source_names(tensors: Mapping[str, Tensor]) -> dict[str, tuple[str, ...]]:
    """Of each tensor the names in the file that it was made of; empty where it was made of none that was tracked."""
    with torch._C.DisableTorchFunctionSubclass():
        return {name: _source_names([value]) for name, value in tensors.items()}


def _source_names(values: Iterable[object]) -> tuple[str, ...]:
    names = (name for value in values if isinstance(value, TrackedTensor) for name in getattr(value, "made_of", ()))
    return tuple(dict.fromkeys(names))
