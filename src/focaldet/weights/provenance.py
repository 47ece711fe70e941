"""Which tensors of a file a tensor was made of, whatever a reader did with them on the way."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from focaldet.weights.formats.files import TensorFile


class Traced(Tensor):
    """A tensor that knows the names it came from; what is computed from several knows the names of all."""

    origins: tuple[str, ...]

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """As for any tensor; the names of the operands go over to the results."""
        result = super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]
        names = _origins(tree_leaves((args, kwargs)))
        for part in tree_leaves(result):
            if isinstance(part, Traced):
                part.origins = names
        return result


def traced(file: TensorFile) -> TensorFile:
    """The same file, whose tensors know their names; nothing is copied."""
    tensors: dict[str, Tensor] = {}
    for name, value in file.tensors.items():
        tensors[name] = marked = value.as_subclass(Traced)
        marked.origins = (name,)
    return TensorFile(tensors, file.statements)


def origins(tensors: Mapping[str, Tensor]) -> dict[str, tuple[str, ...]]:
    """Of each tensor the names that it came from; empty where it was made of none that was traced."""
    with torch._C.DisableTorchFunctionSubclass():
        return {name: _origins([value]) for name, value in tensors.items()}


def _origins(values: Iterable[object]) -> tuple[str, ...]:
    names = (name for value in values if isinstance(value, Traced) for name in getattr(value, "origins", ()))
    return tuple(dict.fromkeys(names))
