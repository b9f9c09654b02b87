"""How fast and how small: this code beside its naive form, in one process, as ratios.

    python experiments/benchmark.py --data DIR                 # everything: an hour or more, 7 GB of memory
    python experiments/benchmark.py --data DIR --quick         # small versions of everything, a few minutes
    python experiments/benchmark.py --data DIR --only train    # of train, infer, scale, growth, resnet, host, ...
    python experiments/benchmark.py --data DIR --only infer growth --tasks 2500    # with so many tasks only

Each time is the median of several repetitions after a warm-up, the two sides taking turns; machines are shared and
noisy, so read the ratios. The naive forms live here only: per-image transforms through a DataLoader, a float mask for
every task, autograd through the weighted sum of masks, a full sort for top-k. Where a side is measured on a sample, the
table says so. Written to ``--out``: ``benchmark.csv``, row by row, and ``benchmark.png``. Rows that lie there from the
same machine and are not measured again stay.
"""

import argparse
import csv
import math
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT))
from args import with_flags  # noqa: E402
from data import DATASETS  # noqa: E402
from experiments.options import Parser, parse_count, parse_path  # noqa: E402
from models import Builder, get_model, masked, multitask, superposition  # noqa: E402
from models.masks import unpack  # noqa: E402
from models.small import FullyConnected  # noqa: E402
from trainers import inference  # noqa: E402
from trainers.default import DefaultTrainer  # noqa: E402
from trainers.options import TrainingOptions  # noqa: E402
from trainers.several import SeveralTrainer  # noqa: E402
from utils.cores import available_cores  # noqa: E402
from utils.errors import UserError  # noqa: E402
from utils.output import one_line  # noqa: E402
from utils.paths import user_path  # noqa: E402
from utils.seeding import generator  # noqa: E402

RNG = partial(generator, 0)
AT_ONCE = 16  # tasks that are trained together
LENET = ((300, 784), (100, 300))  # hidden layers (out, in); the last is (outputs, 100)


class Report:
    """Rows of (part, what, value, beside it, ratio, unit, note), printed and written as they come.

    Args:
        path: the CSV file.
    """

    columns = ("part", "what", "ours", "naive", "ratio", "unit", "note")

    def __init__(self, path: Path):
        self.csv = path
        self.machine = f"# {platform.platform()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n"
        self.rows: dict[tuple[str, str], dict[str, object]] = {}  # by part and what
        if self.csv.exists():
            with open(self.csv, newline="", encoding="utf-8") as file:
                if file.readline() == self.machine:
                    rows = [row for row in csv.DictReader(file) if row["part"] in PARTS]
                    self.rows = {(row["part"], row["what"]): row for row in rows}

    def add(self, part: str, what: str, ours: float, naive: float | None = None, unit: str = "s", note: str = ""):
        ratio = None if naive is None else naive / ours
        self.rows[part, what] = dict(zip(self.columns, (part, what, ours, naive, ratio, unit, note), strict=True))
        beside = "" if naive is None else f"  naive {naive:>10.4g}  ratio {ratio:>8.4g}"
        print(f"{part:<7} {what:<46} {ours:>10.4g} {unit:<3}{beside}  {note}", flush=True)
        self.csv.parent.mkdir(parents=True, exist_ok=True)
        with open(self.csv, "w", newline="", encoding="utf-8") as file:
            file.write(self.machine)
            writer = csv.DictWriter(file, self.columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(sorted(self.rows.values(), key=lambda row: list(PARTS).index(row["part"])))


def medians(sides: dict[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    """Seconds of each side: the median of ``repetitions`` after one warm-up, the sides taking turns."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for repetition in range(repetitions + 1):
        for name, side in sides.items():
            synchronise()
            start = time.perf_counter()
            side()
            synchronise()
            if repetition:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


# (a) training


class NaiveMaskedLinear(nn.Module):
    """A layer with a float parameter of scores for every task, and the mask made anew in every forward pass."""

    def __init__(self, outputs: int, inputs: int, tasks: int):
        super().__init__()
        self.register_buffer("weight", torch.randn(outputs, inputs).sign() * (2 / inputs) ** 0.5)
        self.scores = nn.ParameterList(
            nn.Parameter(torch.empty(outputs, inputs).uniform_(-(inputs**-0.5), inputs**-0.5)) for _ in range(tasks)
        )
        self.task = 0

    def forward(self, x: Tensor) -> Tensor:
        scores = self.scores[self.task]
        hard = (scores >= 0).float()
        return F.linear(x, self.weight * (hard.detach() - scores.detach() + scores))  # straight through


def naive_loader(images: np.ndarray, labels: np.ndarray, transform: Callable, shuffle: bool):
    """A DataLoader that makes each image a PIL image and transforms it by itself."""
    from PIL import Image

    class Images(torch.utils.data.Dataset):
        def __len__(self):
            return len(images)

        def __getitem__(self, index):
            return transform(Image.fromarray(images[index])), int(labels[index])

    return torch.utils.data.DataLoader(Images(), batch_size=128, shuffle=shuffle)


def naive_lenet(data, batches: int, test_images: int, device: torch.device) -> tuple[Callable, Callable]:
    """A task of permuted MNIST as one writes it down plainly: its training and its test."""
    from torchvision import transforms

    base = data.base
    permutation = np.random.RandomState(1).permutation(784)
    transform = transforms.Compose(
        [
            transforms.ToTensor(),
            transforms.Normalize((0.1307,), (0.3081,)),
            transforms.Lambda(lambda x: x.view(-1)[permutation].view(1, 28, 28)),
        ]
    )
    naive_train = naive_loader(base.train_images[:, 0].cpu().numpy(), base.train_labels.cpu().numpy(), transform, True)
    naive_test = naive_loader(
        base.test_images[:test_images, 0].cpu().numpy(), base.test_labels[:test_images].cpu().numpy(), transform, False
    )
    network = nn.Sequential(nn.Flatten(), NaiveMaskedLinear(300, 784, 5), nn.ReLU(), NaiveMaskedLinear(100, 300, 5))
    network.extend([nn.ReLU(), NaiveMaskedLinear(100, 100, 5)]).to(device)

    def naive():
        optimizer = torch.optim.RMSprop([layer.scores[0] for layer in network if hasattr(layer, "scores")], lr=1e-4)
        for x, y in islice(naive_train, batches):
            optimizer.zero_grad()
            F.cross_entropy(network(x.to(device)), y.to(device)).backward()
            optimizer.step()

    @torch.no_grad()
    def naive_tests():
        sum((network(x.to(device)).argmax(1) == y.to(device)).sum() for x, y in naive_test)

    return naive, naive_tests


def bare_products(batches: int, device: torch.device) -> None:
    """The matrix products that training LeNet cannot do without."""
    weights = [torch.randn(shape, device=device) for shape in (*LENET, (100, 100))]
    x, hidden, small = (torch.randn(128, n, device=device) for n in (784, 300, 100))
    for _ in range(batches):
        for inputs, outputs, weight in zip((x, hidden, small), (hidden, small, small), weights, strict=True):
            inputs @ weight.T  # forward
            outputs.T @ inputs  # gradient of the weight
            if inputs is not x:
                outputs @ weight  # gradient of the layer below


def train(report: Report, data_root: str, device: torch.device, quick: bool, counts: list[int]) -> None:
    batches, test_images = (80, 1280) if quick else (400, 10_000)
    data = DATASETS["MNISTPerm"](data_root, num_tasks=AT_ONCE, device=device)
    model = get_model("LeNet", Builder(RNG, AT_ONCE), (1, 28, 28), 100).to(device)

    def ours(trainer: DefaultTrainer, tasks: Sequence[int], loader):
        trainer.begin_tasks(tasks)
        trainer.train(loader, epoch=0)

    forms, forms_tests = {}, {}
    for form, kind, tasks in (
        ("", DefaultTrainer, [1]),
        (f", {AT_ONCE} tasks at once", SeveralTrainer, range(AT_ONCE)),
    ):
        trainer = kind(model, TrainingOptions(iter_lim=batches), RNG)
        loader, test_loader = data.loaders(tasks)
        forms[form], forms_tests[form] = partial(ours, trainer, tasks, loader), partial(trainer.test, test_loader)

    naive, naive_tests = naive_lenet(data, batches, test_images, device)
    floor = partial(bare_products, batches, device)
    t = medians({"naive": naive, "naive_tests": naive_tests, "floor": floor} | forms, 3)
    per, tests = 1000 / batches, 10_000 / test_images
    naive_s = per * t["naive"]
    note = f"scaled from {batches} batches" + (f" and {test_images} test images" if quick else "")
    for form in forms:
        forms[form]()  # so that these tasks are the ones in training
        of_tests = medians({"tests": forms_tests[form]}, 3)["tests"]
        at_once = AT_ONCE if form else 1
        ours_s, tests_s = per * t[form] / at_once, of_tests / at_once
        report.add("train", f"1,000 batches of LeNet{form}", ours_s, naive_s, note=note)
        whole = ours_s + 3 * tests_s, naive_s + 3 * tests * t["naive_tests"]
        report.add("train", f"a task, 1,000 batches and 3 tests{form}", *whole, note=note)
        products = f"bare matrix products beside it{form}"
        report.add("train", products, per * t["floor"], ours_s, note="ratio: ours / these")


# (j) the host's part of it


def host(report: Report, data_root: str, device: torch.device, quick: bool, counts: list[int]) -> None:
    """What a step of training costs beside arithmetic, its batch's loading included: one with next to none of it."""
    data = DATASETS["DigitsPerm"](num_tasks=64, batch_size=2, device=device)
    batches = 50 if quick else 400

    def steps(kind: type[DefaultTrainer], tasks: Sequence[int]) -> Callable[[], object]:
        network = FullyConnected(Builder(RNG, 64), (4, 4), data.input_shape, 10).to(device).train()
        trainer, (loader, _) = kind(network, TrainingOptions(), RNG), data.loaders(tasks)
        trainer.begin_tasks(tasks)

        def train():
            for x, y in islice(loader, batches):
                trainer.step(x, y)

        return train

    t = medians({"one": steps(DefaultTrainer, [0]), "many": steps(SeveralTrainer, range(64))}, 2 if quick else 7)
    t = {name: 1e6 * seconds / batches for name, seconds in t.items()}
    note = "layers of 4 units, batches of 2"
    report.add("host", "a step of a task", t["one"], None, "µs", note=note)
    report.add("host", "a step of 64 tasks at once", t["many"], 64 * t["one"], "µs", note=f"{note}; beside 64 of one")


# (b) inference

LEARNED = 5  # tasks whose batches are inferred


def learned_masks(data, batches: int, tasks: int = LEARNED) -> list[dict[str, Tensor]]:
    """The state of each of the first tasks of MNISTPerm, learned in so many batches by a LeNet with 500 outputs."""
    model = get_model("LeNet", Builder(RNG, tasks), (1, 28, 28), 500).to(data.device)
    trainer = DefaultTrainer(model, TrainingOptions(iter_lim=batches, lr=1e-4), RNG)
    for task in range(tasks):
        data.update_task(task)
        trainer.begin_task(task)
        for _ in trainer.learn(data.train_loader):
            pass
        trainer.end_task()
    return [multitask.task_state(model, task) for task in range(tasks)]


def model_of(tasks: int, learned: list[dict[str, Tensor]], device: torch.device) -> nn.Module:
    """The network with so many masks: the learned ones, and random ones after them."""
    model = get_model("LeNet", Builder(RNG, tasks), (1, 28, 28), 500)
    for task in range(tasks):
        state = learned[task] if task < len(learned) else {}
        for name, place in multitask.task_state(model, task).items():
            if name not in state:
                rng = RNG("mask", name, task)
                state[name] = torch.randint(0, 256, place.shape, generator=rng, dtype=torch.uint8)
        multitask.load_task_state(model, task, state)
    return model.to(device)


def draw_masks(model: nn.Module, learned: int, tasks: int) -> None:
    """Draw the masks after the learned ones with their share, in 256ths, for each unit and sign of its weights.

    All bits of a mask at once, by the eight binary places of the shares from the last to the first: a bit is kept with
    half the probability so far, and half of it more where the place is a one.
    """
    for name, layer in multitask.named(model, superposition.SuperposedModule):
        weight = layer.weight.flatten(1)
        kept = unpack(layer.packed[:learned], weight.numel()).mean(0).view_as(weight)
        share = torch.zeros_like(kept)
        for sign in (weight > 0, weight <= 0):
            share += sign * ((kept * sign).sum(1, keepdim=True) / sign.sum(1, keepdim=True).clamp(min=1))
        below = (256 * share).round().clamp(max=255).to(torch.uint8).flatten().cpu().numpy()
        ones = [np.packbits(below >> place & 1) for place in range(8)]
        rng = np.random.Generator(np.random.SFC64(RNG("drawn", name).initial_seed()))  # the fastest
        for task in range(learned, tasks):
            drawn = np.zeros_like(ones[0])
            chances = rng.integers(2**64, size=(8, math.ceil(len(drawn) / 8)), dtype=np.uint64).view(np.uint8)
            for one, chance in zip(ones, chances[:, : len(drawn)], strict=True):
                drawn = (drawn & chance) | (one & (drawn | chance))
            layer.load_task_state(task, {"mask": torch.from_numpy(drawn).to(layer.packed.device)})


def naive_one_shot(layers: Sequence[nn.Module], masks: Sequence[Tensor], batches: Tensor) -> list[int]:
    """The inferred task of each batch written down plainly, with float masks (tasks, out, in) of the layers."""
    chosen = []
    for x in batches:
        alphas = torch.full((len(masks[0]), 1, 1), 1 / len(masks[0]), device=x.device, requires_grad=True)
        h = x.flatten(1)
        for layer, mask in zip(layers, masks, strict=True):
            h = F.linear(h, layer.weight[:, :, 0, 0] * (alphas * mask).sum(0))
            h = h if layer is layers[-1] else F.relu(h)
        p = h.softmax(1)
        (-(p * p.log()).sum(1).mean()).backward()
        chosen.append(int(alphas.grad.argmin()))
    return chosen


def screened_beside_exact(report: Report, model: nn.Module, tasks: int, images: Tensor, truth: Tensor) -> None:
    """A row of screened inference beside the exact one, for batches whose tasks ``truth`` are known."""
    answers = {}

    def answer(form: str) -> None:
        answers[form] = inference.one_shot(model, range(tasks), images, inference.entropy, infer=form).cpu()

    t = medians({form: partial(answer, form) for form in ("screened", "exact")}, 1 if tasks > 250 else 3)
    differ = int((answers["screened"] != answers["exact"]).sum())
    right, right_exact = ((answers[form] == truth).float().mean() for form in ("screened", "exact"))
    note = f"same tasks chosen: {not differ} ({differ} of {len(images)} differ); {right:.1%} right, "
    note += f"exact {right_exact:.1%}; "
    note += f"{LEARNED} learned masks, the others drawn with the learned ones' share for each unit and sign of weight"
    scale = 79 * tasks / len(images)
    what = f"one-shot, screened beside exact, {tasks} tasks, all {79 * tasks} batches"
    report.add("infer", what, scale * t["screened"], scale * t["exact"], note=note)


def infer(report: Report, data_root: str, device: torch.device, quick: bool, counts: list[int]) -> None:
    data = DATASETS["MNISTPerm"](data_root, num_tasks=LEARNED, device=device)
    learned = learned_masks(data, 300 if quick else 1000)
    heads, truth = [], []
    for task in range(LEARNED):
        data.update_task(task)
        heads += [x[:1] for x, _ in data.val_loader]
        truth += [task] * (len(heads) - len(truth))
    for tasks in counts:
        many = min(79 * tasks, 512 if quick else 2048)
        order = torch.arange(many) % len(heads)
        images, here = torch.stack(heads)[order.to(device)], torch.tensor(truth)[order]  # (many, 1, 1, 28, 28)
        few = torch.linspace(0, min(many, len(heads)) - 1, 3 if tasks > 250 else 15).long()  # of every task some
        model = model_of(tasks, learned, device)
        layers = [layer for _, layer in multitask.named(model, superposition.SuperposedModule)]
        masks = []
        for layer in layers:
            floats = torch.empty(tasks, *layer.weight.shape[:2], device=device)
            for task in range(tasks):
                layer.select_task(task)
                floats[task] = layer.effective[:, :, 0, 0] != 0
            masks.append(floats)

        naive = partial(naive_one_shot, layers, masks, images[few.to(device)])

        def ours(images=images, model=model, tasks=tasks):
            return inference.one_shot(model, range(tasks), images, inference.entropy)

        chosen = ours().cpu()
        same, right = chosen[few].tolist() == naive(), (chosen == here).float().mean()
        t = medians({"ours": ours, "naive": naive}, 1 if tasks > 250 else 3)
        whole = 79 * tasks
        note = f"same tasks chosen: {same}; {right:.1%} right; ours on {many} batches of {LEARNED} learned tasks among "
        note += f"random masks, naive on {len(few)}"
        what = f"one-shot, {tasks} tasks, all {whole} batches"
        report.add("infer", what, whole * t["ours"] / many, whole * t["naive"] / len(few), note=note)
        draw_masks(model, len(learned), tasks)
        screened_beside_exact(report, model, tasks, images, here)
        del masks, model, naive, ours


def decision(report: Report, data_root: str, device: torch.device, quick: bool, counts: list[int]) -> None:
    """What single batches take among random masks: a query, and a decision of NNs, before which a mask has changed.

    Beside them all masks are unpacked, for a decision twice: to count how many keep each weight, and for derivatives.
    """
    images = next(iter(DATASETS["MNISTPerm"](data_root, num_tasks=1, device=device).train_loader))[0][None]
    for tasks in counts:
        model = model_of(tasks, [], device)
        layers = [layer for _, layer in multitask.named(model, masked.Masked)]
        multitask.begin_task(model, 0, RNG)

        def decide(unpacked: bool, model=model, layers=layers, tasks=tasks) -> None:
            for layer in layers if unpacked else ():
                layer.census = None
            multitask.keep_task(model)
            ask(unpacked, images, model, tasks)

        def ask(unpacked: bool, x: Tensor = images[:, :1], model=model, tasks=tasks) -> None:
            with patch("models.masks.SINGLE", math.inf) if unpacked else nullcontext():
                inference.alpha_gradients(model, range(tasks), inference.uniform(tasks, device), x, inference.entropy)

        for what, side in ((f"a decision of NNs, a batch of {images.shape[1]}", decide), ("a query alone", ask)):
            t = medians({"ours": partial(side, False), "unpacked": partial(side, True)}, 3 if quick else 15)
            report.add("decision", f"{what}, {tasks} masks", *(1000 * t[name] for name in t), "ms", "exact, both")


# (g) inference among very many masks


def scale(report: Report, data_root: str, device: torch.device, quick: bool, counts: list[int]) -> None:
    """A query's time among up to 100,000 masks: screened in batches and alone, beside the exact form; on Linux only."""
    data = DATASETS["MNISTPerm"](data_root, num_tasks=AT_ONCE, device=device)
    learned = learned_masks(data, 300 if quick else 1000, AT_ONCE)
    queries = 256 if quick else 2048
    heads, truth = [], torch.arange(queries) % AT_ONCE
    for task in range(AT_ONCE):
        data.update_task(task)
        test = torch.cat([x for x, _ in data.val_loader])
        heads.append(test[:: len(test) // (queries // AT_ONCE)][: queries // AT_ONCE].clone())  # not all of them stay
    images = torch.stack(heads, 1).flatten(0, 1)[:, None]  # (queries, 1, 1, 28, 28)
    for tasks in counts:
        scale_of(report, learned, images, truth, tasks, quick)


def scale_of(report: Report, learned: list, images: Tensor, truth: Tensor, tasks: int, quick: bool) -> None:
    """The rows of ``scale`` for so many masks."""
    model = get_model("LeNet", Builder(RNG, tasks), (1, 28, 28), 500)
    multitask.keep_in_file(model)
    for task, state in enumerate(learned):
        multitask.load_task_state(model, task, state)
    draw_masks(model, len(learned), tasks)
    model, few = model.to(images.device), 20 if quick else 200 if tasks <= 2500 else 40
    clock, of = time.perf_counter, "seconds on the clock"
    if torch.get_num_threads() == 1 and images.device.type == "cpu":  # says more where the machine has other work
        clock, of = time.process_time, "processor time of one thread"
    layers = [layer for _, layer in multitask.named(model, superposition.SuperposedModule)]

    def timed(call: Callable[[], object]) -> tuple[float, object]:
        synchronise()
        start = clock()
        result = call()
        synchronise()
        return clock() - start, result

    def infer(form: str, some: Tensor) -> tuple[float, Tensor]:
        """Milliseconds a query, and the tasks."""
        seconds, chosen = timed(lambda: inference.one_shot(model, range(tasks), some, inference.entropy, infer=form))
        return 1000 * seconds / len(some), chosen.cpu()

    once, _ = timed(lambda: superposition.superpose(model, range(tasks), inference.uniform(tasks, images.device)))
    infer("screened", images[:few])
    peak_memory(reset=True)
    batched, chosen = infer("screened", images)
    peak = peak_memory()
    exact, same = infer("exact", images[:few])
    alone = statistics.median(infer("screened", images[i : i + 1])[0] for i in range(1 if quick else 8))
    exact_alone, _ = infer("exact", images[:1])
    words = [layer.packed.flatten()[: layer.packed.numel() // 8 * 8].view(torch.int64) for layer in layers]
    reading, _ = timed(lambda: [part.sum() for part in words])
    right, right_few, right_exact = (
        (found == truth[: len(found)]).float().mean() for found in (chosen, chosen[:few], same)
    )
    note = f"{of}; {int((chosen[:few] != same).sum())} of {few} differ from the exact form; right {right:.2%} of "
    note += f"{len(images)}, {right_few:.1%} of those {few}, exact {right_exact:.1%}; "
    note += f"{len(learned)} learned masks, the others drawn with the learned "
    note += f"ones' share for each unit and sign of weight; their superposition is made once, {once:.1f} s; "
    note += f"beside it the exact form, a batch of {few}"
    report.add("scale", f"a query of a batch of {len(images)}, {tasks} masks", batched, exact, "ms", note)
    report.add("scale", f"a query alone, {tasks} masks", alone, exact_alone, "ms", f"{of}; beside it the exact form")
    size = sum(layer.packed.nbytes for layer in layers)
    note = f"{of}; beside it the masks, {size / 1e6:.1f} MB, are read once"
    report.add("scale", f"a query alone, beside reading {tasks} masks", alone, 1000 * reading, "ms", note)
    note = "of the process while it infers in a batch; beside it the masks"
    report.add("scale", f"peak memory, {tasks} masks", peak / 1e6, size / 1e6, "MB", note)


def peak_memory(reset: bool = False) -> float:
    """Bytes of memory that this process had at the most, since it was last ``reset`` (Linux)."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status)[1])


def draw_scale(rows: list[dict[str, object]], path: Path) -> None:
    """Milliseconds a query over the number of masks, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in rows if row["part"] == "scale"]
    lines = {}
    for start, ours, naive in (
        ("a query of a batch", "screened, in a batch", "exact, in a batch"),
        ("a query alone,", "screened, alone", "exact, alone"),
        ("a query alone, beside reading", None, "reading each mask once"),
    ):
        for row in rows:
            if row["what"].startswith(start) and (ours is None) == ("reading" in row["what"]):
                masks = int(re.search(r"(\d+) masks", row["what"])[1])
                for label, side in ((ours, "ours"), (naive, "naive")):
                    lines.setdefault(label, {})[masks] = float(row[side])
    lines.pop(None, None)
    if not lines:
        return
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for label, points in lines.items():
        line = "--" if "exact" in label else "-"
        axes.plot(*zip(*sorted(points.items()), strict=True), line, marker="o", label=label)
    axes.set(xscale="log", yscale="log", xlabel="masks", ylabel="ms a query")
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


# (c), (d) memory, disk and time as tasks grow


def growth(report: Report, data_root: str, device: torch.device, quick: bool, counts: list[int]) -> None:
    for tasks in counts:
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            peak, written = run_main(folder, data_root, device, tasks)
            size = (run / "checkpoint.pt").stat().st_size
            folder_size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
            events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
            tags = [tag for tag in events.Tags()["scalars"] if tag.startswith("accuracy/")]
            ends = sorted(e.wall_time for tag in tags for e in events.Scalars(tag))
        weights = sum(o * i for o, i in (*LENET, (500, 100)))
        masks, floats = tasks * weights / 8, tasks * weights * 8
        note = "a whole run with evaluation, Python and torch included; naive: float masks and scores alone, computed"
        report.add("growth", f"peak memory, {tasks} tasks", peak / 1e6, floats / 1e6, "MB", note)
        note = f"masks {masks / 1e6:.1f} MB; naive: float masks, computed"
        report.add("growth", f"checkpoint, {tasks} tasks", size / 1e6, floats / 2e6, "MB", note)
        note = f"{written / folder_size:.2f} times what the folders hold in the end, {folder_size / 1e6:.1f} MB"
        report.add("growth", f"written to files and terminal, {tasks} tasks", written / 1e6, None, "MB", note)
        seconds = [end - start for start, end in pairwise(ends)]
        few = min(100, len(seconds) // 2)
        first, last = statistics.median(seconds[9 : 9 + few]), statistics.median(seconds[-few:])
        note = f"medians over {few} tasks of 5 batches, the first after 10; ratio: last / first"
        report.add("growth", f"a task at the beginning and the end of {tasks}", first, last, note=note)


# Calls main.py's main and says how much memory the process had at the most, and how many bytes it wrote. A parent that
# asks the kernel afterwards may be told its own: a child begins with the record of the process it was forked from.
MEASURED = """
import sys
from main import main
status = main(sys.argv[1:])
for file, name in (("status", "VmHWM"), ("io", "wchar")):
    print([line.split()[1] for line in open(f"/proc/self/{file}") if line.startswith(name)][0])
sys.exit(status)
"""


def run_main(folder: str, data_root: str, device: torch.device, tasks: int) -> tuple[int, int]:
    """A run of its own, of tasks of 5 batches; the bytes of its peak memory, and those it wrote (Linux)."""
    words = ["--set", "MNISTPerm", "--data", Path(data_root).absolute(), "--log-dir", folder, "--name", "run"]
    words += ["--multigpu", "cpu" if device.type == "cpu" else device.index or 0, "--threads", torch.get_num_threads()]
    words += ["--num-tasks", tasks, "--output-size", 500, "--iter-lim", 5, "--test-batch-size", 1000]
    words += ["--adaptor", "se_oneshot_entropy_minimization"]
    command = [sys.executable, "-c", MEASURED, *map(str, words)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=PROJECT)
    peak, written = map(int, done.stdout.splitlines()[-2:])
    return peak * 1024, written


# (e) ResNet-18


def naive_resnet(model: nn.Module, trainer: DefaultTrainer, data, batches: int, device: torch.device) -> Callable:
    """An epoch of a task of SplitCIFAR100 as one writes it down plainly, in the layers of ``model``."""
    from torchvision import transforms

    def sorted_conv(layer: nn.Module, x: Tensor) -> Tensor:
        scores = layer.scores
        mask = torch.ones_like(scores).flatten()
        mask[scores.detach().abs().flatten().sort().indices[: layer.dropped]] = 0
        mask = mask.view_as(scores) - scores.detach() + scores  # straight through
        return F.conv2d(x, layer.weight * mask, stride=layer.stride, padding=layer.padding)

    transform = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.491, 0.482, 0.447), (0.247, 0.243, 0.262)),
        ]
    )
    rows = torch.isin(data.base.train_labels, data.base.train_labels.unique()[:5]).nonzero().flatten().cpu()
    images = data.base.train_images[rows].permute(0, 2, 3, 1).cpu().numpy()
    loader = naive_loader(images, data.base.train_labels[rows].cpu().numpy() % 5, transform, True)

    def naive():
        trainer.begin_task(0)
        layers = [module for module in model.modules() if hasattr(module, "binarise")]
        for layer in layers:
            layer.forward = partial(sorted_conv, layer)
        optimizer = torch.optim.Adam(multitask.task_parameters(model).values(), lr=1e-3)
        for x, y in islice(loader, batches):
            optimizer.zero_grad()
            F.cross_entropy(model(x.to(device)), y.to(device)).backward()
            optimizer.step()
        for layer in layers:
            del layer.forward

    return naive


def resnet(report: Report, data_root: str, device: torch.device, quick: bool, counts: list[int]) -> None:
    batches = 3 if quick else 20
    data = DATASETS["SplitCIFAR100"](data_root, device=device)
    data.update_task(0)
    builder = Builder(
        RNG,
        data.num_tasks,
        conv_type="MultitaskMaskConv",
        bn_type="MultitaskNonAffineBN",
        sparsity=8,
        er_sparsity=True,
    )
    model = get_model("GEMResNet18", builder, data.input_shape, 5).to(device)
    common = dict(iter_lim=batches, epochs=1, optimizer="adam", lr=1e-3)
    forms = {
        "float32": {},
        "--channels-last": dict(channels_last=True),
        "--channels-last --amp bf16": dict(channels_last=True, amp="bf16"),
    }
    trainers = {form: DefaultTrainer(model, TrainingOptions(**common, **how), RNG) for form, how in forms.items()}

    def ours(trainer):
        trainer.begin_task(0)
        trainer.train(data.train_loader, epoch=0)

    naive = naive_resnet(model, trainers["float32"], data, batches, device)
    t = medians({form: partial(ours, trainer) for form, trainer in trainers.items()} | {"naive": naive}, 3)
    scale, note = 20 / batches, "scaled to an epoch of 20 batches" if quick else "an epoch of one task"
    for form in forms:
        what = f"SplitCIFAR100, GEMResNet18, 20 batches, {form}"
        report.add("resnet", what, scale * t[form], scale * t["naive"], note=note)


# (i) images


def write_photographs(root: Path, count: int) -> None:
    """So many JPEGs of 500 x 375 pixels for SplitImageNet, as large and as hard to decode as a photograph is."""
    from PIL import Image

    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in range(1000):
            (root / "imagenet" / split / f"n{label:08d}").mkdir(parents=True)
        for number in range(count if split == "train" else 1000):
            coarse = random.integers(0, 256, (24, 32, 3), dtype=np.uint8)
            fine = random.normal(0, 8, (375, 500, 3))
            pixels = np.asarray(Image.fromarray(coarse).resize((500, 375))) + fine
            path = root / "imagenet" / split / f"n{number % 1000:08d}" / f"{number}.jpg"
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=92)


def images(report: Report, data_root: str, device: torch.device, quick: bool, counts: list[int]) -> None:
    """Bytes of SplitImageNet's training images, cropped: the second epoch of kept ones beside decoding them again."""
    with tempfile.TemporaryDirectory() as folder:
        write_photographs(Path(folder), 1000)
        roots = {"JPEGs of 500 x 375": folder}
        if (Path(data_root) / "imagenet").exists():
            roots["images of --data"] = data_root
        for what, root in roots.items():
            flags = dict(num_tasks=1, classes_per_task=1000, device=device, workers=available_cores())
            sets = {keep: DATASETS["SplitImageNet"](root, **flags, keep_images=keep) for keep in (True, False)}

            def epoch(keep: bool, sets=sets):
                loader = sets[keep].train_loader
                loader.set_epoch(1)
                return sum(len(y) for _, y in loader.unprepared())

            t = medians({keep: partial(epoch, keep) for keep in sets}, 1 if quick else 3)
            note = "1,000 images, seconds an epoch: kept, beside decoded by a worker a core"
            report.add("images", f"second epoch of {what}", t[True], t[False], note=note)


# (f) threads


def a_run(words: str, data_root: str, folder: str) -> list[str]:
    """The command of a run on the processor with these flags; its folder is a new one in ``folder``."""
    where = ["--data", Path(data_root).absolute(), "--log-dir", folder, "--name", time.monotonic_ns()]
    return [sys.executable, "main.py", *words.split(), "--multigpu", "cpu", *map(str, where)]


def threads(report: Report, data_root: str, device: torch.device, quick: bool, counts: list[int]) -> None:
    """Runs with the default threads beside runs with one, each a process, idle and beside a busy process."""
    sets = {
        "digits, LeNet, 2 tasks": f"--num-tasks 2 --epochs {5 if quick else 30}",
        "MNIST, LeNet, 1 task": f"--set MNISTPerm --num-tasks 1 --epochs 1 --iter-lim {100 if quick else 1000}",
        "SplitCIFAR100, GEMResNet18": "--set SplitCIFAR100 --model GEMResNet18 --conv-type MultitaskMaskConv "
        "--adaptor gt --output-size 5 --sparsity 8 --er-sparsity --num-tasks 1 --epochs 1 "
        f"--iter-lim {3 if quick else 20}",
    }
    with tempfile.TemporaryDirectory() as folder:

        def call(words: str):
            subprocess.run(a_run(words, data_root, folder), check=True, stdout=subprocess.DEVNULL, cwd=PROJECT)

        for what, words in sets.items():
            sides = {"default": partial(call, words), "one": partial(call, f"{words} --threads 1")}
            for beside in ("idle", "beside a busy process"):
                busy = [sys.executable, "-c", "while True: pass"]
                other = subprocess.Popen(busy) if beside != "idle" else None
                try:
                    t = medians(sides, 2 if quick else 5)
                finally:
                    if other:
                        other.kill()
                        other.wait()
                note = "a whole run with default threads; beside it with --threads 1"
                report.add("threads", f"{what}, {beside}", t["default"], t["one"], note=note)


# (h) slices


def slices(report: Report, data_root: str, device: torch.device, quick: bool, counts: list[int]) -> None:
    """Two slices of a run, each a process with a thread, beside the run as one process with a thread."""
    lenet, resnet = (8, 50), (2, 2)
    if not quick:
        lenet, resnet = (20, 500), (4, 20)
    config = "experiments/GG/splitcifar100/configs/rn18-supsup.yaml"  # runs start in the project's root
    for what, (tasks, batches), words in (
        ("MNIST, LeNet", lenet, f"--set MNISTPerm --num-tasks {lenet[0]} --epochs 2"),
        ("SplitCIFAR100, GEMResNet18", resnet, f"--config {config} --sparsity 8 --num-tasks 20 --epochs 1"),
    ):
        words += f" --iter-lim {batches} --threads 1 --adaptor gt --score-when-learned"
        sides = {name: partial(at_once, words, data_root, tasks, parts) for name, parts in (("two", 2), ("one", 1))}
        t = medians(sides, 1)
        note = "whole runs of a thread each, from start to end; beside them one run of all tasks"
        what += f", {tasks} tasks of {batches} batches, two slices at once"
        report.add("slices", what, t["two"], t["one"], note=note)


def at_once(words: str, data_root: str, tasks: int, parts: int) -> None:
    """Runs of so many parts of the tasks, at once."""
    size = tasks // parts
    with tempfile.TemporaryDirectory() as folder:
        runs = []
        for first in range(0, tasks, size):
            command = a_run(f"{words} --tasks {first}-{first + size - 1}", data_root, folder)
            runs.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=PROJECT))
        if failed := [status for status in [run.wait() for run in runs] if status]:
            raise subprocess.CalledProcessError(failed[0], words)


def draw(rows: list[dict[str, object]], path: Path) -> None:
    """Bars of what the naive forms take beside ours, on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [row for row in rows if row["part"] in ("train", "infer", "resnet") and "bare" not in row["what"]]
    if not shown:
        return
    figure, axes = plt.subplots(figsize=(8, 0.6 + 0.4 * len(shown)), layout="constrained")
    bars = axes.barh([row["what"] for row in shown], [float(row["ratio"]) for row in shown], color="#0072B2")
    axes.bar_label(bars, fmt="%.3g×", padding=3)
    axes.set_xscale("log")
    axes.set_xlim(1, 4 * max(float(row["ratio"]) for row in shown))
    axes.set_xlabel("time of the naive form / time of ours")
    axes.invert_yaxis()
    figure.savefig(path, dpi=120)
    plt.close(figure)


PARTS = {
    "train": train,
    "infer": infer,
    "decision": decision,
    "scale": scale,
    "growth": growth,
    "resnet": resnet,
    "threads": threads,
    "slices": slices,
    "images": images,
    "host": host,
}


def parse_device(text: str) -> torch.device:
    """A device. Raises ``argparse.ArgumentTypeError`` unless it is there."""
    try:
        return torch.empty(0, device=text).device
    except (AssertionError, RuntimeError) as error:  # the former of a torch that was built without it
        raise argparse.ArgumentTypeError(f"{text!r} is no device here: {str(error).splitlines()[0]}") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for; the exit status: 0, that of a run that failed, or 2 for bad input."""
    parser = Parser(prog="benchmark.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=user_path, required=True, metavar="DIR", help="parent folder of the data sets")
    parser.add_argument("--device", type=parse_device, default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--threads", type=parse_count, help="processor threads (default: all cores)")
    parser.add_argument("--quick", action="store_true", help="small versions of everything")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS), help="these parts only")
    parser.add_argument(
        "--tasks", type=parse_count, nargs="+", help="numbers of tasks (default: 25 250 2500; scale: up to 100000)"
    )
    out = PROJECT / "runs" / "benchmark"
    parser.add_argument(
        "--out", type=parse_path, default=out, metavar="DIR", help="folder of the table (default: runs/benchmark)"
    )
    options = parser.parse_args(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        measure(options)
    except UserError as error:
        parser.error(one_line(with_flags(str(error))))
    except OSError as error:
        parser.error(f"--out {options.out}: {error.strerror}")
    except subprocess.CalledProcessError as error:  # which has said why
        parser.exit(error.returncode, f"{parser.prog}: error: a run has ended with status {error.returncode}\n")
    return 0


def measure(options: argparse.Namespace) -> None:
    """Measure each part, and draw what is measured so far.

    Raises:
        UserError: data are missing.
        OSError: the table cannot be written.
        subprocess.CalledProcessError: a run has failed.
    """
    report = Report(options.out / "benchmark.csv")
    for part in options.only:
        counts = [250, 2500, 25_000, 100_000] if part == "scale" else [25, 250, 2500]
        counts = options.tasks or (counts[:2] if options.quick else counts)
        PARTS[part](report, options.data, options.device, options.quick, counts)
        draw(list(report.rows.values()), options.out / "benchmark.png")
        draw_scale(list(report.rows.values()), options.out / "scale.png")
    print(f"written: {report.csv}, {options.out / 'benchmark.png'}")


if __name__ == "__main__":
    sys.exit(main())
