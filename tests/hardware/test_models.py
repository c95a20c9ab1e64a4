"""`layers_of`: the same network in whatever form torch has for it, left as it was."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from apq_optuna._torchvision import models
from apq_optuna.errors import InvalidArgumentError, UnsupportedLayerError
from apq_optuna.hardware import layers_of
from apq_optuna.networks import ConvLayer

SHAPE = (3, 8, 8)
LAYERS = [ConvLayer(3, 8, 8, 3, 1, 1, 1), ConvLayer(8, 4, 1, 1, 1, 0, 1, linear=True)]


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip


def image() -> Tensor:
    return torch.zeros(1, *SHAPE)


class Around(nn.Module):
    """A network run inside something."""

    def __init__(self, run: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.network, self.run = network(), run

    def forward(self, x: Tensor) -> Any:
        return self.run(self.network, x)


def within(context: Callable[[], Any]) -> Around:
    def run(inner: nn.Module, x: Tensor) -> Any:
        with context():
            return inner(x)

    return Around(run)


def exported(model: nn.Module) -> torch.export.ExportedProgram:
    return torch.export.export(model.eval(), (image(),))


def traced(runs: int = 0) -> nn.Module:
    module = torch.jit.trace(network().eval(), image())
    for _ in range(runs):
        module(image())
    return module


def made_in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return network()


def compiled_in_place() -> nn.Module:
    module = network()
    module.compile()
    return module


bfloat16 = functools.partial(torch.autocast, "cpu", torch.bfloat16)

FORMS: dict[str, Callable[[], Any]] = {
    "plain": network,
    "inference-mode": lambda: within(torch.inference_mode),
    "made-in-inference-mode": made_in_inference_mode,
    "enable-grad": lambda: within(torch.enable_grad),
    "autocast": lambda: within(bfloat16),
    "record-function": lambda: within(lambda: torch.profiler.record_function("net")),
    "checkpoint": lambda: Around(lambda net, x: checkpoint(net, x, use_reentrant=False)),
    "reentrant": lambda: Around(lambda net, x: checkpoint(net, x, use_reentrant=True)),
    "data-parallel": lambda: nn.DataParallel(network()),
    "exported": lambda: exported(network()),
    "exported-module": lambda: exported(network()).module(),
    "exported-inside": lambda: nn.Sequential(exported(network()).module()),
    "exported-no-grad": lambda: exported(within(torch.no_grad)),
    "exported-autocast": lambda: exported(within(bfloat16)),
    "traced": traced,
    "traced-and-run": lambda: traced(3),
    "scripted": lambda: torch.jit.script(network()),
    "scripted-inside": lambda: nn.Sequential(torch.jit.script(network())),
    "frozen": lambda: torch.jit.freeze(torch.jit.script(network().eval())),
    "compiled": lambda: torch.compile(network()),
    "compiled-inside": lambda: nn.Sequential(torch.compile(network())),  # type: ignore[arg-type]
    "compiled-in-place": compiled_in_place,
    "fx": lambda: torch.fx.symbolic_trace(network()),
    "half": lambda: network().half(),
    "bfloat16": lambda: network().bfloat16(),
    "double": lambda: network().double(),
    "meta": lambda: network().to("meta"),
    "dict": lambda: Around(lambda net, x: {"logits": net(x), "loss": torch.zeros(())}),
}


@pytest.mark.filterwarnings("ignore")  # torch.jit is on its way out
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_network_has_its_layers(form: str) -> None:
    assert layers_of(FORMS[form](), SHAPE) == LAYERS


@pytest.mark.parametrize(
    ("name", "count", "mmacs"),
    [
        ("alexnet", 8, 714.2),
        ("convnext_tiny", 59, 4455.5),
        ("densenet121", 121, 2834.2),
        ("efficientnet_b0", 82, 385.8),
        ("efficientnet_v2_s", 171, 2849.9),
        ("googlenet", 58, 1498.4),
        ("inception_v3", 95, 5713.2),
        ("mnasnet1_0", 53, 314.4),
        ("mobilenet_v3_small", 54, 56.5),
        ("resnext50_32x4d", 54, 4230.5),
        ("shufflenet_v2_x1_0", 57, 144.9),
        ("squeezenet1_1", 26, 349.2),
        ("vgg11", 11, 7609.1),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_torchvisions_classifiers_are_priced_as_ever(name: str, count: int, mmacs: float) -> None:
    size = 299 if name == "inception_v3" else 224
    with torch.device("meta"):
        model = getattr(models, name)(weights=None)
    layers = layers_of(model, (3, size, size))
    assert len(layers) == count
    assert sum(layer.macs for layer in layers) / 1e6 == pytest.approx(mmacs, abs=0.1)


@pytest.mark.parametrize("name", ["vit_b_32", "swin_t", "maxvit_t"])
def test_torchvisions_transformers_are_errors(name: str) -> None:
    with torch.device("meta"):
        model = getattr(models, name)(weights=None)
    with pytest.raises(UnsupportedLayerError, match="aten::bmm"):
        layers_of(model, (3, 224, 224))


# ---------------------------------------------------------------------- what is left as it was


def test_each_part_keeps_its_own_mode() -> None:
    """Frozen norms in a network that is being trained."""
    model = network()
    model[1].eval()
    flags = [part.training for part in model.modules()]
    assert layers_of(model, SHAPE) == LAYERS
    assert [part.training for part in model.modules()] == flags and model.training
    model.eval()
    model[0].train()
    layers_of(model, SHAPE)
    assert not model.training and model[0].training and not model[1].training


def test_a_model_with_a_mode_of_its_own_goes_back_to_it() -> None:
    """Low-rank updates that are merged into the weights where the model is evaluated."""

    class Merging(nn.Linear):
        merged = False

        def train(self, mode: bool = True) -> Merging:
            if self.merged == mode:
                self.merged = not mode
                self.weight.data += -1.0 if mode else 1.0
            super().train(mode)
            return self

    model = nn.Sequential(nn.Flatten(), Merging(192, 4))
    before = model[1].weight.detach().clone()
    layers_of(model, SHAPE)
    assert not model[1].merged and model[1].training
    torch.testing.assert_close(model[1].weight.detach(), before)


def test_buffers_attributes_and_the_random_state_are_kept() -> None:
    class Counting(nn.Module):
        seen: Tensor
        mean: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.net, self.norm = network(), nn.BatchNorm2d(3)
            self.register_buffer("seen", torch.zeros(1))
            self.register_buffer("mean", torch.zeros(3))
            self.cache, self.calls = torch.zeros(1, *SHAPE), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.seen += 1
            self.mean = 0.9 * self.mean + x.mean((0, 2, 3))
            self.cache.copy_(x + 1)
            self.last = x
            self.norm.train()
            x = self.norm(x + torch.rand_like(x))
            return self.net(nn.functional.dropout(x, training=True))

    model = Counting()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    members = set(vars(model))
    assert layers_of(model, SHAPE) == LAYERS
    assert torch.equal(torch.get_rng_state(), state)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert model.calls == 0 and set(vars(model)) == members and not model.cache.any()


def test_a_model_that_fails_is_left_as_it_was_too() -> None:
    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(1))
            self.part = nn.ReLU().eval()

        def forward(self, x: Tensor) -> Tensor:
            self.seen += 1
            raise RuntimeError("no such luck")

    model = Failing()
    with pytest.raises(InvalidArgumentError, match="does not take one image of it: no such luck"):
        layers_of(model, SHAPE)
    assert model.seen == 0 and model.training and not model.part.training


# ---------------------------------------------------------------------- what is no model


def quantized() -> nn.Module:
    from torch.ao import quantization

    model = nn.Sequential(quantization.QuantStub(), nn.Conv2d(3, 8, 3)).eval()
    model.qconfig = quantization.get_default_qconfig("fbgemm")  # type: ignore[assignment]
    prepared = quantization.prepare(model)
    prepared(image())
    return quantization.convert(prepared)


def detoured() -> nn.Module:
    return Around(lambda net, x: net(torch.from_numpy(x.numpy().copy())))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: lambda x: x, InvalidArgumentError, "module is a function: give a model"),
        (lambda: functools.partial(network()), InvalidArgumentError, "module is a partial: give"),
        (lambda: nn.Identity, InvalidArgumentError, "module is a type: give a model"),
        (lambda: nn.Sequential(nn.LazyConv2d(8, 3)), InvalidArgumentError, "has lazy layers"),
        (lambda: Around(lambda net, x: torch.zeros(1)), InvalidArgumentError,
         "does not follow from the image"),
        (detoured, InvalidArgumentError, "does not follow from the image"),
        (lambda: Around(lambda net, x: net(x.expand(1, 4, 8, 8))), InvalidArgumentError,
         "does not take one image of it"),
        (lambda: torch.jit.script(nn.Conv2d(4, 4, 3)), InvalidArgumentError,
         "does not take one image of it: Given groups=1, .* expected input.* to have 4 channels"),
        (quantized, UnsupportedLayerError,
         "quantized::conv2d .* no price; give the model as it was before it was converted"),
    ],
    ids=["function", "partial", "class", "lazy", "blind", "numpy", "failing", "script",
         "quantized"],
)  # fmt: skip
def test_what_cannot_be_priced_says_so_in_a_line(
    make: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        layers_of(make(), SHAPE)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore")
def test_an_error_inside_a_script_is_the_same() -> None:
    class Product(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.bmm(x[0], x[0])

    with pytest.raises(UnsupportedLayerError, match="operator aten::bmm on"):
        layers_of(torch.jit.script(Product()), SHAPE)
    with pytest.raises(UnsupportedLayerError, match="operator aten::bmm on"):
        layers_of(torch.jit.trace(Product(), image()), SHAPE)


def test_a_model_without_weights_has_no_layers() -> None:
    assert layers_of(nn.Sequential(nn.ReLU(), nn.AvgPool2d(2)), SHAPE) == []
