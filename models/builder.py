"""The one place that knows which layers a network is made of."""

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from models import BN_TYPES, CONV_TYPES, MASKS_OF, STATISTICS_OF
from models.init import initialise
from models.layers import LayerOptions
from models.modules import IndividualHeads, StandardConv
from models.multitask import Rng


class Builder:
    """Makes the layers of a network, of the types and with the initialiser that the user chose.

    Args:
        rng: a key to a generator; the weight of the n-th convolution is drawn from ``rng("weight", n)``.
        num_tasks: for how many tasks the layers have room.
        conv_type: a key of ``CONV_TYPES``.
        bn_type: a key of ``BN_TYPES``.
        conv_init: a key of ``INITIALISERS``.
        mode, nonlinearity: of the Kaiming initialisers.
        sparsity, er_sparsity: of top-k masks; see ``LayerOptions``.
        individual_heads: whether the last layer has a weight of its own for each task.
        width_mult: by which ``width`` multiplies.
        weights: of networks from outside: None draws them again, ``given`` keeps them, a path loads them from there.
    """

    def __init__(
        self,
        rng: Rng,
        num_tasks: int,
        conv_type: str = "FastMultitaskMaskConv",
        bn_type: str = "MultitaskNonAffineBN",
        conv_init: str = "signed_constant",
        mode: str = "fan_in",
        nonlinearity: str = "relu",
        sparsity: float = 0.5,
        er_sparsity: bool = False,
        individual_heads: bool = False,
        width_mult: float = 1.0,
        weights: str | None = None,
    ):
        self._types, self._weights = (conv_type, bn_type), weights
        self._rng, self._init = rng, (conv_init, mode, nonlinearity)
        self._options = LayerOptions(num_tasks, sparsity, er_sparsity, rng)
        self._individual_heads, self._width_mult = individual_heads, width_mult
        self._conv, self._bn = CONV_TYPES[conv_type], BN_TYPES[bn_type]
        self._convolutions = 0

    def width(self, units: int) -> int:
        """How many units or channels a hidden layer has that has ``units`` of them by itself: at least one."""
        return max(1, int(units * self._width_mult))

    def conv(
        self,
        in_planes: int,
        out_planes: int,
        kernel_size: int,
        stride: int = 1,
        first_layer: bool = False,
        last_layer: bool = False,
        padded: bool = True,
    ) -> nn.Module:
        """A convolution without bias, padded so that stride 1 keeps height and width, if it is ``padded``.

        Args:
            first_layer: whether it is the network's first; here that makes no difference.
            last_layer: whether it is the network's last, which may have a weight of its own for each task.
        """
        options = replace(self._options, number=self._convolutions, padded=padded)
        if last_layer and self._individual_heads:
            return IndividualHeads(in_planes, out_planes, kernel_size, stride, options)
        layer: nn.Module = self._conv(in_planes, out_planes, kernel_size, stride, options)
        name, mode, nonlinearity = self._init
        initialise(cast(Tensor, layer.weight), name, self._rng("weight", self._convolutions), mode, nonlinearity)
        self._convolutions += 1
        return layer

    def conv1x1(
        self, in_planes: int, out_planes: int, stride: int = 1, first_layer: bool = False, last_layer: bool = False
    ) -> nn.Module:
        """A 1×1 convolution; on 1×1 images, a fully connected layer."""
        return self.conv(in_planes, out_planes, 1, stride, first_layer, last_layer)

    def conv3x3(
        self, in_planes: int, out_planes: int, stride: int = 1, first_layer: bool = False, last_layer: bool = False
    ) -> nn.Module:
        """A 3×3 convolution."""
        return self.conv(in_planes, out_planes, 3, stride, first_layer, last_layer)

    def conv5x5(
        self, in_planes: int, out_planes: int, stride: int = 1, first_layer: bool = False, last_layer: bool = False
    ) -> nn.Module:
        """A 5×5 convolution."""
        return self.conv(in_planes, out_planes, 5, stride, first_layer, last_layer)

    def nopad_conv5x5(
        self, in_planes: int, out_planes: int, stride: int = 1, first_layer: bool = False, last_layer: bool = False
    ) -> nn.Module:
        """A 5×5 convolution that makes images smaller by 4 pixels either way, as LeNet's."""
        return self.conv(in_planes, out_planes, 5, stride, first_layer, last_layer, padded=False)

    def conv7x7(
        self, in_planes: int, out_planes: int, stride: int = 1, first_layer: bool = False, last_layer: bool = False
    ) -> nn.Module:
        """A 7×7 convolution."""
        return self.conv(in_planes, out_planes, 7, stride, first_layer, last_layer)

    def head(self, in_planes: int, out_planes: int) -> nn.Module:
        """The last layer, a 1×1 convolution."""
        return self.conv1x1(in_planes, out_planes, last_layer=True)

    def batchnorm(self, planes: int) -> nn.Module:
        """Batch norm over ``planes`` channels."""
        layer: nn.Module = self._bn(planes, self._options)
        return layer

    def activation(self) -> nn.Module:
        """ReLU."""
        return nn.ReLU()

    @property
    def seed(self) -> int:
        """What the weights of a network from outside start from, before they are drawn again."""
        return self._rng("network").initial_seed()

    def converted(self, model: nn.Module, input_shape: tuple[int, int, int], output_size: int) -> nn.Module:
        """A network from outside with masks over its layers.

        Raises:
            ValueError: it has weights that cannot be masked, answers otherwise than it should, or does not fit the
                file of weights.
        """
        from models.convert import convert
        from models.outside import check_answers, load_weights

        check_answers(model, input_shape, output_size)
        if self._weights not in (None, "given"):
            load_weights(model, self._weights)
        (conv_type, bn_type), (init, mode, nonlinearity) = self._types, self._init
        return convert(
            model,
            self._rng,
            self._options.num_tasks,
            masks=MASKS_OF[conv_type],
            sparsity=self._options.sparsity,
            er_sparsity=self._options.er_sparsity,
            init=init if self._weights is None else None,
            mode=mode,
            nonlinearity=nonlinearity,
            norms=STATISTICS_OF[bn_type],
        )


class _ShapeBuilder(Builder):
    """Makes networks of which only shapes are computed, on the meta device; those from outside stay as they are."""

    def __init__(self, width_mult: float):
        super().__init__(
            lambda *_: torch.Generator(),
            num_tasks=1,
            conv_type="StandardConv",
            bn_type="NonAffineNoStatsBN",
            conv_init="unsigned_constant",
            width_mult=width_mult,
        )

    def converted(self, model: nn.Module, input_shape: tuple[int, int, int], output_size: int) -> nn.Module:
        return model


def _count(module: Any, _: tuple[Any, ...], y: Tensor) -> None:
    """Note the multiplications of a layer."""
    module.multiplications = y.numel() * module.weight[0].numel()


def product_sizes(
    network: type[nn.Module], batch: tuple[int, int, int, int], output_size: int, width_mult: float = 1.0
) -> list[int]:
    """The multiplications that each layer's product takes for a batch of that shape, (images, *input shape).

    Args:
        network: an entry of ``MODELS``.

    Raises:
        Exception: anything, of a network from outside that cannot do without its numbers.
    """
    with torch.device("meta"):
        model = network(_ShapeBuilder(width_mult), batch[1:], output_size)
        model.eval()
        for module in model.modules():
            if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
                module.register_forward_hook(_count)
        model(torch.empty(batch))
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "multiplications")]
    return [layer.multiplications for layer in layers]


def weight_shapes(
    network: type[nn.Module], input_shape: tuple[int, int, int], output_size: int, width_mult: float = 1.0
) -> list[torch.Size]:
    """The shape (out, in, height, width) of each convolution's weight, in their order; no network is made.

    Args:
        network: an entry of ``MODELS``.
    """
    with torch.device("meta"):
        model = network(_ShapeBuilder(width_mult), input_shape, output_size)
    return [module.weight.shape for module in model.modules() if isinstance(module, StandardConv)]
