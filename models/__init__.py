"""Networks and layers. Knows nothing of flags, data sets and trainers."""

from torch import nn

from models.builder import Builder
from models.gemresnet import GEMResNet18
from models.init import INITIALISERS
from models.modules import BN_TYPES, CONV_TYPES
from models.resnet import ResNet18, ResNet50, ResNet101, WideResNet50_2
from models.small import FC1024, BNNet, LeNet

MODELS: dict[str, type[nn.Module]] = {
    "LeNet": LeNet,
    "FC1024": FC1024,
    "BNNet": BNNet,
    "GEMResNet18": GEMResNet18,
    "ResNet18": ResNet18,
    "ResNet50": ResNet50,
    "ResNet101": ResNet101,
    "WideResNet50_2": WideResNet50_2,
}

__all__ = ["BN_TYPES", "CONV_TYPES", "INITIALISERS", "MODELS", "Builder", "get_model"]


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
    return MODELS[name](builder, input_shape, output_size)
