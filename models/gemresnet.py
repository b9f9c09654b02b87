"""The small ResNet-18 of the SplitCIFAR100 experiments, of width 20 (Lopez-Paz & Ranzato, 2017)."""

import torch.nn.functional as F
from torch import Tensor, nn

from models.builder import Builder
from models.resnet import BasicBlock, make_stage

WIDTH = 20


class GEMResNet18(nn.Module):
    """A 3×3 stem, four stages of two basic blocks with 20, 40, 80 and 160 channels, a 1×1 convolution as head.

    Args:
        input_shape: (channels, height, width) of an image; height and width at least 25, for the pooling by 4.
        output_size: outputs, the superfluous ones included.
    """

    def __init__(self, builder: Builder, input_shape: tuple[int, int, int], output_size: int):
        super().__init__()
        width = builder.width(WIDTH)
        self.conv1 = builder.conv3x3(input_shape[0], width)
        self.bn1 = builder.batchnorm(width)
        self.relu = builder.activation()
        stages, planes = [], width
        for index in range(4):
            stage, planes = make_stage(builder, BasicBlock, planes, width * 2**index, 2, stride=1 if index == 0 else 2)
            stages.append(stage)
        self.stages = nn.Sequential(*stages)
        side = [-(-size // 8) // 4 for size in input_shape[1:]]  # height and width after strides and pooling
        self.head = builder.head(planes * side[0] * side[1], output_size)

    def forward(self, x: Tensor) -> Tensor:
        """Images (batch, channels, height, width) to logits (batch, output_size)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = F.avg_pool2d(self.stages(x), 4)  # (batch, 160, 1, 1) from images of 32×32
        logits: Tensor = self.head(x.flatten(1)[:, :, None, None])
        return logits.flatten(1)
