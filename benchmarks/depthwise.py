"""The gradient of a strided depthwise convolution beside that of the dense one, of which it is every other answer.

The four strided depthwise layers of MobileNetV2 at 320 × 256, batch 8, bf16, channels-last.

    python benchmarks/depthwise.py
"""

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from measure import interleaved, write_result
from torch import Tensor

LAYERS = ((96, 128, 160), (144, 64, 80), (192, 32, 40), (576, 16, 20))  # channels, height, width of the input


def gradient(channels: int, height: int, width: int, *, dense: bool) -> Callable[[], object]:
    """One forward and backward pass, to input and weights."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, channels, height, width, generator=generator).bfloat16()
    x = x.to(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(channels, 1, 3, 3, generator=generator).bfloat16().requires_grad_()

    def run() -> tuple[Tensor, ...]:
        y = F.conv2d(x, weight, None, 1 if dense else 2, 1, 1, channels)
        y = y[..., ::2, ::2].contiguous(memory_format=torch.channels_last) if dense else y
        return torch.autograd.grad(y, (x, weight), torch.ones_like(y))

    return run


def main() -> None:
    """Time, print, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    chosen = parser.parse_args()
    results = {}
    for channels, height, width in LAYERS:
        forms = {form: gradient(channels, height, width, dense=form == "dense") for form in ("strided", "dense")}
        seconds = interleaved(forms, rounds=chosen.rounds)
        results[f"{channels} x {height} x {width}"] = seconds
        strided, dense = (1e3 * seconds[form]["min"] for form in ("strided", "dense"))
        print(
            f"{channels:4} channels {height:3} x {width:3}: strided {strided:6.1f} ms, dense {dense:6.1f} ms (minima)"
        )
    print(write_result("depthwise", {"layers": results}))


if __name__ == "__main__":
    main()
