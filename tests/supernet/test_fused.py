"""BatchNorm and ReLU in one: on a GPU, or in Triton's interpreter where Triton is installed."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
GPU = torch.cuda.is_available()

COMPARED = """
import sys
import torch
import torch.nn.functional as F
from apq_optuna.supernet import fused

device = sys.argv[1]
if device == "cpu":
    fused.BLOCK, fused.CHUNK = 64, 2
torch.manual_seed(0)
sizes = (37, 500, 1024) if device == "cpu" else (37, 500, 1024, 100_000)
for relu in (True, False):
    for n in sizes:
        x = (torch.randn(5, n, device=device) * 2 + 1).requires_grad_()
        weight = torch.randn(5, device=device).requires_grad_()
        bias = torch.randn(5, device=device).requires_grad_()
        y, mean, var = fused.NormAndReLU.apply(x, weight, bias, 1e-5, relu)
        wanted = F.batch_norm(x.t(), None, None, weight, bias, True).t()
        wanted = wanted.relu() if relu else wanted
        upwards = torch.randn_like(y)
        ours, theirs = (torch.autograd.grad(v, (x, weight, bias), upwards) for v in (y, wanted))
        moments = x.mean(1), x.var(1, correction=0)
        for a, b in zip((y, mean, var, *ours), (wanted, *moments, *theirs)):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
x = x.detach()
x[0, 3] = float("nan")
y, _, _ = fused.NormAndReLU.apply(x.detach(), weight, bias, 1e-5, True)
assert y[0].isnan().all() and not y[1:].isnan().any()
if device == "cuda":
    exact = torch.randn(64, 100_000, device=device)
    half = fused.NormAndReLU.apply(exact.bfloat16(), torch.ones(64).cuda(), torch.zeros(64).cuda(),
                                   1e-5, True)[0]
    torch.testing.assert_close(half.float(), F.batch_norm(exact.t(), None, None, training=True)
                               .t().relu(), rtol=0.02, atol=0.02)
    assert fused.usable()
print("equal")
"""


@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs Triton, for a GPU or interpreted"
)
def test_both_passes_are_the_librarys() -> None:
    environment = os.environ | ({} if GPU else {"TRITON_INTERPRET": "1"})
    done = subprocess.run(
        [sys.executable, "-c", COMPARED, "cuda" if GPU else "cpu"],
        capture_output=True, text=True, env=environment, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == "equal", done.stderr
