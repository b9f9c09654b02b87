"""Networks and layers. Knows nothing of flags, data sets and trainers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from utils.registry import Registry, of

if TYPE_CHECKING:
    from torch import nn

    from models.builder import Builder

IN_FILE = "FILE.py:CLASS"  # the form of networks whose file is run
# What ``model`` can name.
MODELS = Registry(
    {
        **of("models.small", "LeNet", "FC1024", "BNNet"),
        **of("models.gemresnet", "GEMResNet18"),
        **of("models.resnet", "ResNet18", "ResNet50", "ResNet101", "WideResNet50_2"),
        "torchvision:NAME": "models.outside:torchvision",
        IN_FILE: "models.outside:from_file",
    }
)
# Layers whose tasks train weights that later tasks build on.
SIBLINGS = of("models.siblings", "PiggybackConv", "WSNConv", "PackNetConv", "ExSSNeTConv")
# What ``conv_type`` can name.
CONV_TYPES = Registry(
    {
        **of("models.modules", "FastMultitaskMaskConv"),
        "StackedFastMultitaskMaskConv": "models.modules:FastMultitaskMaskConv",  # the original's name for it with NNs
        **of("models.modules", "MultitaskMaskConv", "MaskConv", "StandardConv"),
        **of("models.rank_one", "BatchEnsembles", "VectorizedBatchEnsembles"),
        **of("models.rotation", "PSPRotation"),
        **SIBLINGS,
    }
)
# What ``bn_type`` can name.
BN_TYPES = Registry(
    {
        **of("models.norms", "StandardBN", "NonAffineBN", "NonAffineNoStatsBN", "MultitaskNonAffineBN"),
        **of("models.hopfield", "FastHopMaskBN"),
    }
)
# What networks from outside can be made of, by the layers of ours that they are like: masks, and statistics of norms.
MASKS_OF = {
    "FastMultitaskMaskConv": "threshold",
    "StackedFastMultitaskMaskConv": "threshold",
    "MultitaskMaskConv": "top-k",
}
STATISTICS_OF = {"MultitaskNonAffineBN": "task", "NonAffineNoStatsBN": "batch"}
# What ``conv_init`` can name.
INITIALISERS = Registry(
    of(
        "models.init",
        *("signed_constant", "unsigned_constant", "default", "kaiming_normal", "kaiming_uniform"),
        *("xavier_normal", "xavier_constant", "glorot_uniform"),
    )
)

__all__ = [
    *("MASKS_OF", "STATISTICS_OF", "SIBLINGS", "BN_TYPES", "CONV_TYPES", "INITIALISERS", "IN_FILE", "MODELS"),
    *("Builder", "get_model"),
]


def get_model(name: str, builder: Builder, input_shape: tuple[int, int, int], output_size: int) -> nn.Module:
    """The network of that name.

    Args:
        name: a key of ``MODELS``.
        builder: makes its layers.
        input_shape: (channels, height, width) of an image.
        output_size: outputs, the superfluous ones included.

    Raises:
        KeyError: there is no network of that name.
    """
    model: nn.Module = MODELS[name](builder, input_shape, output_size)
    return model


def __getattr__(name: str) -> object:
    if name == "Builder":  # loads torch, which the tables above do without
        from models.builder import Builder

        return Builder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
