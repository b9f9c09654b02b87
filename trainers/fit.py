"""What must hold between the settings of a run, its data and its network, and what of the settings does nothing there.

What must hold between the settings alone is in ``checks.py``; what a trainer needs of a network it says itself.
"""

import warnings
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from data.base import SplitByClass, TaskDataset
from models import hopfield, multitask, siblings, stacked, superposition
from models.convert import Kept, is_converted
from models.masked import TopK
from models.multitask import Rng
from models.norms import is_statistic
from models.outside import check_inference, draws_kept, told
from trainers import ADAPTORS, FROM_RUN, Needs
from trainers.checks import slice_of
from trainers.default import DefaultTrainer
from trainers.options import DEFAULTS, Settings
from trainers.several import SeveralTrainer
from utils.errors import UserError
from utils.seeding import exact_on_gpus


def check_fit(s: Settings, data: TaskDataset, model: nn.Module, trainer: DefaultTrainer) -> None:
    """See that the tasks of a run can be learned and tested.

    Raises:
        UserError: they cannot.
    """
    if data.num_classes > s.output_size:
        hint = "; `classes_per_task` makes smaller tasks" if isinstance(data, SplitByClass) else ""
        raise UserError(f"`output_size` {s.output_size}: {s.set} needs at least {data.num_classes} outputs{hint}")
    if max(s.tasks_to_learn) >= data.num_tasks:
        raise UserError(f"{slice_of(s)}: tasks are 0 ... {data.num_tasks - 1}")
    check_adaptor(s.adaptor, model, data.input_shape, trainer.rng)
    if ADAPTORS[s.adaptor].superfluous and data.num_classes > s.real_neurons:
        raise UserError(f"`real_neurons` {s.real_neurons}: {s.set} has {data.num_classes} classes, all of them real")
    if multitask.depends(model) and s.trainer in ("nns", "reinit"):
        raise UserError(f"`trainer` {s.trainer}: goes with no `conv_type` that trains weights, as {s.conv_type}")
    if siblings.has_halves(model) and s.trainer != "halves":
        raise UserError(f"`conv_type` {s.conv_type}: tasks have two halves; say `trainer` halves")
    if (s.task_eval or s.tasks) and (why := why_in_order(s, model)):
        raise UserError(f"{slice_of(s)}: {why}, so it cannot be learned alone")
    trainer.check(s.tasks_to_learn)
    if (s.tasks_in_parallel or 1) > 1:
        _check_at_once(s, data, model, trainer)


def why_in_order(s: Settings, model: nn.Module) -> str | None:
    """What makes a task depend on those before it; None if nothing does, so that it can be learned alone.

    Args:
        model: the network, whose tensors may be on the device ``meta``.
    """
    if s.trainer == "nns":
        return "with `trainer` nns the stream is learned as a whole"
    if s.trainer == "reinit" and s.reinit_adapt != FROM_RUN:
        return f"with `trainer` reinit, `reinit_adapt` {s.reinit_adapt}, a task starts from those before it"
    if multitask.depends(model):
        return f"with `conv_type` {s.conv_type} a task builds on those before it"
    if s.train_weight_tasks:
        return f"with `train_weight_tasks` {s.train_weight_tasks} tasks train weights that they share"
    if any(map(is_statistic, multitask.shared_state(model))):
        return f"`bn_type` {s.bn_type} has statistics that all tasks share"
    return None


def check_room(s: Settings, known: int) -> None:
    """See that the layers have room for so many learned tasks.

    Raises:
        UserError: they have not.
    """
    if s.conv_type == "MaskConv" and known > 1:
        raise UserError("`conv_type` MaskConv: has one mask, so each task is a run of its own; say `task_eval` TASK")


# Whether a network has what an adaptor needs, and which one has.
_HAVING = {
    Needs.SUPERPOSITION: (
        superposition.can_superpose,
        "a `conv_type` that can be superposed, and no `individual_heads`",
    ),
    Needs.PARAMETERS: (multitask.has_tasks, "a `conv_type` with parameters for each task"),
    Needs.RECOVERY: (
        hopfield.can_recover,
        "masks in a Hopfield network: `model` BNNet, `bn_type` FastHopMaskBN",
    ),
}


def check_adaptor(adaptor: str, model: nn.Module, input_shape: tuple[int, int, int], rng: Rng) -> None:
    """See that the model can be tested so.

    Raises:
        UserError: its layers cannot what the adaptor needs, or it is not ours and gives no gradient in evaluation.
    """
    way = ADAPTORS[adaptor]
    if way.gives:
        return
    has, what = _HAVING[way.needs]
    if not has(model):
        raise UserError(f"`adaptor` {adaptor}: needs {what}, which this network has not; or say gt")
    if way.needs is Needs.SUPERPOSITION and is_converted(model):
        device = next(model.buffers()).device
        images = torch.rand(2, *input_shape, generator=torch.Generator().manual_seed(0)).to(device)
        try:
            with _tried(model, device):
                check_inference(model, images, rng)
        except ValueError as error:
            raise UserError(f"`adaptor` {adaptor}: the network {error}; or say gt") from None


def _check_at_once(s: Settings, data: TaskDataset, model: nn.Module, trainer: DefaultTrainer) -> None:
    """See that tasks can be trained at once: none depends on another, and each batch has a part of every task."""
    setting = f"`tasks_in_parallel` {s.tasks_in_parallel}"
    if not trainer.parallel:
        raise UserError(f"{setting}: with `trainer` {s.trainer} a task depends on those before it")
    if why := why_in_order(s, model):
        raise UserError(f"{setting}: {why}")
    if "," in (s.multigpu or ""):
        raise UserError(f"{setting}: needs one device, not `multigpu` {s.multigpu}")
    if s.compile and s.amp and not stacked.computes_stacked(model):
        raise UserError(
            f"{setting}: with `amp` {s.amp}, `compile` would take one task's convolutions after the other's"
        )
    if ":" in s.model and len(s.tasks_to_learn) > 1:
        try:
            alike = _trains_alike(s, data, model, trainer)
        except Exception as error:  # whatever a user's own code raises
            raise UserError(f"{setting}: {s.model} cannot compute for several tasks at once: {told(error)}") from None
        if not alike:
            why = "where it draws numbers, or leaves out a hook or a branch on requires_grad"
            raise UserError(f"{setting}: a task of {s.model} has other gradients at once than alone, as {why}")
    try:
        data.check_stackable(s.tasks_to_learn)
    except ValueError as error:
        raise UserError(f"{setting}: {s.set} cannot serve several at once: {error}") from None


def _trains_alike(s: Settings, data: TaskDataset, model: nn.Module, trainer: DefaultTrainer) -> bool:
    """Whether two tasks at once train as alone in a network that is not ours, which may do what cannot be stacked.

    Raises:
        Exception: whatever it raises.
    """
    tasks, drawn = s.tasks_to_learn[:2], torch.Generator().manual_seed(0)
    x = torch.rand(len(tasks), 4, *data.input_shape, generator=drawn).to(data.device)
    y = torch.randint(data.num_classes, (len(tasks), 4), generator=drawn).to(data.device)
    usual = replace(trainer.options, compile=False, amp=None)
    exact_on_gpus(tf32=False, fast=False)
    try:
        with _tried(model, data.device):
            return SeveralTrainer(model, usual, trainer.rng).trains_alike(tasks, x, y)
    finally:
        exact_on_gpus(s.tf32, s.fast)


@contextmanager
def _tried(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Leave what the model's own modules keep, and what is drawn later, as it is; nothing is warned of."""
    kept, gpus = Kept(model), [device] if device.type == "cuda" else []
    try:
        with draws_kept(gpus), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as of what is computed one task after the other
            yield
    finally:
        kept.put_back()
        multitask.forget_training(model)


def without_effect(s: Settings, tasks: int, model: nn.Module, learned: int, evaluated: Container[int]) -> list[str]:
    """What of the settings goes beyond the tasks, the batches or the layers, or comes too late, a line each.

    Args:
        tasks: how many there are in the end.
        learned: how many are learned already.
        evaluated: after how many of them there was an evaluation.
    """
    lines = []
    if not any(multitask.named(model, TopK)):
        lines += [
            f"`{name}` {getattr(s, name)}: without effect, for no layer of `conv_type` "
            f"{s.conv_type} keeps a fraction of its weights"
            for name in ("sparsity", "er_sparsity")
            if getattr(s, name) != DEFAULTS[name]
        ]
    beyond = [count for count in s.eval_ckpts or () if count > tasks]
    if beyond:
        lines.append(f"`eval_ckpts` {','.join(map(str, beyond))}: there are {tasks} tasks; evaluated at the end")
    if passed := [count for count in s.eval_ckpts or () if count < learned and count not in evaluated]:
        lines.append(
            f"`eval_ckpts` {','.join(map(str, passed))}: {learned} tasks are learned already; a new run that takes "
            "this one by `merge` is evaluated after so many"
        )
    if ADAPTORS[s.adaptor].infers and s.data_to_repeat > s.test_batch_size:
        lines.append(
            f"`data_to_repeat` {s.data_to_repeat}: a test batch has {s.test_batch_size} images, "
            "and its task is inferred from all of them; `test_batch_size` has more"
        )
    return lines
