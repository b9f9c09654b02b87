"""The pictures of the report: one in the form of each of the paper's figures, and one about each experiment.

Nothing here opens a window.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from experiments import panels, published
from experiments.records import Experiment

STYLE = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "grid.alpha": 0.3,
    "font.size": 10,
    "legend.fontsize": 8,
    "legend.handlelength": 3,
    "lines.markersize": 5,
    "pdf.fonttype": 42,  # text stays text
    "savefig.dpi": 120,
    "text.parse_math": False,  # a name is shown as it is typed
}


@dataclass
class Picture:
    """A picture to draw: the stem of its file, what it shows, its size in inches, and how it is drawn."""

    name: str
    caption: str
    size: tuple[float, float]
    draw: Callable[[Figure], None]

    def save(self, folder: Path, formats: Iterable[str]) -> None:
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=self.size)
            self.draw(figure)
            for form in formats:
                # No date and no version, so that the same results give the same file.
                nameless = {"Software": None} if form == "png" else {"CreationDate": None, "Producer": None}
                figure.savefig(folder / f"{self.name}.{form}", metadata=nameless)


def of_paper(figure: str, about: dict, experiments: Sequence[Experiment], paper: dict) -> Picture:
    """The picture in the form of one of the paper's figures, of the experiments that stand in it."""
    form = {"tasks": panels.over_tasks, "bytes": panels.over_bytes, "hamming": panels.over_steps}[about["form"]]
    captions = {
        "tasks": "Accuracy over all tasks learned so far.",
        "bytes": "Accuracy over what must be kept of all tasks.",
        "hamming": "How a mask is recovered from the Hopfield network.",
    }
    title = shown = about["title"]
    experiments = published.drawn(experiments, about)
    if about["form"] == "bytes":  # the axes do not say how long anything was learned
        extent = _extent(experiments, about)
        title, shown = f"{title}, {extent}", f"{title}\n{extent}"
    named = f"Figure {figure}. " if figure[0].isdigit() else ""
    caption = f"{named}{title}. {captions[about['form']]} Bands and bars: ± one standard deviation over seeds."

    def draw(canvas: Figure) -> None:
        axes = canvas.add_subplot()
        form(axes, experiments, paper, figure)
        axes.set_title(shown)
        if about["form"] != "hamming":
            upper = panels.upper_part(axes) if about["form"] == "tasks" else None
            panels.scale_accuracy(axes, about.get("chance"))
            if upper:  # what lies close together, once more and larger
                canvas.set_size_inches(12, 4)
                canvas.clear()
                axes, close = canvas.subplots(1, 2)
                for part in (axes, close):
                    form(part, experiments, paper, figure)
                    panels.scale_accuracy(part, about.get("chance"))
                axes.set_title(shown)
                close.set_title("its upper part, larger")
                close.set_ylim(upper)
                close.set_ylabel("")
                axes = close
        handles, labels = axes.get_legend_handles_labels()
        labels = [panels.wrapped(label) for label in labels]
        lines = sum(label.count("\n") + 1 for label in labels)
        canvas.set_figheight(max(4, 0.8 + 0.18 * lines))
        axes.legend(handles, labels, loc="center left", bbox_to_anchor=(1, 0.5))  # beside the lines, never on them

    stem = f"figure-{figure}" if figure[0].isdigit() else figure
    return Picture(stem.replace(" ", "-"), caption, (8, 4), draw)


def _extent(experiments: Sequence[Experiment], about: dict) -> str:
    """How many tasks were learned, and how many epochs each of them had if the paper's have more."""
    settings = [setting for one in experiments for setting in one.settings]
    text = f"{_range(count for setting in settings for count in setting.final['Tasks Learned'])} tasks"
    epochs = {run.settings.get("epochs") for setting in settings for run in setting.runs} - {None}
    if epochs and min(epochs) < about.get("epochs", 0):
        text += f", {_range(epochs)} of {about['epochs']} epochs"
    return text


def _range(numbers: Iterable[int]) -> str:
    found = sorted(numbers)
    return " to ".join(dict.fromkeys((f"{found[0]}", f"{found[-1]}")))


def of_experiment(experiment: Experiment, paper: dict) -> Picture:
    """Accuracy by task, or by setting; the accuracy matrix; which tasks were taken for which."""
    most = max(experiment.settings, key=lambda setting: setting.evaluations["Tasks Learned"].max())
    drawn, height = [panels.by_task], 3.8
    words = ["accuracy of each task in the end"]
    if len(experiment.settings) > 1:
        drawn, words = [panels.by_setting], ["accuracy by setting"]
        names = [panels.wrapped(published.short(one, paper)) for one in experiment.settings]
        height = 0.9 + sum(max(0.5, 0.2 + 0.17 * name.count("\n")) for name in names)
    if not most.in_parts and most.evaluations["Tasks Learned"].nunique() > 1:
        drawn.append(panels.matrix_of)
        words.append("accuracy on each task after so many were learned")
    if len(most.table("confusion")):
        drawn.append(panels.confusion_of)
        words.append("which tasks were taken for which")
    caption = f"{experiment.name}: {'; '.join(words)}"
    height = max(height, 3.8) if len(drawn) > 1 else height
    caption += f" ({published.short(most, paper)})." if len(experiment.settings) > 1 and len(drawn) > 1 else "."

    def draw(canvas: Figure) -> None:
        places = canvas.subplots(1, len(drawn), squeeze=False)[0]
        for axes, panel in zip(places, drawn, strict=True):
            panel(axes, experiment, most, paper)

    return Picture(experiment.name, caption, (0.8 + 4.6 * len(drawn), height), draw)
