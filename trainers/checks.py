"""What must hold between the settings of a run, and between those of two runs. Imports no torch.

What must hold between settings, data and network is in ``fit.py``.
"""

import math
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from models import MASKS_OF, SIBLINGS, STATISTICS_OF
from trainers import ADAPTORS, FROM_RUN
from trainers.options import DEFAULTS, Settings
from utils.errors import UserError
from utils.slices import tasks_of

LAST_BITS = 1e-12  # so far apart, as a share, may measured numbers be that are the same


def check_settings(s: Settings) -> None:
    """See that settings go with each other.

    Raises:
        UserError: some do not.
    """
    _check_outputs(s)
    _check_tasks(s)
    _check_sources(s)
    _check_training(s)
    _check_files(s)
    _check_own(s)
    _check_model(s)


def check_same(
    path: Path | str, theirs: Mapping[str, Any], ours: Mapping[str, Any], names: Iterable[str], hint: str = ""
) -> None:
    """See that a file was made with the settings of this run, of those that are named.

    Args:
        hint: what to do if it was not, to end the message.

    Raises:
        UserError: it was made with others.
    """
    # A setting that came later than the file stood at its default when the file was made.
    theirs = {name: DEFAULTS.get(name) for name in names} | dict(theirs)
    differing = [
        f"`{name}` {theirs.get(name)} there, {ours.get(name)} here"
        for name in sorted(names)
        if not _alike(name, theirs.get(name), ours.get(name))
    ]
    if differing:
        raise UserError(f"{path} was made with other settings: {'; '.join(differing)}{hint}")


def _alike(name: str, theirs: Any, ours: Any) -> bool:
    """Whether a setting has the same value; what is measured may differ in last bits, which were once the machine's and
    which float32, in which it is computed with, does not have."""
    values = (theirs, ours)
    if name in ("mean", "std") and all(isinstance(value, list) and {*map(type, value)} == {float} for value in values):
        return len(theirs) == len(ours) and all(map(partial(math.isclose, rel_tol=LAST_BITS), theirs, ours))
    return bool(theirs == ours)


def slice_of(s: Settings) -> str:
    """What says which of the tasks are learned, in words."""
    return f"`tasks` {s.tasks}" if s.tasks else f"`task_eval` {s.task_eval}"


def _check_outputs(s: Settings) -> None:
    if ADAPTORS[s.adaptor].superfluous and s.real_neurons >= s.output_size:
        raise UserError(
            f"`real_neurons` {s.real_neurons}: objective G needs superfluous outputs, "
            f"so fewer than `output_size` {s.output_size}"
        )


def _check_tasks(s: Settings) -> None:
    """Which tasks there are, and which of them are learned."""
    if s.task_eval is not None and s.num_tasks is not None and s.task_eval >= s.num_tasks:
        raise UserError(f"`task_eval` {s.task_eval}: tasks are 0 ... {s.num_tasks - 1} (`num_tasks`)")
    if s.tasks is not None and s.task_eval is not None:
        raise UserError(f"`tasks` {s.tasks}: and `task_eval` {s.task_eval} both say what to learn; say one")
    if s.tasks is not None and s.num_tasks is not None and tasks_of(s.tasks)[-1] >= s.num_tasks:
        raise UserError(f"`tasks` {s.tasks}: tasks are 0 ... {s.num_tasks - 1} (`num_tasks`)")


def _check_sources(s: Settings) -> None:
    """What a run begins with."""
    if s.merge is not None and s.import_file is not None:
        raise UserError("`merge` and `import_file`: what was learned is brought by one of them")
    if s.allow_missing and s.merge is None:
        raise UserError("`allow_missing`: is of `merge` alone")


def _check_training(s: Settings) -> None:
    """How tasks are learned and scored."""
    if s.conv_type in ("MaskConv", "MultitaskMaskConv", *SIBLINGS) and not s.er_sparsity and s.sparsity > 1:
        raise UserError(
            f"`sparsity` {s.sparsity}: is a fraction, at most 1, unless `er_sparsity` makes it a multiplier"
        )
    if s.on_nan == "skip" and (s.trainer == "nns" or "," in (s.multigpu or "")):
        why = "`trainer` nns meets" if s.trainer == "nns" else "a run on several devices learns"
        raise UserError(f"`on_nan` skip: {why} every task; say stop")
    if s.score_when_learned and not ADAPTORS[s.adaptor].gives:
        raise UserError(f"`score_when_learned`: a task just learned is given, so `adaptor` gt, not {s.adaptor}")
    if s.trainer == "reinit" and (s.reinit_adapt == FROM_RUN) != (s.reinit_from is not None):
        raise UserError(f"`reinit_from` {s.reinit_from}: goes with `reinit_adapt` {FROM_RUN}, and only with it")
    if s.keep_images and s.set != "SplitImageNet":
        raise UserError(f"`keep_images`: only images of `set` SplitImageNet are decoded in training, not of {s.set}")
    if s.trainer == "nns":
        _check_nns(s)
    elif s.stream_tasks is not None:
        raise UserError(f"`stream_tasks` {s.stream_tasks}: only `trainer` nns has hidden tasks; say `num_tasks`")
    elif s.stream_jitter:
        raise UserError(f"`stream_jitter` {s.stream_jitter}: only `trainer` nns has hidden tasks; say 0")


def _check_nns(s: Settings) -> None:
    """What a learner that knows no task cannot be told."""
    if not ADAPTORS[s.adaptor].infers:
        raise UserError(f"`adaptor` {s.adaptor}: trainer nns infers tasks; say se_oneshot_entropy_minimization")
    if s.unshared_labels:
        raise UserError("`unshared_labels`: trainer nns needs labels that tasks share; say `unshared_labels=False`")
    if s.stream_jitter and s.stream_jitter >= (s.iter_lim or 0):
        raise UserError(
            f"`stream_jitter` {s.stream_jitter}: batches more or fewer than `iter_lim` {s.iter_lim}; it must be less"
        )
    for name in ("task_eval", "tasks"):
        if getattr(s, name) is not None:
            raise UserError(f"`{name}` {getattr(s, name)}: trainer nns learns the stream as a whole; leave it out")
    if s.multigpu is not None and "," in s.multigpu:
        raise UserError(f"`multigpu` {s.multigpu}: trainer nns decides in one process; name one device")
    if s.train_weight_tasks:
        raise UserError(f"`train_weight_tasks` {s.train_weight_tasks}: trainer nns trains masks alone, so it must be 0")
    if s.lr_policy != "constant_lr" or s.warmup_length:
        name = "warmup_length" if s.warmup_length else "lr_policy"
        raise UserError(
            f"`{name}` {getattr(s, name)}: trainer nns does not know where a task begins, so its rate must be "
            "constant_lr without warm-up"
        )
    for name in ("import_file", "export"):
        if getattr(s, name) is not None:
            raise UserError(f"`{name}` {getattr(s, name)}: trainer nns also needs its scores; use `resume`")


def _check_files(s: Settings) -> None:
    """What is read and written beside the run's folder."""
    for name in ("export", "out"):
        if (path := getattr(s, name)) is not None and not Path(path).absolute().parent.is_dir():
            raise UserError(f"`{name}` {path}: its folder does not exist")
    if s.predict is not None and not s.resume:
        raise UserError("`predict`: needs the folder of a run that has learned something; say `resume` RUN")
    if s.out is not None and s.predict is None:
        raise UserError(f"`out` {s.out}: is where the answers of `predict` go")


def _check_own(s: Settings) -> None:
    """What only images of the user's own can be told."""
    if ":" in s.set:
        return
    for name in ("tasks_by", "image_size", "mean", "std", "augment"):
        if getattr(s, name):
            raise UserError(f"`{name}`: is for images of your own, `set` folder:PATH or npz:FILE, not for {s.set}")


def _check_model(s: Settings) -> None:
    """What a network that is not ours can be told."""
    if ":" not in s.model:
        if s.weights is not None:
            raise UserError(f"`weights` {s.weights}: is for `model` torchvision:NAME and FILE.py:CLASS alone")
        return
    for name, values in (("conv_type", MASKS_OF), ("bn_type", STATISTICS_OF)):
        if (value := getattr(s, name)) not in values:
            raise UserError(
                f"`{name}` {value}: of a network that is not ours, as {s.model}, it can be {' or '.join(values)}"
            )
    for name in ("width_mult", "individual_heads", "train_weight_tasks"):
        if getattr(s, name) != DEFAULTS[name]:
            raise UserError(f"`{name}`: {s.model} is taken as it is and trains nothing but masks; leave it out")
