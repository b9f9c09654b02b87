"""The adaptors, as ``trainers.ADAPTORS`` names them.

One that infers goes from the images of many test batches (batches, images, channels, height, width) to the inferred
one of ``tasks`` for each, int64 (batches,). The images are the first ones of each batch; in a network with batch norm
they are all of it, for the first ones alone would have other statistics, and the logits of the first count.
"""

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from models import multitask
from trainers import hopfield
from trainers.inference import (
    ALPHA_LR,
    Objective,
    binary,
    ensemble,
    entropies,
    entropy,
    gradient_descent,
    of_first,
    one_shot,
    superfluous,
    top_doubts,
)
from trainers.options import InferenceOptions


def _first(model: nn.Module, options: InferenceOptions) -> int | None:
    """How many of the images that an adaptor gets decide on the task; None for all of them."""
    return options.data_to_repeat if multitask.has_batch_norm(model) else None


def _h(model: nn.Module, options: InferenceOptions) -> Objective:
    return of_first(entropy, _first(model, options))


def _g(model: nn.Module, options: InferenceOptions) -> Objective:
    return of_first(partial(superfluous, real_neurons=options.real_neurons), _first(model, options))


def _one_shot(
    model: nn.Module, tasks: Sequence[int], images: Tensor, objective: Objective, options: InferenceOptions
) -> Tensor:
    return one_shot(model, tasks, images, objective, infer=options.infer, layers=options.infer_layers)


def se_oneshot_entropy_minimization(
    model: nn.Module, tasks: Sequence[int], images: Tensor, options: InferenceOptions
) -> Tensor:
    return _one_shot(model, tasks, images, _h(model, options), options)


def se_oneshot_g_minimization(
    model: nn.Module, tasks: Sequence[int], images: Tensor, options: InferenceOptions
) -> Tensor:
    return _one_shot(model, tasks, images, _g(model, options), options)


def se_binary_entropy_minimization(
    model: nn.Module, tasks: Sequence[int], images: Tensor, options: InferenceOptions
) -> Tensor:
    return binary(model, tasks, images, _h(model, options), options.log_base, layers=options.infer_layers)


def se_binary_g_minimization(
    model: nn.Module, tasks: Sequence[int], images: Tensor, options: InferenceOptions
) -> Tensor:
    return binary(model, tasks, images, _g(model, options), options.log_base, layers=options.infer_layers)


def se_gradient_minimization(
    model: nn.Module, tasks: Sequence[int], images: Tensor, options: InferenceOptions
) -> Tensor:
    lr = options.adapt_lr or ALPHA_LR
    return gradient_descent(model, tasks, images, _h(model, options), lr, options.adapt_steps)


def se_be_adapt(model: nn.Module, tasks: Sequence[int], images: Tensor, options: InferenceOptions) -> Tensor:
    return ensemble(model, tasks, images, entropies, _first(model, options))


def se_be_max_adapt(model: nn.Module, tasks: Sequence[int], images: Tensor, options: InferenceOptions) -> Tensor:
    return ensemble(model, tasks, images, top_doubts, _first(model, options))


def hopfield_recovery(model: nn.Module, loader, task: int, options: InferenceOptions) -> list[dict[str, float]]:
    """Recover the mask of the data that ``loader`` gives; the steps, as ``hopfield.recover`` gives them."""
    return hopfield.recover(
        model,
        loader,
        task,
        entropy,
        lr=options.adapt_lr or hopfield.LR,
        gamma=options.gamma,
        momentum=options.momentum,
        weight_decay=options.weight_decay,
        tries=options.adapt_tries,
    )
