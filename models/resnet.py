"""The standard residual networks for ImageNet (He et al., 2016; the wide one of Zagoruyko & Komodakis, 2016)."""

from torch import Tensor, nn

from models.builder import Builder


class BasicBlock(nn.Module):
    """Two 3×3 convolutions around a shortcut."""

    expansion = 1

    def __init__(self, builder: Builder, in_planes: int, planes: int, stride: int, width: int):
        super().__init__()
        self.conv1, self.bn1 = builder.conv3x3(in_planes, width, stride), builder.batchnorm(width)
        self.conv2, self.bn2 = builder.conv3x3(width, planes), builder.batchnorm(planes)
        self.relu = builder.activation()
        self.shortcut = make_shortcut(builder, in_planes, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        """x (batch, in_planes, height, width) to (batch, planes, height / stride, width / stride)."""
        y: Tensor = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)) + self.shortcut(x))
        return y


class Bottleneck(nn.Module):
    """A 3×3 convolution with the stride, between 1×1 convolutions that narrow and widen, around a shortcut."""

    expansion = 4

    def __init__(self, builder: Builder, in_planes: int, planes: int, stride: int, width: int):
        super().__init__()
        out_planes = planes * self.expansion
        self.conv1, self.bn1 = builder.conv1x1(in_planes, width), builder.batchnorm(width)
        self.conv2, self.bn2 = builder.conv3x3(width, width, stride), builder.batchnorm(width)
        self.conv3, self.bn3 = builder.conv1x1(width, out_planes), builder.batchnorm(out_planes)
        self.relu = builder.activation()
        self.shortcut = make_shortcut(builder, in_planes, out_planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        """x (batch, in_planes, height, width) to (batch, 4 * planes, height / stride, width / stride)."""
        y: Tensor = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.relu(self.bn3(self.conv3(y)) + self.shortcut(x))
        return y


def make_shortcut(builder: Builder, in_planes: int, planes: int, stride: int) -> nn.Module:
    """The way around a block: as it is, or through a 1×1 convolution where the shape changes."""
    if stride == 1 and in_planes == planes:
        return nn.Identity()
    return nn.Sequential(builder.conv1x1(in_planes, planes, stride), builder.batchnorm(planes))


def make_stage(
    builder: Builder,
    block: type[BasicBlock] | type[Bottleneck],
    in_planes: int,
    planes: int,
    depth: int,
    stride: int,
    widening: int = 1,
) -> tuple[nn.Sequential, int]:
    """``depth`` blocks, the first with the stride; and the number of channels that come out of them.

    Args:
        planes: channels of the stage, before the block's expansion.
        widening: the factor by which the inner convolutions are wider than ``planes``.
    """
    blocks = []
    for index in range(depth):
        blocks.append(block(builder, in_planes, planes, stride if index == 0 else 1, planes * widening))
        in_planes = planes * block.expansion
    return nn.Sequential(*blocks), in_planes


class ResNet(nn.Module):
    """A 7×7 stem, four stages from 64 channels, doubled each time, average pooling, a 1×1 convolution as head.

    Args:
        block: of which the stages are made.
        depths: blocks in each stage.
        input_shape: (channels, height, width) of an image.
        output_size: outputs, the superfluous ones included.
        widening: of the inner convolutions; see ``make_stage``.
    """

    def __init__(
        self,
        builder: Builder,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        input_shape: tuple[int, int, int],
        output_size: int,
        widening: int = 1,
    ):
        super().__init__()
        planes = width = builder.width(64)
        self.conv1, self.bn1 = builder.conv7x7(input_shape[0], width, stride=2), builder.batchnorm(width)
        self.relu = builder.activation()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        stages = []
        for index, depth in enumerate(depths):
            stride = 1 if index == 0 else 2
            stage, planes = make_stage(builder, block, planes, width * 2**index, depth, stride, widening)
            stages.append(stage)
        self.stages = nn.Sequential(*stages)
        self.head = builder.head(planes, output_size)

    def forward(self, x: Tensor) -> Tensor:
        """Images (batch, channels, height, width) to logits (batch, output_size)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))  # a quarter of height and width
        logits: Tensor = self.head(self.stages(x).mean((2, 3), keepdim=True))
        return logits.flatten(1)


class ResNet18(ResNet):
    """ResNet-18."""

    def __init__(self, builder: Builder, input_shape: tuple[int, int, int], output_size: int):
        super().__init__(builder, BasicBlock, (2, 2, 2, 2), input_shape, output_size)


class ResNet50(ResNet):
    """ResNet-50."""

    def __init__(self, builder: Builder, input_shape: tuple[int, int, int], output_size: int):
        super().__init__(builder, Bottleneck, (3, 4, 6, 3), input_shape, output_size)


class ResNet101(ResNet):
    """ResNet-101."""

    def __init__(self, builder: Builder, input_shape: tuple[int, int, int], output_size: int):
        super().__init__(builder, Bottleneck, (3, 4, 23, 3), input_shape, output_size)


class WideResNet50_2(ResNet):
    """ResNet-50 with inner convolutions twice as wide."""

    def __init__(self, builder: Builder, input_shape: tuple[int, int, int], output_size: int):
        super().__init__(builder, Bottleneck, (3, 4, 6, 3), input_shape, output_size, widening=2)
