"""A file in ONNX Runtime: which kernels it gets, and whether it computes what torch computes.

On processors without instructions for products of bytes (AVX2 or AVX-512 without VNNI), some
kernels add two products of an unsigned and a signed byte in 16 bits, which saturate: 255 x 127
twice is above 32,767. Answers are then wrong without a word. A session without optimisation
computes in floating point and does not; one with `session.x64quantprecision` takes other kernels.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from apq_optuna.data import ImageData
from apq_optuna.errors import ExportError, InvalidArgumentError
from apq_optuna.export.building import OnnxNetwork, copied
from apq_optuna.export.placing import PlacedCodes
from apq_optuna.networks import Subnet
from apq_optuna.supernet import SubnetModule

PRECISE = {"session.x64quantprecision": "1"}
"""Session option for kernels that do not saturate."""

INTEGER = {
    "QLinearConv", "QGemm", "QLinearMatMul", "ConvInteger", "MatMulInteger",
    "MatMulIntegerToFloat", "DynamicQuantizeMatMul",
}  # fmt: skip
"""Operators whose kernels multiply integers."""

OPSETS = {18: "1.14", 19: "1.15", 20: "1.17", 21: "1.18", 22: "1.20", 23: "1.22"}
"""The first ONNX Runtime that runs an operator set."""

EQUAL_TOP1, APART = 0.995, 0.003
"""A file below the one, or further apart in accuracy than the other, is not the network."""

BATCH = 250
LOOKED_AT = 500
"""Images on which sessions are compared with each other."""

NOISE, ON_NOISE = 16, 0.25
"""Images of noise, and how far logits may be apart on half of them: codes that fall on the other
side of a half make more of a difference there than on images."""


def session(
    content: bytes, *, threads: int = 0, optimised: bool = True,
    settings: dict[str, str] | None = None, keep: Path | None = None,
) -> Any:  # fmt: skip
    """A session of the CPU.

    Args:
        content: The file.
        threads: Of the runtime; 0 is as many as there are cores.
        optimised: Without, every operator runs as the file has it: in floating point.
        settings: Session options by name.
        keep: Where the optimised graph is written.

    Raises:
        ExportError: The runtime cannot load it; where it lacks the operators, says who has them.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = (
        levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    )
    for name, value in (settings or {}).items():
        options.add_session_config_entry(name, value)
    if keep is not None:
        options.optimized_model_filepath = str(keep)
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime has its own kinds
        raise ExportError(_not_loaded(content, str(error))) from error


def _not_loaded(content: bytes, said: str) -> str:
    import onnx
    import onnxruntime

    text = f"onnxruntime {onnxruntime.__version__} cannot run the file"
    try:
        opset = max(o.version for o in onnx.load_model_from_string(content).opset_import)
    except Exception:
        return f"{text}: {said}"
    if any(word in said.lower() for word in ("opset", "not implemented", "ir_version")):
        has = OPSETS.get(opset)
        whose = f"onnxruntime {has} and later have it" if has else "no version is known to have it"
        return f"{text}: it has opset {opset}; {whose}. It said: {said[:300]}"
    return f"{text}: {said}"


# ---------------------------------------------------------------------- kernels


@dataclass(frozen=True)
class Kernels:
    """Which layers integers compute, in the runtime's own graph.

    Attributes:
        integer: Names of the layers with integer kernels.
        other: (name, why) of the others.
        share: Multiply-accumulate operations of the former, as a share of all.
        operators: How often each operator is there.
    """

    integer: tuple[str, ...]
    other: tuple[tuple[str, str], ...]
    share: float
    operators: dict[str, int]


def kernels_of(content: bytes, layers: Sequence[PlacedCodes], subnet: Subnet) -> Kernels:
    """Reads a session's optimised graph.

    Args:
        content: The file.
        layers: What became of each layer in it.
        subnet: Their shapes.

    Raises:
        ExportError: The runtime cannot load it.
    """
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        session(content, threads=1, keep=path)
        nodes = onnx.load(path).graph.node
    found: dict[str, str] = {}
    operators: dict[str, int] = {}
    for node in nodes:
        operators[node.op_type] = operators.get(node.op_type, 0) + 1
        name = re.sub(r"(_token_\d+|_nchwc)+$", "", node.name)
        found.setdefault(name, node.op_type)
        if node.op_type in INTEGER:
            found[name] = node.op_type
    macs = [placed.layer.macs for placed in subnet.layers()]
    integer, other, done = [], [], 0
    for layer in layers:
        operator = found.get(layer.node, "")
        if operator in INTEGER:
            integer.append(layer.name)
            done += macs[layer.number]
        else:
            ran = f"the runtime made {operator or 'something else'} of it"
            other.append((layer.name, layer.why or ran))
    return Kernels(tuple(integer), tuple(other), done / max(sum(macs), 1), operators)


# ---------------------------------------------------------------------- parity


@dataclass(frozen=True)
class Agreement:
    """A session beside torch, on the same images.

    Attributes:
        equal_top1: Share of images that both put into the same class.
        accuracy: Of the session.
        largest_difference, rms_difference: Of logits.
    """

    equal_top1: float
    accuracy: float
    largest_difference: float
    rms_difference: float


@dataclass(frozen=True)
class Parity:
    """Whether a file computes what torch computes.

    Attributes:
        images: Of search-validation.
        accuracy: Of the network in torch.
        given_accuracy, given_equal_top1: Of the network as it was given, whose biases (or weights)
            were rounded when it was written; None where nothing was.
        rms_logit: Of the network in torch, beside which differences are large or small.
        runtime: The session that counts: `default`, or `precise` where the default one saturates.
        agreement: Of that session.
        default: Of the default session.
        saturates: Whether kernels of the default session saturate on this processor.
        runtime_version, processor: Where.
        asked_top1: Share of images in the same class that is asked for.
    """

    images: int
    accuracy: float
    given_accuracy: float | None
    given_equal_top1: float | None
    rms_logit: float
    runtime: str
    agreement: Agreement
    default: Agreement
    saturates: bool
    runtime_version: str
    processor: str
    asked_top1: float = EQUAL_TOP1

    @property
    def passed(self) -> bool:
        """Whether the file is the network."""
        apart = abs(self.agreement.accuracy - self.accuracy)
        return self.agreement.equal_top1 >= self.asked_top1 and apart <= APART + 1e-9

    def to_dict(self) -> dict[str, Any]:
        """In JSON types."""
        return asdict(self) | {"passed": self.passed}

    def text(self) -> str:
        """One line."""
        a = self.agreement
        return (
            f"{a.equal_top1:.2%} of {self.images} images in the same class, accuracy "
            f"{a.accuracy:.4f} (torch {self.accuracy:.4f}), logits apart by at most "
            f"{a.largest_difference:.2g} (rms {a.rms_difference:.2g} of {self.rms_logit:.2g})"
        )


def parity(
    made: OnnxNetwork,
    given: SubnetModule,
    data: ImageData,
    *,
    pixels: bool = False,
    limit: int | None = None,
    threads: int = 0,
    equal_top1: float = EQUAL_TOP1,
) -> Parity:
    """Search-validation images through ONNX Runtime and through torch.

    Args:
        made: The file and the network that was written.
        given: The network that `made` was made of.
        data: Images it is used to.
        pixels: Whether the file takes bytes, and normalises them itself.
        limit: Most images; by default all.
        threads: Of the runtime.
        equal_top1: Share of images in the same class that is asked for.
    """
    import onnxruntime

    from apq_optuna.export.measure import processor_name

    if limit is not None and limit < 1:
        raise InvalidArgumentError(f"limit={limit}: at least one image")
    default = session(made.content, threads=threads)
    saturates = _saturates(made, default, data, pixels, threads)
    precise = session(made.content, threads=threads, settings=PRECISE) if saturates else None
    changed = made.rounded_biases or bool(made.reduced)
    before_it = copied(given) if changed else given
    ours, theirs, exact, before, labels = [], [], [], [], []
    for images, fed, truth in _fed(data, pixels, limit):
        with torch.no_grad():
            ours.append(made.network(images).numpy())
            if changed:
                before.append(before_it(images).argmax(1).numpy())
        theirs.append(_run(default, fed))
        if precise is not None:
            exact.append(_run(precise, fed))
        labels.append(truth)
    truth = np.concatenate(labels)
    logits = np.concatenate(ours)
    agreed = _agreement(np.concatenate(theirs), logits, truth)
    counts = _agreement(np.concatenate(exact), logits, truth) if exact else agreed
    given_top1 = np.concatenate(before) if before else None
    return Parity(
        images=len(truth),
        accuracy=float((logits.argmax(1) == truth).mean()),
        given_accuracy=None if given_top1 is None else float((given_top1 == truth).mean()),
        given_equal_top1=(
            None if given_top1 is None else float((given_top1 == logits.argmax(1)).mean())
        ),
        rms_logit=float(np.sqrt(np.square(logits).mean())),
        runtime="precise" if exact else "default",
        agreement=counts,
        default=agreed,
        saturates=saturates,
        runtime_version=onnxruntime.__version__,
        processor=processor_name(),
        asked_top1=equal_top1,
    )


def check_on_noise(made: OnnxNetwork) -> None:
    """Whether a file computes anything like its network, without images: on noise.

    Raises:
        ExportError: It does not.
    """
    shape = made.network.description.family.input_shape
    images = torch.randn(NOISE, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = made.network(images).numpy()
    size = float(np.sqrt(np.square(expected).mean())) or 1.0
    for optimised in (False, True):
        got = _run(session(made.content, optimised=optimised), images.numpy())
        apart = float(np.median(np.abs(got - expected).max(axis=1))) / size
        if not apart < ON_NOISE:
            raise ExportError(
                f"the file computes something else than the network: on noise its logits are "
                f"apart by {apart:.2g} of their size"
            )


def _fed(
    data: ImageData, pixels: bool, limit: int | None
) -> Iterator[tuple[torch.Tensor, NDArray[Any], NDArray[np.int64]]]:
    """(images for torch, input of the session, labels), batch by batch."""
    split = data.search_validation
    n = len(split) if limit is None else min(limit, len(split))
    every = torch.linspace(0, len(split) - 1, n, dtype=torch.float64).round().long()
    for start in range(0, n, BATCH):
        chosen = every[start : start + BATCH]
        raw = split.images.batch(chosen).cpu()
        images = data.normalise(raw)
        fed = raw.permute(0, 2, 3, 1) if pixels else images
        yield images, fed.contiguous().numpy(), split.labels_at(chosen, "cpu").numpy()


def _run(runtime: Any, fed: NDArray[Any]) -> NDArray[np.float32]:
    name = runtime.get_inputs()[0].name
    try:
        return np.asarray(runtime.run(None, {name: np.ascontiguousarray(fed)})[0], np.float32)
    except Exception as error:  # the runtime has its own kinds
        raise ExportError(f"the runtime stops at the file: {error}") from error


def _agreement(
    theirs: NDArray[np.float32], ours: NDArray[np.float32], truth: NDArray[np.int64]
) -> Agreement:
    difference = theirs - ours
    return Agreement(
        float((theirs.argmax(1) == ours.argmax(1)).mean()),
        float((theirs.argmax(1) == truth).mean()),
        float(np.abs(difference).max()),
        float(np.sqrt(np.square(difference).mean())),
    )


def _saturates(
    made: OnnxNetwork, default: Any, data: ImageData, pixels: bool, threads: int
) -> bool:
    """Whether the default session is far from an unoptimised one, and a precise one is not."""
    plain = session(made.content, threads=threads, optimised=False)
    precise = session(made.content, threads=threads, settings=PRECISE)
    apart = {"default": 0.0, "precise": 0.0}
    for _, fed, _ in _fed(data, pixels, LOOKED_AT):
        expected = _run(plain, fed)
        for name, runtime in (("default", default), ("precise", precise)):
            apart[name] += float(np.square(_run(runtime, fed) - expected).sum())
    # rounding alone moves logits by the same in both
    return apart["default"] > 4 * apart["precise"] + 1e-6
