"""The algebra of superposition: weights mixed over tasks (paper, equation 2), and the gradient of the mixture.

With ``W_eff = Σ_i alpha_i W_i`` in every layer, the gradient of a loss with respect to the coefficients is
``∂L/∂alpha_i = ⟨∂L/∂W_eff, W_i⟩``, summed over the layers: one backward pass through one superposed network, then one
product with each task's weight, gives it for all tasks. ``∂L/∂W_eff`` need not be whole in memory: it is the product of
what a layer saw and of the gradient of what it gave, which probes on the layers tell.
"""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.masks import coarse_products_pay, tables_pay, tiles
from models.multitask import MultitaskModule, named, set_superposed

COARSE_FROM = 1000  # masks from which on a coarse product before the exact one saves time, about
COARSE_LOSSES = 2048  # that have such a product together


class SuperposedModule(MultitaskModule):
    """A multitask layer with a weight ``W_i`` for each task, such as ``W ⊙ M^i``, so that tasks can be superposed.

    Attributes:
        effective: the superposed weight while tasks are superposed; else a layer may keep the selected task's there,
            or None.
        probe: zeros that are added to the output, or None; the gradient with respect to them is that with respect to
            the output.
        seen: the input of the last forward pass with a probe.
        factored: whether ``∂L/∂W_eff`` is taken as two factors, what the layer saw and the gradient of what it gave,
            by probes; else it is taken whole, which needs no more of a layer than that it reads its weight.
    """

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

    def whole_coefficient_gradients(self, tasks: Sequence[int], gradients: Tensor) -> Tensor:
        """``coefficient_gradients`` of a layer that is not ``factored``, from ``∂L/∂W_eff`` (b, *weight shape)."""
        raise ValueError(f"{type(self).__name__} takes the gradient of its weight in factors")

    def superpose(self, tasks: Sequence[int], alphas: Tensor, alike: bool = False) -> None:
        self.effective = self.superposition(tasks, alphas)


def can_superpose(model: nn.Module) -> bool:
    """Whether tasks can be superposed: some layer has masks or the like, and no layer stands in the way."""
    layers = [type(module) for _, module in named(model, MultitaskModule)]
    return superposed_size(model) > 0 and all(layer.superpose is not MultitaskModule.superpose for layer in layers)


def is_factored(model: nn.Module) -> bool:
    """Whether every layer that can be superposed takes ``∂L/∂W_eff`` in factors."""
    return all(module.factored for _, module in named(model, SuperposedModule))


def superposed_size(model: nn.Module) -> int:
    """The number of weights that take part in a superposition."""
    layers = named(model, SuperposedModule)
    return sum(module.weight.numel() for _, module in layers)


def superposed_weights(model: nn.Module, tasks: Sequence[int], alphas: Tensor) -> dict[str, Tensor]:
    """The superposed weight of every layer that has one, under the name ``torch.func.functional_call`` replaces.

    Args:
        alphas: coefficients (k,) for ``tasks``, or (b, k) for ``b`` superpositions at once.
    """
    return {f"{name}.effective": module.superposition(tasks, alphas) for name, module in named(model, SuperposedModule)}


def superpose(model: nn.Module, tasks: Sequence[int], alphas: Tensor) -> dict[str, Tensor]:
    """Compute with the weights ``Σ_i alphas_i W_i``, alphas (k,), in every layer (paper, equation 2).

    Returns:
        These weights, under the names of ``superposed_weights``.

    Raises:
        ValueError: the model has no layer that can be superposed, or one that has a state for each task and cannot.
    """
    if not can_superpose(model):
        raise ValueError("a model is superposed through layers that have a mask for each task; this one has others")
    set_superposed(model, True)
    alike = bool((alphas == 1 / len(tasks)).all())  # here, so that a GPU is waited for but once
    for _, module in named(model, MultitaskModule):
        module.superpose(tasks, alphas, alike)
    layers = named(model, SuperposedModule)
    return {f"{name}.effective": module.effective for name, module in layers if module.effective is not None}


@contextmanager
def as_parameters(model: nn.Module, first: int | None = None) -> Iterator[dict[str, nn.Parameter]]:
    """Let the superposed weights of a model be parameters of it for a while, as the scores of a task in training are.

    A user's block that has a backward pass of its own, as one that solves an equation, looks for them there.

    Args:
        first: those of so many layers, the first that were made; None for all.

    Yields:
        These, under the names of ``superposed_weights``.
    """
    layers = dict(islice(named(model, SuperposedModule), first))
    weights = {name: nn.Parameter(layer.effective) for name, layer in layers.items() if layer.effective is not None}
    try:
        for name, weight in weights.items():
            layers[name]._parameters["effective"] = weight  # before the buffer, in which it lies
        yield {f"{name}.effective": weight for name, weight in weights.items()}
    finally:
        for name in weights:
            layers[name]._parameters.pop("effective", None)


def train_again(model: nn.Module) -> None:
    """Compute with the scores in training again, after tasks were superposed, in layers that have such scores alone."""
    set_superposed(model, False)
    for _, module in named(model, SuperposedModule):
        module.effective = None


@contextmanager
def probes(model: nn.Module, x: Tensor, first: int | None = None) -> Iterator[dict[str, Tensor]]:
    """Put probes on the layers of a superposed model, and take them off again.

    Args:
        x: images (batch, channels, height, width) as they will be, for the shapes of the outputs.
        first: so many layers, the first that were made; None for all.

    Yields:
        The probes, zeros of the outputs' shapes (batch, out, height', width'), under the names that
        ``torch.func.functional_call`` replaces.
    """
    layers = dict(islice(named(model, SuperposedModule), first))
    shapes: dict[str, torch.Size] = {}
    hooks = [
        layer.register_forward_hook(lambda _layer, _inputs, output, name=name: shapes.update({name: output.shape}))
        for name, layer in layers.items()
    ]
    try:
        with torch.no_grad():
            model(x)
        zeros = {name: x.new_zeros(shapes[name]) for name in layers}
        for name, layer in layers.items():
            layer.probe = zeros[name]
        yield {f"{name}.probe": zeros[name] for name in layers}
    finally:
        for hook in hooks:
            hook.remove()
        for layer in layers.values():
            layer.probe = layer.seen = None


def probed_size(model: nn.Module) -> int:
    """How many numbers a batch of the probes' shape takes: inputs, outputs and gradients of the layers."""
    total = 0
    for _, module in named(model, SuperposedModule):
        if module.probe is None:
            continue
        outputs = module.weight.shape[0]
        total += module.probe.numel() // outputs * (module.weight.numel() // outputs + 3 * outputs)
    return total


def seen(model: nn.Module) -> dict[str, Tensor]:
    """The inputs of the layers with probes in the last forward pass, under the names of their probes."""
    layers = named(model, SuperposedModule)
    probed = ((name, module.seen) for name, module in layers if module.probe is not None)
    return {f"{name}.probe": x for name, x in probed if x is not None}


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
    every = factors(model, inputs, output_gradients)
    return _total(layer.coefficient_gradients(tasks, x, gradient, coarse) for layer, x, gradient in every)


def whole_coefficient_gradients(model: nn.Module, tasks: Sequence[int], gradients: dict[str, Tensor]) -> Tensor:
    """``∂L/∂alphas`` of ``b`` losses from ``∂L/∂W_eff`` of every layer, by the names of ``superpose``: (b, k)."""
    layers = dict(named(model, SuperposedModule))
    return _total(
        layers[name.removesuffix(".effective")].whole_coefficient_gradients(tasks, gradient)
        for name, gradient in gradients.items()
    )


def _total(parts: Iterable[Tensor]) -> Tensor:
    """The sum of what layers give."""
    return sum(parts, torch.zeros(()))


def smallest_derivatives(
    model: nn.Module, tasks: Sequence[int], inputs: dict[str, Tensor], output_gradients: dict[str, Tensor]
) -> Tensor:
    """Which of ``tasks`` has the smallest ``∂L/∂alpha_i``, for each of ``b`` losses: its index, int64 (b,).

    The same as ``coefficient_gradients(...).argmin(1)``. Where products of bf16 matrices are much faster and there are
    many masks, they come first, and float32 decides only for the losses that they leave in doubt; but not of losses so
    few that tables of float32 sums are faster.

    With ``P`` the numbers of ``∂L/∂W_eff ⊙ W``, rounding moves the difference of two masks' derivatives
    ``Σ (M^i - M^j) P`` by ``2⁻⁸ Σ|P|`` at the most. Sums in float32 are off by ``m 2⁻²⁴ Σ|P|`` at the most, for a chain
    of ``m`` additions; there are four of them, two masks' coarse ones and exact ones, and ``m`` is below ``2¹³``. So
    what leads by ``1.5 · 2⁻⁸ Σ|P|`` leads in float32. Beside that, bf16 units flush what is below ``2⁻¹²⁶`` to zero.
    """
    losses, device = len(next(iter(inputs.values()))), next(iter(inputs.values())).device
    best = torch.empty(losses, dtype=torch.int64, device=device)
    coarse = len(tasks) >= COARSE_FROM and coarse_products_pay(device)
    for some in tiles(losses, COARSE_LOSSES):
        coarse &= not tables_pay(some.stop - some.start, len(tasks), device)
        x, gradients = ({name: value[some] for name, value in part.items()} for part in (inputs, output_gradients))
        derivatives = coefficient_gradients(model, tasks, x, gradients, coarse)
        best[some] = derivatives.argmin(dim=1)
        if coarse:
            first, second = derivatives.topk(2, dim=1, largest=False).values.unbind(1)
            bound = 1.5 * 2**-8 * products_size(model, x, gradients) + 1e-30
            doubt = ~(second - first > bound)  # also where one is no number
            if doubt.any():
                x, gradients = ({name: value[doubt] for name, value in part.items()} for part in (x, gradients))
                best[some][doubt] = coefficient_gradients(model, tasks, x, gradients).argmin(dim=1)
            # Masks that explain little of the data are in doubt, and then it does not pay.
            coarse = int(doubt.sum()) < len(doubt) / 2
    return best


def products_size(model: nn.Module, inputs: dict[str, Tensor], output_gradients: dict[str, Tensor]) -> Tensor:
    """``Σ|∂L/∂W_eff ⊙ W|`` of ``b`` losses or a little more (several places may cancel): (b,)."""
    return _total(
        (gradient.abs() * (x.abs() @ layer.weight.abs().flatten(1).T)).sum((1, 2))
        for layer, x, gradient in factors(model, inputs, output_gradients)
    )


def factors(
    model: nn.Module, inputs: dict[str, Tensor], output_gradients: dict[str, Tensor]
) -> Iterator[tuple[SuperposedModule, Tensor, Tensor]]:
    """Every layer that ``inputs`` have, with the factors of its ``∂L/∂W_eff`` as the layer takes them."""
    for name, layer in named(model, SuperposedModule):
        if f"{name}.probe" not in inputs:
            continue
        patches = _patches(inputs[f"{name}.probe"], layer.weight.shape[-1], layer.stride, layer.padding)
        yield layer, patches, output_gradients[f"{name}.probe"].flatten(3).mT.flatten(1, 2)


def _patches(x: Tensor, kernel_size: int, stride: int, padding: int) -> Tensor:
    """What each place of a convolution's output sees: x (b, images, in, h, w) to (b, places, in * kernel_size²)."""
    if kernel_size == 1:  # a padding of half of it is none
        return x[..., ::stride, ::stride].flatten(3).mT.flatten(1, 2)
    patches = F.unfold(x.flatten(0, 1), kernel_size, padding=padding, stride=stride)  # (b * images, in * k², h' w')
    seen: Tensor = patches.unflatten(0, x.shape[:2]).mT.flatten(1, 2)
    return seen
