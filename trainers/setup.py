"""From the settings of a run to what learns: devices, data, network, trainer, and what was learned before.

Here settings end: data sets, networks, layers and trainers take named arguments.
"""

import os
import tempfile
from argparse import ArgumentTypeError
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import nn

from data import DATASETS
from data.base import TaskDataset, digest
from models import MODELS, Builder, get_model, multitask, stacked
from models.builder import product_sizes
from models.masked import mask_shapes
from trainers import TRAINERS
from trainers.checks import check_same
from trainers.default import DefaultTrainer
from trainers.export import load_export
from trainers.fit import why_in_order
from trainers.identity import OTHER_SIZES, Identity
from trainers.merge import Part, join_parts
from trainers.options import DataOptions, InferenceOptions, NetworkOptions, Settings, TrainingOptions, pick
from trainers.original import ORIGINAL
from trainers.record import RunRecord
from trainers.run import Plan, follow
from trainers.several import SeveralTrainer
from trainers.tables import RecordOptions
from utils.checkpoint import Record
from utils.cores import WORTH_THREADS, available_cores, choose_threads, runs_at_once, wanted_threads
from utils.errors import UserError, no_memory
from utils.fingerprint import Fingerprint
from utils.parallel import Group, gpu_fault, gpu_memory
from utils.paths import default_data
from utils.seeding import exact_on_gpus, generator, seed_everything
from utils.settings import NEITHER, PART, TOLD_APART
from utils.slices import named

MOST_WORKERS = 16  # that nobody has asked for
MOST_AT_ONCE = 64  # tasks that nobody has asked for: what they learned is kept after each such group
MadeOf = tuple[TaskDataset, nn.Module, DefaultTrainer]


def find_data(s: Settings) -> str | None:
    """Where the data lie, which nothing says: it becomes a setting, and is told in a line; None if it is no file's.

    Raises:
        UserError: the environment names no folder.
    """
    if not DATASETS[s.set].from_files:
        return None
    try:
        s.data, who = default_data()
    except ArgumentTypeError as error:
        raise UserError(f"SUPSUP_DATA: {error}") from None
    return f"data: {s.data} ({who}; `data` names another)"


def set_up(s: Settings) -> list[torch.device]:
    """Seeds, how GPUs compute, and the devices of the run, each the device of one process.

    The setting ``multigpu`` comes to say which these are, if it said nothing.

    Raises:
        UserError: a device that the settings name is not there.
    """
    seed_everything(s.seed)
    exact_on_gpus(s.tf32, s.fast)
    gpus = 0 if s.multigpu is not None and set(s.multigpu.split(",")) == {"cpu"} else torch.cuda.device_count()
    if gpus and (reason := gpu_fault()):
        if s.multigpu is not None:
            raise UserError(f"`multigpu` {s.multigpu}: this machine's GPU cannot be used: {reason}; say cpu")
        print(f"note: this machine's GPU cannot be used: {reason}; the run goes on with the processor", flush=True)
        gpus = 0
    if s.multigpu is None:
        s.multigpu = "0" if gpus else "cpu"
    names = s.multigpu.split(",")
    for name in names:
        if name != "cpu" and int(name) >= gpus:
            there = (
                f"this machine has GPUs 0 ... {gpus - 1}; or say cpu" if gpus else "this machine has no GPU; say cpu"
            )
            raise UserError(f"`multigpu` {s.multigpu}: {there}")
    return [torch.device("cpu") if name == "cpu" else torch.device("cuda", int(name)) for name in names]


def _make_room(model: nn.Module, num_tasks: int) -> None:
    try:
        multitask.keep_in_file(model)
    except OSError:
        where = f"{tempfile.gettempdir()} has no room for what so many tasks keep; TMPDIR names another folder"
        raise UserError(f"`num_tasks` {num_tasks}: {where}") from None


def build(s: Settings, device: torch.device, group: Group) -> MadeOf:
    """The data, the network and the trainer of a process; what the data settle is put into the settings.

    Raises:
        UserError: the data or a network from outside are not what they should be, or there is no room for it.
    """
    data = make_data(pick(DataOptions, s), device, group)
    s.num_tasks = s.num_tasks or data.num_tasks
    vars(s).update(data.settled())
    if s.unshared_labels is None:
        s.unshared_labels = s.trainer != "nns" and data.unshared_labels
    rng = partial(generator, s.seed)
    builder = Builder(rng, max(s.num_tasks, TRAINERS[s.trainer].room), **pick(NetworkOptions, s).layers)
    try:
        model = get_model(s.model, builder, data.input_shape, s.output_size).to(device)
        _make_room(model, s.num_tasks)
    except ValueError as error:
        if ":" not in s.model:
            raise
        raise UserError(f"`model` {s.model}: {error}") from None
    except (MemoryError, RuntimeError) as error:
        if not no_memory(error):
            raise
        said = f"memory has no room for a network with so many tasks, and images {list(data.input_shape)}"
        raise UserError(f"`num_tasks` {s.num_tasks}: {said}") from None
    if s.tasks_in_parallel is None:
        s.tasks_in_parallel = best_at_once(s, data, model, device)
    trainer = SeveralTrainer if s.tasks_in_parallel > 1 and s.trainer == "default" else TRAINERS[s.trainer]
    return data, model, trainer(model, pick(TrainingOptions, s), rng)


def best_at_once(s: Settings, data: TaskDataset, model: nn.Module, device: torch.device) -> int:
    """How many tasks to train at once, where nobody says it.

    One on a processor, where more change the order of sums; on a GPU, which a single small product does not fill, as
    many as there are and have room in half of this run's share of its memory, ``MOST_AT_ONCE`` at the most. Only of
    networks that compute for stacked tasks by themselves, for of convolutions it is not known to pay; and only of tasks
    that do not depend on each other.
    """
    tasks = s.tasks_to_learn
    few = device.type == "cpu" or len(tasks) == 1 or "," in (s.multigpu or "") or s.trainer != "default"
    if few or not stacked.computes_stacked(model) or why_in_order(s, model):
        return 1
    try:
        data.check_stackable(tasks)
    except ValueError:
        return 1
    # Floats. Of each weight: score, its gradient, the mean of its squares, the masked weight, its gradient, and one to
    # compute with. Of each layer and image: what it sees and gives, and the gradients of both.
    images = max(s.batch_size, s.test_batch_size)
    size = 4 * sum(6 * shape.numel() + 2 * images * (shape[0] + shape[1]) for shape in mask_shapes(model).values())
    room = gpu_memory(device) // runs_at_once() // 2 // max(1, size)
    return max(1, min(len(tasks), MOST_AT_ONCE, room)) if size else 1


def make_data(o: DataOptions, device: torch.device, group: Group) -> TaskDataset:
    """The data of a process of a group.

    Raises:
        UserError: as ``TaskDataset``.
    """
    own = {name: getattr(o, name) for name in ("tasks_by", "image_size", "mean", "std", "augment")}
    return DATASETS[o.set](
        o.data,
        **(own if ":" in o.set else {}),
        num_tasks=o.stream_tasks or o.num_tasks,
        classes_per_task=o.classes_per_task,
        seed=o.seed,
        batch_size=o.batch_size,
        test_batch_size=o.test_batch_size,
        device=device,
        workers=min(available_cores(), MOST_WORKERS) if o.workers is None else o.workers,
        keep_images=o.keep_images,
        share=(group.rank, group.size),
    )


def settle_threads(
    s: Settings, input_shape: tuple[int, int, int], devices: Sequence[torch.device], began: int | None
) -> str:
    """Settle the processor threads of the run, and compute with this process's part of them from now on.

    Args:
        input_shape: of an image (channels, height, width).
        began: the threads that a run that goes on began with.

    Returns:
        What to tell of it.
    """

    def product_size() -> float:
        images = min(s.tasks_in_parallel or 1, len(s.tasks_to_learn)) * s.batch_size // len(devices)
        try:
            return fmean(product_sizes(MODELS[s.model], (max(1, images), *input_shape), s.output_size, s.width_mult))
        except Exception:  # whatever a user's own network raises that has no numbers to compute with
            if ":" not in s.model:
                raise
            return WORTH_THREADS

    on_processor = devices[0].type == "cpu"
    s.threads, why = choose_threads(
        s.threads, began, wanted_threads(), available_cores(), product_size if on_processor else None
    )
    share_threads(s, len(devices))
    return f"threads: {s.threads} ({why})"


def share_threads(s: Settings, processes: int) -> None:
    """Compute with this process's part of the run's threads, one of so many processes."""
    torch.set_num_threads(max(1, (s.threads or 1) // processes))


def recall(
    s: Settings,
    model: nn.Module,
    trainer: DefaultTrainer,
    fingerprint: Fingerprint,
    imported: Sequence[Record],
    may_grow: bool,
) -> RunRecord:
    """The record of a run, with what it goes on from or imports.

    What is gone on from lies in a folder, which the settings ``log_dir`` and ``name`` come to say.

    Args:
        fingerprint: of the data.
        imported: the records of what is imported.
        may_grow: whether it may go on from a run of fewer tasks.

    Raises:
        UserError: what it goes on from is damaged beyond use, or of other settings; or the run learns on, and it
            cannot be written.
    """
    lasting = lasting_settings(s, model)

    def same(path: Path, theirs: Mapping[str, Any]) -> None:
        ours, count = lasting, theirs.get("num_tasks")
        if may_grow and type(count) is int and 0 < count < (s.num_tasks or 0):
            ours = lasting | {"num_tasks": count}
        hint = "; say its own again, settings.yaml beside it has its command, or give a new run another `name`"
        check_same(path, theirs, ours, {*theirs, *lasting}, hint)

    record = RunRecord(model, trainer, pick(RecordOptions, s), vars(s), Identity(lasting, fingerprint, same))
    if imported:
        source, about = f"`import_file` {s.import_file}", imported[0].values
        check_same(source, about.get("settings", {}), lasting, {"weights"})
        accuracies = load_export(Path(s.import_file or ""), model, imported)
        record.adopt(accuracies, about.get("data"), source, imported[0].kind == ORIGINAL)
    if s.resume:  # a checkpoint goes on where it lies
        folder = Path(os.path.abspath(s.resume)).parent
        s.log_dir, s.name = str(folder.parent), folder.name
    path = s.checkpoint
    if s.resume or (s.resume is not None and path.exists()):
        record.restore(path)
        if s.predict is None:  # which reads alone
            _check_goes_on(path)
    return record


def _check_goes_on(path: Path) -> None:
    """See that what is learned next can go where the rest lies. Raises ``UserError`` if it cannot."""
    if path.name != "checkpoint.pt":  # a run goes on in the file of that name
        raise UserError(f"`resume` {path}: the file of a run to go on from is called checkpoint.pt")
    if not os.access(path, os.W_OK):
        raise UserError(f"`resume` {path}: cannot be written, and what is learned next goes there")


def lasting_settings(s: Settings, model: nn.Module) -> dict[str, object]:
    """The settings that must stay the same when a run goes on."""
    lasting = {name: value for name, value in vars(s).items() if name not in NEITHER} | {"model": s.model_name}
    if s.weights is not None:  # what they are, wherever they are from
        lasting["weights"] = digest(*(value for _, value in sorted(multitask.shared_state(model).items())))
    return lasting


def merge(
    s: Settings, parts: Sequence[Part], fingerprint: Fingerprint, model: nn.Module, notes: list[str]
) -> dict[int, tuple[Path, Record]]:
    """What other runs have learned of the tasks; where tasks may be missing, those that are there become the tasks.

    Args:
        notes: gets a line if some are missing, and for each run that was made when files had other sizes.

    Raises:
        UserError: as ``join_parts``.
    """
    ours = {name: value for name, value in lasting_settings(s, model).items() if name not in PART}
    found = join_parts(
        parts,
        s.tasks_to_learn,
        fingerprint,
        lambda path, theirs: check_same(path, theirs, ours, {*theirs, *ours} - TOLD_APART),
        s.allow_missing,
    )
    notes += [f"`merge` {part.path}: {OTHER_SIZES}" for part in parts if fingerprint.resized(part.data)]
    if len(found) < len(s.tasks_to_learn):
        s.tasks = named(found)
        notes.append(f"`allow_missing`: of tasks {s.tasks} alone")
    return found


def plan_of(s: Settings) -> Plan:
    """What the settings ask for."""
    return Plan(
        tasks=s.tasks_to_learn,
        at_once=s.tasks_in_parallel or 1,
        skips=s.on_nan == "skip",
        evaluated_after=s.eval_ckpts or (),
        adaptor=s.adaptor,
        inference=pick(InferenceOptions, s),
        as_learned=s.score_when_learned,
    )


def join(group: Group, s: Settings, fingerprint: Fingerprint, imported: Sequence[Record], may_grow: bool) -> None:
    """Be one of the processes of a group that train in step with the first one."""
    data, model, trainer = build(s, set_up(s)[group.rank], group)
    share_threads(s, group.size)
    trainer.check(s.tasks_to_learn)
    record = recall(s, model, trainer, fingerprint, imported, may_grow)
    trainer.join(group)
    follow(plan_of(s), data, trainer, record)
