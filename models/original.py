"""What the layers of the original code keep, as the layers here keep it.

Layers have other names there, so they are known by their order: the n-th convolution is the n-th, the n-th batch norm
is the n-th, and all shapes must fit.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from models import MODELS
from models.builder import weight_shapes
from models.masked import Masked
from models.masks import pack
from models.modules import IndividualHeads, MaskConv, StandardConv
from models.multitask import MultitaskModule
from models.norms import MultitaskNonAffineBN, StandardBN
from models.rank_one import RankOneConv

CONVOLUTIONS = (Masked, RankOneConv, StandardConv, IndividualHeads)
NORMS = (MultitaskNonAffineBN, StandardBN)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# A tensor's name: that of its layer, and what it is there, with the number of its task if each has one.
OF_NORM = "weight|bias|running_mean|running_var|num_batches_tracked"
TASK = r"\.[0-9]{1,7}"
NAME = re.compile(rf"(?:(.*?)\.)?((?:scores|s|t)(?:{TASK})?|bns{TASK}\.(?:{OF_NORM})|{OF_NORM}|stacked|alphas)")
# Made of the rest for inference, or for counting.
IDLE = {"stacked", "alphas", "num_batches_tracked", "bns.#.num_batches_tracked"}


class _Part:
    """What one layer has in the file.

    Args:
        name: the layer's, there.
    """

    def __init__(self, name: str):
        self.name = name
        self.tensors: dict[str, Tensor] = {}
        self.used: set[str] = set()

    @property
    def is_norm(self) -> bool:
        return any(name.startswith(("bns.", "running_")) for name in self.tensors)

    @property
    def weight_shape(self) -> torch.Size:
        """Of a convolution, (out, in, height, width).

        Raises:
            ValueError: it is none.
        """
        shapes = [value.shape for value in self.tensors.values() if value.ndim == 4]
        if not shapes:
            raise ValueError(f"its layer {self.name} is no convolution, has no weight of four dimensions")
        return shapes[0]

    def take(self, name: str, shape: Sequence[int]) -> Tensor:
        """The tensor ``name`` in the wanted shape; dimensions of 1 may stand anywhere.

        Raises:
            ValueError: it is not there, has another shape, or holds what is no number.
        """
        if name not in self.tensors:
            raise ValueError(f"its layer {self.name} has no {name}")
        value = self.tensors[name]
        self.used.add(_without_task(name))
        if [size for size in value.shape if size != 1] != [size for size in shape if size != 1]:
            raise ValueError(f"{name} of its layer {self.name} is {tuple(value.shape)}, here {tuple(shape)}")
        if value.dtype not in FLOATS or not value.isfinite().all():
            raise ValueError(f"{name} of its layer {self.name} holds what is no number")
        return value.reshape(tuple(shape))

    def check_all_used(self, idle: set[str]) -> None:
        """See that nothing is left that would make a difference.

        Raises:
            ValueError: something is.
        """
        left = sorted({_without_task(name) for name in self.tensors} - self.used - idle)
        if left:
            raise ValueError(f"its layer {self.name} has {left[0]}, which such a layer has not here")


def count_states(names: Iterable[str]) -> int:
    """Of how many tasks there are states, by the names of the tensors; 0 if none is of a single task.

    Raises:
        ValueError: the tasks are not numbered 0, 1, ...
    """
    kinds = [match[2] for match in map(NAME.fullmatch, names) if match]
    tasks = {int(number) for kind in kinds for number in re.findall("[0-9]+", kind)}
    if tasks != set(range(len(tasks))):
        raise ValueError(f"it has the states of {len(tasks)} tasks, which are not numbered 0, 1, ...")
    return len(tasks)


def input_shape(tensors: Mapping[str, Tensor]) -> tuple[int, int, int]:
    """(channels, height, width) of images for a network of the original code, from its weights alone.

    Of a network whose first layer is fully connected it is (pixels, 1, 1), which takes all images of so many pixels.
    Of others height and width are 32 for each place that the last layer looks at, which the pooling before it leaves.

    Raises:
        ValueError: it has no two convolutions.
    """
    shapes = [part.weight_shape for part in _parts(tensors) if not part.is_norm]
    if len(shapes) < 2 or 0 in shapes[-2]:
        raise ValueError("its state_dict has no two convolutions")
    first, before, last = shapes[0], shapes[-2], shapes[-1]
    side = 1 if first[2:] == (1, 1) else 32 * max(1, math.isqrt(last[1] // before[0]))
    return first[1], side, side


def check_weights(tensors: Mapping[str, Tensor], name: str, output_size: int, width_mult: float) -> None:
    """See that the weights are those of a network, before it is made: what a file says of its size is just words.

    Args:
        name: of the network, a key of ``MODELS``.

    Raises:
        ValueError: they are not.
    """
    theirs = [part for part in _parts(tensors) if not part.is_norm]
    ours = weight_shapes(MODELS[name], input_shape(tensors), output_size, width_mult)
    if len(theirs) != len(ours):
        raise ValueError(f"it has {len(theirs)} convolutions, where {name} has {len(ours)}")
    for part, shape in zip(theirs, ours, strict=True):
        if part.weight_shape != shape:
            raise ValueError(f"its layer {part.name} is {tuple(part.weight_shape)}, {name}'s {tuple(shape)}")


@torch.no_grad()
def translate(
    model: nn.Module, tensors: Mapping[str, Tensor], tasks: Iterable[int]
) -> tuple[dict[str, Tensor], dict[int, dict[str, Tensor]]]:
    """What a checkpoint of the original code says for ``model``.

    Args:
        tensors: its ``state_dict``, names without the prefix ``module.``.
        tasks: those wanted.

    Returns:
        What tasks share, frozen weights included, for ``multitask.load_shared_state``; and for each task its state,
        for ``multitask.load_task_state``.

    Raises:
        ValueError: it is of another network, or holds what is no number.
    """
    layers, parts = list(_layers(model)), _parts(tensors)
    shared: dict[str, Tensor] = {}
    states: dict[int, dict[str, Tensor]] = {task: {} for task in tasks}
    for kind, what in ((CONVOLUTIONS, "convolutions"), (NORMS, "batch norms with statistics")):
        ours = [(name, layer) for name, layer in layers if isinstance(layer, kind)]
        theirs = [part for part in parts if part.is_norm == (kind is NORMS)]
        if len(theirs) != len(ours):
            raise ValueError(f"it has {len(theirs)} {what}, where {type(model).__name__} has {len(ours)}")
        pairs = [(name, layer, part) for (name, layer), part in zip(ours, theirs, strict=True)]
        swapped = _swapped(pairs)
        for name, layer, part in pairs:
            shared |= {f"{name}.{key}": value.float() for key, value in _shared(layer, part).items()}
            for task, state in states.items():
                state |= {f"{name}.{key}": value for key, value in _state(layer, part, task, swapped).items()}
            part.check_all_used(IDLE | {"weight"} if isinstance(layer, IndividualHeads) else IDLE)
    return shared, states


def _layers(model: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    """The layers that keep something, in their order.

    Raises:
        ValueError: one is of a kind that is not read.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, CONVOLUTIONS + NORMS):
            yield name, layer
        elif isinstance(layer, MultitaskModule):
            raise ValueError(f"what the original code keeps for {type(layer).__name__} cannot be read")


def _parts(tensors: Mapping[str, Tensor]) -> list[_Part]:
    """The tensors of each layer of the file, in the order of the layers."""
    parts: dict[str, _Part] = {}
    for name, value in tensors.items():
        match = NAME.fullmatch(name)
        if match is None:
            raise ValueError(f"its state_dict has {name[:80]}, which is of no layer that is known here")
        layer = match[1] or ""
        parts.setdefault(layer, _Part(layer)).tensors[match[2]] = value
    return [part for part in parts.values() if not set(map(_without_task, part.tensors)) <= IDLE]


def _without_task(name: str) -> str:
    return re.sub("[0-9]+", "#", name)


def _shared(layer: nn.Module, part: _Part) -> dict[str, Tensor]:
    """What tasks share of a layer."""
    if isinstance(layer, StandardBN):
        names = [name for name in layer.state_dict() if name != "num_batches_tracked"]
        return {name: _norm(part, name, layer.num_features) for name in names}
    if isinstance(layer, (MultitaskNonAffineBN, IndividualHeads)):
        return {}
    weight = cast(Tensor, layer.weight)
    return {"weight": part.take("weight", getattr(layer, "bare", weight.shape)).reshape(weight.shape)}


def _state(layer: nn.Module, part: _Part, task: int, swapped: bool) -> dict[str, Tensor]:
    """What a layer keeps for a task."""
    if isinstance(layer, Masked):
        shape = getattr(layer, "bare", layer.weight.shape)
        scores = part.take("scores" if isinstance(layer, MaskConv) else f"scores.{task}", shape)
        # In their own type: a small negative number is none any more in a smaller one.
        return {"mask": pack(layer.binarise(layer.magnitude(scores.reshape(layer.weight.shape))).flatten())}
    if isinstance(layer, IndividualHeads):
        return {"head": part.take(f"scores.{task}", layer.kept("head").shape[1:]).float()}
    if isinstance(layer, RankOneConv):
        names = {"scale_in": "t" if swapped else "s", "scale_out": "s" if swapped else "t"}
        return {ours: part.take(f"{name}.{task}", layer.kept(ours).shape[1:]).float() for ours, name in names.items()}
    if isinstance(layer, MultitaskNonAffineBN):
        names = {"mean": "running_mean", "variance": "running_var"}
        planes = layer.means.shape[1]
        return {ours: _norm(part, f"bns.{task}.{name}", planes).float() for ours, name in names.items()}
    return {}


def _norm(part: _Part, name: str, planes: int) -> Tensor:
    value = part.take(name, (planes,))
    if name.endswith("running_var") and value.min() < 0:
        raise ValueError(f"{name} of its layer {part.name} holds a variance below 0")
    return value


def _swapped(pairs: Iterable[tuple[str, nn.Module, _Part]]) -> bool:
    """Whether ``s`` is the factor of outputs and ``t`` that of inputs, as layers tell in which the two are not as many.

    If none tells, ``s`` is that of inputs.
    """
    for _, layer, part in pairs:
        if isinstance(layer, RankOneConv) and "s.0" in part.tensors and layer.weight.shape[0] != layer.weight.shape[1]:
            return part.tensors["s.0"].numel() == layer.weight.shape[0]
    return False
