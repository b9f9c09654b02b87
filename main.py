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

from args import PROJECT, make_parser, parse_arguments
from data import DATASETS
from data.base import TaskDataset
from models import Builder, get_model, multitask
from trainers import TRAINERS, DefaultTrainer, InferenceOptions, TaskScore, TrainingOptions, check_adaptor, evaluate
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
        with group_of(devices, follow, args, exported) as group:
            trainer.join(group)
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
        num_tasks=args.stream_tasks or args.num_tasks,
        classes_per_task=args.classes_per_task,
        seed=args.seed,
        batch_size=args.batch_size,
        test_batch_size=args.test_batch_size,
        device=device,
        workers=args.workers,
        share=(group.rank, group.size),
    )
    args.num_tasks = args.num_tasks or data.num_tasks
    rng = partial(generator, args.seed)
    builder = Builder(
        rng,
        TRAINERS[args.trainer].room(args.num_tasks),
        args.conv_type,
        args.bn_type,
        args.conv_init,
        args.mode,
        args.nonlinearity,
        args.sparsity,
        args.er_sparsity,
        args.individual_heads,
    )
    try:
        model = get_model(args.model, builder, data.input_shape, args.output_size).to(device)
    except RuntimeError as error:  # torch says so when memory is refused
        if "memory" not in str(error):
            raise
        raise UserError(f"--num-tasks {args.num_tasks}: memory has no room for a network with so many tasks") from None
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
    check_adaptor(args.adaptor, model)
    if args.adaptor.endswith("_g_minimization") and data.num_classes > args.real_neurons:
        raise UserError(
            f"--real-neurons {args.real_neurons}: {args.set} has {data.num_classes} classes, all of them real"
        )
    depends = args.train_weight_tasks or (args.trainer == "reinit" and args.reinit_adapt != "n-1-imagenet")
    if args.task_eval and depends:
        raise UserError(
            f"--task-eval {args.task_eval}: with trained weights or transfer a task depends on those before it, "
            "so it cannot be learned alone"
        )
    trainer.check(tasks_to_learn(args))


def tasks_to_learn(args: Namespace) -> Sequence[int]:
    """The tasks of this run, in their order."""
    return range(args.stream_tasks or args.num_tasks) if args.task_eval is None else [args.task_eval]


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
            masks = trainer.candidates(memory.learned)
            memory.keep_evaluation(
                evaluate(model, data, memory.learned, args.adaptor, options, bar, trainer.mask_of, masks)
            )

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
        if note := trainer.note(task):
            folder.log(note)
        evaluate_if_due()


def follow(group: Group, args: Namespace, exported: Sequence[Record]) -> None:
    """Train in step with the first process of the group, which alone tests, evaluates and writes."""
    data, model, trainer = build(args, set_up(args)[group.rank], group)
    trainer.check(tasks_to_learn(args))
    memory = Memory(args, model, trainer)
    memory.restore(exported)
    trainer.join(group)
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
        self._storage: dict[int, Storage] = {}  # of each mask
        self._checkpoint: Checkpoint | None = None

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
        self._checkpoint = Checkpoint(path)
        self._size = self._checkpoint.size()
        records, self._damaged = self._checkpoint.read()
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
                if self.trainer.tasks_known:
                    multitask.load_task_state(self.model, values["task"], own)
                multitask.load_shared_state(self.model, shared)
                self.trainer.load_task_record(values["task"], of_trainer)
            except (ValueError, IndexError) as error:
                raise UserError(f"{path} does not fit this network: {error}") from None
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
        self.folder = folder
        if self._checkpoint is None:
            self._checkpoint = Checkpoint(folder.checkpoint)
        elif self._checkpoint.size() != self._size:
            raise UserError(f"{folder.checkpoint} has grown since it was read: another process ran here; call again")
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
            self._write_tables()
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
        self._write_tables()
        self._publish(row)
        if len(self.learned) == 1:
            self._write_settings()
            kept = self._kept_fractions()
            self.folder.log("".join(f"kept of {name}: {fraction:.4f}\n" for name, fraction in kept.items()).rstrip())

    def _publish(self, row: dict) -> None:
        """Add a row to ``results.csv``; what a damaged checkpoint has lost may stand there already."""
        (self._results.complete if self._damaged else self._results.add)([row])

    def _write_task(self, task: int, row: dict | None) -> None:
        known = self.trainer.tasks_known
        parts = {
            "own": multitask.task_state(self.model, task) if known else {},
            "shared": {name: self._shared_saved[name] for name in self._shared_news},
            "trainer": self.trainer.task_record(task),
        }
        tensors = {f"{part}.{name}": value for part, named in parts.items() for name, value in named.items()}
        latest = [name for name in tensors if name.startswith("shared.") or not known]
        values = {"task": task, "accuracy": self.accuracies[task], "row": row}
        self._checkpoint.append(Record("task", values, tensors, latest))
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
        masks, changed = self.trainer.candidates(self.learned), self.trainer.changed()
        for mask in masks:
            if mask in changed or mask not in self._storage:
                self._storage[mask] = task_storage(self.model, mask)
        # Tasks that are scored as when they were just learned each need the weights of that time.
        copies = len(self.learned) if self.args.score_when_learned else 1
        return sum([tensor_storage(self._shared())] * copies, sum(self._storage.values(), Storage()))

    def export(self) -> None:
        """Write the file that ``--export`` names."""
        write_export(Path(self.args.export), self._settings, self.model, self.accuracies, self._shared())

    def _shared(self) -> dict[str, torch.Tensor]:
        """What the tasks share and no seed makes."""
        return {name: self._shared_saved[name] for name in sorted(self._shared_changed)}

    def keep_evaluation(self, scores: list[TaskScore]) -> None:
        """Keep how all tasks learned so far were answered."""
        count = len(scores)
        columns = {
            "Accuracy Given": mean(score.given for score in scores),
            "Accuracy Adapted": mean(score.adapted for score in scores),
            "Share Inferred Right": mean(score.inferred_right for score in scores),
        }
        means = {name: value for name, value in columns.items() if value is not None}
        value = means.get("Accuracy Adapted", columns["Accuracy Given"])
        how = "task given" if self.args.adaptor == "gt" else "task inferred"
        how += ", each when just learned" if self.args.score_when_learned else ""
        row = self._row(f"mean over the {count} tasks learned so far, {how}", value, value, **means)
        self._checkpoint.append(Record("evaluation", {"scores": [asdict(score) for score in scores], "row": row}))
        self.evaluations[count] = scores
        self._publish(row)
        self._write_evaluations()
        self._write_settings()
        for name, value in means.items():
            self.folder.tensorboard.add_scalar(f"mean/{name.lower()}", value, count)
        for score in scores:
            for step in score.steps:
                self.folder.tensorboard.add_scalar(
                    f"recovery after {count}/hamming distance of task {score.task}", step["hamming"], step["step"]
                )
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
        """``adapt_results.csv``, a row a task; and ``hopfield.csv``, a row a step of recovery."""
        rows, steps = [], []
        for count, scores in sorted(self.evaluations.items()):
            for score in scores:
                row = {"tasks_learned": count, **asdict(score)}
                about = {name: row[name] for name in ("tasks_learned", "task")}
                steps += [about | step for step in row.pop("steps")]
                rows.append(row)
        for name, table in (("adapt_results.csv", rows), ("hopfield.csv", steps)):
            if table:
                write_whole(self.folder.path / name, to_csv(list(table[0]), table))

    def _write_settings(self) -> None:
        storage = {name: round(size) for name, size in asdict(self.storage()).items()}
        self.folder.write_settings(vars(self.args), PROJECT, kept_fraction=self._kept_fractions(), bytes=storage)

    def _kept_fractions(self) -> dict[str, float]:
        mask = self.trainer.mask_of(self.learned[0]) if self.learned else None
        return {} if mask is None else multitask.kept_fractions(self.model, mask)

    def _write_tables(self) -> None:
        for name, text in self.trainer.tables().items():
            write_whole(self.folder.path / name, text)


def scenario(args: Namespace) -> str:
    """The three letters of the paper: is the task given in training, at inference; are labels shared."""
    if args.trainer == "nns":
        return "NNs"
    if args.adaptor == "gt":
        return "GG"
    return "GNu" if args.unshared_labels else "GNs"


def report(args: Namespace, memory: Memory, folder: RunFolder) -> None:
    """Print how each task was answered in the end."""
    scores = memory.evaluations[len(memory.learned)]
    lines = [f"{'task':>6}  {'accuracy given':>14}  {'inferred':>8}  {'batches inferred right':>22}"]

    def line(task: str, *values: float | None) -> str:
        cells = []
        for value, width, form in zip(values, (14, 8, 22), (".4f", ".4f", ".1%"), strict=True):
            cells.append(" " * width if value is None else f"{value:>{width}{form}}")
        return "  ".join([f"{task:>6}", *cells]).rstrip()

    columns = [[getattr(score, name) for score in scores] for name in ("given", "adapted", "inferred_right")]
    for index, (score, *values) in enumerate(zip(scores, *columns, strict=True)):
        if index < 10 or index >= len(scores) - 10:
            lines.append(line(str(score.task), *values))
        elif index == 10:
            lines.append("   ...")
    lines.append(line("mean", *map(mean, columns)))
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


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of those that are there; None if there is none."""
    there = [value for value in values if value is not None]
    return fmean(there) if there else None


def _named(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors whose names begin so, without that beginning."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _check_same(path: Path | str, theirs: Mapping, ours: Mapping, names: Iterable[str]) -> None:
    """Raises ``UserError`` if a file was made with other settings than those of this run."""
    # A flag that came later than the file stood at its default when the file was made.
    parser = make_parser()
    theirs = {name: parser.get_default(name) for name in names} | dict(theirs)
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
