"""From the command line to a run, and what its exit status means. ``python main.py --help`` lists the flags."""

import os
import sys
import warnings
from argparse import ArgumentTypeError, Namespace
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path

from args import PROJECT, make_parser, original_settings, parse_arguments, plain
from utils.cores import available_cores, sleep_while_waiting, wanted_threads
from utils.errors import Stopped, UserError, complain, no_memory, out_of_memory, stopping
from utils.output import lasting_output

if __name__ == "__main__":
    sleep_while_waiting()
    # help and wrong flags do not wait for torch, which takes seconds to load
    with lasting_output():
        try:
            parse_arguments()
        except UserError as error:
            sys.exit(complain(error))

import torch
import yaml
from torch import nn

from data import DATASETS
from data.base import SplitByClass, TaskDataset, digest
from data.folder import read_files
from data.loader import Preparation
from models import MODELS, Builder, get_model, multitask, siblings
from models.builder import product_sizes
from models.masked import TopK
from models.norms import is_statistic
from models.original import check_weights, count_states
from trainers import (
    ADAPTORS,
    TRAINERS,
    DefaultTrainer,
    InferenceOptions,
    SeveralTrainer,
    TrainingOptions,
    check_adaptor,
)
from trainers.entries import settings_of_run
from trainers.export import check_export, load_export, read_export
from trainers.merge import SLICE, Part, join_parts, read_part
from trainers.original import ORIGINAL, learned_tasks
from trainers.predict import predict as answers_to
from trainers.record import RunRecord
from trainers.run import Plan, Run, follow, summary
from trainers.tables import RecordOptions, mean
from utils.checkpoint import Record
from utils.files import write_whole
from utils.original import is_original, read_original
from utils.parallel import Group, gpu_fault, group_of
from utils.paths import default_data, read_small
from utils.results import Results, to_csv
from utils.run import RunFolder
from utils.seeding import exact_on_gpus, generator, seed_everything
from utils.settings import NEITHER, NETWORK, OUTCOME
from utils.signals import Signals
from utils.slices import named, tasks_of

# Multiplications of a mean product from which on all cores are faster than one when the machine is idle, and no slower
# than that by a tenth beside a busy process. Two threads for one, in time, on two cores of an AMD EPYC, idle and beside
# one busy process: LeNet 0.9 to 1.3 and 1.1 (12 million), with a batch of 1,000 0.6 and 1.2 (92), eight tasks at once
# 0.7 and 1.1 (94), sixteen 0.6 and 1.1 (188), BNNet 0.5 and 1.0 (248), GEMResNet18 0.9 and 1.2 with a batch of 16.
WORTH_THREADS = 2**27


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for.

    Returns:
        The exit status: 0; 2, with one line, for bad input; 1, with one line, when the run could not go on; 128 + its
        number, with one line, after a signal that asks it to end (130 for SIGINT, 143 for SIGTERM).
    """
    with lasting_output(), Signals() as signals:
        return _main(argv, signals)


def _main(argv: Sequence[str] | None, signals: Signals) -> int:
    try:
        notes: list[str] = []
        args, exported = parse_arguments(argv, notes=notes), []
        original = next((path for path in (args.resume, args.import_file) if path and is_original(Path(path))), None)
        if args.predict is not None:
            predict(argv, Path(args.resume))
            return 0
        parts = [read_part(Path(path)) for path in args.merge or ()]
        if original is not None:
            args, exported = take_original(argv, original)
        elif args.resume and (settings := settings_of_run(Path(args.resume))):
            args = parse_arguments(argv, settings, source=args.resume)
        elif args.import_file is not None:
            settings, exported = read_export(Path(args.import_file))
            network = {name: value for name, value in settings.items() if name in NETWORK}
            args = parse_arguments(argv, network, source=f"--import {args.import_file}")
            _check_same(args.import_file, network, vars(args) | {"model": plain(args.model)}, NETWORK)
        elif parts:
            settings = {name: value for name, value in parts[0].settings.items() if name in NETWORK | OUTCOME}
            args = parse_arguments(argv, settings, source=f"--merge {args.merge[0]}")
        for note in notes:
            print(f"note: {note}", flush=True)
        run(args, signals, exported, parts)
    except (UserError, Stopped) as error:
        return complain(error)
    except (ImportError, MemoryError, OSError, RuntimeError) as error:
        if not no_memory(error):
            raise
        return complain(out_of_memory(error))  # before there was anything to save
    return 0


def predict(argv: Sequence[str] | None, run: Path) -> None:
    """Answer for the images of ``--predict`` with what a run has learned: a CSV.

    Raises:
        UserError: the run, its data or the images are not there, or nothing is learned.
    """
    path = run / "checkpoint.pt" if run.is_dir() else run
    try:
        about = yaml.safe_load(read_small(path.with_name("settings.yaml"), 2**20))
        settings = {name: about["settings"].get(name) for name in NETWORK | OUTCOME | {"data", "weights"}}
    except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        raise UserError(f"--resume {run}: has no settings.yaml of a run: {error}") from None
    settings = {name: value for name, value in settings.items() if value is not None}
    args = parse_arguments(argv, settings, source=str(path.with_name("settings.yaml")))
    wanted, args.resume = (args.adaptor, args.task_eval), str(path)
    options = _pick(InferenceOptions, args)
    for name in OUTCOME:  # of the run itself; what is wanted now may be inferred otherwise
        setattr(args, name, settings.get(name, make_parser().get_default(name)))
    data, model, trainer = build(args, set_up(args)[0], Group(0, 1))
    record = recall(args, model, trainer, data.fingerprint(), [], False)
    adaptor, task = wanted
    tasks = record.candidates
    if task is not None and task not in tasks:
        raise UserError(f"--task-eval {task}: is not learned; there are {', '.join(map(str, tasks)) or 'none'}")
    tasks = tasks if task is None else [task]
    if not tasks or (len(tasks) > 1 and not ADAPTORS[adaptor].infers):
        raise UserError(
            f"--adaptor {adaptor}: infers no task; say se_oneshot_entropy_minimization, or the task by --task-eval"
            if tasks
            else f"--resume {run}: nothing is learned yet"
        )
    if len(tasks) > 1:
        check_adaptor(adaptor, model)
    files, images, broken = read_files(args.predict, data.input_shape)
    if broken:
        print(f"note: cannot be read, so left out: {', '.join(broken)}", file=sys.stderr)
    plainly = Preparation(data.val_loader.prepare.mean, data.val_loader.prepare.std, None, data.device)
    names = {task: data.labels_of(task if trainer.tasks_known else 0) for task in tasks}
    answers = answers_to(
        model,
        plainly(images.to(data.device)),
        tasks,
        adaptor,
        options,
        {task: list(labels) for task, labels in names.items()},
    )
    rows = [
        {"file": file, "task": data.task_name(task), "label": names[task][label], "probability": f"{share:.6f}"}
        for file, (task, label, share) in zip(files, answers, strict=True)
    ]
    text = to_csv(list(rows[0]), rows)
    if args.out is None:
        sys.stdout.write(text)
        return
    try:
        write_whole(Path(args.out), text)
    except OSError as error:
        raise UserError(f"--out {args.out}: {error.strerror}") from None


def take_original(argv: Sequence[str] | None, path: str) -> tuple[Namespace, list[Record]]:
    """What a checkpoint of the original code brings: its settings, and what it holds, as if it were imported.

    Raises:
        UserError: it cannot be read, or the command line wants another network.
    """
    original = read_original(Path(path))
    settings = original_settings(original.settings, (NETWORK | OUTCOME) - {"reinit_from"}, path)
    args, theirs = (parse_arguments(words, settings, source=path) for words in (argv, []))
    _check_same(path, vars(theirs), vars(args), NETWORK)
    try:
        check_weights(original.tensors, args.model, args.output_size, args.width_mult)
        states = count_states(original.tensors)
        args.num_tasks = args.num_tasks or states or None
        if states and args.num_tasks != states:
            raise ValueError(f"it has the states of {states} tasks, its args say num_tasks {args.num_tasks}")
        learned = learned_tasks(original, args.conv_type, args.task_eval)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    if args.trainer == "nns":
        raise UserError(f"{path}: --trainer nns also needs what it knew of the stream, which is not in such a file")
    args.import_file, args.resume = path, None  # it goes on in a folder of its own
    return args, [Record(ORIGINAL, {"tasks": learned}, original.tensors)]


def run(args: Namespace, signals: Signals, exported: Sequence[Record] = (), parts: Sequence[Part] = ()) -> None:
    """Learn the tasks and evaluate.

    Args:
        signals: what may ask the run to stop.
        exported: the records of ``--import``, if it was given.
        parts: the runs of ``--merge``, if it was given.

    Raises:
        UserError: the input is wrong; before anything is written.
        Stopped: the run could not go on.
    """
    find_data(args)
    devices = set_up(args)[: 1 if parts else None]
    more = args.num_tasks is not None  # told how many tasks there are, a run that goes on may have more than before
    data, model, trainer = build(args, devices[0], Group(0, len(devices)))
    check(args, data, model, trainer)
    fingerprint = data.fingerprint()
    more = more and trainer.tasks_known and not data.depend_on_number
    merged = merge(args, parts, fingerprint, model) if parts else {}
    record = recall(args, model, trainer, fingerprint, exported, more)
    record.merged = merged
    known = {*record.learned, *tasks_to_learn(args)}
    if args.conv_type == "MaskConv" and len(known) > 1:
        raise UserError("--conv-type MaskConv: has one mask, so each task is a run of its own; say --task-eval TASK")
    for note in [*data.notes, *ignored(args, len(known), model)]:
        print(f"note: {note}", flush=True)
    threads_because = set_threads(args, data, devices, record)
    Results(Path(args.log_dir) / "results.csv").check()
    if args.export is not None:
        check_export(Path(args.export), Path(args.log_dir, args.name))
    folder = RunFolder(Path(args.log_dir), args.name, resume=args.resume is not None)
    try:
        with stopping(), signals.waiting():
            record.open(folder)
            if folder.path.name != args.name:
                wanted = Path(args.log_dir, args.name)
                folder.log(
                    f"note: {wanted} is there, so this run is {folder.path.name}; --resume goes on with {wanted}"
                )
            folder.log(threads_because)
            with group_of(devices, join, args, fingerprint, exported, more) as group:
                trainer.join(group)
                Run(plan_of(args), data, model, trainer, record, folder, signals).learn()
            report(args, record, folder)
            folder.finish()
    except Stopped as error:
        hint = "; --on-nan skip would leave it out" if trainer.failed and args.on_nan == "stop" else ""
        stopped = Stopped(f"{error}{hint}; {record.saved()}", error.status)
        folder.keep(f"stopped: {stopped}")
        raise stopped from error
    finally:
        folder.close()


def find_data(args: Namespace) -> None:
    """Say where the data lie, if no flag says so and they lie in files.

    Raises:
        UserError: the environment names no folder.
    """
    if args.data is None and DATASETS[args.set].from_files:
        try:
            args.data, who = default_data()
        except ArgumentTypeError as error:
            raise UserError(f"SUPSUP_DATA: {error}") from None
        print(f"data: {args.data} ({who}; --data names another)", flush=True)


def set_up(args: Namespace) -> list[torch.device]:
    """Seeds, how GPUs compute, and the devices of the run, each the device of one process."""
    seed_everything(args.seed)
    exact_on_gpus(args.tf32, args.fast)
    gpus = 0 if args.multigpu is not None and set(args.multigpu.split(",")) == {"cpu"} else torch.cuda.device_count()
    if gpus and (reason := gpu_fault()):
        if args.multigpu is not None:
            raise UserError(f"--multigpu {args.multigpu}: this machine's GPU cannot be used: {reason}; say cpu")
        print(f"note: this machine's GPU cannot be used: {reason}; the run goes on with the processor", flush=True)
        gpus = 0
    if args.multigpu is None:
        args.multigpu = "0" if gpus else "cpu"
    names = args.multigpu.split(",")
    for name in names:
        if name != "cpu" and int(name) >= gpus:
            there = (
                f"this machine has GPUs 0 ... {gpus - 1}; or say cpu" if gpus else "this machine has no GPU; say cpu"
            )
            raise UserError(f"--multigpu {args.multigpu}: {there}")
    return [torch.device("cpu") if name == "cpu" else torch.device("cuda", int(name)) for name in names]


def set_threads(args: Namespace, data: TaskDataset, devices: Sequence[torch.device], record: RunRecord) -> str:
    """Settle the processor threads of the run, and compute with this process's part of them from now on.

    Results depend on the number, so that it depends on nothing that changes while a run goes on, such as how busy the
    machine is: it is what ``--threads`` says, what a run that goes on began with, what ``OMP_NUM_THREADS`` says, or
    all cores open to the run if its products are large enough to gain by them, and else 1.

    Returns:
        What to tell of it.
    """
    if args.threads is not None:
        why = "as --threads says"
    elif (threads := record.threads) is not None:
        args.threads, why = threads, "as the run began"
    elif (threads := wanted_threads()) is not None:
        args.threads, why = threads, "as OMP_NUM_THREADS says"
    elif devices[0].type != "cpu":
        args.threads, why = available_cores(), "all cores open to the run"
    else:
        images = min(args.tasks_in_parallel, len(tasks_to_learn(args))) * args.batch_size // len(devices)
        shape = (max(1, images), *data.input_shape)
        try:
            size = mean(product_sizes(MODELS[args.model], shape, args.output_size, args.width_mult))
        except Exception:  # whatever a user's own network raises that has no numbers to compute with
            if ":" not in args.model:
                raise
            size = WORTH_THREADS
        large, cores = size >= WORTH_THREADS, available_cores()
        args.threads = cores if large else 1
        why = f"{'large' if large else 'small'} products, {size / 1e6:,.0f} million multiplications each; {cores} cores"
    share_threads(args, len(devices))
    return f"threads: {args.threads} ({why})"


def share_threads(args: Namespace, processes: int) -> None:
    """Compute with this process's part of the run's threads, one of so many processes."""
    torch.set_num_threads(max(1, args.threads // processes))


def build(args: Namespace, device: torch.device, group: Group) -> tuple[TaskDataset, nn.Module, DefaultTrainer]:
    """The data, the network and the trainer of a process."""
    own = {name: getattr(args, name) for name in ("tasks_by", "image_size", "mean", "std", "augment")}
    data = DATASETS[args.set](
        args.data,
        **(own if ":" in args.set else {}),
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
    vars(args).update(data.settled())
    rng = partial(generator, args.seed)
    builder = Builder(
        rng,
        max(args.num_tasks, TRAINERS[args.trainer].room),
        args.conv_type,
        args.bn_type,
        args.conv_init,
        args.mode,
        args.nonlinearity,
        args.sparsity,
        args.er_sparsity,
        args.individual_heads,
        args.width_mult,
        args.weights,
    )
    try:
        model = get_model(args.model, builder, data.input_shape, args.output_size).to(device)
    except ValueError as error:
        if ":" not in args.model:
            raise
        raise UserError(f"--model {args.model}: {error}") from None
    except (MemoryError, RuntimeError) as error:
        if not no_memory(error):
            raise
        raise UserError(f"--num-tasks {args.num_tasks}: memory has no room for a network with so many tasks") from None
    at_once = args.tasks_in_parallel > 1 and args.trainer == "default"
    trainer = SeveralTrainer if at_once else TRAINERS[args.trainer]
    return data, model, trainer(model, _pick(TrainingOptions, args), rng)


def check(args: Namespace, data: TaskDataset, model: nn.Module, trainer: DefaultTrainer) -> None:
    """What must hold between the flags, the data and the network.

    Raises:
        UserError: something does not.
    """
    if data.num_classes > args.output_size:
        hint = "; --classes-per-task makes smaller tasks" if isinstance(data, SplitByClass) else ""
        raise UserError(f"--output-size {args.output_size}: {args.set} needs at least {data.num_classes} outputs{hint}")
    if max(tasks_to_learn(args)) >= data.num_tasks:
        raise UserError(f"{_slice(args)}: tasks are 0 ... {data.num_tasks - 1}")
    check_adaptor(args.adaptor, model)
    if ADAPTORS[args.adaptor].superfluous and data.num_classes > args.real_neurons:
        raise UserError(
            f"--real-neurons {args.real_neurons}: {args.set} has {data.num_classes} classes, all of them real"
        )
    depends = multitask.depends(model)
    if depends and args.trainer in ("nns", "reinit"):
        raise UserError(f"--trainer {args.trainer}: goes with no --conv-type that trains weights, as {args.conv_type}")
    if siblings.has_halves(model) and args.trainer != "halves":
        raise UserError(f"--conv-type {args.conv_type}: tasks have two halves; say --trainer halves")
    depends = depends or args.train_weight_tasks or (args.trainer == "reinit" and args.reinit_adapt != "n-1-imagenet")
    depends = depends or any(map(is_statistic, multitask.shared_state(model)))
    if (args.task_eval or args.tasks) and depends:
        raise UserError(
            f"{_slice(args)}: with trained weights, transfer or statistics that tasks share a task depends on those "
            "before it, so it cannot be learned alone"
        )
    trainer.check(tasks_to_learn(args))
    if args.tasks_in_parallel > 1:
        check_parallel(args, data, model, trainer)


def ignored(args: Namespace, tasks: int, model: nn.Module) -> list[str]:
    """What of the flags goes beyond the tasks, so many in the end, the batches or the layers, a line each."""
    lines = []
    if not any(multitask.named(model, TopK)):
        default = make_parser().get_default
        lines += [
            f"--{name.replace('_', '-')} {getattr(args, name)}: without effect, for no layer of --conv-type "
            f"{args.conv_type} keeps a fraction of its weights"
            for name in ("sparsity", "er_sparsity")
            if getattr(args, name) != default(name)
        ]
    beyond = [count for count in args.eval_ckpts or () if count > tasks]
    if beyond:
        lines.append(f"--eval-ckpts {','.join(map(str, beyond))}: there are {tasks} tasks; evaluated at the end")
    if ADAPTORS[args.adaptor].infers and args.data_to_repeat > args.test_batch_size:
        lines.append(
            f"--data-to-repeat {args.data_to_repeat}: a test batch has {args.test_batch_size} images, "
            "and its task is inferred from all of them; --test-batch-size has more"
        )
    return lines


def check_parallel(args: Namespace, data: TaskDataset, model: nn.Module, trainer: DefaultTrainer) -> None:
    """See that tasks can be trained at once: none depends on another, and each batch has a part of every task.

    Raises:
        UserError: they cannot.
    """
    flag = f"--tasks-in-parallel {args.tasks_in_parallel}"
    if not trainer.parallel:
        raise UserError(f"{flag}: with --trainer {args.trainer} a task depends on those before it")
    if multitask.depends(model):
        raise UserError(f"{flag}: with --conv-type {args.conv_type} a task builds on those before it")
    if args.train_weight_tasks:
        raise UserError(f"{flag}: tasks that train the shared weights, --train-weight-tasks, depend on each other")
    if any(map(is_statistic, multitask.shared_state(model))):
        raise UserError(f"{flag}: --bn-type {args.bn_type} has statistics that all tasks share")
    if "," in args.multigpu:
        raise UserError(f"{flag}: needs one device, not --multigpu {args.multigpu}")
    if ":" in args.model:
        some = tasks_to_learn(args)[:2]
        try:
            state = multitask.begin_tasks(model, some, trainer.rng)
            images = torch.zeros(len(some), 2, *data.input_shape, device=next(iter(state.values())).device)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what is computed one task after the other
                multitask.call_tasks(model.train(), state, images)
        except RuntimeError as error:
            why = str(error).splitlines()[0]
            raise UserError(f"{flag}: {args.model} cannot compute for several tasks at once: {why}") from None
    try:
        data.loaders(tasks_to_learn(args))
    except ValueError as error:
        raise UserError(f"{flag}: {args.set} cannot serve several at once: {error}") from None


def recall(
    args: Namespace,
    model: nn.Module,
    trainer: DefaultTrainer,
    fingerprint: str,
    exported: Sequence[Record],
    more: bool,
) -> RunRecord:
    """The record of a run, with what ``--resume`` or ``--import`` brings of it.

    Args:
        more: whether it may go on from a run of fewer tasks.

    Raises:
        UserError: what they name is damaged beyond use, or of other settings.
    """
    lasting = lasting_settings(args, model)

    def check_same(path: Path, theirs: Mapping) -> None:
        ours, count = lasting, theirs.get("num_tasks")
        if more and type(count) is int and 0 < count < args.num_tasks:
            ours = lasting | {"num_tasks": count}
        _check_same(path, theirs, ours, theirs | lasting)

    record = RunRecord(
        model, trainer, _pick(RecordOptions, args), vars(args), lasting, check_same, PROJECT, fingerprint
    )
    if exported:
        path, given = f"--import {args.import_file}", exported[0].values.get("settings", {})
        _check_same(path, given, lasting, {"weights"})
        accuracies = load_export(Path(args.import_file), model, exported)
        of_original = exported[0].kind == ORIGINAL
        record.adopt(accuracies, exported[0].values.get("data"), path, of_original)
    if args.resume:  # a checkpoint goes on where it lies
        folder = Path(os.path.abspath(args.resume)).parent
        args.log_dir, args.name = str(folder.parent), folder.name
    path = Path(args.resume or Path(args.log_dir, args.name, "checkpoint.pt"))
    if args.resume or (args.resume is not None and path.exists()):
        record.restore(path)
    return record


def lasting_settings(args: Namespace, model: nn.Module) -> dict[str, object]:
    """The settings that must stay the same when a run goes on."""
    lasting = {name: value for name, value in vars(args).items() if name not in NEITHER} | {"model": plain(args.model)}
    if args.weights is not None:  # what they are, wherever they are from
        lasting["weights"] = digest(*(value for _, value in sorted(multitask.shared_state(model).items())))
    return lasting


def merge(args: Namespace, parts: Sequence[Part], fingerprint: str, model: nn.Module) -> dict[int, tuple[Path, Record]]:
    """What the runs of ``--merge`` have learned of the tasks; with ``--allow-missing`` these become the tasks.

    Raises:
        UserError: as ``join_parts``.
    """
    ours = {name: value for name, value in lasting_settings(args, model).items() if name not in SLICE}
    found = join_parts(
        parts,
        tasks_to_learn(args),
        fingerprint,
        lambda path, theirs: _check_same(path, theirs, ours, theirs | ours),
        args.allow_missing,
    )
    if len(found) < len(tasks_to_learn(args)):
        args.tasks = named(found)
        print(f"note: --allow-missing: of tasks {args.tasks} alone", flush=True)
    return found


def _slice(args: Namespace) -> str:
    """What says which tasks are learned, in words."""
    return f"--tasks {args.tasks}" if args.tasks else f"--task-eval {args.task_eval}"


def tasks_to_learn(args: Namespace) -> Sequence[int]:
    """The tasks of this run, in their order."""
    if args.tasks is not None:
        return tasks_of(args.tasks)
    return range(args.stream_tasks or args.num_tasks) if args.task_eval is None else [args.task_eval]


def plan_of(args: Namespace) -> Plan:
    """What the flags ask for."""
    return Plan(
        tasks=tasks_to_learn(args),
        at_once=args.tasks_in_parallel,
        skips=args.on_nan == "skip",
        evaluated_after=args.eval_ckpts or (),
        adaptor=args.adaptor,
        inference=_pick(InferenceOptions, args),
        as_learned=args.score_when_learned,
    )


def join(group: Group, args: Namespace, fingerprint: str, exported: Sequence[Record], more: bool) -> None:
    """Be one of the processes of a group that train in step with the first one."""
    data, model, trainer = build(args, set_up(args)[group.rank], group)
    share_threads(args, group.size)
    trainer.check(tasks_to_learn(args))
    record = recall(args, model, trainer, fingerprint, exported, more)
    trainer.join(group)
    follow(plan_of(args), data, trainer, record)


def report(args: Namespace, record: RunRecord, folder: RunFolder) -> None:
    """Print how each task was answered in the end, and write what is asked for."""
    folder.log("\n".join(summary(record.evaluations[len(record.learned)])))
    folder.log(str(record.storage()))
    if args.export is not None:
        record.export(Path(args.export))
        folder.log(f"exported: {args.export}")
    folder.log(f"results: {Path(args.log_dir) / 'results.csv'}; this run: {folder.path}")


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
