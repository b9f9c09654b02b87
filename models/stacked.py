"""A model with several tasks in training at once: what each has of its own is stacked, (tasks, *shape)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from models import multitask
from models.multitask import MultitaskModule, Rng, in_mixed_precision, named


def begin_tasks(model: nn.Module, tasks: Sequence[int], rng: Rng) -> dict[str, Tensor]:
    """Start to train several tasks at once, each from the state that it would start from alone.

    Returns:
        Their ``multitask.training_state``, stacked: (tasks, *shape), what is trained as parameters. The model itself is
        left with the last task in training.
    """
    states = []
    for task in tasks:
        multitask.begin_task(model, task, rng)
        states.append({name: value.detach().clone() for name, value in multitask.training_state(model).items()})
    trained = multitask.task_parameters(model)
    stacked = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    return {name: nn.Parameter(value) if name in trained else value for name, value in stacked.items()}


def end_tasks(model: nn.Module, tasks: Sequence[int], state: dict[str, Tensor]) -> None:
    """Keep ``tasks`` with their stacked ``state`` as learned, in every layer, and select the last of them.

    Args:
        state: as ``begin_tasks`` gives it; a task of the model is in training.
    """
    for name, module in named(model, MultitaskModule):
        module.end_tasks(tasks, _part(state, name, module))


def network_of_tasks(model: nn.Module, state: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
    """The network of every task of a stacked ``state``, each on its own images.

    Args:
        state: as ``begin_tasks`` gives it; a task of the model is in training. It is looked at in each call.

    Returns:
        From x (tasks, batch, channels, height, width) to logits (tasks, batch, outputs).
    """
    layers = [(module, _part(state, name, module)) for name, module in named(model, MultitaskModule)]

    def call(used: dict[str, Tensor], x: Tensor) -> Tensor:
        logits: Tensor = functional_call(model, used, (x,))
        return logits

    def call_stack(x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return call(_stacked(model, state), x)
        places = [(module, name, value) for module, part in layers for name, value in module.stacked(part).items()]
        try:
            for module, name, value in places:
                setattr(module, name, value)
            logits: Tensor = model(x)
        finally:
            for module, name, _ in places:
                setattr(module, name, None)
        return logits

    def call_each(x: Tensor) -> Tensor:
        used = _stacked(model, state)
        if not in_mixed_precision(x):
            return vmap(call)(used, x)
        # Autocast does not reach convolutions that are mapped.
        alone = [{name: values[place] for name, values in used.items()} for place in range(len(x))]
        return torch.stack([call(own, images) for own, images in zip(alone, x, strict=True)])

    return call_stack if computes_stacked(model) else call_each


def computes_stacked(model: nn.Module) -> bool:
    """Whether a network computes for stacked tasks by itself: a product of all, where others are mapped over tasks."""
    layers = (model, *(module for _, module in named(model, MultitaskModule)))
    return all(getattr(layer, "takes_stacks", False) for layer in layers)


@torch.no_grad()
def tasks_to_test(model: nn.Module, state: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
    """``network_of_tasks`` for the ``state`` as it is now, in evaluation: tasks answer as they will when selected.

    To the bit on a processor, where one product for all tasks sums in another order than a task's own, and a factor
    that begins somewhere in the middle of a stack is summed from another place on than one that lies by itself.
    """
    if next(iter(state.values())).device.type != "cpu":
        return network_of_tasks(model, state)
    used = _stacked(model, state)
    tasks = len(next(iter(used.values())))
    alone = [{name: values[place].clone() for name, values in used.items()} for place in range(tasks)]

    def call(x: Tensor) -> Tensor:
        parts = zip(alone, x, strict=True)
        return torch.stack([functional_call(model, own, (images.clone(),)) for own, images in parts])

    return call


def _stacked(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the layers compute with for a stacked ``state``, (tasks, ...), by the names of the model's tensors."""
    used: dict[str, Tensor] = {}
    for name, module in named(model, MultitaskModule):
        used |= {f"{name}.{key}": value for key, value in module.stacked(_part(state, name, module)).items()}
    return used


def _part(state: dict[str, Tensor], name: str, module: MultitaskModule) -> dict[str, Tensor]:
    """What a layer has of a ``state`` of training, by the layer's own names."""
    return {key: state[f"{name}.{key}"] for key in (*module.task_parameters(), *module.task_buffers())}
