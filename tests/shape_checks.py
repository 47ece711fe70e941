"""Shapes and types of tensors, checked at every call of a function of focaldet that has them in its signature.

jaxtyping checks all arguments of every function twice by itself, before the call and after it. Here beartype checks
them once, and only where a signature has a tensor or an array: mypy has checked the rest.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, get_args

import beartype
import jaxtyping

_jaxtyped = jaxtyping.jaxtyped


def install() -> None:
    """Check all functions of focaldet that are imported from here on."""
    jaxtyping.jaxtyped = jaxtyped
    jaxtyping.install_import_hook("focaldet", "beartype.beartype")


def jaxtyped(thing: Any = None, *, typechecker: object = None) -> Any:
    """A function or dataclass of which tensors are checked; the others as they are."""
    if isinstance(thing, str):  # the context of jaxtyping, which has two forms of call
        return _jaxtyped(thing)
    if thing is None:
        return jaxtyped
    if inspect.isclass(thing):
        if dataclasses.is_dataclass(thing) and "__init__" in vars(thing):
            thing.__init__ = check(thing.__init__)
        return thing
    if isinstance(thing, (classmethod, staticmethod)):
        return type(thing)(check(thing.__func__))
    if isinstance(thing, property):
        accessors = (each and check(each) for each in (thing.fget, thing.fset, thing.fdel))
        return property(*accessors)
    return check(thing)


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, of which each call is one context: an axis has one length in all arguments and the result."""
    annotations = vars(function).get("__annotations__", {}) or getattr(function, "__annotations__", {})
    if not any(map(has_shape, annotations.values())):
        return function
    checked = beartype.beartype(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if jaxtyping.config.jaxtyping_disable:
            return function(*args, **kwargs)
        with _jaxtyped("context"):
            return checked(*args, **kwargs)

    return call


def has_shape(annotation: object) -> bool:
    """Whether an annotation says a shape somewhere; one that is still a text is of what is imported for mypy alone."""
    if inspect.isclass(annotation) and issubclass(annotation, jaxtyping.AbstractArray):
        return True
    return any(map(has_shape, get_args(annotation)))
