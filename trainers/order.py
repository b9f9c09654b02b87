"""Whether tasks depend on each other, so that one run must learn them, in their order."""

from torch import nn

from models import multitask
from models.norms import is_statistic


def why_in_order(
    model: nn.Module, conv_type: str, bn_type: str, trainer: str, reinit_adapt: str, train_weight_tasks: int
) -> str | None:
    """What makes a task depend on those before it, in words that name the flag; None if nothing does.

    Args:
        model: the network, whose tensors may be on the device ``meta``.
        conv_type, bn_type, trainer, reinit_adapt, train_weight_tasks: the flags of these names.
    """
    if trainer == "nns":
        return "with --trainer nns the stream is learned as a whole"
    if trainer == "reinit" and reinit_adapt != "n-1-imagenet":
        return f"with --trainer reinit, --reinit-adapt {reinit_adapt}, a task starts from those before it"
    if multitask.depends(model):
        return f"with --conv-type {conv_type} a task builds on those before it"
    if train_weight_tasks:
        return f"with --train-weight-tasks {train_weight_tasks} tasks train weights that all share"
    if any(map(is_statistic, multitask.shared_state(model))):
        return f"with --bn-type {bn_type} all tasks share statistics"
    return None
