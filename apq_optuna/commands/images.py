"""Images as the command line names them, or as a network is used to them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TextIO

from apq_optuna.commands.common import say
from apq_optuna.errors import InvalidArgumentError

if TYPE_CHECKING:
    from apq_optuna.data import ImageData
    from apq_optuna.supernet import Supernet


def load_images(arguments: Any, info: Mapping[str, Any] = MappingProxyType({})) -> ImageData:
    """The images that the command line names, else as `info`, a supernet's `data_info`, has it."""
    from apq_optuna.data import load_data
    from apq_optuna.data.loading import normalised_with

    name = arguments.data or info.get("name")
    if not name:
        raise InvalidArgumentError("--data is needed: digits, cifar10 or folder:PATH")
    started = time.perf_counter()
    if not name.startswith("folder:"):  # other data sets are as they are
        info = {name: info.get(name) for name in ("augment", "model_mean", "model_std")}
    with _warnings_said():
        data = load_data(
            name,
            image_size=arguments.image_size or info.get("image_size"),
            grayscale=info.get("grayscale")
            if arguments.grayscale is None
            else arguments.grayscale,
            fit=arguments.fit or info.get("fit", "crop"),
            skip_broken=arguments.skip_broken or info.get("skip_broken", False),
            augment=getattr(arguments, "augment", None) or info.get("augment"),
            cache=not getattr(arguments, "no_cache", False),
            mean=getattr(arguments, "mean", None),
            std=getattr(arguments, "std", None),
        )
    own = [info.get(name) for name in ("model_mean", "model_std")]
    said = [getattr(arguments, name, None) for name in ("mean", "std")]
    if own[0] is not None and said == [None, None]:
        if len(own[0]) == data.channels:
            data = normalised_with(data, *own)
        else:
            say(
                f"note: the model was trained on {len(own[0])} channels, the images have "
                f"{data.channels}: they are normalised by their own mean and deviation"
            )
    say(
        f"{name}: {len(data.train)} training, {len(data.search_validation)} search-validation, "
        f"{len(data.test)} test images of {data.num_classes} classes, {data.image_size}x"
        f"{data.image_size}x{data.channels} ({time.perf_counter() - started:.1f} s)"
    )
    return data


@contextlib.contextmanager
def _warnings_said() -> Iterator[None]:
    """Says what is to be known of the images as a line; other warnings look as they always do."""
    import warnings

    from apq_optuna.errors import DataWarning

    with warnings.catch_warnings():
        show = warnings.showwarning

        def say_ours(
            message: Warning | str, category: type[Warning], filename: str, lineno: int,
            file: TextIO | None = None, line: str | None = None,
        ) -> None:  # fmt: skip
            if issubclass(category, DataWarning):
                say(f"note: {message}")
            else:
                show(message, category, filename, lineno, file, line)

        warnings.showwarning = say_ours
        warnings.simplefilter("always", DataWarning)
        yield


def supernet_images(arguments: Any, supernet: Supernet) -> ImageData:
    """The images a supernet was trained on, loaded as they were then."""
    from apq_optuna.supernet import PretrainedNet

    channels, size, _ = supernet.space.networks.input_shape
    shape: dict[str, Any] = {"image_size": size, "grayscale": channels == 1}
    if isinstance(supernet, PretrainedNet) and supernet.data_info:  # as it is used to
        shape |= {f"model_{name}": supernet.data_info[name] for name in ("mean", "std")}
    return load_images(arguments, {**supernet.data_info, **shape})
