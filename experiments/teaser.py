"""Draw the picture at the top of the README from a run of the method: `images/teaser_supsup.png`.

  python experiments/teaser.py [FILE]

Learns four permutations of the digits in seconds, takes one test image of a task that is not told, and shows the
weights of one hidden unit of LeNet: frozen, under each task's mask, superposed; and beside them the derivative of the
output's entropy with respect to each mask's coefficient, which gives the task away. All that is drawn is what the
method computed; the same file comes out wherever the same bits do.
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

try:
    import matplotlib
except ModuleNotFoundError as error:  # runs do without
    if __name__ == "__main__":
        sys.exit(f"teaser.py: error: {error.name} is missing; pip install -r requirements-notebook.txt")
    raise
import numpy
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
TEASER = ROOT / "images" / "teaser_supsup.png"
TASKS, HIDDEN_TASK, SEED, EPOCHS = 4, 2, 0, 10
WIDTH, HEIGHT = 11, 3.6  # inches
UNIT = 0  # of the first layer; any would do
INK, POSITIVE, NEGATIVE = "#222222", "#0072B2", "#E69F00"  # Okabe and Ito's: told apart without colour vision
TASK_COLORS = ("#009E73", "#CC79A7", "#D55E00", "#56B4E9")


def compute() -> dict:
    """Learn the tasks and infer one.

    Returns:
        ``weights`` (28, 28), the unit's frozen weights; ``masks`` (tasks, 28, 28); ``image`` (28, 28), what the
        network sees; ``gradients`` (tasks,), ``∂H/∂α_i`` of this image; ``right``, how many of all test images were
        taken for their task, and ``images``, of how many.
    """
    import torch

    from data import DATASETS
    from models import get_model
    from models.builder import Builder
    from models.superposition import superposed_weights
    from trainers import TRAINERS
    from trainers.inference import alpha_gradients, entropy, uniform
    from trainers.options import TrainingOptions
    from utils.seeding import generator

    torch.set_num_threads(1)
    rng = partial(generator, SEED)
    data = DATASETS["DigitsPerm"](num_tasks=TASKS, seed=SEED)
    model = get_model("LeNet", Builder(rng, TASKS), data.input_shape, output_size=100)
    trainer = TRAINERS["default"](model, TrainingOptions(epochs=EPOCHS, lr=1e-3, num_tasks=TASKS), rng)
    for task in range(TASKS):
        data.update_task(task)
        trainer.begin_tasks([task])
        for _ in trainer.learn(data.train_loader):
            pass
        assert [learned.task for learned in trainer.end_tasks()] == [task]
    tasks, alphas = range(TASKS), uniform(TASKS, "cpu")
    gradients = []
    for task in tasks:
        data.update_task(task)
        images = torch.cat([x for x, _ in data.val_loader])
        gradients.append(alpha_gradients(model, tasks, alphas, images.unsqueeze(1), entropy))  # each image alone
        if task == HIDDEN_TASK:
            image = images[0, 0]
    alone = [
        superposed_weights(model, [task], torch.ones(1)) for task in tasks
    ]  # W ⊙ M^i of each layer, the first one first
    name = next(iter(alone[0]))
    masked = torch.stack([weights[name][UNIT].view(28, 28) for weights in alone])
    return {
        "weights": model.get_submodule(name.removesuffix(".effective")).weight[UNIT].detach().view(28, 28).numpy(),
        "masks": (masked != 0).numpy(),
        "image": image.numpy(),
        "gradients": gradients[HIDDEN_TASK][0].numpy(),
        "right": sum(int((of.argmin(dim=1) == task).sum()) for task, of in enumerate(gradients)),
        "images": sum(map(len, gradients)),
    }


def draw(seen: dict) -> Figure:
    """The picture of what ``compute`` gave."""
    size, signs = numpy.abs(seen["weights"]).max(), LinearSegmentedColormap.from_list("", (NEGATIVE, "white", POSITIVE))
    best = int(seen["gradients"].argmin())
    figure = Figure(figsize=(WIDTH, HEIGHT), facecolor="white")

    def place(x: float, y: float, width: float, height: float) -> Axes:
        """Axes at a place in inches, without marks."""
        axes = figure.add_axes((x / WIDTH, y / HEIGHT, width / WIDTH, height / HEIGHT))
        axes.set(xticks=[], yticks=[])
        return axes

    def picture(x: float, y: float, side: float, values: numpy.ndarray, edge: str = INK, **style: object) -> None:
        axes = place(x, y, side, side)
        axes.imshow(values, interpolation="nearest", **style)
        for spine in axes.spines.values():
            spine.set(edgecolor=edge, linewidth=2)

    def say(x: float, y: float, text: str, size: float = 11, **style: object) -> None:
        figure.text(
            x / WIDTH, y / HEIGHT, text, **({"fontsize": size, "color": INK, "ha": "center", "va": "center"} | style)
        )

    weights = {"cmap": signs, "vmin": -size, "vmax": size}
    for x, title, below in (
        (1.2, "1  A frozen network", "random weights W of one unit,\nnever trained"),
        (3.7, "2  A mask for each task", "learned; one bit a weight,\nnever changed again"),
        (6.5, "3  Superposition", "W ⊙ Σ α$_i$ M$^i$, all α$_i$ alike, answers\nan image whose task nobody told"),
        (9.6, "4  The gradient tells", f"−∂H / ∂α$_i$: whose mask makes the\nanswer surer the fastest? Task {best}'s"),
    ):
        say(x, 3.35, title, 13, weight="bold")
        say(x, 0.35, below, 10.5)
    picture(0.35, 0.95, 1.7, seen["weights"], **weights)
    say(2.4, 1.8, "⊙", 24)
    for task, mask in enumerate(seen["masks"]):
        x, y = 2.8 + 0.98 * (task % 2), 2.0 - 1.12 * (task // 2)
        picture(x, y, 0.82, mask, TASK_COLORS[task], cmap="Greys", vmin=0, vmax=1)
        say(x + 0.41, y + 0.96, f"M$^{task}$", 11, color=TASK_COLORS[task], weight="bold")
    say(5.0, 1.8, "→", 24)
    picture(6.3, 0.95, 1.7, seen["weights"] * seen["masks"].mean(axis=0), **weights)
    picture(5.4, 1.48, 0.64, seen["image"], cmap="Greys")
    say(5.72, 2.29, "task ?", 11)
    say(6.17, 1.8, "→", 13)
    say(8.25, 1.8, "→", 24)
    bars = place(8.6, 0.98, 2.1, 1.75)
    falls = -seen["gradients"]
    bars.bar(range(TASKS), falls, color=TASK_COLORS, width=0.75)
    for task, fall in enumerate(falls):
        edge = (0, 3) if fall > 0 else (0, -11)
        bars.annotate(f"{fall:.2f}", (task, fall), edge, textcoords="offset points", ha="center", fontsize=10.5)
    bars.axhline(0, color=INK, linewidth=1)
    bars.set_ylim(min(0, 1.2 * falls.min()), max(0, 1.2 * falls.max()))
    bars.set_xticks(range(TASKS), [f"M$^{task}$" for task in range(TASKS)], fontsize=11)
    bars.tick_params(axis="x", length=0)
    for label, color in zip(bars.get_xticklabels(), TASK_COLORS, strict=True):
        label.set_color(color)
    bars.spines[:].set_visible(False)
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the picture, and say how often the method was right; the exit status: 0, or 2 for bad input."""
    words = sys.argv[1:] if argv is None else argv
    if len(words) > 1 or any(word.startswith("-") for word in words):
        print(__doc__)
        return 0 if words in (["-h"], ["--help"]) else 2
    path = Path(words[0]).expanduser() if words else TEASER
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        seen = compute()
        with matplotlib.rc_context({"font.family": "DejaVu Sans", "savefig.dpi": 180}):
            draw(seen).savefig(path, metadata={"Software": None})
    except OSError as error:
        print(f"teaser.py: error: {path}: {error.strerror}", file=sys.stderr)
        return 2
    print(f"{path}: one image is enough for {seen['right']} of {seen['images']} test images of {TASKS} tasks")
    return 0


if __name__ == "__main__":
    sys.exit(main())
