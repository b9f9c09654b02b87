"""Ways to infer a task, side by side on the same masks and test batches, in small forms of the paper's settings.

    python experiments/inferred.py --data DIR                    # everything, on one thread
    python experiments/inferred.py --data DIR --only SplitMNIST  # settings whose name has this in it

Each setting is learned once and evaluated by every way, with derivatives through all layers and through the first
alone, and calibrated: then how far a task's derivative is below the mean counts in what it was on that task's training
data, on average. Beside the gradient stand routers, on permutations: the nearest mean image of the training data, and
the largest probability and the smallest entropy over all masks. Written to ``--out``: ``inferred.csv`` and
``routers.csv``, row by row.
"""

import argparse
import csv
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT))
from args import with_flags  # noqa: E402
from data import DATASETS  # noqa: E402
from experiments.options import Parser, parse_path  # noqa: E402
from models import Builder, get_model, multitask  # noqa: E402
from trainers import ADAPTORS, inference  # noqa: E402
from trainers.default import DefaultTrainer  # noqa: E402
from trainers.options import InferenceOptions, TrainingOptions  # noqa: E402
from utils.errors import UserError  # noqa: E402
from utils.output import one_line  # noqa: E402
from utils.paths import user_path  # noqa: E402
from utils.seeding import generator  # noqa: E402

RNG = partial(generator, 0)
CALIBRATION = 8  # training batches of each task
WAYS = {"one-shot": "se_oneshot_{}_minimization", "binary": "se_binary_{}_minimization"}


@dataclass
class Setting:
    """What is learned: tasks of a data set, each in so many batches, and which ways infer them.

    Attributes:
        tests: test batches of each task.
        objectives: H, or H and G, for which there must be superfluous outputs.
    """

    name: str
    data: str
    tasks: int
    batches: int = 150
    outputs: int = 100
    model: str = "LeNet"
    tests: int = 79
    objectives: str = "H"
    training: dict[str, object] = field(default_factory=lambda: {"lr": 1e-4})
    layers: dict[str, object] = field(default_factory=dict)


SETTINGS = (
    Setting("permutations", "MNISTPerm", 20, objectives="HG"),
    Setting("permutations, 25 outputs", "MNISTPerm", 10, outputs=25, objectives="HG"),
    Setting("permutations, 200 outputs", "MNISTPerm", 10, outputs=200, objectives="HG"),
    Setting("permutations, FC1024", "MNISTPerm", 5, batches=60, model="FC1024", tests=40),
    Setting("rotations", "RotatingMNIST", 20, objectives="HG"),
    Setting("SplitMNIST", "SplitMNIST", 5, tests=15),
    Setting(
        "SplitCIFAR100, GEMResNet18",
        "SplitCIFAR100",
        3,
        batches=20,
        outputs=5,
        model="GEMResNet18",
        tests=4,
        training={"lr": 1e-3, "optimizer": "adam"},
        layers={"conv_type": "MultitaskMaskConv", "sparsity": 8, "er_sparsity": True},
    ),
)


def learn(setting: Setting, root: str) -> tuple[nn.Module, object]:
    """The model with all tasks of a setting learned, and their data."""
    data = DATASETS[setting.data](root, num_tasks=setting.tasks)
    builder = Builder(RNG, setting.tasks, **setting.layers)
    model = get_model(setting.model, builder, data.input_shape, setting.outputs)
    trainer = DefaultTrainer(model, TrainingOptions(iter_lim=setting.batches, **setting.training), RNG)
    for task in range(setting.tasks):
        data.update_task(task)
        trainer.begin_task(task)
        for _ in trainer.learn(data.train_loader):
            pass
        trainer.end_task()
    model.eval()
    return model, data


def batches(setting: Setting, data, model: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Test batches of all tasks and their tasks, and training batches (tasks, ``CALIBRATION``, images, ...).

    As inference sees them: the first image of each; of a network with batch norm all images, and whole batches alone.
    """
    whole = multitask.has_batch_norm(model)

    def some(loader, count: int) -> Iterator[Tensor]:
        return islice((x if whole else x[:1] for x, _ in loader if not whole or len(x) == 128), count)

    tests, truth, known = [], [], []
    for task in range(setting.tasks):
        data.update_task(task)
        found = list(some(data.val_loader, setting.tests))
        tests += found
        truth += [task] * len(found)
        known.append(torch.stack(list(some(data.train_loader, CALIBRATION))))
    return torch.stack(tests), torch.tensor(truth), torch.stack(known)


def calibrated(
    model: nn.Module, tasks: Sequence[int], images: Tensor, known: Tensor, objective: Callable, layers: int | None
) -> Tensor:
    """One-shot inference by how far a derivative is below the mean, in what that is on the task's training data."""
    alphas = inference.uniform(len(tasks), images.device)

    def leads(x: Tensor) -> Tensor:
        derivatives = inference.alpha_gradients(model, tasks, alphas, x, objective, layers=layers)
        return derivatives.mean(1, keepdim=True) - derivatives

    usual = torch.stack([leads(x)[:, place].mean() for place, x in enumerate(known)])
    return torch.tensor(tasks)[(leads(images) / usual.clamp(min=1e-12)).argmax(1)]


def compare(setting: Setting, root: str) -> Iterator[dict[str, object]]:
    """A row for every objective and way: the share of batches inferred right through all layers and the first."""
    model, data = learn(setting, root)
    images, truth, known = batches(setting, data, model)
    tasks, cells = range(setting.tasks), {"setting": setting.name, "tasks": setting.tasks, "batches": setting.batches}
    cells["queries"] = len(images)

    def right(found: Tensor) -> str:
        return f"{(found == truth).float().mean():.4f}"

    for letter in setting.objectives:
        options = {layers: InferenceOptions(data_to_repeat=1, infer_layers=layers) for layers in (None, 1)}
        for way, adaptor in WAYS.items():
            infer = ADAPTORS[adaptor.format("entropy" if letter == "H" else "g")].load()
            every, first = (right(infer(model, tasks, images, option)) for option in options.values())
            yield cells | {"way": f"{way}, {letter}", "all layers": every, "first layer": first}
        whole = 1 if multitask.has_batch_norm(model) else None
        objective = inference.entropy if letter == "H" else partial(inference.superfluous, real_neurons=10)
        objective = inference.of_first(objective, whole)
        every, first = (right(calibrated(model, tasks, images, known, objective, layers)) for layers in options)
        yield cells | {"way": f"one-shot, {letter}, calibrated", "all layers": every, "first layer": first}


def routers(setting: Setting, root: str) -> Iterator[dict[str, object]]:
    """A row for the gradient and for each router: right, bytes that it keeps of a task, and time a query."""
    model, data = learn(setting, root)
    images, truth, _ = batches(setting, data, model)
    means = []
    for task in range(setting.tasks):
        data.update_task(task)
        means.append(torch.cat([x for x, _ in islice(data.train_loader, 40)]).mean(0).flatten())
    means = torch.stack(means)
    masks = sum(value.numel() for value in multitask.task_state(model, 0).values())
    tasks, options = range(setting.tasks), InferenceOptions()

    def adaptor(name: str) -> Callable[[], Tensor]:
        return partial(ADAPTORS[name].load(), model, tasks, images, options)

    answers = {
        "gradient, one-shot": (adaptor("se_oneshot_entropy_minimization"), masks, "a product with each mask"),
        "nearest mean image": (
            lambda: torch.cdist(images.flatten(1), means).argmin(1),
            means[0].nbytes,
            "a distance to each mean",
        ),
        "largest probability": (adaptor("se_be_max_adapt"), masks, "a network for each mask"),
        "smallest entropy": (adaptor("se_be_adapt"), masks, "a network for each mask"),
    }
    for name, (answer, size, growth) in answers.items():
        answer()
        start = time.process_time()
        found = answer()
        took = 1e6 * (time.process_time() - start) / len(images)
        share = f"{(found == truth).float().mean():.4f}"
        yield {"way": name, "right": share, "bytes a task": size, "µs a query": f"{took:.0f}", "grows by": growth}


def write(rows: Iterator[dict[str, object]], path: Path, append: bool) -> None:
    for row in rows:
        print(*row.values(), sep=" | ", flush=True)
        with open(path, "a" if append else "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, row, lineterminator="\n")
            if not append:
                writer.writeheader()
            writer.writerow(row)
        append = True


def measure(only: str, root: str, out: Path) -> None:
    """Write the tables, of what has ``only`` in its name.

    Raises:
        UserError: there is nothing of such a name, or data are missing; before anything is written.
        OSError: the tables cannot be written.
    """
    chosen = [setting for setting in SETTINGS if only in setting.name]
    route = only in "routers"
    if not (chosen or route):
        names = "; ".join([*(setting.name for setting in SETTINGS), "routers"])
        raise UserError(f"--only {only}: has no name with this in it; there are: {names}")
    for name in dict.fromkeys(setting.data for setting in chosen or SETTINGS[:1]):
        DATASETS[name](root)  # what is missing is said before hours of work
    out.mkdir(parents=True, exist_ok=True)
    for number, setting in enumerate(chosen):
        write(compare(setting, root), out / "inferred.csv", append=number > 0)
    if route:
        write(routers(SETTINGS[0], root), out / "routers.csv", append=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for; the exit status: 0, or 2 and one line for bad input."""
    parser = Parser(prog="inferred.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=user_path, required=True, metavar="DIR", help="parent folder of the data sets")
    parser.add_argument("--only", default="", metavar="NAME", help="settings, or routers, whose name has this in it")
    out = PROJECT / "runs" / "inferred"
    parser.add_argument(
        "--out", type=parse_path, default=out, metavar="DIR", help="folder of the tables (default: runs/inferred)"
    )
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    try:
        measure(options.only, options.data, options.out)
    except UserError as error:
        parser.error(one_line(with_flags(str(error))))
    except OSError as error:
        parser.error(f"--out {options.out}: {error.strerror}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
