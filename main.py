"""A run: set-up, the loop over tasks, evaluation. ``python main.py --help`` lists the flags."""

import os
import sys
import time
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from datetime import datetime
from functools import partial
from pathlib import Path
from statistics import fmean

import torch
from torch import nn

from args import PROJECT, parse_arguments
from data import DATASETS
from data.base import TaskDataset
from models import Builder, get_model, multitask
from trainers import TRAINERS, DefaultTrainer, InferenceOptions, TaskScore, TrainingOptions, evaluate
from trainers.export import Storage, load_export, read_export, task_storage, tensor_storage, write_export
from utils.checkpoint import Checkpoint, Record
from utils.errors import UserError
from utils.parallel import Group, group_of
from utils.results import Results, to_csv, write_whole
from utils.run import RunFolder, progress
from utils.seeding import generator, seed_everything

# Where and how a run computes, and when it looks; a checkpoint may go on with other values of these.
NEUTRAL_FLAGS = {
    *("config", "log_dir", "name", "data", "workers", "resume", "import_file", "export"),
    *("multigpu", "threads", "eval_ckpts"),
}
# What the tasks and the frozen network are made of; exported masks mean nothing under other values of these.
NETWORK_FLAGS = {
    *("set", "seed", "classes_per_task", "model", "output_size", "conv_type", "bn_type", "conv_init", "mode"),
    *("nonlinearity", "sparsity", "er_sparsity", "individual_heads", "num_tasks"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; the exit status: 0, or 2 and one line for bad input."""
    try:
        args, exported = parse_arguments(argv), []
        if args.import_file is not None:
            settings, exported = read_export(Path(args.import_file))
            args = parse_arguments(argv, settings)
            _check_same(args.import_file, settings, vars(args), NETWORK_FLAGS)
        run(args, exported)
    except UserError as error:
        # One line, whatever stands in a path or flag that the message names.
        line = "".join(char if char.isprintable() else repr(char)[1:-1] for char in str(error))
        print(f"main.py: error: {line}", file=sys.stderr)
        return 2
    return 0


def run(args: Namespace, exported: Sequence[Record] = ()) -> None:
    """Learn the tasks and evaluate.

    Args:
        exported: the records of ``--import``, if it was given.

    Raises:
        UserError: the input is wrong; before anything is written, where that can be known.
    """
    devices = set_up(args)
    data, model, trainer = build(args, devices[0], Group(0, len(devices)))
    check(args, data, model, trainer)
    memory = Memory(args, model, trainer)
    memory.restore(exported)
    Results(Path(args.log_dir) / "results.csv").check()
    folder = RunFolder(Path(args.log_dir), args.name, resume=args.resume is not None)
    try:
        memory.open(folder)
        with group_of(devices, follow, args, exported) as trainer.group:
            learn(args, data, model, trainer, memory, folder)
        report(args, memory, folder)
        folder.finish()
    finally:
        folder.close()


def set_up(args: Namespace) -> list[torch.device]:
    """Threads, seeds and the devices of the run, each the device of one process."""
    if args.threads is None:
        args.threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    seed_everything(args.seed)
    gpus = torch.cuda.device_count()
    if args.multigpu is None:
        args.multigpu = "0" if gpus else "cpu"
    names = args.multigpu.split(",")
    torch.set_num_threads(max(1, args.threads // len(names)))
    for name in names:
        if name != "cpu" and int(name) >= gpus:
            there = (
                f"this machine has GPUs 0 ... {gpus - 1}; or say cpu" if gpus else "this machine has no GPU; say cpu"
            )
            raise UserError(f"--multigpu {args.multigpu}: {there}")
    return [torch.device("cpu") if name == "cpu" else torch.device("cuda", int(name)) for name in names]


def build(args: Namespace, device: torch.device, group: Group) -> tuple[TaskDataset, nn.Module, DefaultTrainer]:
    """The data, the network and the trainer of a process."""
    data = DATASETS[args.set](
        args.data,
        num_tasks=args.num_tasks,
        classes_per_task=args.classes_per_task,
        seed=args.seed,
        batch_size=args.batch_size,
        test_batch_size=args.test_batch_size,
        device=device,
        workers=args.workers,
        share=(group.rank, group.size),
    )
    args.num_tasks = data.num_tasks
    rng = partial(generator, args.seed)
    builder = Builder(
        rng,
        data.num_tasks,
        args.conv_type,
        args.bn_type,
        args.conv_init,
        args.mode,
        args.nonlinearity,
        args.sparsity,
        args.er_sparsity,
        args.individual_heads,
    )
    model = get_model(args.model, builder, data.input_shape, args.output_size).to(device)
    if args.channels_last:
        model.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(memory_format=torch.channels_last),))
    return data, model, TRAINERS[args.trainer](model, _pick(TrainingOptions, args), rng)


def check(args: Namespace, data: TaskDataset, model: nn.Module, trainer: DefaultTrainer) -> None:
    """What must hold between the flags, the data and the network.

    Raises:
        UserError: something does not.
    """
    if data.num_classes > args.output_size:
        raise UserError(f"--output-size {args.output_size}: {args.set} needs at least {data.num_classes} outputs")
    if args.conv_type == "MaskConv" and len(tasks_to_learn(args)) > 1:
        raise UserError("--conv-type MaskConv: has one mask, so each task is a run of its own; say --task-eval TASK")
    if args.task_eval is not None and args.task_eval >= data.num_tasks:
        raise UserError(f"--task-eval {args.task_eval}: tasks are 0 ... {data.num_tasks - 1}")
    if args.adaptor != "gt" and not multitask.can_superpose(model):
        layers = args.conv_type + (" with --individual-heads" if args.individual_heads else "")
        raise UserError(f"--adaptor {args.adaptor}: --conv-type {layers} has no masks to superpose; say gt")
    if args.adaptor.endswith("_g_minimization") and data.num_classes > args.real_neurons:
        raise UserError(
            f"--real-neurons {args.real_neurons}: {args.set} has {data.num_classes} classes, all of them real"
        )
    trainer.check(tasks_to_learn(args))


def tasks_to_learn(args: Namespace) -> Sequence[int]:
    """The tasks of this run, in their order."""
    return range(args.num_tasks) if args.task_eval is None else [args.task_eval]


def learn(
    args: Namespace,
    data: TaskDataset,
    model: nn.Module,
    trainer: DefaultTrainer,
    memory: "Memory",
    folder: RunFolder,
) -> None:
    """Learn every task that is not learned yet, and evaluate when so many are learned as was asked for."""
    tasks = tasks_to_learn(args)
    due = {count for count in args.eval_ckpts or () if count < len(tasks)} | {len(tasks)}

    def evaluate_if_due() -> None:
        count = len(memory.learned)
        if count not in due or count in memory.evaluations:
            return
        if args.score_when_learned:
            memory.keep_evaluation([TaskScore(task, memory.accuracies[task]) for task in memory.learned])
        else:
            bar = partial(progress, description=f"evaluation after {count}", unit="task")
            options = _pick(InferenceOptions, args)
            memory.keep_evaluation(evaluate(model, data, memory.learned, args.adaptor, options, bar))

    evaluate_if_due()  # a run may have been cut short between learning and evaluation
    todo = [task for task in tasks if task not in memory.learned]
    for task in progress(todo, description="tasks", unit="task"):
        started, accuracies = time.perf_counter(), []
        data.update_task(task)
        trainer.begin_task(task)
        for epoch in range(args.epochs):
            bar = partial(progress, description=f"task {task} epoch {epoch}")
            loss = trainer.train(data.train_loader, epoch, bar)
            accuracies.append(trainer.test(data.val_loader))
            step = len(memory.learned) * args.epochs + epoch
            folder.tensorboard.add_scalar("train/loss", loss, step)
            folder.tensorboard.add_scalar("val/accuracy", accuracies[-1], step)
            if trainer.reached_limit:
                break
        trainer.end_task()
        memory.keep_task(task, accuracies)
        folder.log(f"task {task}: accuracy {accuracies[-1]:.4f}, {time.perf_counter() - started:.1f} s")
        evaluate_if_due()


def follow(group: Group, args: Namespace, exported: Sequence[Record]) -> None:
    """Train in step with the first process of the group, which alone tests, evaluates and writes."""
    data, model, trainer = build(args, set_up(args)[group.rank], group)
    trainer.check(tasks_to_learn(args))
    memory = Memory(args, model, trainer)
    memory.restore(exported)
    trainer.group = group
    for task in tasks_to_learn(args):
        if task not in memory.learned:
            data.update_task(task)
            trainer.begin_task(task)
            for epoch in range(args.epochs):
                trainer.train(data.train_loader, epoch)
                if trainer.reached_limit:
                    break
            trainer.end_task()


class Memory:
    """What a run has learned and measured so far, and its one way to the disk.

    The checkpoint is written first and is the truth; ``results.csv`` and ``adapt_results.csv`` follow it, and a run
    that goes on brings them up to it.

    Attributes:
        learned: the tasks, in the order they were learned in.
        accuracies: of each task when it was just learned.
        evaluations: the scores of the tasks, by the number of tasks learned.
    """

    def __init__(self, args: Namespace, model: nn.Module, trainer: DefaultTrainer):
        self.args, self.model, self.trainer = args, model, trainer
        self.learned: list[int] = []
        self.accuracies: dict[int, float] = {}
        self.evaluations: dict[int, list[TaskScore]] = {}
        self._rows: list[dict] = []
        self._settings = {name: value for name, value in vars(args).items() if name not in NEUTRAL_FLAGS}
        self._damaged = 0
        # What tasks share is kept once it differs from what the seed makes, and again when it has changed.
        self._shared_saved = {name: value.cpu().clone() for name, value in multitask.shared_state(model).items()}
        self._shared_changed: set[str] = set()
        self._shared_news: set[str] = set()  # changed and not written yet
        self._storage, self._measured = Storage(), 0  # of the tasks' own state, and of how many tasks

    def restore(self, exported: Sequence[Record] = ()) -> None:
        """Load the checkpoint that ``--resume`` names, or what ``--import`` read; without either, nothing.

        Raises:
            UserError: it cannot be read, is damaged beyond use, or is of other settings.
        """
        args = self.args
        if exported:
            self.accuracies |= load_export(Path(args.import_file), self.model, exported)
            self.learned += self.accuracies
            self._note_shared()
        if args.resume:
            folder = Path(os.path.abspath(args.resume)).parent
            args.log_dir, args.name = str(folder.parent), folder.name
        path = Path(args.resume or Path(args.log_dir, args.name, "checkpoint.pt"))
        if args.resume is None or not (args.resume or path.exists()):
            return
        records, self._damaged = Checkpoint(path).read()
        if path.name != "checkpoint.pt":  # a run goes on in the file of that name
            raise UserError(f"--resume {path}: the file of a run to go on from is called checkpoint.pt")
        for record in records:
            try:
                self._recall(record, path)
            except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
                raise UserError(f"{path} holds a record that makes no sense here: {error!r}") from None

    def _recall(self, record: Record, path: Path) -> None:
        values = record.values
        if record.kind == "run":
            _check_same(path, values["settings"], self._settings, values["settings"] | self._settings)
        elif record.kind == "task":
            own, shared, of_trainer = (_named(record.tensors, part) for part in ("own.", "shared.", "trainer."))
            try:
                multitask.load_task_state(self.model, values["task"], own)
                multitask.load_shared_state(self.model, shared)
            except (ValueError, IndexError) as error:
                raise UserError(f"{path} does not fit this network: {error}") from None
            self.trainer.load_task_record(values["task"], of_trainer)
            self.learned.append(values["task"])
            self.accuracies[values["task"]] = values["accuracy"]
            if values["row"] is not None:
                self._rows.append(values["row"])
            self._shared_saved |= shared
            self._shared_changed |= set(shared)
        elif record.kind == "evaluation":
            scores = [TaskScore(**score) for score in values["scores"]]
            self.evaluations[len(scores)] = scores
            self._rows.append(values["row"])

    def open(self, folder: RunFolder) -> None:
        """Begin to write in the run's folder, and bring what lies there up to the checkpoint."""
        self.folder, self._checkpoint = folder, Checkpoint(folder.checkpoint)
        self._results = Results(Path(self.args.log_dir) / "results.csv")
        if self._damaged:
            folder.log(
                f"warning: the last {self._damaged} bytes of {folder.checkpoint} are damaged; "
                f"going on from what is whole before them: {len(self.learned)} tasks"
            )
            self._checkpoint.cut(self._damaged)
        if self._rows:
            folder.log(f"going on after {len(self.learned)} learned tasks")
            self._results.complete(self._rows)
            self._write_evaluations()
        self._write_settings()
        if not self._checkpoint.has_records():
            self._checkpoint.append(Record("run", {"settings": self._settings}))
            for task in self.learned:  # imported, for only a checkpoint that is there can be resumed
                self._write_task(task, None)

    def keep_task(self, task: int, accuracies: Sequence[float]) -> None:
        """Keep a task that was just learned; ``accuracies`` after each of its epochs, with the task given."""
        self.learned.append(task)
        self.accuracies[task] = accuracies[-1]
        self._note_shared()
        row = self._row(
            f"task {task} when just learned",
            accuracies[-1],
            max(accuracies),
            Task=task,
            **{"Accuracy Given": accuracies[-1]},
        )
        self._write_task(task, row)
        self._results.add([row])
        if len(self.learned) == 1:
            self._write_settings()
            kept = multitask.kept_fractions(self.model, task)
            self.folder.log("".join(f"kept of {name}: {fraction:.4f}\n" for name, fraction in kept.items()).rstrip())

    def _write_task(self, task: int, row: dict | None) -> None:
        tensors = {f"own.{name}": value for name, value in multitask.task_state(self.model, task).items()}
        tensors |= {f"shared.{name}": self._shared_saved[name] for name in self._shared_news}
        tensors |= {f"trainer.{name}": value for name, value in self.trainer.task_record(task).items()}
        values = {"task": task, "accuracy": self.accuracies[task], "row": row}
        self._checkpoint.append(Record("task", values, tensors))
        self._shared_news = set()

    def _note_shared(self) -> None:
        """Take note of what the tasks share and has changed since it was last written."""
        state = multitask.shared_state(self.model)
        self._shared_news = {
            name for name, value in state.items() if not torch.equal(value.cpu(), self._shared_saved[name])
        }
        self._shared_saved |= {name: state[name].detach().cpu().clone() for name in self._shared_news}
        self._shared_changed |= self._shared_news

    def storage(self) -> Storage:
        """What must be kept of all that is learned."""
        for task in self.learned[self._measured :]:
            self._storage += task_storage(self.model, task)
        self._measured = len(self.learned)
        # Tasks that are scored as when they were just learned each need the weights of that time.
        copies = len(self.learned) if self.args.score_when_learned else 1
        return sum([tensor_storage(self._shared())] * copies, self._storage)

    def export(self) -> None:
        """Write the file that ``--export`` names."""
        write_export(Path(self.args.export), self._settings, self.model, self.accuracies, self._shared())

    def _shared(self) -> dict[str, torch.Tensor]:
        """What the tasks share and no seed makes."""
        return {name: self._shared_saved[name] for name in sorted(self._shared_changed)}

    def keep_evaluation(self, scores: list[TaskScore]) -> None:
        """Keep how all tasks learned so far were answered."""
        count = len(scores)
        given = fmean(score.given for score in scores)
        means = {"Accuracy Given": given}
        if scores[0].adapted is not None:
            means["Accuracy Adapted"] = fmean(score.adapted for score in scores)
            means["Share Inferred Right"] = fmean(score.inferred_right for score in scores)
        value = means.get("Accuracy Adapted", given)
        how = "task given" if self.args.adaptor == "gt" else "task inferred"
        how += ", each when just learned" if self.args.score_when_learned else ""
        row = self._row(f"mean over the {count} tasks learned so far, {how}", value, value, **means)
        self._checkpoint.append(Record("evaluation", {"scores": [asdict(score) for score in scores], "row": row}))
        self.evaluations[count] = scores
        self._results.add([row])
        self._write_evaluations()
        self._write_settings()
        for name, mean in means.items():
            self.folder.tensorboard.add_scalar(f"mean/{name.lower()}", mean, count)
        self.folder.log(f"after {count} tasks: " + ", ".join(f"{name.lower()} {v:.4f}" for name, v in means.items()))

    def _row(self, what: str, current: float, best: float, **more: object) -> dict[str, object]:
        args, path, storage = self.args, self.folder.path.resolve(), self.storage()
        rest = storage.batch_norm + storage.other
        return {
            "Date Finished": datetime.now().isoformat(sep=" ", timespec="seconds"),
            "Name": f"{Path(args.log_dir).name} {self.folder.path.name}: {what}",
            "Current Val": current,
            "Best Val": best,
            "Save Directory": str(path.relative_to(PROJECT) if path.is_relative_to(PROJECT) else path),
            "Set": args.set,
            "Scenario": scenario(args),
            "Tasks Learned": len(self.learned),
            "Seed": args.seed,
            "Sparsity": args.sparsity if args.conv_type in ("MaskConv", "MultitaskMaskConv") else None,
            "Bytes": storage.packed + rest,
            "Bytes CSC-16": storage.csc16 + rest,
            "Bytes Coded": storage.coded + rest,
            "Bytes Bound": round(storage.bound + rest),
            "Bytes Batch Norm": storage.batch_norm,
            **more,
        }

    def _write_evaluations(self) -> None:
        columns = ["tasks_learned", *(field.name for field in fields(TaskScore))]
        rows = [
            {"tasks_learned": count, **asdict(score)}
            for count, scores in sorted(self.evaluations.items())
            for score in scores
        ]
        write_whole(self.folder.path / "adapt_results.csv", to_csv(columns, rows))

    def _write_settings(self) -> None:
        kept = multitask.kept_fractions(self.model, self.learned[0]) if self.learned else {}
        storage = {name: round(size) for name, size in asdict(self.storage()).items()}
        self.folder.write_settings(vars(self.args), PROJECT, kept_fraction=kept, bytes=storage)


def scenario(args: Namespace) -> str:
    """The three letters of the paper: is the task given in training, at inference; are labels shared."""
    if args.adaptor == "gt":
        return "GG"
    return "GNu" if args.unshared_labels else "GNs"


def report(args: Namespace, memory: Memory, folder: RunFolder) -> None:
    """Print how each task was answered in the end."""
    scores = memory.evaluations[len(memory.learned)]
    lines = [f"{'task':>6}  {'accuracy given':>14}  {'inferred':>8}  {'batches inferred right':>22}"]

    def line(task: str, given: float, adapted: float | None, right: float | None) -> str:
        inferred = "" if adapted is None else f"  {adapted:>8.4f}  {right:>22.1%}"
        return f"{task:>6}  {given:>14.4f}{inferred}"

    for index, score in enumerate(scores):
        if index < 10 or index >= len(scores) - 10:
            lines.append(line(str(score.task), score.given, score.adapted, score.inferred_right))
        elif index == 10:
            lines.append("   ...")
    columns = list(zip(*((s.given, s.adapted, s.inferred_right) for s in scores), strict=True))
    lines.append(line("mean", *(None if None in column else fmean(column) for column in columns)))
    folder.log("\n".join(lines))
    storage = memory.storage()
    folder.log(
        f"bytes of all masks: {storage.packed:,} bit-packed, {storage.csc16:,} as CSC-16, {storage.coded:,} coded, "
        f"{storage.bound:,.0f} at the least; beside them {storage.batch_norm:,} of batch norm, {storage.other:,} other"
    )
    if args.export is not None:
        memory.export()
        folder.log(f"exported: {args.export}")
    folder.log(f"results: {Path(args.log_dir) / 'results.csv'}; this run: {folder.path}")


def _named(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors whose names begin so, without that beginning."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _check_same(path: Path | str, theirs: Mapping, ours: Mapping, names: Iterable[str]) -> None:
    """Raises ``UserError`` if a file was made with other settings than those of this run."""
    differing = [
        f"--{name.replace('_', '-')} {theirs.get(name)} there, {ours.get(name)} here"
        for name in sorted(names)
        if theirs.get(name) != ours.get(name)
    ]
    if differing:
        raise UserError(f"{path} was made with other settings: {'; '.join(differing)}")


def _pick(kind: type, args: Namespace):
    """A dataclass of settings from the flags of the same names."""
    return kind(**{field.name: getattr(args, field.name) for field in fields(kind)})


if __name__ == "__main__":
    sys.exit(main())
