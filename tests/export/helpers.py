"""Networks to export, quantized and calibrated, and what has to hold for their files."""

from __future__ import annotations

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

import apq_optuna as apq
from apq_optuna.export import build_onnx
from apq_optuna.export.building import OnnxNetwork
from apq_optuna.export.running import Kernels, kernels_of
from apq_optuna.networks import Subnet
from apq_optuna.quantization import calibrate, quantize_network
from apq_optuna.supernet import SubnetModule
from tests.tracing.helpers import SHAPE, trained_like


def images(n: int = 64, shape: tuple[int, int, int] = SHAPE, seed: int = 2) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


def quantized(
    model: nn.Module, shape: tuple[int, int, int] = SHAPE, *, bits: tuple[int, ...] = (4, 6, 8),
    seed: int | None = None, **options: object,
) -> SubnetModule:  # fmt: skip
    """A traced model quantized: a random network of its space, or the whole at the widest bits."""
    trained_like(model)
    space = apq.trace(model, shape, bits=bits, **options)  # type: ignore[arg-type]
    net = apq.PretrainedNet(model, space)
    rows = space.extreme(largest=True) if seed is None else space.sample(
        1, np.random.default_rng(seed))  # fmt: skip
    return calibrated(net.subnet(space.decode(rows[0])), space.decode(rows[0]), shape)


def calibrated(
    module: SubnetModule, subnet: Subnet, shape: tuple[int, int, int] = SHAPE
) -> SubnetModule:
    network = quantize_network(module, subnet)
    calibrate(network, images(256, shape, seed=1))
    return network.eval()


def run(content: bytes, given: Tensor, *, optimised: bool = True) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.asarray(session.run(None, {name: given.contiguous().numpy()})[0])


def check(
    network: SubnetModule, shape: tuple[int, int, int] = SHAPE, *, close: float = 0.02,
    **options: object,
) -> tuple[OnnxNetwork, Kernels]:  # fmt: skip
    """Exports a network and sees that the file computes what was written, with and without the
    runtime's optimisation; a code in a thousand may fall on the other side of a half."""
    before = {name: value.clone() for name, value in network.state_dict().items()}
    made = build_onnx(network, **options)  # type: ignore[arg-type]
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name  # what was given is as it was
    given = images(48, shape)
    with torch.no_grad():
        expected = made.network(given).numpy()
    for optimised in (False, True):
        got = run(made.content, given, optimised=optimised)
        assert got.shape == expected.shape
        error = float(np.sqrt(np.square(got - expected).mean()))
        assert error < close * float(np.sqrt(np.square(expected).mean())), (optimised, error)
    return made, kernels_of(made.content, made.layers, network.description)
