"""Networks as values: layers, the family protocol, and the families that come with the package."""

from apq_optuna.networks.blocks import StageSpec
from apq_optuna.networks.decisions import MAX_LEVELS, Decision
from apq_optuna.networks.families import FAMILIES, read_family
from apq_optuna.networks.family import (
    Extent,
    Family,
    Genotypes,
    Needs,
    Site,
    Step,
    Subnet,
    Width,
    check_family,
)
from apq_optuna.networks.layers import FLOAT_BITS, ConvLayer, PlacedLayer, Size, as_pair
from apq_optuna.networks.mobile import MobileFamily, MobileSubnet
from apq_optuna.networks.presets import PRESETS, preset_family
from apq_optuna.networks.traced import (
    ChannelGroup,
    Member,
    TracedFamily,
    TracedLayer,
    TracedSubnet,
)

__all__ = [
    "FAMILIES",
    "FLOAT_BITS",
    "MAX_LEVELS",
    "PRESETS",
    "ChannelGroup",
    "ConvLayer",
    "Decision",
    "Extent",
    "Family",
    "Genotypes",
    "Member",
    "MobileFamily",
    "MobileSubnet",
    "Needs",
    "PlacedLayer",
    "Site",
    "Size",
    "StageSpec",
    "Step",
    "Subnet",
    "TracedFamily",
    "TracedLayer",
    "TracedSubnet",
    "Width",
    "as_pair",
    "check_family",
    "preset_family",
    "read_family",
]
