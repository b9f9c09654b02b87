"""Any network as one with masks: the weights of its layers frozen, and a mask over each for every task.

The layers themselves stay what they are, with their bias, stride, groups, dilation and padding: only where a layer
reads its weight it now finds the weight under the mask in use (``torch.nn.utils.parametrize``).
"""

import copy
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cache, partial
from types import MethodType
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from models.init import initialise
from models.layers import LayerOptions
from models.masked import Masked, Threshold, TopK, plain_name
from models.multitask import MultitaskModule, Rng, named, shared_state
from models.norms import MultitaskNonAffineBN, normalise

MASKED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)  # whose ``weight`` is masked
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
AnyNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm
FORWARDS = {norm.forward for norm in NORMS}
# Parameters of these stay as they are, frozen: they scale or look up, and have no weights to choose among.
FROZEN = (
    *(nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    *(nn.PReLU, nn.Embedding, nn.EmbeddingBag),
)
# Weights of these, of any shape, would need a mask, and have no masked form.
UNMASKED = (
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.Bilinear, nn.RNNBase, nn.RNNCellBase),
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

    To the network it is the batch norm that it was (see ``_as_well``), with what that was told; its running statistics
    are those of the task in use. With a momentum of None they are the means over the task's batches.

    Args:
        norm: the batch norm in whose place it stands. Statistics of a new task start as its running ones are.
        statistics: whether tasks have running statistics; else the batch's are used, also in evaluation.
    """

    given_weight: Tensor | None
    given_bias: Tensor | None
    given_running_mean: Tensor | None
    given_running_var: Tensor | None
    num_batches_tracked: Tensor | None  # of the task in training, where all its batches count alike

    def __init__(self, norm: AnyNorm, options: LayerOptions, statistics: bool = True):
        super().__init__(norm.num_features, options)
        own = vars(self)
        own.update({name: value for name, value in vars(norm).items() if name not in own})
        self.statistics = statistics and norm.track_running_stats
        self.register_buffer("num_batches_tracked", None, persistent=False)
        for name in ("weight", "bias", "running_mean", "running_var"):
            value = getattr(norm, name)
            self.register_buffer(f"given_{name}", None if value is None else value.detach().clone())
        of_passes = ("_forward_", "_backward_")  # the user's hooks go where the norm goes
        hooks = {name: value for name, value in vars(norm).items() if name.startswith(of_passes)}
        own.update(hooks, _is_full_backward_hook=norm._is_full_backward_hook, training=norm.training)
        self.__class__ = _as_well(type(norm))  # type: ignore[arg-type]  # a class can be hashed

    _version = nn.Module._version  # its ``state_dict`` is no batch norm's
    _load_from_state_dict = nn.Module._load_from_state_dict

    @property
    def weight(self) -> Tensor | None:
        """The scale, frozen; None for none."""
        return self.given_weight

    @property
    def bias(self) -> Tensor | None:
        """The shift, frozen; None for none."""
        return self.given_bias

    @property
    def running_mean(self) -> Tensor | None:
        """Of the task in use; None where the batch's own is used."""
        return self.mean if self.statistics else None

    @property
    def running_var(self) -> Tensor | None:
        """As ``running_mean``."""
        return self.variance if self.statistics else None

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
        shape = (-1, *[1] * (x.ndim - 2))
        if self.given_weight is not None:
            y = y * self.given_weight.view(shape)
        return y if self.given_bias is None else y + self.given_bias.view(shape)

    def begin_task(self, task: int, generator: torch.Generator) -> None:
        super().begin_task(task, generator)
        given = ((self.mean, self.given_running_mean), (self.variance, self.given_running_var))
        for own, running in given:
            if own is not None and running is not None:
                own.copy_(running)
        self.num_batches_tracked = None
        if self.momentum is None:
            self.num_batches_tracked = torch.zeros((), dtype=torch.int64, device=self.means.device)

    def task_buffers(self) -> dict[str, Tensor]:
        kept, batches = super().task_buffers(), self.num_batches_tracked
        return kept | {"num_batches_tracked": batches} if kept and batches is not None else kept

    def learn_from(self, x: Tensor) -> Tensor:
        if self.num_batches_tracked is None or self.mean is None or self.variance is None:
            return super().learn_from(x)
        latest = self.mean.clone(), self.variance.clone()
        y = normalise(x, self.eps, *latest, momentum=1.0, gather=self.gather)
        self.num_batches_tracked.add_(1)
        for running, own in zip((self.mean, self.variance), latest, strict=True):
            running.add_((own - running) / self.num_batches_tracked)
        return y


@cache
def _as_well(kind: type[AnyNorm]) -> type[TaskNorm]:
    """``TaskNorm`` as a batch norm of a kind too, which a network may ask of its layers and tell them as such."""
    return cast(type[TaskNorm], type(kind.__name__, (TaskNorm, kind), {"__module__": __name__}))


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
    modules that hold other layers (class tokens, position embeddings) stay as they are; rows longer than an embedding's
    ``max_norm`` are shortened to it. Nothing but masks is trained.
    Layers that share a weight get a mask each; a layer that stands in several places has one. Each batch is copied
    before it goes through, so that a network may change it in place. A warning names weights of a user's own modules
    that stay without a mask.

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
    if plain := _unmasked(model):
        warnings.warn(f"these weights stay as they are, without a mask: {', '.join(plain)}", stacklevel=2)
    model = copied(model).float()
    _settle(model)
    options, count = LayerOptions(num_tasks, sparsity, er_sparsity, rng), 0
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
    _give_tasks_norms(model, options, norms == "task")
    model.register_forward_pre_hook(_copies, prepend=True)
    return model.requires_grad_(False)


@torch.no_grad()
def _settle(model: nn.Module) -> None:
    """Do at once, in place, what would change or hinder a network later.

    Rows that an embedding would scale to its ``max_norm`` when it looks them up are scaled. Numbers that share a place,
    as ``expand`` makes them, get one each, for a file is loaded into them.
    """
    for module in model.modules():
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None:
            rows = torch.arange(module.num_embeddings, device=module.weight.device)
            F.embedding(rows, module.weight, max_norm=module.max_norm, norm_type=module.norm_type)
            module.max_norm = None
        for value in _kept(module).values():
            if 0 in value.stride():
                value.data = value.data.clone()


def _copies(_: nn.Module, inputs: tuple[object, ...]) -> tuple[object, ...]:
    """A batch that the network may write into, as it does if it scales its images in place: several tasks answer the
    same one, and it is the caller's."""
    return tuple(x.clone() if isinstance(x, Tensor) else x for x in inputs)


def copied(model: nn.Module) -> nn.Module:
    """A copy of a network.

    Raises:
        ValueError: it keeps what cannot be copied.
    """
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:  # as of a tensor that is part of a graph, a lock, an open file
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{type(model).__name__} cannot be copied: {said}") from error


def _give_tasks_norms(model: nn.Module, options: LayerOptions, statistics: bool) -> None:
    """Make each batch norm a ``TaskNorm``, in place, so that a list or a function that holds it holds that.

    Where another module holds it too it finds a ``TaskNorm`` of its own.
    """
    held = [
        (parent, key, norm)
        for parent in model.modules()
        for key, norm in parent._modules.items()  # ``named_children`` gives a module once
        if isinstance(norm, NORMS)
    ]
    instead: dict[tuple[nn.Module, nn.Module], TaskNorm] = {}
    for parent, _, norm in held:
        device = next((value.device for value in (*norm.parameters(), *norm.buffers())), None)
        instead[parent, norm] = TaskNorm(norm, options, statistics=statistics).to(device)
    first: dict[nn.Module, nn.Module] = {}
    for parent, key, norm in held:
        if first.setdefault(norm, parent) is not parent:
            parent._modules[key] = instead[parent, norm]
    for given, parent in first.items():
        made = instead[parent, given]
        given.__class__, given.__dict__ = type(made), vars(made)


class Kept:
    """What the user's own modules keep, parameters and buffers, which training must not change for all tasks.

    Buffers that no ``state_dict`` has are caches, and may change; so may those that were None.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.before = _clones(self._now())

    def _now(self) -> dict[tuple[nn.Module, str], Tensor]:
        return {
            (module, key): value.detach()
            for module in self.model.modules()
            if not isinstance(module, (MultitaskModule, *NORMS))
            for key, value in _kept(module).items()
            if not is_lazy(value) and value.layout == torch.strided
        }

    def _changed(self, now: Mapping[tuple[nn.Module, str], Tensor]) -> list[tuple[nn.Module, str]]:
        return [place for place in self.before if place in now and not _same_bits(now[place], self.before[place])]

    @torch.no_grad()
    def _set(self, places: Iterable[tuple[nn.Module, str]], values: Mapping[tuple[nn.Module, str], Tensor]) -> None:
        for module, key in places:
            if key in module._parameters:
                module.get_parameter(key).copy_(values[module, key])
            else:
                setattr(module, key, values[module, key].clone())

    def put_back(self) -> None:
        """Make all of it what it was."""
        self._set(self._changed(self._now()), self.before)

    @torch.no_grad()
    def check(self, answer: Callable[[], Tensor]) -> None:
        """See that nothing depends on what has changed; it stays as it is now.

        Args:
            answer: what the model answers to some images; where it draws, from torch's own generator.

        Raises:
            ValueError: it answers otherwise with what they were.
        """
        if not (changed := self._changed(self._now())):
            return
        now, answers = _clones(self._now()), []
        for values in (self.before, now):
            self._set(changed, values)
            torch.manual_seed(0)
            answers.append(answer())
        self._set(self.before.keys() & now.keys(), now)
        if not _same_bits(*answers):
            names = {module: name for name, module in self.model.named_modules()}
            module, key = changed[0]
            name = f"{names[module]}.{key}".lstrip(".")
            raise ValueError(
                f"the network's own {name} changes in training, and with it the answers of learned tasks; keep it fixed"
            )


def _clones(values: Mapping[tuple[nn.Module, str], Tensor]) -> dict[tuple[nn.Module, str], Tensor]:
    return {place: value.clone() for place, value in values.items()}


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(*(value.contiguous().flatten().view(torch.uint8) for value in (a, b)))


def given_state(model: nn.Module) -> dict[str, Tensor]:
    """What tasks share, by name (``multitask.shared_state``); buffers of the user's own modules, which change when the
    network answers, are copied."""
    changing = {
        f"{name}.{key}".lstrip(".")
        for name, module in model.named_modules(remove_duplicate=False)
        if not isinstance(module, MultitaskModule)
        for key, _ in module.named_buffers(recurse=False)
    }
    return {name: value.clone() if name in changing else value for name, value in shared_state(model).items()}


def is_converted(model: nn.Module) -> bool:
    """Whether ``convert`` made the model."""
    return any(isinstance(module, MaskedParameter) for module in model.modules())


def unreached(model: nn.Module) -> set[str]:
    """The weights whose masks, in training, had no gradient from the last batch, by name."""
    return {
        plain_name(name)
        for name, masked in named(model, MaskedParameter)
        if any(scores.grad is None for scores in masked.task_parameters().values())
    }


def _weights(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Every weight to be masked: the module that reads it, and its name there."""
    return ((module, name) for module in model.modules() for name in _masked_in(module))


def _masked_in(module: nn.Module) -> list[str]:
    """The names of the weights of a module that are masked."""
    if isinstance(module, MASKED):
        return ["weight"]
    if isinstance(module, nn.MultiheadAttention):
        names = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
        return [name for name in names if getattr(module, name) is not None]
    return []


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
    masked = {
        parameter: name
        for name, module in model.named_modules()
        for key, parameter in module.named_parameters(recurse=False)
        if key in _masked_in(module)
    }
    known = {*model.modules(), *model.parameters()}
    for name, module in model.named_modules():
        if why := _why_not(module, masked) or _hides(module, known):
            raise ValueError(f"the layer {name or 'itself'} ({type(module).__name__}) {why}")


def _hides(module: nn.Module, known: Collection[object]) -> str | None:
    """What a module keeps where torch does not look for it, and cannot keep there; None if there is nothing."""
    for key, value in vars(module).items():
        for one in _held(value):
            if isinstance(one, MethodType) and one.__func__ in FORWARDS:
                return f"keeps the forward of a batch norm as its {key}; let it keep the norm itself"
            weights = one.parameters() if isinstance(one, nn.Module) else [one] if isinstance(one, nn.Parameter) else []
            if any(weight.requires_grad and weight not in known for weight in weights):
                return f"has weights in a {type(value).__name__}, {key}, where no network has layers; say nn.ModuleList"
    return None


def _held(value: object) -> Iterable[object]:
    """What an attribute holds that may be, or lead to, a layer."""
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, partial):
        return value.func, *value.args, *value.keywords.values()
    return value if isinstance(value, (list, tuple)) else (value,) if isinstance(value, MethodType) else ()


def _why_not(module: nn.Module, masked: Mapping[Tensor, str]) -> str | None:
    """What keeps a module from being one with masks; None if nothing does.

    Args:
        masked: the weights of the network that are masked, and whose they are.
    """
    own = {key: parameter for key, parameter in module._parameters.items() if parameter is not None}
    if isinstance(module, MultitaskModule):
        return "has a state for each task already"
    if any(map(is_lazy, _kept(module).values())):
        return "has no weights yet; run a batch through the network first"
    if any(value.is_meta for value in _kept(module).values()):
        return "lies on the device meta, where it has no numbers; give it some first"
    if sparse := [key for key, value in _kept(module).items() if value.layout != torch.strided]:
        return f"has a sparse {sparse[0]}, which no file takes; make it dense, or a buffer with persistent=False"
    if parametrize.is_parametrized(module):
        return f"is parametrised already, by {', '.join(cast(nn.ModuleDict, module.parametrizations))}"
    for key in _masked_in(module):
        if (weight := own.get(key)) is None:
            return f"has a {key} that is no parameter, as with weight_norm and pruning; take that off first"
        if weight.is_complex() or not weight.numel():
            return f"has a {key} that is {'complex' if weight.is_complex() else 'empty'}, so nothing to mask"
    if isinstance(module, NORMS):
        as_torch = type(module).forward in FORWARDS and "forward" not in vars(module)
        return None if as_torch else "is a batch norm with a forward of its own; put what it adds into another module"
    if getattr(module, "track_running_stats", False):
        return "keeps running statistics that every task would change; let it keep none"
    if isinstance(module, FROZEN):
        return None
    left = {key: value for key, value in own.items() if key not in _masked_in(module) and _chooses(value)}
    if isinstance(module, UNMASKED):
        left |= {key: value for key, value in own.items() if value.ndim > 1 and value.requires_grad}
    if shared := [key for key, parameter in left.items() if parameter in masked]:
        return f"has the weight of the layer {masked[left[shared[0]]]} as its own {shared[0]}, which would have no mask"
    if left and not any(True for _ in module.children()) and not isinstance(module, (*MASKED, nn.MultiheadAttention)):
        return (
            f"has weights of its own, {', '.join(left)}, for which there is no masked form; "
            "build it of nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d or nn.MultiheadAttention, or register as a buffer "
            "what should stay as it is"
        )
    return None


def _kept(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a module's own that its ``state_dict`` has, by name."""
    kept = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    return {key: value for key, value in kept if key not in module._non_persistent_buffers_set}


def _chooses(parameter: Tensor) -> bool:
    """Whether a parameter is a matrix of weights; not one that is added or scales, with one value along its first axis
    or along all others."""
    return parameter.ndim > 1 and len(parameter) > 1 and parameter[0].numel() > 1


def _unmasked(model: nn.Module) -> list[str]:
    """The matrices that stay without a mask, of modules that hold no layers with weights, or that are layers too."""
    return [
        f"{name}.{key}".lstrip(".")
        for name, module in model.named_modules()
        if not isinstance(module, FROZEN)
        and (isinstance(module, MASKED) or not any(True for child in module.children() for _ in child.parameters()))
        for key, parameter in module.named_parameters(recurse=False)
        if key not in _masked_in(module) and _chooses(parameter)
    ]
