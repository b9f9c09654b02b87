"""Layers with a state for each task, and the functions that walk a model to set it.

A layer keeps, for every learned task, what the task needs (a mask: one bit a weight) and at any time is in one of
three modes, set for the whole model by the functions below:

- training a task, between ``begin_task`` and ``end_task``;
- a learned task selected, ``select_task``: the layer's weights are the task's;
- superposed, ``superpose``: the layer's weights are a weighted sum over tasks (paper, equation 2).

No other module walks a model for any of this.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from models.masks import coarse_products_pay, tiles

SCREENED = 1000  # masks from which on a coarse product before the exact one saves time, about
SCREENED_LOSSES = 2048  # that are screened together
Rng = Callable[..., torch.Generator]  # a key, such as ("scores", layer, task), to the generator for it


class MultitaskModule(nn.Module, ABC):
    """A layer with a state for each of ``num_tasks`` tasks.

    What is kept for the tasks lies in buffers that are no part of the layer's ``state_dict``: ``task_state`` gives it.
    """

    num_tasks: int
    trains = True  # whether a task has parameters of its own here
    takes_stacks = False  # whether it computes (tasks, batch, ...) at once with what ``stacked`` gives
    per_task: tuple[str, ...] = ()  # the names of the buffers that have a row for each task

    @abstractmethod
    def begin_task(self, task: int, generator: torch.Generator) -> None:
        """Start to train ``task`` from a fresh state drawn from ``generator``."""

    @abstractmethod
    def end_task(self) -> None:
        """Keep what the task in training has learned, free what only training needs, and select the task."""

    @abstractmethod
    def select_task(self, task: int) -> None:
        """Compute as ``task`` does."""

    @abstractmethod
    def task_parameters(self) -> dict[str, nn.Parameter]:
        """What the task in training trains, by name; empty when none is in training."""

    def task_buffers(self) -> dict[str, Tensor]:
        """What else the task in training keeps, by name: buffers that the forward pass writes to."""
        return {}

    def stacked(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the layer computes with, by name, for the stacked ``state`` of several tasks in training.

        What can be made for all of them together is; here, that is nothing.
        """
        return state

    def superpose(self, tasks: Sequence[int], alphas: Tensor) -> None:
        """Compute as the superposition ``Σ_i alphas_i`` of ``tasks`` does, alphas (k,), in layers that can."""
        raise ValueError(f"{type(self).__name__} cannot be superposed")

    @abstractmethod
    def task_state(self, task: int) -> dict[str, Tensor]:
        """Everything kept for ``task``, by name: what a checkpoint stores."""

    @abstractmethod
    def load_task_state(self, task: int, state: dict[str, Tensor]) -> None:
        """The inverse of ``task_state``.

        Raises:
            ValueError: a tensor has another shape or type than this layer's.
        """

    def make_room(self, num_tasks: int) -> None:
        """Have room for ``num_tasks`` tasks, if there is less."""
        if num_tasks > self.num_tasks:
            for name in self.per_task:
                kept = getattr(self, name)
                more = kept.new_empty(num_tasks, *kept.shape[1:])
                more[: len(kept)] = kept
                setattr(self, name, more)
            self.num_tasks = num_tasks

    def check_task(self, task: int) -> int:
        """``task`` itself, if the layer has it.

        Raises:
            IndexError: it is not in ``range(num_tasks)``.
        """
        if not 0 <= task < self.num_tasks:
            raise IndexError(f"task {task} is not in 0 ... {self.num_tasks - 1}")
        return task


class SuperposedModule(MultitaskModule):
    """A multitask layer whose weight is ``W_i = W ⊙ M^i``, so that weights of several tasks can be superposed.

    Attributes:
        effective: the superposed weight while tasks are superposed; else a layer may keep the selected task's there,
            or None.
        probe: zeros that are added to the output, or None; the gradient with respect to them is that with respect to
            the output.
        seen: the input of the last forward pass with a probe.
        masked: whether the ``M^i`` are masks; else they are real matrices, none of whose weights is dropped.
        factored: whether ``∂L/∂W_eff`` is taken as two factors, what the layer saw and the gradient of what it gave,
            by probes; else it is taken whole, which needs no more of a layer than that it reads its weight.
    """

    masked = True
    factored = True
    weight: Tensor
    stride: int
    padding: int
    effective: Tensor | None
    probe: Tensor | None
    seen: Tensor | None

    def register_superposed(self) -> None:
        """Make room for what a superposition needs; a layer calls this when it is made."""
        self.register_buffer("effective", None, persistent=False)
        self.register_buffer("probe", None, persistent=False)
        self.seen = None

    def probed(self, x: Tensor, y: Tensor) -> Tensor:
        """The output ``y`` of an input ``x``, both noted if there is a probe; a layer ends its forward pass with it."""
        if self.probe is None:
            return y
        self.seen = x
        return y + self.probe

    @abstractmethod
    def superposition(self, tasks: Sequence[int], alphas: Tensor) -> Tensor:
        """``Σ_i alphas_i W_i`` over ``tasks``: alphas (..., k) to weights (..., *weight shape)."""

    @abstractmethod
    def coefficient_gradients(
        self, tasks: Sequence[int], inputs: Tensor, output_gradients: Tensor, coarse: bool = False
    ) -> Tensor:
        """``∂L/∂alpha_i = ⟨∂L/∂W_eff, W_i⟩`` of ``b`` losses: (b, k).

        ``∂L/∂W_eff`` is the product of two factors, which are all that is needed of it.

        Args:
            inputs: what each place of the output saw, (b, places, n / out), for a weight of ``n`` numbers.
            output_gradients: ``∂L/∂output``, (b, places, out).
            coarse: whether the numbers of ``∂L/∂W_eff ⊙ W`` may be rounded to bf16, where that is faster.
        """

    def whole_coefficient_gradients(self, tasks: Sequence[int], gradients: Tensor, coarse: bool = False) -> Tensor:
        """``coefficient_gradients`` of a layer that is not ``factored``, from ``∂L/∂W_eff`` (b, *weight shape)."""
        raise ValueError(f"{type(self).__name__} takes the gradient of its weight in factors")

    def superpose(self, tasks: Sequence[int], alphas: Tensor) -> None:
        self.effective = self.superposition(tasks, alphas)


class BatchModule(nn.Module):
    """A layer of which what an image gives may depend on the other images of its batch: a batch norm.

    While tasks are superposed it has statistics of nothing but the batch, so it goes by those.

    Attributes:
        superposed: whether tasks are superposed.
    """

    superposed = False

    @property
    def mixes_images(self) -> bool:
        """Whether in evaluation, as the layer is set now, it computes with the batch's own statistics."""
        return self.superposed


class RecoveringModule(MultitaskModule):
    """A multitask layer that can recover a task's mask from a memory whose size does not grow with the tasks."""

    @abstractmethod
    def memory(self) -> dict[str, Tensor]:
        """All that recovery knows of the learned tasks, by name."""

    @abstractmethod
    def begin_recovery(self) -> nn.Parameter:
        """Compute with a mask made of scores that start from what all tasks have in common; returns the scores."""

    @abstractmethod
    def end_recovery(self) -> None:
        """Compute with the recovered mask from now on."""

    @abstractmethod
    def energy(self) -> Tensor:
        """How little the mask in use looks like one that is stored: a scalar with a gradient."""

    @abstractmethod
    def hamming_distance(self, task: int) -> int:
        """In how many places the mask in use differs from that of ``task``."""


def _named(model: nn.Module, kind: type) -> Iterator[tuple[str, nn.Module]]:
    return ((name, module) for name, module in model.named_modules() if isinstance(module, kind))


def _masked(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((name, module) for name, module in _named(model, SuperposedModule) if module.masked)


def make_room(model: nn.Module, num_tasks: int) -> None:
    """Have room for ``num_tasks`` tasks in every layer; learned ones stay as they are."""
    for _, module in _named(model, MultitaskModule):
        module.make_room(num_tasks)


def begin_task(model: nn.Module, task: int, rng: Rng) -> None:
    """Start to train ``task`` in every layer; each draws from ``rng("scores", its name, task)`` alone."""
    _set_superposed(model, False)
    for name, module in _named(model, MultitaskModule):
        module.begin_task(task, rng("scores", name, task))


def end_task(model: nn.Module) -> None:
    """Keep the task in training as learned, in every layer."""
    for _, module in _named(model, MultitaskModule):
        module.end_task()


def training_state(model: nn.Module) -> dict[str, Tensor]:
    """All that the task in training has of its own, ``{layer.name: tensor}``: parameters and buffers."""
    buffers = {
        f"{name}.{key}": buffer
        for name, module in _named(model, MultitaskModule)
        for key, buffer in module.task_buffers().items()
    }
    return task_parameters(model) | buffers


@torch.no_grad()
def load_training_state(model: nn.Module, state: dict[str, Tensor], places: dict[str, Tensor] | None = None) -> None:
    """The inverse of ``training_state``, for the task in training; or of a stacked state, whose tensors are ``places``.

    Raises:
        KeyError, ValueError: the state is not one of this network's.
    """
    places = training_state(model) if places is None else places
    for name, place in places.items():
        if state[name].shape != place.shape:
            raise ValueError(f"{name} is {tuple(place.shape)} here, not {tuple(state[name].shape)}")
        place.copy_(state[name])


def begin_tasks(model: nn.Module, tasks: Sequence[int], rng: Rng) -> dict[str, Tensor]:
    """Start to train several tasks at once, each from the state that it would start from alone.

    Returns:
        Their ``training_state``, stacked: (tasks, *shape), what is trained as parameters. The model itself is left
        with the last task in training.
    """
    states = []
    for task in tasks:
        begin_task(model, task, rng)
        states.append({name: value.detach().clone() for name, value in training_state(model).items()})
    trained = task_parameters(model)
    stacked = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    return {name: nn.Parameter(value) if name in trained else value for name, value in stacked.items()}


def call_tasks(model: nn.Module, state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The network of every task of a stacked ``state`` on its own images.

    Args:
        state: as ``begin_tasks`` gives it; a task of the model is in training.
        x: (tasks, batch, channels, height, width).

    Returns:
        Logits (tasks, batch, outputs).
    """
    used = _stacked(model, state)

    def call(used: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, used, (x,))

    layers = [model, *(module for _, module in _named(model, MultitaskModule))]
    return call(used, x) if all(getattr(layer, "takes_stacks", False) for layer in layers) else vmap(call)(used, x)


def _stacked(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the layers compute with for a stacked ``state``, (tasks, ...), by the names of the model's tensors."""
    used = {}
    for name, module in _named(model, MultitaskModule):
        own = {key: state[f"{name}.{key}"] for key in (*module.task_parameters(), *module.task_buffers())}
        used |= {f"{name}.{key}": value for key, value in module.stacked(own).items()}
    return used


@torch.no_grad()
def tasks_to_test(model: nn.Module, state: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
    """``call_tasks`` for the ``state`` as it is now, in evaluation: each task answers as it will when it is selected.

    To the bit on a processor, where one product for all tasks sums in another order than a task's own, and a factor
    that begins somewhere in the middle of a stack is summed from another place on than one that lies by itself.
    """
    if next(iter(state.values())).device.type != "cpu":
        return partial(call_tasks, model, state)
    used = _stacked(model, state)
    tasks = len(next(iter(used.values())))
    alone = [{name: values[place].clone() for name, values in used.items()} for place in range(tasks)]

    def call(x: Tensor) -> Tensor:
        parts = zip(alone, x, strict=True)
        return torch.stack([functional_call(model, own, (images.clone(),)) for own, images in parts])

    return call


def end_one_of_tasks(model: nn.Module, task: int, rng: Rng, state: dict[str, Tensor], place: int) -> None:
    """Keep ``task``, the one at ``place`` of a stacked ``state``, as learned, in every layer."""
    begin_task(model, task, rng)
    load_training_state(model, {name: value[place] for name, value in state.items()})
    end_task(model)


def select_task(model: nn.Module, task: int) -> None:
    """Compute as the learned ``task`` does, in every layer.

    Raises:
        IndexError: no such task.
    """
    _set_superposed(model, False)
    for _, module in _named(model, MultitaskModule):
        module.select_task(task)


def _set_superposed(model: nn.Module, superposed: bool) -> None:
    for _, module in _named(model, BatchModule):
        module.superposed = superposed


def has_batch_norm(model: nn.Module) -> bool:
    """Whether what an image gives depends on the others of its batch when the model is superposed."""
    return any(True for _ in _named(model, BatchModule))


def mixes_images(model: nn.Module) -> bool:
    """Whether, as the model is set now, what an image gives in evaluation depends on the others of its batch."""
    return any(module.mixes_images for _, module in _named(model, BatchModule))


def superposition(model: nn.Module, tasks: Sequence[int], alphas: Tensor) -> dict[str, Tensor]:
    """The superposed weight of every layer that has one, under the name ``torch.func.functional_call`` replaces.

    Args:
        alphas: coefficients (k,) for ``tasks``, or (b, k) for ``b`` superpositions at once.
    """
    return {
        f"{name}.effective": module.superposition(tasks, alphas) for name, module in _named(model, SuperposedModule)
    }


def superpose(model: nn.Module, tasks: Sequence[int], alphas: Tensor) -> dict[str, Tensor]:
    """Compute with the weights ``Σ_i alphas_i W_i``, alphas (k,), in every layer (paper, equation 2).

    Returns:
        These weights, under the names of ``superposition``.

    Raises:
        ValueError: the model has no layer that can be superposed, or one that has a state for each task and cannot.
    """
    if not can_superpose(model):
        raise ValueError("a model is superposed through layers that have a mask for each task; this one has others")
    _set_superposed(model, True)
    for _, module in _named(model, MultitaskModule):
        module.superpose(tasks, alphas)
    return {f"{name}.effective": module.effective for name, module in _named(model, SuperposedModule)}


@contextmanager
def probes(model: nn.Module, x: Tensor) -> Iterator[dict[str, Tensor]]:
    """Put probes on the layers of a superposed model, and take them off again.

    Args:
        x: images (batch, channels, height, width) as they will be, for the shapes of the outputs.

    Yields:
        The probes, zeros of the outputs' shapes (batch, out, height', width'), under the names that
        ``torch.func.functional_call`` replaces.
    """
    layers = dict(_named(model, SuperposedModule))
    shapes = {}
    hooks = [
        layer.register_forward_hook(lambda _layer, _inputs, output, name=name: shapes.update({name: output.shape}))
        for name, layer in layers.items()
    ]
    try:
        with torch.no_grad():
            model(x)
        for name, layer in layers.items():
            layer.probe = x.new_zeros(shapes[name])
        yield {f"{name}.probe": layer.probe for name, layer in layers.items()}
    finally:
        for hook in hooks:
            hook.remove()
        for layer in layers.values():
            layer.probe = layer.seen = None


def probed_size(model: nn.Module) -> int:
    """How many numbers a batch of the probes' shape takes: inputs, outputs and gradients of the layers."""
    total = 0
    for _, module in _named(model, SuperposedModule):
        outputs = module.weight.shape[0]
        total += module.probe.numel() // outputs * (module.weight.numel() // outputs + 3 * outputs)
    return total


def seen(model: nn.Module) -> dict[str, Tensor]:
    """The inputs of the layers with probes in the last forward pass, under the names of their probes."""
    return {f"{name}.probe": module.seen for name, module in _named(model, SuperposedModule)}


def coefficient_gradients(
    model: nn.Module,
    tasks: Sequence[int],
    inputs: dict[str, Tensor],
    output_gradients: dict[str, Tensor],
    coarse: bool = False,
) -> Tensor:
    """``∂L/∂alphas`` of ``b`` losses from what the layers saw and ``∂L/∂outputs``, summed over the layers.

    Args:
        inputs: by the names of the probes, as ``seen``: (b, images, in, height, width).
        output_gradients: by the same names: (b, images, out, height', width').
        coarse: whether products may be rounded to bf16, where that is faster; ``smallest_derivatives`` has the bound.

    Returns:
        Derivatives (b, k): of each loss with respect to the coefficient of each of ``tasks``.
    """
    factors = _factors(model, inputs, output_gradients)
    return sum(layer.coefficient_gradients(tasks, x, gradient, coarse) for layer, x, gradient in factors)


def whole_coefficient_gradients(model: nn.Module, tasks: Sequence[int], gradients: dict[str, Tensor]) -> Tensor:
    """``∂L/∂alphas`` of ``b`` losses from ``∂L/∂W_eff`` of every layer, by the names of ``superpose``: (b, k)."""
    layers = dict(_named(model, SuperposedModule))
    return sum(
        layers[name.removesuffix(".effective")].whole_coefficient_gradients(tasks, gradient)
        for name, gradient in gradients.items()
    )


def smallest_derivatives(
    model: nn.Module, tasks: Sequence[int], inputs: dict[str, Tensor], output_gradients: dict[str, Tensor]
) -> Tensor:
    """Which of ``tasks`` has the smallest ``∂L/∂alpha_i``, for each of ``b`` losses: its index, int64 (b,).

    The same as ``coefficient_gradients(...).argmin(1)``. Where products of bf16 matrices are much faster and there are
    many masks, they come first, and float32 decides only for the losses that they leave in doubt.

    With ``P`` the numbers of ``∂L/∂W_eff ⊙ W``, rounding moves the difference of two masks' derivatives
    ``Σ (M^i - M^j) P`` by ``2⁻⁸ Σ|P|`` at the most. Sums in float32 are off by ``m 2⁻²⁴ Σ|P|`` at the most, for a chain
    of ``m`` additions; there are four of them, two masks' coarse ones and exact ones, and ``m`` is below ``2¹³``. So
    what leads by ``1.5 · 2⁻⁸ Σ|P|`` leads in float32. Beside that, bf16 units flush what is below ``2⁻¹²⁶`` to zero.
    """
    losses, device = len(next(iter(inputs.values()))), next(iter(inputs.values())).device
    best = torch.empty(losses, dtype=torch.int64, device=device)
    coarse = len(tasks) >= SCREENED and coarse_products_pay(device)
    for some in tiles(losses, SCREENED_LOSSES):
        x, gradients = ({name: value[some] for name, value in part.items()} for part in (inputs, output_gradients))
        derivatives = coefficient_gradients(model, tasks, x, gradients, coarse)
        best[some] = derivatives.argmin(dim=1)
        if coarse:
            first, second = derivatives.topk(2, dim=1, largest=False).values.unbind(1)
            bound = 1.5 * 2**-8 * _products_size(model, x, gradients) + 1e-30
            doubt = ~(second - first > bound)  # also where one is no number
            if doubt.any():
                x, gradients = ({name: value[doubt] for name, value in part.items()} for part in (x, gradients))
                best[some][doubt] = coefficient_gradients(model, tasks, x, gradients).argmin(dim=1)
            coarse = doubt.sum() < len(doubt) / 2  # masks that explain little of the data are in doubt: it does not pay
    return best


def _products_size(model: nn.Module, inputs: dict[str, Tensor], output_gradients: dict[str, Tensor]) -> Tensor:
    """``Σ|∂L/∂W_eff ⊙ W|`` of ``b`` losses or a little more (several places may cancel): (b,)."""
    total = 0
    for layer, x, gradient in _factors(model, inputs, output_gradients):
        total = total + (gradient.abs() * (x.abs() @ layer.weight.abs().flatten(1).T)).sum((1, 2))
    return total


def _factors(
    model: nn.Module, inputs: dict[str, Tensor], output_gradients: dict[str, Tensor]
) -> Iterator[tuple[SuperposedModule, Tensor, Tensor]]:
    """Every layer that can be superposed, with the factors of its ``∂L/∂W_eff`` as the layer takes them."""
    for name, layer in _named(model, SuperposedModule):
        patches = _patches(inputs[f"{name}.probe"], layer.weight.shape[-1], layer.stride, layer.padding)
        yield layer, patches, output_gradients[f"{name}.probe"].flatten(3).mT.flatten(1, 2)


def _patches(x: Tensor, kernel_size: int, stride: int, padding: int) -> Tensor:
    """What each place of a convolution's output sees: x (b, images, in, h, w) to (b, places, in * kernel_size²)."""
    if kernel_size == 1:  # a padding of half of it is none
        return x[..., ::stride, ::stride].flatten(3).mT.flatten(1, 2)
    patches = F.unfold(x.flatten(0, 1), kernel_size, padding=padding, stride=stride)  # (b * images, in * k², h' w')
    return patches.unflatten(0, x.shape[:2]).mT.flatten(1, 2)


def recovery_memory(model: nn.Module) -> dict[str, Tensor]:
    """All that recovery knows of the learned tasks, ``{layer.name: tensor}``."""
    return {
        f"{name}.{key}": value
        for name, module in _named(model, RecoveringModule)
        for key, value in module.memory().items()
    }


def begin_recovery(model: nn.Module) -> list[nn.Parameter]:
    """Start to recover a mask in every layer that can; returns the scores."""
    return [module.begin_recovery() for _, module in _named(model, RecoveringModule)]


def end_recovery(model: nn.Module) -> None:
    """Compute with the recovered mask in every layer."""
    for _, module in _named(model, RecoveringModule):
        module.end_recovery()


def energy(model: nn.Module) -> Tensor:
    """The energy of the masks in use, summed over the layers (paper, section 3.6)."""
    return sum(module.energy() for _, module in _named(model, RecoveringModule))


def hamming_distance(model: nn.Module, task: int) -> int:
    """In how many places the masks in use differ from those of ``task``, all layers together."""
    return sum(module.hamming_distance(task) for _, module in _named(model, RecoveringModule))


def can_recover(model: nn.Module) -> bool:
    """Whether masks can be recovered: every layer with a state for each task can."""
    layers = [module for _, module in _named(model, MultitaskModule)]
    return bool(layers) and all(isinstance(module, RecoveringModule) for module in layers)


def has_tasks(model: nn.Module) -> bool:
    """Whether any layer has parameters for each task."""
    return any(module.trains for _, module in _named(model, MultitaskModule))


def only_masks(model: nn.Module) -> bool:
    """Whether masks are all that belongs to a task."""
    return all(isinstance(module, SuperposedModule) and module.masked for _, module in _named(model, MultitaskModule))


def can_superpose(model: nn.Module) -> bool:
    """Whether tasks can be superposed: some layer has masks or the like, and no layer stands in the way."""
    layers = [type(module) for _, module in _named(model, MultitaskModule)]
    return superposed_size(model) > 0 and all(layer.superpose is not MultitaskModule.superpose for layer in layers)


def is_factored(model: nn.Module) -> bool:
    """Whether every layer that can be superposed takes ``∂L/∂W_eff`` in factors."""
    return all(module.factored for _, module in _named(model, SuperposedModule))


def superposed_size(model: nn.Module) -> int:
    """The number of weights that take part in a superposition."""
    return sum(module.weight.numel() for _, module in _named(model, SuperposedModule))


def mask_shapes(model: nn.Module) -> dict[str, torch.Size]:
    """The shape of the weight of every layer that has a mask for each task, by the layer's name.

    In ``task_state`` the mask of the layer ``name`` is ``name.mask``, bit-packed.
    """
    return {name: module.weight.shape for name, module in _masked(model)}


def task_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What the task in training trains, ``{layer.name: parameter}``, in the order of the network."""
    return {
        f"{name}.{key}": parameter
        for name, module in _named(model, MultitaskModule)
        for key, parameter in module.task_parameters().items()
    }


def shared_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that all tasks share: trained weights, as against frozen ones and a task's own."""
    own = {id(parameter) for parameter in task_parameters(model).values()}
    return [parameter for parameter in model.parameters() if id(parameter) not in own]


def task_state(model: nn.Module, task: int) -> dict[str, Tensor]:
    """All that is kept for ``task``: ``{layer.name: tensor}``."""
    return {
        f"{name}.{key}": value
        for name, module in _named(model, MultitaskModule)
        for key, value in module.task_state(task).items()
    }


def load_task_state(model: nn.Module, task: int, state: dict[str, Tensor]) -> None:
    """The inverse of ``task_state``; the task counts as learned.

    Raises:
        ValueError: the state is not one of this network's.
    """
    layers = dict(_named(model, MultitaskModule))
    parts: dict[str, dict[str, Tensor]] = {name: {} for name in layers}
    for key, value in state.items():
        layer, _, name = key.rpartition(".")
        if layer not in parts:
            raise ValueError(f"the network has no layer {layer!r}")
        parts[layer][name] = value
    for name, module in layers.items():
        module.load_task_state(task, parts[name])


def shared_state(model: nn.Module) -> dict[str, Tensor]:
    """All that tasks share and that training may change: weights, statistics of batch norm; by name."""
    own = task_parameters(model)
    return {name: value for name, value in model.state_dict().items() if name not in own}


def load_shared_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load what ``shared_state`` gave, or a part of it.

    Raises:
        ValueError: the state is not one of this network's.
    """
    places = shared_state(model)
    for name, value in state.items():
        if name not in places or value.shape != places[name].shape or value.dtype != places[name].dtype:
            raise ValueError(f"it has no place for {name}, {tuple(value.shape)}")
        places[name].copy_(value)


def kept_fractions(model: nn.Module, task: int) -> dict[str, float]:
    """The share of its weights that ``task`` keeps in each masked layer, and ``total`` over the network."""
    kept, sizes = {}, {}
    for name, module in _masked(model):
        weight = module.superposition([task], torch.ones(1, device=module.weight.device))
        kept[name], sizes[name] = int(weight.count_nonzero()), weight.numel()
    fractions = {name: kept[name] / sizes[name] for name in kept}
    if sizes:
        fractions["total"] = math.fsum(kept.values()) / sum(sizes.values())
    return fractions
