"""Networks to export, quantized and calibrated, and what has to hold for their files."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import apq_optuna as apq
from apq_optuna.export import build_onnx
from apq_optuna.export.building import OnnxNetwork
from apq_optuna.export.running import PRECISE, Kernels, kernels_of
from apq_optuna.export.running import session as open_session
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


def run(
    content: bytes, given: Tensor, *, optimised: bool = True,
    settings: dict[str, str] | None = None,
) -> np.ndarray:  # fmt: skip
    session = open_session(content, optimised=optimised, settings=settings)
    name = session.get_inputs()[0].name
    return np.asarray(session.run(None, {name: given.contiguous().numpy()})[0])


@cache
def products_saturate() -> bool:
    """Whether this processor's usual kernels saturate: AVX2 or AVX-512 without VNNI."""
    told = Path("/proc/cpuinfo")
    flags = told.read_text() if told.exists() else ""
    return "avx2" in flags and "vnni" not in flags


def check(
    network: SubnetModule, shape: tuple[int, int, int] = SHAPE, *,
    close: float = 0.05, exact: float | None = 1e-4, **options: object,
) -> tuple[OnnxNetwork, Kernels]:  # fmt: skip
    """Exports a network and sees that the file computes what was written: as it is, as the runtime
    optimises it, and with kernels that do not saturate.

    Half of the images agree to rounding in float; of others a code may fall on the other side of a
    half, which is why the mean may be off by `close`.
    """
    before = {name: value.clone() for name, value in network.state_dict().items()}
    made = build_onnx(network, **options)  # type: ignore[arg-type]
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name  # what was given is as it was
    given = images(48, shape)
    plain = () if products_saturate() else ({},)
    with torch.no_grad():
        expected = made.network(given).numpy()
    size = float(np.sqrt(np.square(expected).mean()))
    for how in ({"optimised": False}, *plain, {"settings": PRECISE}):
        got = run(made.content, given, **how)  # type: ignore[arg-type]
        assert got.shape == expected.shape
        error = np.abs(got - expected).max(axis=1) / size
        assert np.sqrt(np.square(error).mean()) < close, (how, error)
        assert exact is None or np.median(error) < exact, (how, np.median(error))
    return made, kernels_of(made.content, made.layers, network.description)
