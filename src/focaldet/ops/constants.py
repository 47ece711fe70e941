"""A cache of tensors that depend on sizes and settings alone."""

import functools
from collections.abc import Callable
from typing import ParamSpec

import torch
from torch import Tensor

Arguments = ParamSpec("Arguments")


def cache_constants(make: Callable[Arguments, Tensor]) -> Callable[Arguments, Tensor]:
    """`make` with a cache of its last 64 results, which is not used while the caller is traced, compiled or exported.

    What is made in a trace stands for numbers that do not exist yet, and would poison every later call.
    """
    cached = functools.lru_cache(maxsize=64)(make)

    @functools.wraps(make)
    def get(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Tensor:
        # A mode that replaces torch's tensors by its own (fake ones) shows in any tensor made now.
        is_traced = torch.compiler.is_compiling() or type(torch.empty(0)) is not Tensor
        with torch.inference_mode(False):  # what evaluation caches, training must be able to use
            return make(*args, **kwargs) if is_traced else cached(*args, **kwargs)  # type: ignore[arg-type]

    return get
