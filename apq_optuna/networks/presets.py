"""The network families that come with the package."""

from dataclasses import replace

from apq_optuna.errors import InvalidArgumentError
from apq_optuna.networks.blocks import StageSpec
from apq_optuna.networks.mobile import MobileFamily

_DIGITS = MobileFamily(
    name="digits",
    image_size=8,
    in_channels=1,
    num_classes=10,
    stem_channels=8,
    stem_stride=1,
    first_channels=8,
    stages=(
        StageSpec(16, 1, (1, 2), (3, 5), (1, 3)),
        StageSpec(24, 2, (1, 2), (3, 5), (1, 3)),
        StageSpec(32, 2, (1, 2), (3,), (1, 3)),
    ),
    last_channels=64,
    bits=(2, 4, 6, 8),
)

_CIFAR10 = MobileFamily(
    name="cifar10",
    image_size=32,
    in_channels=3,
    num_classes=10,
    stem_channels=16,
    stem_stride=1,
    first_channels=16,
    stages=(
        StageSpec(24, 2, (1, 2), (3, 5, 7), (2, 4)),
        StageSpec(40, 2, (1, 2, 3, 4), (3, 5, 7), (2, 4)),
        StageSpec(64, 2, (1, 2, 3), (3, 5, 7), (2, 4)),
        StageSpec(96, 1, (1, 2, 3), (3, 5, 7), (2, 4)),
    ),
    last_channels=256,
    bits=(4, 6, 8),
)

_IMAGENET = MobileFamily(
    name="imagenet",
    image_size=224,
    in_channels=3,
    num_classes=1000,
    stem_channels=32,
    stem_stride=2,
    first_channels=16,
    stages=(
        StageSpec(24, 2, (2, 3, 4)),
        StageSpec(40, 2, (2, 3, 4)),
        StageSpec(80, 2, (2, 3, 4)),
        StageSpec(96, 1, (2, 3, 4)),
        StageSpec(192, 2, (2, 3, 4)),
        StageSpec(320, 1, (1,)),
    ),
    last_channels=1280,
    bits=(4, 6, 8),
)

PRESETS: dict[str, MobileFamily] = {
    family.name: family for family in (_DIGITS, _CIFAR10, _IMAGENET)
}


def preset_family(
    name: str,
    *,
    image_size: int | None = None,
    in_channels: int | None = None,
    num_classes: int | None = None,
    bits: tuple[int, ...] | None = None,
) -> MobileFamily:
    """A preset, fitted to the user's images.

    Args:
        name: `digits`, `cifar10` or `imagenet` (the space of Wang et al., CVPR 2020, at 224x224).
        image_size, in_channels, num_classes: Of the data, where they differ from the preset's.
        bits: Allowed bit-widths, ascending.

    Raises:
        InvalidArgumentError: Unknown preset.
        SpaceError: Sizes or bits that no network can have.
    """
    if name not in PRESETS:
        raise InvalidArgumentError(f"preset={name!r} is unknown; choose from {sorted(PRESETS)}")
    preset = PRESETS[name]
    return replace(
        preset,
        image_size=preset.image_size if image_size is None else image_size,
        in_channels=preset.in_channels if in_channels is None else in_channels,
        num_classes=preset.num_classes if num_classes is None else num_classes,
        bits=preset.bits if bits is None else tuple(bits),
    )
