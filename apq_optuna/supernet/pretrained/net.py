"""`PretrainedNet`: a model of one's own, used wherever a supernet is."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from apq_optuna._checkpoints import read_checkpoint, write_checkpoint
from apq_optuna.data import ImageData
from apq_optuna.errors import CheckpointError, InvalidArgumentError, SpaceError
from apq_optuna.networks import FLOAT_BITS, Subnet, TracedFamily, TracedSubnet
from apq_optuna.space import SearchSpace
from apq_optuna.supernet.convolution import sound_gradients
from apq_optuna.supernet.modules import (
    Slot,
    SubnetModule,
    Supernet,
    check_data,
    info_of,
    module_of,
)
from apq_optuna.supernet.pretrained.copies import check_model, lay_out, own_copy
from apq_optuna.supernet.pretrained.slicing import Slicer, importance_order
from apq_optuna.supernet.pretrained.sources import LIBRARIES, build_model, fit_state

KIND = "pretrained"


class PretrainedNet(Supernet):
    """Every network of a traced space in a model's own weights.

    A network keeps the first channels of each group in order of importance, so that smaller ones
    are nested in larger; at its whole size it computes exactly what the model computes.

    Args:
        model: The model that the space was traced from. It is copied, and never changed.
        space: From `trace`.
        data: The images it is for; then pairs are kept by their split, and other images are
            refused.
        how: How it was traced, in JSON types, for whoever comes back to its checkpoint.
        source: Where the model comes from, so that a checkpoint comes back by itself:
            `torchvision:NAME`, `timm:NAME` or `module:factory`.

    Raises:
        SpaceError: The space is not of a traced model.
        InvalidArgumentError: The model is not the one that the space was traced from.
        DataError: The images are of another size, or of other classes, than the space.
    """

    def __init__(
        self, model: nn.Module, space: SearchSpace, *, data: ImageData | None = None,
        source: str = "", how: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(space)
        if not isinstance(space.family, TracedFamily):
            raise SpaceError("PretrainedNet needs a search space of a traced model: apq.trace")
        self.source = source
        self.how = dict(how or {})
        self.model, _ = own_copy(model)
        check_model(self.model, space.family)
        lay_out(self.model, last=space.family.channels_last)
        # as buffers: who trains on keeps the order, and with it which channels are nested
        for g, first in enumerate(importance_order(self.model, space.family)):
            self.register_buffer(f"order{g}", torch.from_numpy(first))
        self._slicer: Slicer | None = None
        self.masked = False  # whether smaller networks are of whole size, with zeros
        self._chosen: tuple[Subnet, Tensor] | None = None
        if data is not None:
            check_data(self, data)
            self.data_info = info_of(data)

    @property
    def slicer(self) -> Slicer:
        """What takes networks out of the model."""
        if self._slicer is None:
            assert isinstance(self.space.family, TracedFamily)
            order = [
                self.get_buffer(f"order{g}").cpu().numpy()
                for g in range(len(self.space.family.groups))
            ]
            self._slicer = Slicer(self.model, self.space.family, order)
        return self._slicer

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As every module's; with the weights comes their order."""
        self._slicer = None
        return super().load_state_dict(*args, **kwargs)

    def train(self, mode: bool = True) -> PretrainedNet:
        """In training BatchNorm takes statistics of batches; dropout never takes part."""
        super().train(False)
        for module in self.model.modules():
            if mode and isinstance(module, _BatchNorm):
                module.train()
        return self

    def forward(self, x: Tensor, subnet: Subnet | None = None) -> Tensor:
        """`(B, C, H, W)` images to `(B, num_classes)` logits; by default of the whole model.

        Differentiable in the model's weights, whatever the network.
        """
        assert isinstance(self.space.family, TracedFamily)
        x = _taken(x, self.space.family)
        with sound_gradients(x, (traced.layer for traced in self.space.family.traced)):
            return self._run(x, subnet)

    def _run(self, x: Tensor, subnet: Subnet | None) -> Tensor:
        if subnet is None:
            return self.model(x)  # type: ignore[no-any-return]
        assert isinstance(subnet, TracedSubnet)
        values: dict[str, Tensor] = dict(self.model.named_buffers())
        # the model's statistics are of the whole model alone
        found = {name: value.clone() for name, value in values.items()}
        values |= dict(self.model.named_parameters())
        if self.masked:
            masks = self.slicer.masks(self.choose(subnet, x.device))
            found |= self.slicer.tensors(masks, values)
            return functional_call(self.model, found, (x,))  # type: ignore[no-any-return]
        keep = self.slicer.keep(subnet.channels)
        found |= self.slicer.tensors(keep, values)
        return functional_call(self.slicer.shell(keep), found, (x,))  # type: ignore[no-any-return]

    def choose(self, subnet: Subnet, device: torch.device | str) -> Tensor:
        """Says which network of zeros the next pass is of, where a recorded pass reads it, too.

        Returns:
            `(G,) int64`, always the same tensor on a device: the channels kept of each group.
        """
        assert isinstance(subnet, TracedSubnet)
        new = torch.tensor(subnet.channels, dtype=torch.int64)
        if self._chosen is None or self._chosen[1].device.type != torch.device(device).type:
            self._chosen = subnet, new.to(device)
        chosen, counts = self._chosen
        if chosen != subnet:
            # pinned, so that nobody waits until what was asked of the GPU before is done
            counts.copy_(new.pin_memory() if counts.is_cuda else new, non_blocking=True)
            self._chosen = subnet, counts
        return counts

    def prepare_training(self, device: str) -> None:
        """See `Supernet.prepare_training`.

        On a GPU smaller networks are trained as the whole model with zeros in their weights: there
        a convolution of a shape that it has not met costs tens of milliseconds to plan (a random
        EfficientNet-Lite0 2 to 7 s on an H100), the whole model 34 ms. Where that does not compute
        and learn what the smaller network does (a norm over all channels, say), they are cut out.
        """
        self._chosen = None  # it may have been on another device
        self.masked = device.startswith("cuda") and self._zeros_suffice()

    def _zeros_suffice(self) -> bool:
        """Whether a network of zeros computes and learns what the same one cut out does.

        Tried in float64, in which rounding tells nothing, on a copy, whose weights are moved a
        little: those that begin at zero would hide what is behind them.
        """
        try:
            net = copy.deepcopy(self).to("cpu").double()
            net._slicer = None
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                with torch.no_grad():
                    for parameter in net.parameters():
                        parameter.add_(0.02 * torch.randn_like(parameter))
                net.masked = False
                cut = net._learned()
                net.masked = True
                return _same(cut, net._learned())
        except Exception:  # whatever somebody's model raises; cutting out says what is wrong
            return False

    def _learned(self) -> dict[str, Tensor]:
        """What training sees of the smallest network: logits, gradients, the model's buffers."""
        family = self.space.family
        assert isinstance(family, TracedFamily)
        images = torch.randn(
            4, *family.input_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
        )
        subnet = self.space.decode(self.space.extreme(largest=False)[0])
        logits = self.train()(images, subnet)
        named = dict(self.model.named_parameters())
        wanted = torch.linspace(-1.0, 1.0, logits.numel(), dtype=logits.dtype).view_as(logits)
        gradients = torch.autograd.grad(
            (logits * wanted).sum(), [*named.values()], allow_unused=True
        )
        learned = {
            name: gradient
            for name, gradient in zip(named, gradients, strict=True)
            if gradient is not None
        }
        buffers = {name: value.clone() for name, value in self.model.named_buffers()}
        return {"": logits.detach()} | learned | buffers

    @torch.no_grad()
    def subnet(self, subnet: Subnet) -> TracedModule:
        """See `Supernet.subnet`; a module of the model's own classes."""
        if not isinstance(subnet, TracedSubnet):
            raise SpaceError(f"subnet: a {type(subnet).__name__} is not of a traced model")
        return TracedModule(subnet, self.slicer.network(subnet)).eval()

    def save(self, path: str | Path, *, half: bool = False) -> Path:
        """Writes `supernet.safetensors` and its sidecar into a folder.

        Args:
            path: The folder; made if missing.
            half: Weights as float16.
        """
        target = Path(path) / "supernet.safetensors"
        tensors = {
            name: value.half() if half and value.is_floating_point() else value
            for name, value in self.state_dict().items()
        }
        about = {
            "kind": KIND,
            "model": self.source,
            "how": self.how,
            "space": self.space.to_dict(),
            "architecture_hash": self.space.architecture_hash,
            "data": self.data_info,
        }
        write_checkpoint(target, tensors, about)
        return target

    @classmethod
    def load(
        cls,
        path: str | Path,
        model: nn.Module | None = None,
        *,
        space: SearchSpace | None = None,
    ) -> PretrainedNet:
        """Reads what `save` wrote.

        Args:
            path: The folder.
            model: The model; of torchvision's and timm's the checkpoint knows the name.
            space: A space of the same model with other bit-widths.

        Raises:
            CheckpointError: Damaged, of another kind, or of a model that is not known by name.
        """
        tensors, about = read_checkpoint(Path(path) / "supernet.safetensors")
        return cls.of_checkpoint(tensors, about, str(path), model=model, space=space)

    @classmethod
    def of_checkpoint(
        cls, tensors: dict[str, Tensor], about: dict[str, Any], path: str, *,
        model: nn.Module | None = None, space: SearchSpace | None = None, trusted: bool = False,
    ) -> PretrainedNet:  # fmt: skip
        """`load`, with the files read; of a trusted one somebody's own factory is called, too."""
        if about.get("kind") != KIND:
            raise CheckpointError(f"{path} holds a {about.get('kind')!r}, not a traced model")
        try:
            own = SearchSpace.from_dict(about["space"])
        except (KeyError, SpaceError) as error:
            raise CheckpointError(f"{path}: {error}") from error
        if space is not None and space.architecture_hash != own.architecture_hash:
            raise CheckpointError(
                f"{path} is of another search space ({own.architecture_hash}) than the one asked "
                f"for ({space.architecture_hash})"
            )
        source = str(about.get("model") or "")
        if model is None:
            if not source or not (trusted or source.startswith(LIBRARIES)):
                raise CheckpointError(
                    f"{path} is of a model of one's own ({source or 'of no name'}), and a file "
                    "runs no code: give it, as in PretrainedNet.load(path, model=MyModel()), or "
                    "say once where it comes from: apq-optuna trace --run RUN --model MODULE:NAME"
                )
            model = build_model(source, own.networks.num_classes)
        net = cls(model, space or own, source=source, how=about.get("how"))
        fit_state(net, tensors, path)
        net.data_info = dict(about.get("data") or {})
        return net.eval()


class TracedModule(SubnetModule):
    """A network of a traced model: the model's own classes.

    It always evaluates, also while it is finetuned: dropout would be noise in a few steps, and
    statistics of BatchNorm that are not folded stay those of `recalibrate`.
    """

    def __init__(self, subnet: TracedSubnet, model: nn.Module) -> None:
        super().__init__(subnet)
        self.family = subnet.spec
        self.model = model
        self.lay_out()

    def lay_out(self) -> None:
        """See `SubnetModule.lay_out`."""
        lay_out(self, last=self.family.channels_last)

    def layer_slots(self) -> list[Slot]:
        """See `SubnetModule.layer_slots`."""
        found = []
        for traced in self.family.traced:
            if traced.fixed == FLOAT_BITS:
                found.append(Slot(None, "", True))
                continue
            norm = _parent(self.model, traced.norm) if traced.norm else None
            found.append(Slot(*_parent(self.model, traced.module), traced.signed, norm))
        return found

    def train(self, mode: bool = True) -> TracedModule:
        """Keeps to evaluation."""
        super().train(False)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` images to `(B, num_classes)` logits."""
        with sound_gradients(x, (traced.layer for traced in self.family.traced)):
            return self.model(_taken(x, self.family))  # type: ignore[no-any-return]


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether the same tensors are there, finite, and the same up to rounding of float64."""
    if one.keys() != other.keys():
        return False
    floats = [name for name, value in one.items() if value.is_floating_point()]
    least = 1e-9 * max(float(one[name].norm()) for name in floats)
    return all(
        float((one[name] - other[name]).norm()) <= 1e-6 * float(one[name].norm()) + least
        for name in floats
    )  # with what is not finite, this does not hold


def _taken(x: Tensor, family: TracedFamily) -> Tensor:
    """Images as a model takes them."""
    if not family.channels_last:
        x = x.contiguous()
    return x.clone() if family.writes_input else x


def _parent(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    """Where a module sits: (its parent, its name there)."""
    above, _, name = path.rpartition(".")
    return model.get_submodule(above), name


@module_of.register
def _(subnet: TracedSubnet, model: nn.Module | None = None) -> SubnetModule:
    if model is None:
        raise InvalidArgumentError(
            f"a network of {subnet.spec.name} is made of the model's own classes: give the model, "
            "as in load_network(path, model=MyModel())"
        )
    own, _ = own_copy(model)
    check_model(own, subnet.spec)
    return TracedModule(subnet, Slicer(own, subnet.spec).network(subnet)).eval()
