"""The fully connected networks of the MNIST experiments."""

import math

from torch import Tensor, nn

from models.builder import Builder


class FullyConnected(nn.Module):
    """Fully connected layers without bias; between them what ``between`` says, here ReLU.

    Args:
        widths: units of the hidden layers, before the builder's factor.
        input_shape: (channels, height, width) of an image; it is flattened.
        output_size: outputs, the superfluous ones included.
    """

    takes_stacks = True  # images of several tasks at once, (tasks, batch, ...), if the layers do

    def __init__(self, builder: Builder, widths: tuple[int, ...], input_shape: tuple[int, int, int], output_size: int):
        super().__init__()
        sizes = (math.prod(input_shape), *map(builder.width, widths), output_size)
        layers: list[nn.Module] = []
        for inputs, outputs in zip(sizes[:-2], sizes[1:-1], strict=True):
            layers += [builder.conv1x1(inputs, outputs), *self.between(builder, outputs)]
        self.layers = nn.Sequential(*layers, builder.head(*sizes[-2:]))

    def between(self, builder: Builder, width: int) -> list[nn.Module]:
        """What follows a hidden layer of ``width`` units."""
        return [builder.activation()]

    def forward(self, x: Tensor) -> Tensor:
        """Images (..., batch, channels, height, width) to logits (..., batch, output_size)."""
        logits: Tensor = self.layers(x.flatten(-3)[..., None, None])
        return logits.flatten(-3)


class LeNet(FullyConnected):
    """LeNet 300-100."""

    def __init__(self, builder: Builder, input_shape: tuple[int, int, int], output_size: int):
        super().__init__(builder, (300, 100), input_shape, output_size)


class FC1024(FullyConnected):
    """Two hidden layers of 1,024 units."""

    def __init__(self, builder: Builder, input_shape: tuple[int, int, int], output_size: int):
        super().__init__(builder, (1024, 1024), input_shape, output_size)


class BNNet(FullyConnected):
    """Two hidden layers of 2,048 units, each with batch norm and Swish: the network of HopSupSup."""

    takes_stacks = False  # its norms are over one batch

    def __init__(self, builder: Builder, input_shape: tuple[int, int, int], output_size: int):
        super().__init__(builder, (2048, 2048), input_shape, output_size)

    def between(self, builder: Builder, width: int) -> list[nn.Module]:
        return [builder.batchnorm(width), nn.SiLU()]
