"""What the losses refuse, with the argument named and the way out.

Types and shapes are compared everywhere; that costs nothing. Values are looked at on the CPU only, and not while
torch.compile, torch.export or vmap trace: a GPU would have to finish all its work first. bool targets need no look.

Axes: K classes.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

Alpha = float | Sequence[float] | Float[Tensor, "..."]
"""The weight of positives in [0, 1], for all classes or one for each (the last axis); negatives weigh 1 - α."""

ROW_SUM_TOLERANCE = 0.01  # of a distribution; bf16 has two to three digits


def require_number(name: str, value: object, *, low: float, high: float = math.inf, least: bool = True) -> None:
    """Refuse an argument that is not a number from `low` (or, without `least`, above it) to `high`.

    Raises:
        ValueError: names the argument and what is allowed.
    """
    allowed = f"in [{low:g}, {high:g}]" if high < math.inf else f"{'≥' if least else '>'} {low:g}"
    if isinstance(value, str | bytes | Sequence) or value is None or not hasattr(value, "__float__"):
        raise ValueError(f"{name} must be a number {allowed}, got {value!r}")
    number = float(value)
    if not (low <= number <= high and number < math.inf) or (number == low and not least):
        raise ValueError(f"{name} must be {allowed}, got {value}")


def require_gamma(gamma: float) -> None:
    """Refuse an exponent that is not a finite number ≥ 0.

    Raises:
        ValueError: it is not.
    """
    require_number("gamma", gamma, low=0.0)


def require_beta(beta: float) -> None:
    """Refuse an exponent of the quality focal loss that is neither 0 nor a finite number ≥ 1.

    Raises:
        ValueError: it is neither.
    """
    require_number("beta", beta, low=0.0)
    if 0 < beta < 1:
        raise ValueError(f"beta must be 0 or ≥ 1, got {beta}")


def require_binary(logits: Tensor, targets: Tensor, ignore: Tensor | None) -> None:
    """Refuse targets of another shape than the logits, and any that is neither 0 nor 1 and not ignored.

    Raises:
        ValueError: names the argument, the value, and what to do.
    """
    require_logits(logits)
    require_shape("targets", targets, logits)
    require_mask(ignore, logits.shape)
    if targets.dtype == torch.bool or not has_values(targets, ignore):
        return
    try:
        if torch.equal(targets, targets.bool().to(targets.dtype)):
            return
        wrong = targets != targets.bool()
        if (value := _first_wrong(targets, wrong, ignore)) is not None:
            raise ValueError(f"targets must be 0 or 1, got {value:g}{_binary_hint(value)}")
    except RuntimeError:  # under vmap there are no values to look at
        return


def require_qualities(logits: Tensor, qualities: Tensor, ignore: Tensor | None) -> None:
    """Refuse qualities of another shape than the logits, and any outside [0, 1] that is not ignored.

    Raises:
        ValueError: names the argument, the value, and what to do.
    """
    require_logits(logits)
    require_shape("qualities", qualities, logits)
    require_mask(ignore, logits.shape)
    _require_unit_interval("qualities", qualities, ignore)


def class_targets(
    logits: Tensor, targets: Tensor, ignore: Tensor | None
) -> Int64[Tensor, "*shape"] | Float[Tensor, "*shape K"]:
    """The targets of a softmax: class numbers as int64, or a distribution as it is; 0 where ignored.

    Raises:
        ValueError: fewer than two classes; another shape; class numbers outside [0, K), values outside [0, 1] or rows
            that do not add up to 1, unless ignored.
    """
    require_logits(logits)
    if logits.ndim == 0 or logits.shape[-1] < 2:
        axes = str(logits.shape[-1]) if logits.ndim else "no axis"
        raise ValueError(f"logits: a softmax needs at least 2 classes on the last axis, got {axes}")
    require_tensor("targets", targets)
    rows, num_classes = logits.shape[:-1], logits.shape[-1]
    is_distribution = targets.is_floating_point()
    if targets.shape != (logits.shape if is_distribution else rows) or targets.dtype == torch.bool:
        raise ValueError(_softmax_shape_problem(logits, targets))
    require_mask(ignore, rows)
    if is_distribution:
        weights = targets if ignore is None else targets.masked_fill(ignore[..., None], 0.0)
        _require_distribution(weights, ignore)
        return weights
    classes = (targets if ignore is None else targets.masked_fill(ignore, 0)).long()
    require_classes("targets", classes, None, highest=num_classes - 1)
    return classes


def require_classes(name: str, classes: Tensor, ignore: Tensor | None, *, highest: int, meaning: str = "") -> None:
    """Refuse class numbers outside [0, `highest`] that are not ignored; `meaning` says what the last ones stand for.

    Raises:
        ValueError: names the argument, the value, and what to do.
    """
    if not has_values(classes, ignore) or not classes.numel():
        return
    try:
        outside = (classes < 0) | (classes > highest)
        if (value := _first_wrong(classes, outside, ignore)) is not None:
            allowed = f"{name} must be in [0, {highest}]{meaning}, got {value:g}"
            raise ValueError(f"{allowed}: if it marks what does not count, ignore={name} == {value:g} leaves it out")
    except RuntimeError:  # under vmap there are no values to look at
        return


def check_alpha(alpha: Alpha, *, num_classes: int | None) -> float | Float[Tensor, " K"]:
    """The balance of positives and negatives: a number, or a tensor of one per class (any number of them for None).

    Raises:
        ValueError: it is neither, there is another number of them than classes, or one is outside [0, 1].
    """
    if isinstance(alpha, str | bytes) or not (isinstance(alpha, Tensor) or _is_listed(alpha)):
        require_number("alpha", alpha, low=0.0, high=1.0)
        return alpha  # type: ignore[return-value]
    weights = _class_weights("alpha", alpha)
    if weights.ndim:  # else it is a number
        _require_one_per_class("alpha", weights, num_classes)
    if has_values(weights):
        _require_between("alpha", weights, high=1.0)
    return weights


def check_class_weights(alpha: Tensor | Sequence[float], *, num_classes: int | None) -> Float[Tensor, " K"]:
    """The weight of each class of a softmax (any number of them for None).

    Raises:
        ValueError: it is not one finite number ≥ 0 per class.
    """
    if not isinstance(alpha, Tensor) and not _is_listed(alpha):
        raise ValueError(f"alpha must be one weight ≥ 0 per class, or None for none, got {alpha!r}")
    weights = _class_weights("alpha", alpha)
    _require_one_per_class("alpha", weights, num_classes)
    if has_values(weights):
        _require_between("alpha", weights, high=math.inf)
    return weights


def require_boxes(
    predicted: Tensor, target: Tensor, *, beta: float | None = None, last_axis: int | None = None
) -> None:
    """Refuse box tensors of two shapes, a last axis that is not `last_axis` long, and a `beta` below 0.

    Raises:
        ValueError: names the argument and what is allowed.
    """
    require_tensor("predicted", predicted)
    require_shape("target", target, predicted, of="predicted")
    if last_axis is not None and (predicted.ndim == 0 or predicted.shape[-1] != last_axis):
        raise ValueError(f"predicted: the last axis must be x1, y1, x2, y2, got shape {list(predicted.shape)}")
    if beta is not None:
        require_number("beta", beta, low=0.0)


def require_logits(logits: Tensor) -> None:
    """Refuse logits that are not a floating-point tensor.

    Raises:
        ValueError: they are not.
    """
    require_tensor("logits", logits)
    if not logits.is_floating_point():
        raise ValueError(f"logits must be floating point, got {logits.dtype}")


def require_tensor(name: str, value: object) -> None:
    """Refuse what is not a tensor.

    Raises:
        ValueError: it is not one.
    """
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} must be a tensor, got {type(value).__name__}")


def require_shape(name: str, tensor: Tensor, other: Tensor, *, of: str = "logits") -> None:
    """Refuse a tensor of another shape, also one that would broadcast.

    Raises:
        ValueError: names both shapes, and what to do.
    """
    require_tensor(name, tensor)
    if tensor.shape == other.shape:
        return
    problem = f"{name} must have the shape of {of}, {list(other.shape)}, got {list(tensor.shape)}"
    if tensor.numel() == other.numel():
        raise ValueError(f"{problem}: {name}.view_as({of}), if the order is the same")
    if of == "logits" and tensor.shape == other.shape[:-1] and not tensor.is_floating_point():
        raise ValueError(
            f"{problem}: for class numbers use softmax_focal_loss or focal_loss_sum, or make a column for each "
            f"class: torch.nn.functional.one_hot({name}, {other.shape[-1]})"
        )
    raise ValueError(problem)


def require_mask(ignore: Tensor | None, shape: torch.Size) -> None:
    """Refuse a mask that is not bool or has another shape.

    Raises:
        ValueError: names both.
    """
    if ignore is None:
        return
    require_tensor("ignore", ignore)
    if ignore.dtype != torch.bool or ignore.shape != shape:
        raise ValueError(
            f"ignore must be a bool tensor of shape {list(shape)}, got {ignore.dtype} of shape {list(ignore.shape)}"
        )


def has_values(*tensors: Tensor | None) -> bool:
    """Whether looking at the values costs no wait: all on the CPU, and nothing is being traced."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return False
    return all(tensor is None or tensor.device.type == "cpu" for tensor in tensors)


def _first_wrong(values: Tensor, wrong: Bool[Tensor, "*shape"], ignore: Tensor | None) -> float | None:
    """The first value that is wrong and not ignored."""
    if ignore is not None:
        wrong = wrong & ~ignore
    return float(values[wrong][0]) if bool(wrong.any()) else None


def _binary_hint(value: float) -> str:
    if 0 < value < 1:
        return ": quality_focal_loss takes soft targets"
    if value < 0 or value == 255 or math.isnan(value):
        marked = "targets.isnan()" if math.isnan(value) else f"targets == {value:g}"
        return f": if it marks what does not count, ignore={marked} leaves it out"
    return ": for class numbers use softmax_focal_loss or focal_loss_sum, or a column of 0 and 1 for each class"


def _softmax_shape_problem(logits: Tensor, targets: Tensor) -> str:
    """What is wrong with the targets of a softmax whose type or shape does not fit the logits."""
    rows = logits.shape[:-1]
    if targets.shape == rows:
        return f"targets: class numbers must be whole numbers, got {targets.dtype}: targets.long()"
    if targets.shape == logits.shape:
        return f"targets: a distribution over the classes must be floating point, got {targets.dtype}: targets.float()"
    problem = (
        f"targets must be class numbers of shape {list(rows)} or a distribution of shape {list(logits.shape)}, "
        f"got {targets.dtype} of shape {list(targets.shape)}"
    )
    if logits.ndim > 2 and targets.shape == (*logits.shape[:1], *logits.shape[2:]):
        return f"{problem}: the classes are on the last axis of the logits: logits.movedim(1, -1)"
    return problem


def _require_distribution(weights: Tensor, ignore: Tensor | None) -> None:
    _require_unit_interval("targets", weights, None)
    if not has_values(weights, ignore):
        return
    try:
        sums = weights.sum(-1, dtype=torch.float64)
        wrong = (sums - 1).abs() > ROW_SUM_TOLERANCE
        if (value := _first_wrong(sums, wrong, ignore)) is not None:
            raise ValueError(
                f"targets: the distribution of every row must add up to 1, got {value:g}: for several classes at once "
                "use focal_loss, for rows that do not count ignore="
            )
    except RuntimeError:  # under vmap there are no values to look at
        return


def _require_unit_interval(name: str, values: Tensor, ignore: Tensor | None) -> None:
    if not has_values(values, ignore) or not values.numel():
        return
    try:
        low, high = (float(bound) for bound in torch.aminmax(values.detach()))
        if low >= 0 and high <= 1:
            return
        if (value := _first_wrong(values, ~((values >= 0) & (values <= 1)), ignore)) is not None:
            raise ValueError(f"{name} must be in [0, 1], got {value:g}: ignore= leaves out what does not count")
    except RuntimeError:  # under vmap there are no values to look at
        return


def _is_listed(values: object) -> bool:
    """Whether it is a list, a tuple or an array of numbers."""
    return not isinstance(values, str | bytes) and hasattr(values, "__len__")


def _class_weights(name: str, values: object) -> Tensor:
    """The values as a floating-point tensor."""
    try:
        weights = values if isinstance(values, Tensor) else torch.as_tensor(values, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{name} must be numbers, one per class, got {values!r}") from None
    return weights if weights.is_floating_point() else weights.float()


def _require_one_per_class(name: str, weights: Tensor, num_classes: int | None) -> None:
    if weights.ndim != 1 or num_classes not in (None, len(weights)):
        wanted = f"one for each of the {num_classes} classes" if num_classes else "one for each class"
        raise ValueError(f"{name} must have {wanted}, the last axis of the logits; got shape {list(weights.shape)}")


def _require_between(name: str, weights: Tensor, *, high: float) -> None:
    try:
        for index, value in enumerate(weights.reshape(-1).tolist()):
            if not (0 <= value <= high and value < math.inf):
                allowed = f"in [0, {high:g}]" if high < math.inf else "≥ 0 and finite"
                raise ValueError(
                    f"{name} must be {allowed}, got {value:g}{f' for class {index}' if weights.ndim else ''}"
                )
    except RuntimeError:  # under vmap there are no values to look at
        return
