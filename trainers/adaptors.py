"""The adaptors that ``--adaptor`` can name, as ``trainers.ADAPTORS`` has them, and what they are told.

One that infers goes from the images of many test batches (batches, images, channels, height, width) to the inferred
one of ``tasks`` for each, int64 (batches,). The images are the first ones of each batch; in a network with batch norm
they are all of it, for the first ones alone would have other statistics, and the logits of the first count.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from models import multitask, superposition
from trainers import ADAPTORS, Needs, hopfield
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
from utils.errors import UserError


@dataclass
class InferenceOptions:
    """What adaptors need to know beside the data.

    Attributes:
        data_to_repeat: the task of a test batch is inferred from its first images, this many; with batch norm, from
            their logits beside the rest of the batch.
        real_neurons: outputs that stand for classes; the others are superfluous (objective G).
        log_base: of binary inference.
        adapt_lr, adapt_steps: of gradient descent, on coefficients or on a mask; None for the adaptor's own.
        gamma: weight of the energy when a mask is recovered from the Hopfield network.
        momentum, weight_decay: of the optimiser that recovers it.
        unshared_labels: whether a batch whose task is inferred wrong counts as wrong as a whole.
        infer: of one-shot inference: ``exact``, ``screened``, or ``auto`` by the number of masks; see ``screening``.
        infer_layers: through the masks of so many layers, the first, gradients are taken; None for all.
    """

    data_to_repeat: int = 1
    real_neurons: int = 10
    log_base: float = 2
    adapt_lr: float | None = None
    adapt_steps: int = 10
    gamma: float = 1.5e-3
    momentum: float = 0.9
    weight_decay: float = 1e-4
    unshared_labels: bool = False
    infer: str = "exact"
    infer_layers: int | None = None


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
    return binary(model, tasks, images, _h(model, options), options.log_base, options.infer_layers)


def se_binary_g_minimization(
    model: nn.Module, tasks: Sequence[int], images: Tensor, options: InferenceOptions
) -> Tensor:
    return binary(model, tasks, images, _g(model, options), options.log_base, options.infer_layers)


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
    )


# Whether a network has what an adaptor needs, and which one has.
_HAVING = {
    Needs.SUPERPOSITION: (
        superposition.can_superpose,
        "a --conv-type that can be superposed, and no --individual-heads",
    ),
    Needs.PARAMETERS: (multitask.has_tasks, "a --conv-type with parameters for each task"),
    Needs.RECOVERY: (
        multitask.can_recover,
        "masks in a Hopfield network: --model BNNet, --bn-type FastHopMaskBN",
    ),
}


def check_adaptor(adaptor: str, model: nn.Module) -> None:
    """See that the model can be tested so.

    Raises:
        UserError: its layers cannot what the adaptor needs.
    """
    way = ADAPTORS[adaptor]
    if way.gives:
        return
    has, what = _HAVING[way.needs]
    if not has(model):
        raise UserError(f"--adaptor {adaptor}: needs {what}, which this network has not; or say gt")
