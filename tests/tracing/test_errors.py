"""Models and arguments that do not fit: one clear error, or one line of notice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import apq_optuna as apq
from apq_optuna.data import ImageData
from apq_optuna.errors import CheckpointError, DataError, InvalidArgumentError
from apq_optuna.supernet.pretrained.sources import build_model, fit_state, read_weights

from .helpers import SHAPE, Residual, Wired, check, family_of


class Two(Residual):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x + y)


class Pair(Residual):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(x), x


class Named(Residual):
    def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return {"logits": super().forward(x)}


class Maps(Wired):
    def __init__(self) -> None:
        super().__init__(a=nn.Conv2d(3, 8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x)  # type: ignore[no-any-return]


class Depends(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.abs().sum() > 0 else self.head(x.new_zeros(1, 64))


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Two(), "takes 2 inputs"),
        (Pair(), "gives a tuple; a classifier gives logits"),
        (Named(), "gives a dict with logits"),
        (Maps(), r"a tensor of shape \(1, 8, 14, 14\)"),
        (Depends(), "depends on the image"),
        (Nothing(), "no convolution and no linear layer"),
        (nn.Sequential(nn.Flatten(), nn.LazyLinear(5)), "lazy layers"),
        (Residual().to("meta"), "meta device"),
        (torch.jit.script(nn.Sequential(nn.Conv2d(3, 5, 16), nn.Flatten())), "TorchScript"),
        (Residual(in_channels=4), "does not take one image"),
        ("resnet18", "give a model, an instance of"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_models_that_cannot_be_searched(model: nn.Module, said: str) -> None:
    with pytest.raises(InvalidArgumentError, match=said):
        apq.trace(model, SHAPE)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"keep": (0.0, 1.0)}, "shares above 0 and at most 1"),
        ({"keep": (0.5, 1.5)}, "shares above 0 and at most 1"),
        ({"keep": ()}, "shares above 0"),
        ({"bits": ()}, "give whole numbers"),
        ({"bits": (1, 8)}, "2 to 8, and 32"),
        ({"bits": 8}, "give widths"),
        ({"step": 0}, "at least 1"),
        ({"ignore": ["nowhere.*"]}, "no such module; it has stem"),
    ],
)
def test_arguments_that_make_no_sense(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        apq.trace(Residual().eval(), SHAPE, **options)  # type: ignore[arg-type]


def test_half_precision_is_searched_in_a_copy_and_said() -> None:
    model = Residual().half().eval()
    family = family_of(apq.trace(model, SHAPE))
    assert any("float16" in note for note in family.notes)
    assert model.head.weight.dtype == torch.float16


def test_a_model_that_writes_to_its_input_is_given_a_copy() -> None:
    class Writes(Residual):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.sub_(0.5))

    model = Writes().eval()
    space = apq.trace(model, SHAPE)
    assert any("writes to the image" in note for note in family_of(space).notes)
    network = apq.PretrainedNet(model, space).subnet(space.decode(space.extreme(largest=True)[0]))
    image = torch.randn(2, *SHAPE)
    before = image.clone()
    first = network(image)
    assert torch.equal(image, before) and torch.equal(first, network(image))


def test_what_is_ignored_stays_whole_and_at_eight_bits() -> None:
    space = check(Residual(), ignore=["a"])
    names = [decision.name for decision in space.decisions]
    assert not any(name.startswith(("a.0.", "a.3.")) for name in names)
    fixed = {layer.module: layer.fixed for layer in family_of(space).traced}
    assert fixed["a.0"] == fixed["a.3"] == 8 and fixed["pw"] == 0


def test_other_images_than_the_models(digits: ImageData) -> None:
    model = Residual(num_classes=7, in_channels=1).eval()
    net = apq.PretrainedNet(model, apq.trace(model, (1, 8, 8)))
    with pytest.raises(DataError, match=r"\(8, 1, 10\), but .* made for \(8, 1, 7\)"):
        apq.Objective(net, digits)


def test_a_pickle_is_refused_with_the_lines_that_convert_it(tmp_path: Path) -> None:
    torch.save(Residual().state_dict(), tmp_path / "mine.pt")
    with pytest.raises(CheckpointError, match="save_file") as refused:
        read_weights(tmp_path / "mine.pt")
    lines = str(refused.value).splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("from torch import"))
    exec("\n".join(lines[first : first + 2]), {})
    model = Residual()
    fit_state(model, read_weights(tmp_path / "mine.safetensors"), "mine")
    with pytest.raises(CheckpointError, match="no such file"):
        read_weights(tmp_path / "nowhere.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(CheckpointError, match="not safetensors"):
        read_weights(tmp_path / "broken.safetensors")


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    state = Residual(num_classes=7).state_dict()
    state["other"] = state.pop("pw.weight")
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError) as refused:
        fit_state(Residual(), read_weights(tmp_path / "w.safetensors"), "w")
    said = str(refused.value)
    assert "it lacks pw.weight" in said and "the model lacks other" in said
    assert "head.weight (7, 64) instead of (10, 64)" in said


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("resnet18", "give torchvision:NAME"),
        ("torchvision:resnet19", "close are resnet"),
        ("nowhere:build", "No module named"),
        ("math:pi", "no factory"),
        ("math:nothing", "has no attribute"),
        ("tests.tracing.helpers:trained_like", "fails: TypeError"),
        ("builtins:dict", "makes a dict"),
    ],
)
def test_sources_that_make_no_model(source: str, said: str) -> None:
    with pytest.raises(InvalidArgumentError, match=said):
        build_model(source, 10)


def test_a_factory_is_told_how_many_classes_there_are() -> None:
    assert build_model("tests.tracing.helpers:Residual", 7)(torch.randn(1, *SHAPE)).shape == (1, 7)
    squeezed = build_model("torchvision:squeezenet1_1", 4)
    assert squeezed(torch.randn(1, 3, 64, 64)).shape == (1, 4)
