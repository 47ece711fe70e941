"""The Triton kernel: its arithmetic in Triton's interpreter, which needs no GPU; the real one where there is a GPU."""

import json
import os
import subprocess
import sys

import pytest
import torch

from focaldet.ops.losses.fused import focal_loss_sum

SETTINGS = [(0.25, 2.0), (None, 0.5), (0.75, 0.0)]
INTERPRETED = """
import json, sys, torch
from focaldet.ops.losses.fused import _sum_and_slope
from focaldet.ops.losses.fused_cuda import sum_and_slope
for dtype, limit in ((torch.float32, 3e-6), (torch.float64, 1e-13), (torch.bfloat16, 8e-3)):
    generator = torch.Generator().manual_seed(0)
    for rows, classes in ((1, 1), (5, 3), (300, 7), (0, 4)):
        logits = (torch.randn(rows, classes, generator=generator) * 20).to(dtype)
        labels = torch.randint(0, classes + 1, (rows,), generator=generator)
        ignore = torch.rand(rows, generator=generator) < 0.3
        for alpha, gamma in json.loads(sys.argv[1]):
            for mask in (None, ignore):
                total, slope = sum_and_slope(logits, labels, mask, alpha, gamma, True)
                expected, slopes = _sum_and_slope(logits, labels, mask, alpha=alpha, gamma=gamma, with_slope=True)
                torch.testing.assert_close(total, expected.double(), rtol=min(limit, 1e-6), atol=1e-30)
                torch.testing.assert_close(slope, slopes, rtol=limit, atol=1e-7)
                assert not sum_and_slope(logits, labels, mask, alpha, gamma, False)[1].numel()
print("right")
"""


@pytest.mark.prove
def test_the_kernel_computes_what_the_processor_does():
    pytest.importorskip("triton")
    command = [sys.executable, "-W", "ignore", "-c", INTERPRETED, json.dumps(SETTINGS)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.stdout.strip() == "right", done.stderr[-3000:]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("alpha", "gamma"), SETTINGS)
def test_a_gpu_gives_what_the_processor_does(dtype, alpha, gamma):
    logits = torch.randn(2, 3000, 80).mul(4).to(dtype)
    labels = torch.randint(0, 81, (2, 3000))
    ignore = torch.rand(2, 3000) < 0.1
    actual = []
    for device in ("cpu", "cuda"):
        x = logits.to(device, copy=True).requires_grad_()
        total = focal_loss_sum(x, labels.to(device), alpha=alpha, gamma=gamma, ignore=ignore.to(device))
        total.backward()
        actual.append((total.cpu(), x.grad.cpu()))
    torch.testing.assert_close(actual[1][0], actual[0][0], rtol=1e-6, atol=0)
    torch.testing.assert_close(actual[1][1], actual[0][1], rtol=2 * torch.finfo(dtype).eps, atol=1e-7)
