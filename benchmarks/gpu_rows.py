"""What `gpu.py` measures: the focal loss, whole networks in each of their forms, and where the time of a step goes.

A row is a dictionary with the seconds and a `text` that says in a line what they mean.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from gpu_networks import NETWORKS, RATE, Network, predict_form, start_training, train_form
from losses import ALPHA, GAMMA, fused, torchvision_pattern
from losses import case as focal_case
from measure import interleaved, wait_for_device
from photographs import UncachedSource, write_photographs
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from focaldet.data.augment.config import AugmentConfig
from focaldet.data.loading.loader import Loader
from focaldet.training.step import train_step
from focaldet.types import Batch, ImageSize

MLPERF_RATE = 283  # images/s of one H100 of eight that train RetinaNet on ResNeXt-50 at 800 px, MLPerf v3.1
MOST_WORKERS = 8

Forms = Mapping[str, Callable[[], object]]


def measure_forms(forms: Forms, *, rounds: int, device: torch.device) -> dict[str, Any]:
    """Seconds of each form in turn, and on a GPU the most memory that was in use."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    waiting = {name: wait_for_device(form, device) for name, form in forms.items()}
    # Twice before it counts: the first call plans convolutions or compiles, the second takes memory as all that follow.
    row: dict[str, Any] = {"seconds": interleaved(waiting, rounds=rounds, warmup=2)}
    if device.type == "cuda":
        row["peak_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
    return row


def rate_row(forms: Forms, images: Mapping[str, int], *, rounds: int, device: torch.device) -> dict[str, Any]:
    """Images per second of forms that take so many images each, and how they compare with the eager form."""
    row = measure_forms(forms, rounds=rounds, device=device)
    rates = {name: images[name] / taken["min"] for name, taken in row["seconds"].items()}
    parts = []
    for name, rate in rates.items():
        _, comma, rest = name.partition(",")
        eager = rates.get(f"eager{comma}{rest}", rate)
        ratio = "" if eager is rate else f" ({rate / eager:.2f} ×)"
        parts.append(f"{name}: {1e3 * row['seconds'][name]['min']:.1f} ms, {rate:.0f} images/s{ratio}")
    memory = f"; {row['peak_gb']:.1f} GB" if "peak_gb" in row else ""
    return row | {"images/s": rates, "text": "; ".join(parts) + memory}


def predict_rates(
    network: Network, *numbers: int, forms: tuple[str, ...], device: torch.device, small: bool, rounds: int
) -> dict[str, Any]:
    """From images on the device to detections on the CPU."""
    made, images = {}, {}
    for number in numbers:
        for form in forms:
            name = f"{form}, {number} image{'s' * (number > 1)}"
            made[name], images[name] = predict_form(network, number, device, small=small, form=form), number
    return rate_row(made, images, rounds=rounds, device=device)


def train_rates(
    network: Network, number: int, *, forms: tuple[str, ...], device: torch.device, small: bool, rounds: int
) -> dict[str, Any]:
    """Whole steps of the training engine."""
    made = {form: train_form(network, number, device, small=small, form=form) for form in forms}
    return rate_row(made, dict.fromkeys(made, number), rounds=rounds, device=device)


def mlperf_rates(network: Network, number: int, **settings: Any) -> dict[str, Any]:
    """As `train_rates`, beside MLPerf's figure; whose images are read and enlarged as well, which is left out here."""
    row = train_rates(network, number, **settings)
    if settings["small"]:
        return row
    best = max(row["images/s"].values())
    return row | {"text": f"{row['text']}; {best / MLPERF_RATE:.2f} × MLPerf's {MLPERF_RATE} images/s of an H100"}


class ApexFocalLoss(torch.autograd.Function):
    """apex' formula (contrib/csrc/focal_loss), in torch's operations: the gradient is made with the loss and kept.

    apex itself does each of the two passes in one kernel.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        x = logits.float()
        is_object = labels[:, None] == torch.arange(x.shape[1], device=x.device)
        sigma = x.sigmoid()
        off_a = torch.log1p(torch.exp(-x.abs())) + (-x).clamp(min=0)
        base, off_b = torch.where(is_object, 0, x), is_object.to(x.dtype) - sigma
        factor = torch.where(is_object, ALPHA * (1 - sigma) ** GAMMA, (1 - ALPHA) * sigma**GAMMA)
        slope = torch.where(is_object, -GAMMA * sigma, GAMMA * (1 - sigma))
        ctx.save_for_backward((factor * (slope * (base + off_a) - off_b)).to(logits.dtype))
        return (factor * (base + off_a)).sum()

    @staticmethod
    def backward(ctx: Any, total: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return slope * total, None


def apex_formula(logits: Tensor, labels: Tensor) -> Tensor:
    """The sum over all anchors and classes."""
    return ApexFocalLoss.apply(logits, labels)


def focal_rates(*, compiled: bool, device: torch.device, small: bool, rounds: int) -> dict[str, Any]:
    """Loss and gradient of the anchors of eight images of 800 px, beside those of other programs and a plain copy."""
    logits, labels = (tensor.to(device) for tensor in focal_case(2000 if small else 960_000, 80))
    peers = {"torchvision": torchvision_pattern, "apex' formula": apex_formula}
    if compiled:
        peers = {"apex' formula compiled": torch.compile(apex_formula, backend="eager" if small else "inductor")}
    losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"focaldet": fused} | peers
    totals = {name: loss(logits, labels).item() for name, loss in losses.items()}
    target = torch.empty_like(logits)

    def step(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], object]:
        def run() -> Tensor:
            x = logits.detach().requires_grad_()
            return torch.autograd.grad(loss(x, labels), x)[0]

        return run

    forms: dict[str, Callable[[], object]] = {name: step(loss) for name, loss in losses.items()}
    row = measure_forms(forms | {"copy": lambda: target.copy_(logits)}, rounds=rounds, device=device)
    seconds = {name: taken["min"] for name, taken in row["seconds"].items()}
    copied = 2 * logits.numel() * logits.element_size() / seconds["copy"]
    ratios = ", ".join(f"{seconds[name] / seconds['focaldet']:.1f} × as long {name}" for name in peers)
    fraction = f"a copy of the logits takes {seconds['copy'] / seconds['focaldet']:.0%} of it ({copied / 1e9:.0f} GB/s)"
    text = f"{1e3 * seconds['focaldet']:.3f} ms; {ratios}; {fraction}"
    return row | {"sums": totals, "copy_gb_per_s": copied / 1e9, "text": text}


def split_row(number: int, *, device: torch.device, small: bool, rounds: int) -> dict[str, Any]:
    """A step of RetinaNet from JPEGs of 480 × 640 that processes read, decode and enlarge beside it.

    `data`: the program waits for images. `device`: the device computes. `host`: the device waits for the program.
    """
    network = NETWORKS["RetinaNet"]
    state, config = start_training(network, device, small=small)
    preprocessing = state.detector.preprocessing
    resize = preprocessing.resize.with_sides(size=network.small_side_px if small else None)
    preprocessing = replace(preprocessing, resize=resize)
    workers = 0 if small else max(0, min(MOST_WORKERS, (os.cpu_count() or 1) - 2))
    batches = 2 if small else 12

    def step(batch: Batch) -> None:
        train_step(state, [batch], module=state.detector, config=config, rate=RATE)

    with tempfile.TemporaryDirectory() as folder:
        size = ImageSize(48, 64) if small else ImageSize(480, 640)
        source = UncachedSource(write_photographs(Path(folder), number=number * batches, size=size))
        loader = Loader(
            source,
            preprocessing=preprocessing,
            batch_size=number,
            seed=0,
            augment=AugmentConfig(preset="light"),
            workers=workers,
        )
        for batch in loader.epoch(0):
            wait_for_device(lambda batch=batch: step(batch), device)()
        laps = [lap for epoch in range(1, 1 + max(1, rounds // 10)) for lap in time_epoch(loader, epoch, step, device)]
        last = next(iter(loader.epoch(0)))
    waiting, working = (sum(part) / len(laps) for part in zip(*laps, strict=True))
    computing = min(busy_seconds(lambda: step(last), device), working)
    seconds = {"data": waiting, "host": working - computing, "device": computing}
    total = waiting + working
    shares = ", ".join(f"{name} {1e3 * spent:.1f} ms ({spent / total:.0%})" for name, spent in seconds.items())
    rate = number / total
    return {
        "seconds": seconds,
        "images/s": rate,
        "workers": workers,
        "text": f"{number} images, {workers} workers: {rate:.0f} images/s; {shares}",
    }


def time_epoch(
    loader: Loader, epoch: int, step: Callable[[Batch], None], device: torch.device
) -> Iterator[tuple[float, float]]:
    """Seconds of waiting for each batch, and of the step with it until the device is done."""
    before = time.perf_counter()
    for batch in loader.epoch(epoch):
        loaded = time.perf_counter()
        wait_for_device(lambda batch=batch: step(batch), device)()
        done = time.perf_counter()
        yield loaded - before, done - loaded
        before = done


def busy_seconds(run: Callable[[], object], device: torch.device, *, times: int = 3) -> float:
    """Seconds of a run in which the device computes: the union of its kernels, on the CPU of torch's operations."""
    is_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_gpu else [])]
    with profile(activities=activities) as profiled:
        for _ in range(times):
            wait_for_device(run, device)()
    wanted = torch.autograd.DeviceType.CUDA if is_gpu else torch.autograd.DeviceType.CPU
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profiled.events()
        if event.device_type == wanted and not getattr(event, "is_user_annotation", False)
    )
    busy, end = 0.0, -1.0
    for start, stop in spans:
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return busy / 1e6 / times
