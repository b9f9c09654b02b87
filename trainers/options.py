"""The settings of a run, each with its default, which is that of its flag too. Imports no torch.

``Settings`` has all of them; the other classes are those that one thing is made of or told. ``pick`` takes these out.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, cast

from utils.slices import tasks_of

Options = TypeVar("Options")


@dataclass
class RunOptions:
    """What a run is to do, where it computes, and what it goes on from.

    Attributes:
        config: the file that settings came from.
        log_dir, name: the run's folder is ``<log_dir>/<name>``.
        multigpu: the devices, separated by commas.
        threads: of the processor.
        resume: the checkpoint to go on from; ``""`` for the run's own, if it has one.
        export, import_file: files of what was learned, to write and to begin with.
        merge, allow_missing: runs to join, and whether tasks may be in none of them.
        checkpoint_minutes: between checkpoints inside a task.
        tf32, fast: whether GPUs may compute so; see ``utils.seeding.exact_on_gpus``.
        predict, out: images to answer for, and the file for that.
        task_eval, tasks: which tasks to learn; None for all.
        trainer, adaptor: keys of ``TRAINERS`` and ``ADAPTORS``.
        tasks_in_parallel: how many tasks are trained at once; None for as many as the device is best used by.
        eval_ckpts: the numbers of learned tasks after which to evaluate, beside the end.
        score_when_learned: whether a task's score is the one from when it was just learned.
    """

    config: str | None = None
    log_dir: str | None = None
    name: str | None = None
    multigpu: str | None = None
    threads: int | None = None
    resume: str | None = None
    export: str | None = None
    import_file: str | None = None
    merge: Sequence[str] | None = None
    allow_missing: bool = False
    checkpoint_minutes: float = 10.0
    tf32: bool = False
    fast: bool = False
    predict: Sequence[str] | None = None
    out: str | None = None
    task_eval: int | None = None
    tasks: str | None = None
    trainer: str = "default"
    adaptor: str = "se_oneshot_entropy_minimization"
    tasks_in_parallel: int | None = None
    eval_ckpts: Sequence[int] | None = None
    score_when_learned: bool = False


@dataclass
class DataOptions:
    """What the tasks are made of, and in what portions they are served.

    Attributes:
        set: a key of ``DATASETS``.
        data: the parent folder of the data sets.
        num_tasks: None for the set's own.
        stream_tasks: hidden tasks that the trainer nns meets; None for as many as ``num_tasks``.
        classes_per_task: of sets split by class; None for the set's own.
        tasks_by, image_size, mean, std, augment: of images of the user's own; see ``data.folder``.
        seed: of everything random.
        workers: processes that decode images; None for one for each core, 16 at the most.
        keep_images: whether each is decoded but once; of SplitImageNet.
        batch_size, test_batch_size: images in a batch.
    """

    set: str = "DigitsPerm"
    data: str | None = None
    num_tasks: int | None = None
    stream_tasks: int | None = None
    classes_per_task: int | None = None
    tasks_by: str | None = None
    image_size: Sequence[int] | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    augment: bool = False
    seed: int = 0
    workers: int | None = None
    keep_images: bool = False
    batch_size: int = 128
    test_batch_size: int = 128


@dataclass
class NetworkOptions:
    """What the network is made of.

    Attributes:
        model: a key of ``MODELS``.
        output_size: outputs, the superfluous ones included.
        weights, width_mult, ...: of ``models.Builder``.
    """

    model: str = "LeNet"
    output_size: int = 100
    weights: str | None = None
    width_mult: float = 1.0
    conv_type: str = "FastMultitaskMaskConv"
    bn_type: str = "MultitaskNonAffineBN"
    conv_init: str = "signed_constant"
    mode: str = "fan_in"
    nonlinearity: str = "relu"
    sparsity: float = 0.5
    er_sparsity: bool = False
    individual_heads: bool = False

    @property
    def layers(self) -> dict[str, Any]:
        """Those of its layers: keywords of ``models.Builder``."""
        return {name: value for name, value in vars(self).items() if name not in ("model", "output_size")}


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
        num_tasks: for how many tasks ``NNsTrainer`` may have masks; None for one.
        stream_jitter, nns_every, nns_epsilon, nns_surprise: see ``NNsTrainer``.
        on_nan: whether the run ends, ``stop``, once others in training beside a task that fails are kept, or goes on
            without it, ``skip``.
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
    num_tasks: int | None = None
    stream_jitter: int = 0
    nns_every: int = 100
    nns_epsilon: float = 0.125
    nns_surprise: float | None = None
    on_nan: str = "stop"


@dataclass
class InferenceOptions:
    """What adaptors need to know beside the data.

    Attributes:
        data_to_repeat: the task of a test batch is inferred from its first images, this many; with batch norm, from
            their logits beside the rest of the batch.
        real_neurons: outputs that stand for classes; the others are superfluous (objective G).
        log_base: of binary inference.
        adapt_lr, adapt_steps: of gradient descent, on coefficients or on a mask; None for the adaptor's own.
        adapt_tries: how often a mask is recovered from the Hopfield network, to keep the best.
        gamma: weight of the energy when a mask is recovered from the Hopfield network.
        momentum, weight_decay: of the optimiser that recovers it.
        unshared_labels: whether a batch whose task is inferred wrong counts as wrong as a whole; None as the data say.
        infer: of one-shot inference: ``exact``, ``screened``, or ``auto`` by the number of masks; see ``screening``.
        infer_layers: through the masks of so many layers, the first, gradients are taken; None for all.
    """

    data_to_repeat: int = 1
    real_neurons: int = 10
    log_base: float = 2.0
    adapt_lr: float | None = None
    adapt_steps: int = 10
    adapt_tries: int = 1
    gamma: float = 1.5e-3
    momentum: float = 0.9
    weight_decay: float = 0.0
    unshared_labels: bool | None = None
    infer: str = "exact"
    infer_layers: int | None = None


@dataclass
class Settings(InferenceOptions, TrainingOptions, NetworkOptions, DataOptions, RunOptions):
    """All settings of a run. Those that nobody gave are filled in as the run finds them out, as ``num_tasks`` is."""

    @property
    def tasks_to_learn(self) -> Sequence[int]:
        """The tasks of the run, in their order; known once ``num_tasks`` is."""
        if self.tasks is not None:
            return tasks_of(self.tasks)
        return range(self.stream_tasks or self.num_tasks or 0) if self.task_eval is None else [self.task_eval]

    @property
    def model_name(self) -> str:
        """The network without the folder of its file, which may be another tomorrow."""
        return os.path.basename(self.model)

    @property
    def checkpoint(self) -> Path:
        """What the run goes on from, if ``resume`` says so and it is there; known as ``folder`` is."""
        return Path(self.resume) if self.resume else self.folder / "checkpoint.pt"

    @property
    def folder(self) -> Path:
        """The run's folder; known once the command line is read."""
        assert self.log_dir is not None and self.name is not None
        return Path(self.log_dir, self.name)


DEFAULTS: Mapping[str, Any] = vars(Settings())


def pick(kind: type[Options], settings: Mapping[str, Any] | Settings) -> Options:
    """The options of a kind, out of settings that have them under the same names."""
    values = settings if isinstance(settings, Mapping) else vars(settings)
    return kind(**{field.name: values[field.name] for field in fields(cast(Any, kind))})
