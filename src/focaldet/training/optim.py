"""Parameter groups, optimizers, the learning rate as a function of the step, and the moving average of the weights."""

import copy
import math

import torch
from torch import Tensor, nn

from focaldet.models.base import Detector
from focaldet.training.config import RunConfig

# One-cycle, as torch's `OneCycleLR` has it: rise over this fraction of the steps, from 1 / START, down to
# 1 / (START · END).
RISE, START, END = 0.3, 25.0, 1e4
# The step schedule multiplies the rate by this at each of its milestones.
DROP = 0.1


def rate_factor(step: int, config: RunConfig, *, total_steps: int, progress: float | None = None) -> float:
    """The factor in (0, 1] on the learning rate at `step` in [0, `total_steps`) of a run or phase.

    `one_cycle` equals `torch.optim.lr_scheduler.OneCycleLR`, `cosine` is (1 + cos(π · step / total)) / 2, `step` falls
    to a tenth at each fraction of the run in `step_at` (60 000 and 80 000 of 90 000 steps in the paper). The last two
    and `constant` rise over `warmup_epochs` with the power `warmup_power` of the fraction that is done.

    `progress` is the fraction of the run that is done, where its length is not known; `total_steps` are then those of
    `config.epochs`.
    """
    if config.schedule == "one_cycle":
        return _one_cycle(step if progress is None else progress * total_steps, total_steps=total_steps)
    warmup_steps = total_steps // config.epochs * config.warmup_epochs
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps > 0 else 1.0
    warmup = math.pow(warmup, config.warmup_power)
    done = step / total_steps if progress is None else progress
    if config.schedule == "cosine":
        return warmup * (1 + math.cos(math.pi * done)) / 2
    if config.schedule == "step":
        return warmup * DROP ** sum(done >= milestone for milestone in config.step_at)
    return warmup


def _one_cycle(step: float | int, *, total_steps: int) -> float:
    peak, last = RISE * total_steps - 1, total_steps - 1
    if peak <= 0:  # too short a run to rise
        return _cosine(1.0, 1 / (START * END), step / max(last, 1))
    if step <= peak:
        return _cosine(1 / START, 1.0, step / peak)
    return _cosine(1.0, 1 / (START * END), (step - peak) / (last - peak))


def _cosine(begin: float, end: float, fraction: float) -> float:
    return end + (begin - end) * (1 + math.cos(math.pi * fraction)) / 2


def parameter_groups(detector: Detector, *, backbone_factor: float, weight_decay: float) -> list[dict[str, object]]:
    """Groups of the trainable parameters: backbone or not, decayed or not; `rate_factor` of a group scales its rate.

    Parameters with at most one axis, which are norm layers and biases, have no decay.
    """
    backbone = {id(parameter) for parameter in detector.backbone_parameters()}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in detector.parameters():
        if parameter.requires_grad:
            groups.setdefault((id(parameter) in backbone, parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "rate_factor": backbone_factor if in_backbone else 1.0,
            "weight_decay": weight_decay if decayed else 0.0,
        }
        for (in_backbone, decayed), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def build_optimizer(detector: Detector, config: RunConfig) -> torch.optim.Optimizer:
    """The optimizer that `config` names, over the groups of `parameter_groups`; set the rates with `set_rate`."""
    groups = parameter_groups(detector, backbone_factor=config.backbone_factor, weight_decay=config.weight_decay)
    rate = config.scaled_learning_rate
    # One fused pass over the weights, where the device has it. Not with the gradient scaling of fp16: torch's fused SGD
    # leaves its momentum uninitialised when it has to skip the first step.
    fused = next(detector.parameters()).device.type in ("cpu", "cuda") and config.precision != "fp16"
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=config.momentum, fused=fused)
    return torch.optim.AdamW(groups, lr=rate, betas=(config.momentum, 0.999), fused=fused)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group to `rate` times the factor of the group."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate_factor"]


def clip_gradients(parameters: list[nn.Parameter], *, max_norm: float | None) -> Tensor:
    """The norm of all gradients together (a scalar), before they are scaled in place to at most `max_norm`."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if max_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def build_ema(detector: Detector) -> Detector:
    """A copy of `detector` whose weights will be their moving average: never trained, always in evaluation mode."""
    return copy.deepcopy(detector).eval().requires_grad_(False)


def ema_decay(update: int, *, limit: float) -> float:
    """The decay of the moving average at update number `update`, from 0: d(t) = min(`limit`, (1 + t) / (10 + t)).

    It grows with the updates, so that a short run is not dominated by its random start.
    """
    return min(limit, (1 + update) / (10 + update))
