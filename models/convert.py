"""Any network as one with masks: the weights of its layers frozen, and a mask over each for every task.

The layers themselves stay what they are, with their bias, stride, groups, dilation and padding: only where a layer
reads its weight it now finds the weight under the mask in use (``torch.nn.utils.parametrize``).
"""

import copy
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from models.init import initialise
from models.layers import LayerOptions
from models.masked import Masked, Threshold, TopK
from models.multitask import MultitaskModule, Rng
from models.norms import MultitaskNonAffineBN, normalise

MASKED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)  # whose ``weight`` is masked
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
AnyNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm
# Parameters of these stay as they are, frozen: they scale or look up, and have no weights to choose among.
FROZEN = (
    *(nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    *(nn.PReLU, nn.Embedding, nn.EmbeddingBag),
)


class MaskedParameter(Masked):
    """What a layer reads instead of its weight: the frozen weight under the mask in use.

    Inside, the weight (out, in, ...) is (out, in, height, width), whatever the layer's dimensions are.

    Args:
        weight: the layer's own, (out, in, ...); copied.
    """

    factored = False
    used_once = False  # who reads it may do with it what they like
    bare: torch.Size

    def __init__(self, weight: Tensor, options: LayerOptions):
        super().__init__((*weight.shape[:2], weight[0, 0].numel(), 1), options)
        self.bare = weight.shape
        self.weight.copy_(weight.detach().reshape(self.weight.shape))

    def forward(self, _: Tensor) -> Tensor:
        """The weight in use, in the layer's own shape."""
        return self.weight_in_use().reshape(*self.bare)


class ThresholdParameter(MaskedParameter, Threshold):
    """A weight under masks ``M = [S >= 0]``."""


class TopKParameter(MaskedParameter, TopK):
    """A weight under masks that keep the fraction ``k`` with the largest ``|S|``."""


MASKS: dict[str, type[MaskedParameter]] = {"threshold": ThresholdParameter, "top-k": TopKParameter}


class TaskNorm(MultitaskNonAffineBN):
    """Batch norm over (batch, planes, ...), with running statistics for each task; affine parameters are frozen.

    Args:
        norm: the batch norm in whose place it stands. Statistics of a new task start as its running ones are.
        statistics: whether tasks have running statistics; else the batch's are used, also in evaluation.
    """

    given_weight: Tensor | None
    given_bias: Tensor | None
    given_running_mean: Tensor | None
    given_running_var: Tensor | None

    def __init__(self, norm: AnyNorm, options: LayerOptions, statistics: bool = True):
        super().__init__(norm.num_features, options)
        self.eps, self.momentum = norm.eps, 0.1 if norm.momentum is None else norm.momentum
        self.statistics = statistics and norm.track_running_stats
        for name in ("weight", "bias", "running_mean", "running_var"):
            value = getattr(norm, name)
            self.register_buffer(f"given_{name}", None if value is None else value.detach().clone())

    @property
    def mixes_images(self) -> bool:
        return not self.statistics or super().mixes_images

    def forward(self, x: Tensor) -> Tensor:
        """x (batch, planes, ...), normalised."""
        planes = x.reshape(*x.shape[:2], -1, 1)
        if self.statistics:
            y = super().forward(planes).view_as(x)
        else:
            y = normalise(planes, self.eps, gather=self.gather if self.training else None).view_as(x)
        if self.given_weight is not None and self.given_bias is not None:
            shape = (-1, *[1] * (x.ndim - 2))
            y = y * self.given_weight.view(shape) + self.given_bias.view(shape)
        return y

    def begin_task(self, task: int, generator: torch.Generator) -> None:
        super().begin_task(task, generator)
        given = ((self.mean, self.given_running_mean), (self.variance, self.given_running_var))
        for own, running in given:
            if own is not None and running is not None:
                own.copy_(running)


def convert(
    model: nn.Module,
    rng: Rng,
    num_tasks: int = 1,
    *,
    masks: str = "threshold",
    sparsity: float = 0.5,
    er_sparsity: bool = False,
    init: str | None = "signed_constant",
    mode: str = "fan_in",
    nonlinearity: str = "relu",
    norms: str = "task",
) -> nn.Module:
    """A copy of ``model``, in float32, that learns a mask for each task over its frozen weights.

    Masked are the weights of ``nn.Linear``, ``nn.Conv1d``, ``nn.Conv2d``, ``nn.Conv3d`` and the projections of
    ``nn.MultiheadAttention``. Batch norms keep statistics for each task. Layer norms, embeddings and parameters of
    modules that hold other layers (class tokens, position embeddings) stay as they are. Nothing but masks is trained.

    Args:
        rng: a key to a generator; the weight of the n-th masked layer is drawn from ``rng("weight", n)``.
        num_tasks: for how many tasks there is room.
        masks: a key of ``MASKS``.
        sparsity, er_sparsity: of top-k masks; see ``LayerOptions``.
        init: how weights are drawn again, a key of ``INITIALISERS``, biases then being zero; None keeps weights and
            biases as they are, as for a network that was trained before.
        mode, nonlinearity: of the Kaiming initialisers.
        norms: ``task``, running statistics for each task; ``batch``, always those of the batch.

    Raises:
        ValueError: a layer has weights that cannot be masked, which the message names, or no layer has any that can.
    """
    _check(model)
    model, options, count = copy.deepcopy(model).float(), LayerOptions(num_tasks, sparsity, er_sparsity, rng), 0
    for module, name in list(_weights(model)):
        weight = getattr(module, name)
        masked = MASKS[masks](weight, options).to(weight.device)
        # A weight that no seed makes goes where all else goes that tasks share and no seed makes.
        masked.register_buffer("weight", masked.weight, persistent=init is None)
        if init is not None:
            initialise(masked.weight, init, rng("weight", count), mode, nonlinearity)
            for bias in _biases(module):
                nn.init.zeros_(bias)
        parametrize.register_parametrization(module, name, masked, unsafe=True)
        # The layer's own copy is not needed any more.
        masks_of = cast(nn.ModuleDict, module.parametrizations)
        masks_of[name].original = nn.Parameter(weight.new_empty(0))
        count += 1
    for parent in list(model.modules()):
        for key, norm in list(parent.named_children()):
            if isinstance(norm, NORMS):
                device = next((value.device for value in (*norm.parameters(), *norm.buffers())), None)
                setattr(parent, key, TaskNorm(norm, options, statistics=norms == "task").to(device))
    return model.requires_grad_(False)


def is_converted(model: nn.Module) -> bool:
    """Whether ``convert`` made the model."""
    return any(isinstance(module, MaskedParameter) for module in model.modules())


def _weights(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Every weight to be masked: the module that reads it, and its name there."""
    for module in model.modules():
        if isinstance(module, MASKED):
            yield module, "weight"
        elif isinstance(module, nn.MultiheadAttention):
            names = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
            yield from ((module, name) for name in names if getattr(module, name) is not None)


def _biases(module: nn.Module) -> list[Tensor]:
    names = ("bias", "in_proj_bias", "bias_k", "bias_v")
    return [bias for name in names if isinstance(bias := getattr(module, name, None), nn.Parameter)]


def _check(model: nn.Module) -> None:
    """See that every weight can be masked, or may stay as it is.

    Raises:
        ValueError: one cannot.
    """
    if isinstance(model, (*NORMS, *FROZEN)) or not any(True for _ in _weights(model)):
        raise ValueError(f"{type(model).__name__} has no Linear, Conv or attention layer, so nothing to mask")
    masked = (*MASKED, nn.MultiheadAttention, *NORMS, *FROZEN)
    for name, module in model.named_modules():
        what = f"the layer {name or 'itself'} ({type(module).__name__})"
        if isinstance(module, MultitaskModule):
            raise ValueError(f"{what} has a state for each task already")
        if any(isinstance(parameter, nn.UninitializedParameter) for parameter in module.parameters(recurse=False)):
            raise ValueError(f"{what} has no weights yet; run a batch through the network first")
        if parametrize.is_parametrized(module):
            raise ValueError(f"{what} is parametrised already, by {', '.join(module.parametrizations)}")
        if getattr(module, "track_running_stats", False) and not isinstance(module, NORMS):
            raise ValueError(f"{what} keeps running statistics that every task would change; let it keep none")
        own = [key for key, parameter in module.named_parameters(recurse=False) if parameter.ndim > 1]
        leaf = not any(True for _ in module.children())
        if own and leaf and not isinstance(module, masked):
            raise ValueError(
                f"{what} has weights of its own, {', '.join(own)}, for which there is no masked form; "
                "build it of nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d or nn.MultiheadAttention"
            )
