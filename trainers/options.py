"""How tasks are trained: every setting with its default, which is that of the flag too. Imports no torch."""

from dataclasses import dataclass


@dataclass
class TrainingOptions:
    """How a task is trained.

    Attributes:
        epochs: passes over a task's data.
        iter_lim: batches of a task at the most, over all its epochs; None for no limit.
        optimizer, lr_policy: keys of ``OPTIMIZERS`` and ``LR_POLICIES``.
        lr: for what is a task's own: scores, heads.
        train_weight_tasks: the first so many tasks train all shared weights too; -1 for every task.
        train_weight_lr: in those tasks, for everything.
        momentum: SGD's.
        weight_decay: of the optimiser.
        warmup_length: epochs of linear warm-up.
        amp: ``bf16`` trains in mixed precision; tests always have full precision.
        channels_last: whether images lie in memory with their channels last in training.
        compile: whether training runs through ``torch.compile``.
        reinit_adapt, reinit_most_recent_k, reinit_from: of ``ReinitTrainer``.
        num_tasks: for how many tasks there are masks.
        nns_every, nns_epsilon: see ``NNsTrainer``.
        on_nan: ``stop`` gives all tasks in training up when one fails; ``skip`` goes on with the others.
    """

    epochs: int = 30
    iter_lim: int | None = None
    optimizer: str = "rmsprop"
    lr: float = 1e-3
    train_weight_tasks: int = 0
    train_weight_lr: float = 1e-4
    momentum: float = 0.9
    weight_decay: float = 0.0
    lr_policy: str = "constant_lr"
    warmup_length: int = 0
    amp: str | None = None
    compile: bool = False
    channels_last: bool = False
    reinit_adapt: str = "running_mean"
    reinit_most_recent_k: int | None = None
    reinit_from: str | None = None
    num_tasks: int = 1
    nns_every: int = 100
    nns_epsilon: float = 0.125
    on_nan: str = "stop"
