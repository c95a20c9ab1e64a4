"""`layers_of`: which operators are layers, which are free, and which are errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import flop_registry

from apq_optuna.errors import UnsupportedLayerError
from apq_optuna.hardware import layers_of
from apq_optuna.networks import ConvLayer

SHAPE = (3, 4, 4)


class Model(nn.Module):
    """A function of itself and the image, with parameters, buffers and modules of any name."""

    def __init__(self, function: Callable[[Any, Tensor], Any], **members: Any) -> None:
        super().__init__()
        self.function = function
        for name, member in members.items():
            if type(member) is Tensor:
                self.register_buffer(name, member)
            else:
                setattr(self, name, member)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


def linear(inputs: int, outputs: int, rows: int = 1) -> ConvLayer:
    return ConvLayer(inputs, outputs, (rows, 1), 1, 1, 0, 1, linear=True)


@torch.library.custom_op("lab::leaky_relu", mutates_args=())
def lab_leaky_relu(x: Tensor) -> Tensor:
    return x.clone()


@torch.library.custom_op("lab::norm_score", mutates_args=())
def lab_norm_score(x: Tensor) -> float:
    return 1.0


# ---------------------------------------------------------------------- errors


def attend(_: Model, x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x, x, x)


@pytest.mark.parametrize(
    ("model", "operator"),
    [
        (Model(lambda _, x: lab_leaky_relu(x)), "lab::leaky_relu"),
        (Model(lambda _, x: x * lab_norm_score(x)), "lab::norm_score"),
        (Model(lambda m, x: m.b(x.flatten(1), x.flatten(1)), b=nn.Bilinear(48, 48, 3)),
         "aten::_trilinear"),
        (Model(lambda m, x: torch.cdist(x[0], m.w), w=weight(3, 5, 4)), "aten::_cdist_forward"),
        (Model(lambda m, x: F.embedding_bag(x.flatten(1).long(), m.w), w=weight(5, 4)),
         "aten::_embedding_bag"),
        (Model(lambda m, x: F.embedding(x.long(), m.w), w=weight(5, 4)), "aten::embedding"),
        (Model(lambda _, x: F.grid_sample(x, x[..., :2].permute(0, 2, 1, 3), align_corners=False)),
         "aten::grid_sampler_2d"),
        (Model(lambda _, x: torch.fft.rfft2(x)), "aten::_fft_r2c"),
        (Model(lambda _, x: torch.linalg.svd(x)[1]), "aten::_linalg_svd"),
        (Model(lambda _, x: torch.linalg.inv(x)), "aten::linalg_inv_ex"),
        (Model(lambda _, x: torch.histc(x)), "aten::histc"),
        (Model(lambda m, x: torch.mv(m.w, x.flatten()), w=weight(5, 48)), "aten::mv"),
        (Model(lambda m, x: torch.dot(m.w, x.flatten()), w=weight(48)), "aten::dot"),
        (Model(lambda m, x: torch.addr(m.v, m.w, x.flatten()), w=weight(4), v=weight(4, 48)),
         "aten::addr"),
        (Model(lambda m, x: torch.baddbmm(m.v, x[0], m.w), w=weight(3, 4, 4), v=weight(3, 4, 4)),
         "aten::baddbmm"),
        (Model(lambda _, x: torch.bmm(x[0], x[0])), "aten::bmm"),
        (Model(lambda _, x: torch.matmul(x, x)), "aten::bmm"),
        (Model(lambda _, x: torch.einsum("bchw,bdhw->bcd", x, x)), "aten::bmm"),
        (Model(attend), "aten::_scaled_dot_product"),
        (Model(lambda m, x: m.c(x.flatten(2)), c=nn.Conv1d(3, 2, 3)), r"aten::convolution \(1-d"),
        (Model(lambda m, x: m.c(x), c=nn.ConvTranspose2d(3, 4, 2)),
         r"aten::convolution \(transposed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
@pytest.mark.parametrize("inference", [False, True], ids=["", "inference"])
def test_what_computes_is_named_whatever_it_is_called(
    model: Model, operator: str, inference: bool
) -> None:
    def run(outer: Model, x: Tensor) -> Any:
        with torch.inference_mode(inference):
            return outer.model(x)

    with pytest.raises(UnsupportedLayerError, match=f"operator {operator}.* has no price"):
        layers_of(Model(run, model=model), SHAPE)


def test_nothing_that_torch_counts_is_free() -> None:
    from apq_optuna.hardware.layers.operators import is_free

    aten = [packet for packet in flop_registry if hasattr(packet, "overloads")]
    assert len(aten) > 15
    for packet in aten:
        for overload in packet.overloads():
            assert not is_free(getattr(packet, overload)), packet


TWO = "multiplies two activations"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Model(lambda _, x: F.linear(x.flatten(1), x.flatten(1))), TWO),
        (Model(lambda _, x: x.flatten(1) @ x.flatten(1).t()), TWO),
        (Model(lambda m, x: F.linear(x.flatten(1), m.h(x.flatten(1)).view(2, 48)),
               h=nn.Linear(48, 96)), TWO),
        (Model(lambda m, x: F.conv2d(x, m.w * x.mean()), w=weight(8, 3, 3, 3)), TWO),
        (Model(lambda m, x: F.conv2d(m.c, m.w * x.mean()), w=weight(8, 3, 3, 3),
               c=torch.ones(1, 3, 4, 4)), r"weights \(8, 3, 3, 3\) that depend on the image"),
        # weights in memory that the image has been written to
        (Model(lambda m, x: F.linear(x.flatten(1), m.b.copy_(x.flatten(1))),
               b=torch.zeros(1, 48)), TWO),
        (Model(lambda m, x: (m.b[0].copy_(x.flatten()), F.linear(x.flatten(1), m.b)),
               b=torch.zeros(2, 48)), TWO),
        (Model(lambda m, x: (torch.mul(x.flatten(1), 2, out=m.b), F.linear(x.flatten(1), m.b)),
               b=torch.zeros(1, 48)), TWO),
        (Model(lambda m, x: (m.b.index_put_((torch.tensor([0]),), x.flatten()),
                             F.linear(x.flatten(1), m.b)), b=torch.zeros(2, 48)), TWO),
        (Model(lambda m, x: (m.b.view(-1)[:48].add_(x.flatten()), F.linear(x.flatten(1), m.b)),
               b=torch.zeros(2, 48)), TWO),
    ],
    ids=["linear", "gram", "hypernetwork", "dynamic", "dynamic-over-constants", "copy_", "view",
         "out", "index_put_", "view-of-view"],
)  # fmt: skip
def test_weights_that_depend_on_the_image_are_errors(model: Model, message: str) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UnsupportedLayerError, match=message):
        layers_of(model, SHAPE)
    for name, tensor in model.state_dict().items():  # nor is anything written to for good
        assert torch.equal(tensor, before[name])


def test_an_error_that_the_model_catches_stays_one() -> None:
    def attempt(_: Model, x: Tensor) -> Tensor:
        try:
            return torch.bmm(x[0], x[0])
        except Exception:
            return x

    with pytest.raises(UnsupportedLayerError, match="aten::bmm"):
        layers_of(Model(attempt), SHAPE)


# ---------------------------------------------------------------------- what costs nothing


CONV = ConvLayer(3, 8, 4, 3, 1, 0, 1)


@pytest.mark.parametrize(
    ("model", "layer"),
    [
        (Model(lambda m, x: F.linear(x.flatten(1), m.a @ m.b), a=weight(5, 2), b=weight(2, 48)),
         linear(48, 5)),
        (Model(lambda m, x: F.linear(x.flatten(1), torch.addmm(m.w, m.a, m.b)), w=weight(5, 48),
               a=weight(5, 2), b=weight(2, 48)), linear(48, 5)),
        (Model(lambda m, x: F.linear(x.flatten(1), (m.a[None] @ m.b[None])[0]), a=weight(5, 2),
               b=weight(2, 48)), linear(48, 5)),
        (Model(lambda m, x: F.linear(x.flatten(1), lab_leaky_relu(m.w)), w=weight(5, 48)),
         linear(48, 5)),
        (Model(lambda m, x: m.c(x), c=nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 8, 3))),
         CONV),
        (Model(lambda m, x: m.c(x), c=nn.utils.parametrizations.orthogonal(nn.Conv2d(3, 8, 3))),
         CONV),
        (Model(lambda m, x: F.conv2d(x, m.w - m.w.mean((1, 2, 3), True)), w=weight(8, 3, 3, 3)),
         CONV),
        (Model(lambda m, x: F.conv2d(x, F.conv2d(m.w, m.k, padding=1)), w=weight(8, 3, 3, 3),
               k=weight(3, 3, 3, 3)), CONV),
        (Model(lambda m, x: F.conv2d(x, torch.fft.irfft2(m.f, s=(3, 3))),
               f=torch.randn(8, 3, 3, 2, dtype=torch.complex64)), CONV),
    ],
    ids=["low-rank", "lora", "batched", "custom", "spectral-norm", "orthogonal",
         "weight-standardisation", "convolved-weights", "fourier"],
)  # fmt: skip
def test_work_on_weights_alone_is_free(model: Model, layer: ConvLayer) -> None:
    assert layers_of(model, SHAPE) == [layer]


def test_a_branch_that_does_not_see_the_image_is_free() -> None:
    model = Model(
        lambda m, x: m.f(x.flatten(1)) + m.f(torch.ones_like(x).flatten(1)) + m.f(m.q),
        f=nn.Linear(48, 5), q=weight(1, 48),
    )  # fmt: skip
    assert layers_of(model, SHAPE) == [linear(48, 5)]
    bias = Model(
        lambda m, x: torch.addmm(x[0, 0, 0, :2], m.a, m.b), a=weight(5, 3), b=weight(3, 2)
    )
    assert layers_of(bias, SHAPE) == []


# ---------------------------------------------------------------------- what is a layer


@pytest.mark.parametrize(
    ("model", "layers"),
    [
        # weights first: the columns of what follows are the pixels
        (Model(lambda m, x: torch.mm(m.w, x[0].flatten(1)), w=weight(5, 3)), [linear(3, 5, 16)]),
        (Model(lambda m, x: m.w @ x.flatten(2), w=weight(5, 3)), [linear(3, 5, 16)]),
        (Model(lambda m, x: torch.addmm(m.c, m.w, x[0].flatten(1)), w=weight(5, 3),
               c=weight(5, 1)), [linear(3, 5, 16)]),
        (Model(lambda m, x: m.w @ F.unfold(x, 3), w=weight(5, 27)), [linear(27, 5, 4)]),
        (Model(lambda m, x: x.flatten(2).transpose(1, 2) @ m.w, w=weight(3, 5)),
         [linear(3, 5, 16)]),
        (Model(lambda m, x: m.c(torch.zeros(1, 3, 4, 4).copy_(x)), c=nn.Conv2d(3, 8, 3)), [CONV]),
        (Model(lambda m, x: [m.c(part) for part in torch.split(torch.cat([x, x]), 1)],
               c=nn.Conv2d(3, 8, 3)), [CONV, CONV]),
        (Model(lambda m, x: {"maps": (m.c(x), [x])}, c=nn.Conv2d(3, 8, 3)), [CONV]),
        (Model(lambda m, x: m.c(x[0]), c=nn.Conv2d(3, 8, 3)), [CONV]),
        # a batch of one in other words, and an image cut into four
        (Model(lambda m, x: m.c(x.reshape(1, -1, 4, 4)), c=nn.Conv2d(3, 8, 3)), [CONV]),
        (Model(lambda m, x: m.c(x.reshape(4, 3, 2, 2)), c=nn.Conv2d(3, 8, 1)),
         [ConvLayer(3, 8, 2, 1, 1, 0, 1)] * 4),
    ],
    ids=["mm", "matmul", "addmm", "unfold", "weights-second", "copied", "split", "dict",
         "unbatched", "folded", "patches"],
)  # fmt: skip
def test_layers_are_found_wherever_the_image_stands(model: Model, layers: list[ConvLayer]) -> None:
    assert layers_of(model, SHAPE) == layers


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.max_pool2d(F.avg_pool2d(x, 2), 2),
        lambda x: F.adaptive_max_pool2d(F.adaptive_avg_pool2d(x, 3), 2),
        lambda x: F.batch_norm(x, torch.zeros(3), torch.ones(3), training=True),
        lambda x: F.group_norm(F.layer_norm(x, [4, 4]), 3),
        lambda x: F.instance_norm(F.local_response_norm(x, 2)),
        lambda x: F.rms_norm(F.normalize(x), [4]),
        lambda x: F.log_softmax(F.softmax(x, 1), 1),
        lambda x: F.hardswish(F.glu(F.pixel_unshuffle(x, 2), 1)),
        lambda x: F.prelu(F.rrelu(F.logsigmoid(F.softplus(x))), torch.ones(3)),
        lambda x: F.pixel_shuffle(F.channel_shuffle(x[:, :2].repeat(1, 2, 1, 1), 2), 2),
        lambda x: F.pad(F.pad(F.pad(x, [1, 1]), [1, 1, 1, 1], "reflect"), [1] * 4, "circular"),
        lambda x: F.interpolate(F.interpolate(x, scale_factor=2), size=5, mode="bilinear"),
        lambda x: F.fold(F.unfold(x, 2), 4, 2),
        lambda x: F.dropout(x, training=True) + torch.rand_like(x) * torch.bernoulli(x.sigmoid()),
        lambda x: x.cumsum(1).flip(1).roll(1, 2).rot90(1, (2, 3)),
        lambda x: x.sort(1).values.topk(1, 1).values.amax() + x.median() + x.kthvalue(1).values,
        lambda x: x.masked_fill(x > 0, 1).scatter(1, x.argmax(1, keepdim=True), 1.0),
        lambda x: torch.where(x > x.mean(), x, x.std()).logsumexp(1),
        lambda x: x.new_zeros(3, 4, 4).index_add(0, torch.tensor([0, 1, 2]), x[0]).tril(),
        lambda x: torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -8, 7).to(torch.float64),
        lambda x: x.index_put_((torch.tensor([0]),), x * 2).clamp_(0, 1).add_(1).relu_(),
        lambda x: x // 2 + x[:, [2, 1, 0]] * float(x.sum()),
    ],
    ids=["pooling", "adaptive-pooling", "batch-norm", "norms", "instance-norm", "rms-norm",
         "softmax", "glu", "activations", "shuffles", "padding", "resizing", "folding", "noise",
         "rearranging", "choosing", "masks", "reductions", "accumulating", "fake-quantizing",
         "in-place", "arithmetic"],
)  # fmt: skip
@pytest.mark.parametrize("inference", [False, True], ids=["", "inference"])
def test_what_is_between_layers_is_free(
    function: Callable[[Tensor], Tensor], inference: bool
) -> None:
    def run(_: Model, x: Tensor) -> Tensor:
        with torch.inference_mode(inference):
            return function(x)

    assert layers_of(Model(run), SHAPE) == []
