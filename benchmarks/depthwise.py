"""The gradient of depthwise convolutions in bf16 beside that in fp32, both of an input in bf16.

The strided ones of MobileNetV2, and those of EfficientNet-Lite0 that are strided or 5 × 5, at 320 × 256, batch 8,
channels-last. The strided ones also as every other answer of the dense one.

    python benchmarks/depthwise.py
"""

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from measure import interleaved, write_result
from torch import Tensor

LAYERS = (  # channels, kernel, stride, height and width of the input
    *((96, 3, 2, 128, 160), (144, 3, 2, 64, 80), (192, 3, 2, 32, 40), (576, 3, 2, 16, 20)),
    *((144, 5, 2, 64, 80), (240, 5, 1, 32, 40), (240, 3, 2, 32, 40), (672, 5, 1, 16, 20), (672, 5, 2, 16, 20)),
    (1152, 5, 1, 8, 10),
)


def gradient(channels: int, kernel: int, stride: int, height: int, width: int, *, form: str) -> Callable[[], object]:
    """One forward and backward pass, to input and weights."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, channels, height, width, generator=generator).bfloat16()
    x = x.to(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(channels, 1, kernel, kernel, generator=generator).requires_grad_()
    dense = form == "bf16 dense"

    def run() -> tuple[Tensor, ...]:
        own, kernels = (x.float(), weight) if form == "fp32" else (x, weight.bfloat16())
        y = F.conv2d(own, kernels, None, 1 if dense else stride, kernel // 2, 1, channels).bfloat16()
        y = y[..., ::2, ::2].contiguous(memory_format=torch.channels_last) if dense else y
        return torch.autograd.grad(y, (x, weight), torch.ones_like(y))

    return run


def main() -> None:
    """Time, print, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    chosen = parser.parse_args()
    results = {}
    for layer in LAYERS:
        channels, kernel, stride, height, width = layer
        forms = ("bf16", "fp32", "bf16 dense") if stride > 1 else ("bf16", "fp32")
        seconds = interleaved({form: gradient(*layer, form=form) for form in forms}, rounds=chosen.rounds)
        name = f"{channels} x {height} x {width}, {kernel} x {kernel} stride {stride}"
        results[name] = seconds
        print(f"{name:32}", *(f"{form} {1e3 * seconds[form]['min']:6.1f} ms" for form in forms), "(minima)")
    print(write_result("depthwise", {"layers": results}))


if __name__ == "__main__":
    main()
