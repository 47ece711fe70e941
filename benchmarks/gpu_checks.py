"""What must be right on a device before its speed counts; each check says what it saw, or what is wrong.

The CPU has every number in fp64: the focal loss and its gradient from the plain functions, NMS box by box, RoIAlign
from torchvision.
"""

import copy
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from gpu_networks import NETWORKS, Network, start_training
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel
from torchvision.ops import MultiScaleRoIAlign

from focaldet import losses
from focaldet.ops.boxes import pairwise_iou
from focaldet.ops.nms import class_nms
from focaldet.ops.roi import PoolConfig, pool_pyramid
from focaldet.runtime import torch_settings
from focaldet.training.step import train_step

# Largest error of the sum, as a fraction of it, and of the gradient, as a fraction of its largest number.
FOCAL_LIMITS = {torch.float32: (1e-6, 1e-5), torch.bfloat16: (1e-6, 8e-3), torch.float16: (1e-6, 1e-3)}
FOCAL_SETTINGS = ((0.25, 2.0), (0.75, 0.0), (0.5, 0.5), (None, 3.0))
ROI_LIMIT = 1e-4
DDP_LIMIT = 0.02  # of the length of the update
RATES = {"adamw": 1e-4, "sgd": 1e-2}

Check = Callable[..., str]


def check_focal_loss(device: torch.device, *, small: bool) -> str:
    """Sum and gradient of the fused focal loss (on CUDA the Triton kernel), logits of ±120 among them."""
    rows, classes = (200, 5) if small else (20_000, 80)
    rng, worst = torch.Generator().manual_seed(0), dict.fromkeys(FOCAL_LIMITS, (0.0, 0.0))
    labels = torch.randint(classes + 1, (rows,), generator=rng)
    plain = torch.randn(rows, classes, generator=rng) * 6
    plain[::7] *= 20
    for dtype, limits in FOCAL_LIMITS.items():
        logits = plain.clamp(-120, 120).to(dtype)
        for alpha, gamma in FOCAL_SETTINGS:
            total, slope = focal_exactly(logits, labels, alpha, gamma)
            x = logits.to(device).requires_grad_()
            loss = losses.focal_loss_sum(x, labels.to(device), alpha=alpha, gamma=gamma)
            (gradient,) = torch.autograd.grad(loss, x)
            errors = (
                abs(loss.detach().item() / total - 1),
                float((gradient.double().cpu() - slope).abs().max() / slope.abs().max()),
            )
            assert all(error <= limit for error, limit in zip(errors, limits, strict=True)), (
                f"{dtype}, α {alpha}, γ {gamma}: sum off by {errors[0]:.1e}, gradient by {errors[1]:.1e}"
            )
            worst[dtype] = (max(worst[dtype][0], errors[0]), max(worst[dtype][1], errors[1]))
    seen = (f"{str(dtype)[6:]} {first:.0e} / {second:.0e}" for dtype, (first, second) in worst.items())
    return f"largest error of sum / gradient: {', '.join(seen)}"


def focal_exactly(logits: Tensor, labels: Tensor, alpha: float | None, gamma: float) -> tuple[float, Tensor]:
    """Sum and gradient of the same numbers in fp64."""
    x = logits.double().requires_grad_()
    targets = labels[:, None] == torch.arange(logits.shape[1])
    if alpha is None:
        loss = losses.focal_loss(x, targets, gamma=gamma).sum()
    else:
        loss = losses.balanced_focal_loss(x, targets, alpha=alpha, gamma=gamma).sum()
    return loss.detach().item(), torch.autograd.grad(loss, x)[0]


def check_nms(device: torch.device, *, small: bool) -> str:
    """The survivors among boxes of 1 to 80 classes, at positive and negative coordinates."""
    number, cases = 150, 2 if small else 20
    for seed in range(cases):
        for classes, shift, most in ((1, 0.0, None), (5, -5000.0, 10), (80, -50.0, None)):
            rng = torch.Generator().manual_seed(seed)
            corners = torch.rand(number, 2, generator=rng) * 60 + shift
            boxes = torch.cat([corners, corners + 5 + torch.rand(number, 2, generator=rng) * 40], 1)
            scores, labels = torch.rand(number, generator=rng), torch.randint(classes, (number,), generator=rng)
            given = (tensor.to(device) for tensor in (boxes, scores, labels))
            kept = class_nms(*given, iou=0.5, most=most).tolist()
            expected = survivors_by_force(boxes, scores, labels)[:most]
            assert kept == expected, f"seed {seed}, {classes} classes: {len(kept)} kept, {len(expected)} expected"
    return f"the same survivors in {3 * cases} cases of {number} boxes"


def survivors_by_force(boxes: Tensor, scores: Tensor, labels: Tensor) -> list[int]:
    """Every box against all that were kept before it."""
    overlaps, kept = pairwise_iou(boxes.double(), boxes.double()), list[int]()
    for index in scores.argsort(descending=True).tolist():
        if all(labels[index] != labels[other] or overlaps[index, other] <= 0.5 for other in kept):
            kept.append(index)
    return kept


def check_roi_align(device: torch.device, *, small: bool) -> str:
    """Cells of the regions of a pyramid, and the gradient of its maps."""
    side, channels, number = (128, 4, 30) if small else (512, 32, 300)
    rng = torch.Generator().manual_seed(0)
    strides = (4, 8, 16, 32)
    maps = [torch.randn(2, channels, side // stride, side // stride, generator=rng) for stride in strides]
    corners = torch.rand(number, 2, generator=rng) * side * 0.7
    regions = torch.cat([corners, corners + 2 + torch.rand(number, 2, generator=rng) * side * 0.6], 1)
    index = torch.arange(number) % 2
    weights = torch.randn(number, channels, 7, 7, generator=rng)
    mine = [each.to(device).requires_grad_() for each in maps]
    pooled = pool_pyramid(
        mine,
        regions.to(device),
        index.to(device),
        finest=2,
        frame_px=(side, side),
        config=PoolConfig(kind="align_legacy"),
    )
    exact = [each.double().requires_grad_() for each in maps]
    named = {str(level): each for level, each in enumerate(exact)}
    peer = MultiScaleRoIAlign([*named], 7, 2)
    halves = [regions[index == image].double() for image in (0, 1)]
    order = torch.cat([(index == image).nonzero()[:, 0] for image in (0, 1)]).argsort()
    expected = peer(named, halves, [(side, side)] * 2)[order]
    pairs = [(pooled.detach(), expected.detach())]
    gradients = torch.autograd.grad((pooled * weights.to(device)).sum(), mine)
    pairs += zip(gradients, torch.autograd.grad((expected * weights).sum(), exact), strict=True)
    errors = [float((a.cpu().double() - b).abs().max() / b.abs().max().clamp(min=1)) for a, b in pairs]
    assert max(errors) <= ROI_LIMIT, f"cells off by {errors[0]:.1e}, gradients by {max(errors[1:]):.1e}"
    return f"{number} regions: cells within {errors[0]:.0e}, gradients within {max(errors[1:]):.0e}"


def check_repeatable(device: torch.device, *, small: bool) -> str:
    """In deterministic mode two steps from the same weights give the same weights, bit for bit, of every network."""
    with torch_settings(threads=None, deterministic=True):
        differing = [name for name, network in NETWORKS.items() if not is_repeatable(network, device, small=small)]
    assert not differing, f"two trainings differ: {', '.join(differing)}"
    return f"the same weights after two steps, twice: {', '.join(NETWORKS)}"


def is_repeatable(network: Network, device: torch.device, *, small: bool) -> bool:
    """Whether two trainings of two steps end in the same weights."""
    first, second = (train_twice(network, device, small=small, optimizer="adamw") for _ in range(2))
    return all(torch.equal(first[name], second[name]) for name in first)


def train_twice(
    network: Network, device: torch.device, *, small: bool, optimizer: str, spread: bool = False
) -> dict[str, Tensor]:
    """The weights after two steps on two images, on the CPU; with `spread` through DDP."""
    state, config = start_training(network, device, small=small, optimizer=optimizer)
    batch = network.batch(2, device, small=small)
    module = state.detector
    if spread:
        module = DistributedDataParallel(
            module, device_ids=[device] if device.type == "cuda" else None, gradient_as_bucket_view=True
        )
    for _ in range(2):
        train_step(state, [batch], module=module, config=config, rate=RATES[optimizer])
    return {name: copy.deepcopy(value).cpu() for name, value in state.detector.named_parameters()}


def check_ddp(device: torch.device, *, small: bool) -> str:
    """One process under DDP makes the steps of a plain one, but for the order in which a GPU adds.

    SGD, as AdamW makes the same step of the least gradient, whose sign is that of the rounding.
    """
    network = NETWORKS["RetinaNet"]
    start = {name: value.clone() for name, value in network.build(small=small).named_parameters()}
    plain = train_twice(network, device, small=small, optimizer="sgd")
    with single_process_group(device):
        spread = train_twice(network, device, small=small, optimizer="sgd", spread=True)
    moved = sum(float((plain[name] - start[name]).square().sum()) for name in start) ** 0.5
    apart = sum(float((plain[name] - spread[name]).square().sum()) for name in start) ** 0.5
    assert moved > 0, "the plain step moved nothing"
    assert apart <= DDP_LIMIT * moved, f"the weights of DDP are {apart / moved:.1e} of the update away"
    return f"weights after two steps within {apart / moved:.0e} of the update"


@contextmanager
def single_process_group(device: torch.device) -> Iterator[None]:
    """A group of this process alone, which meets in a file and needs no network."""
    with tempfile.TemporaryDirectory() as folder:
        store = distributed.FileStore(str(Path(folder) / "store"), 1)
        backend = "nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, store=store, rank=0, world_size=1)
        try:
            yield
        finally:
            distributed.destroy_process_group()


# Those marked True run in a process of their own: what they set holds for a whole process.
CHECKS: dict[str, tuple[Check, bool]] = {
    "focal loss against fp64": (check_focal_loss, False),
    "NMS against brute force": (check_nms, False),
    "RoIAlign against torchvision in fp64": (check_roi_align, False),
    "deterministic mode": (check_repeatable, True),
    "DDP of one process": (check_ddp, True),
}
