"""What is known of a training before its first step: what it is, and what would go wrong (boxes, memory, norms)."""

from functools import partial
from typing import Any

import torch
from torch import nn

from focaldet.data.augment.config import AugmentConfig
from focaldet.data.dataset import Dataset
from focaldet.data.formats.text import quantity
from focaldet.errors import ConfigError, DataError
from focaldet.models import Detector
from focaldet.runtime import Autocast, eval_mode, require_memory
from focaldet.training.config import BASE_BATCH, RunConfig
from focaldet.training.state import TrainState
from focaldet.types import ImageSize

COMPILED_ON_CPU = "compile: on the CPU a compiled network is trained more slowly than one that is not: leave it out"
ONE_VALUE = "Expected more than 1 value per channel"  # how torch's BatchNorm begins its complaint


def require_objects(dataset: Dataset) -> None:
    """Refuse to train on images none of which has a box that counts.

    Raises:
        DataError: says how many images there are, and what was odd in their files.
    """
    if bool((dataset.flags == 0).any()):
        return
    counts = ", ".join(
        f"{number} × {kind}" for (severity, kind), number in dataset.problems.counts.items() if severity != "note"
    )
    ignored = f", {quantity(len(dataset.boxes), 'ignored box', 'ignored boxes')}" if len(dataset.boxes) else ""
    raise DataError(
        f"nothing to train on: no box in {quantity(len(dataset), 'image')}{ignored}"
        f"{f' ({counts})' if counts else ''}; focaldet check says more",
        file=dataset.root,
        record=f'split "{dataset.name}"',
    )


def require_training_memory(config: RunConfig, detector: Detector, dataset: Dataset, *, device: torch.device) -> None:
    """Refuse an input size and batch that cannot fit in memory, in any phase.

    Raises:
        ConfigError: gives the estimate.
    """
    for phase in config.phase_configs:
        sizes = _padded_sizes(phase, detector, dataset)
        largest = max(sizes, key=lambda size: size.height * size.width)
        num_images = phase.batch_size // phase.accumulate
        require_memory(num_images, largest, device=device, training=True)


def require_norm_values(detector: Detector, config: RunConfig, dataset: Dataset, *, autocast: Autocast) -> None:
    """Refuse batches of one image that leave a trained BatchNorm a single value per channel, which has no variance.

    Raises:
        ConfigError: names the layer, the size and what helps.
    """
    smallest_batch = min(config.batch_size // config.accumulate, len(dataset))
    norms = {
        name: module
        for name, module in detector.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
    }
    if smallest_batch > 1 or not norms:
        return
    size = min(_padded_sizes(config, detector, dataset), key=lambda size: size.height * size.width)
    single: list[str] = []

    def look(name: str, _: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if inputs[0].numel() == inputs[0].shape[1]:
            single.append(name)

    hooks = [module.register_forward_pre_hook(partial(look, name)) for name, module in norms.items()]
    try:
        with eval_mode(detector), torch.no_grad(), autocast():
            detector(torch.zeros(1, 3, *size, device=autocast.device), [size])
    finally:
        for hook in hooks:
            hook.remove()
    if single:
        raise ConfigError(describe_one_value(f"{single[0]} at {size.width} × {size.height} px"))


def describe_one_value(where: str) -> str:
    """What to do where a BatchNorm gets one value per channel."""
    return (
        f"batch_size: BatchNorm has one value per channel of a single image ({where}), which has no variance: train "
        "with batch_size 2 or more, a larger size, initial weights (their statistics are then kept), or "
        "architecture.norm=group where the detector has it"
    )


def _padded_sizes(config: RunConfig, detector: Detector, dataset: Dataset) -> set[ImageSize]:
    """The sizes at which the images of a data set enter the network, without augmentation."""
    preprocessing = detector.preprocessing
    resize = config.resize(preprocessing.resize)
    rules = [resize] if config.multi_scale is None else [resize.with_sides(size=side) for side in config.multi_scale]
    originals = {ImageSize(*size) for size in torch.unique(dataset.sizes, dim=0).tolist()}
    return {preprocessing.padded_size(rule.target(size)) for rule in rules for size in originals}


def describe_training(config: RunConfig, state: TrainState, *, num_steps: int, fabric: Any) -> list[str]:
    """What the log of a training begins with: network, learning rate, length, machine, augmentation."""
    detector = state.detector
    trained = sum(parameter.numel() for parameter in detector.parameters() if parameter.requires_grad)
    ratio = f"{config.batch_size} / {BASE_BATCH}"
    augment = config.augment if config.overfit is None else AugmentConfig(preset="none")
    scale = f"({ratio})" if config.optimizer == "sgd" else f"√({ratio})"
    length = f"{quantity(num_steps, 'step')} in {quantity(config.epochs, 'epoch')}"
    if config.minutes is not None:
        length = f"as many steps as fit into {config.minutes:g} min"
    is_slowed = config.compile and fabric.device.type == "cpu"
    return [
        *([COMPILED_ON_CPU] if is_slowed else []),
        f"model: {config.model}, {quantity(len(detector.class_names), 'class', 'classes')}, "
        f"{trained / 1e6:.1f} M trained parameters, {detector.preprocessing.resize}",
        f"learning rate: {config.scaled_learning_rate:.3g} = {config.learning_rate:g} × {scale} "
        f"for {quantity(config.batch_size, 'image')} per update, {config.optimizer}, {config.schedule}; "
        f"backbone × {config.backbone_factor:g}",
        f"{length} on {fabric.device}, "
        f"{state.autocast.precision}, {quantity(fabric.world_size, 'process', 'processes')}; "
        f"run folder {config.out}",
        f"augmentation {augment.describe()}"
        + (f"; sampling {config.sampling}" if config.sampling != "uniform" else ""),
    ]
