"""What is drawn into one pair of axes: in the form of the paper's figures, or about one experiment.

Lines differ in colour (Okabe and Ito's, which colour-blind readers tell apart), in dashes and in markers, so they
survive grey printing too.
"""

from collections.abc import Sequence
from math import ceil, floor, log10
from textwrap import wrap

import pandas
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import MaxNLocator

from experiments import metrics, published
from experiments.records import MEGABYTE, Experiment, Setting

COLORS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", "--", "-.", ":")
MARKERS = "osD^vP<X>"
BARS_UP_TO = 12  # tasks; more of them are points
NUMBERED_UP_TO = 10  # bars that have their value above them
NAMED_UP_TO = 10  # rows or columns of one digit; of more, every second, fifth, ... is named
LINE = 28  # characters of a name on one line; longer ones would squeeze what they name
LEAST_RANGE = 0.05  # of an accuracy axis; noise in the fourth decimal should not look like a fall


# In the form of the paper's figures


def over_tasks(axes: Axes, experiments: Sequence[Experiment], paper: dict, figure: str) -> None:
    settings = [(experiment, setting) for experiment in experiments for setting in experiment.settings]
    mixed = len({setting.inferred for _, setting in settings}) > 1
    lines = []
    for experiment, setting in settings:
        label = published.name_of(experiment, setting, paper)
        lines.append((f"{label}, task given" if mixed and not setting.inferred else label, setting, setting.accuracy))
    if len(settings) == 1 and settings[0][1].inferred:
        label, setting, column = lines[0]
        lines = [(f"{label}, task inferred", setting, column), (f"{label}, task given", setting, "Accuracy Given")]
    for index, (label, setting, column) in enumerate(lines):
        by_count = setting.evaluations.dropna(subset=column).groupby("Tasks Learned")[column].agg(["mean", "std"])
        style = _style(index)
        if index % 2:  # rings around dots, where two lines are the same
            style |= {"markerfacecolor": "none", "markersize": 9}
        axes.plot(by_count.index, by_count["mean"], label=label, **style)
        low, high = by_count["mean"] - by_count["std"], by_count["mean"] + by_count["std"]
        axes.fill_between(by_count.index, low, high, color=style["color"], alpha=0.2, linewidth=0)
    most = max(setting.evaluations["Tasks Learned"].max() for _, setting in settings)
    shown = {experiment.name for experiment in experiments}
    for number in paper["numbers"]:
        if number["figure"] == figure and number.get("experiment") in shown and number["source"].startswith("paper"):
            if number["tasks"] <= most:
                label = f"{paper['experiments'][number['experiment']]['label']}, paper"
                style = {"color": "black", "markersize": 12, "markerfacecolor": "white", "zorder": 1.5}  # behind ours
                axes.plot(number["tasks"], number["accuracy"], "*", label=label, **style)
    axes.set_xlim(left=0)
    _whole(axes.xaxis)
    axes.set_xlabel("number of tasks learned")


def over_bytes(axes: Axes, experiments: Sequence[Experiment], paper: dict, figure: str) -> None:
    index = 0
    for experiment in experiments:
        lines: dict[str, list[Setting]] = {}
        for setting in experiment.settings:  # sparsities make up a line
            parts = published.short(setting, paper).split(", ")
            rest = ", ".join(part for part in parts if not part.startswith("sparsity "))
            lines.setdefault(rest, []).append(setting)
        for rest, settings in lines.items():
            label = ", ".join(filter(None, [published.label_of(experiment, paper), rest]))
            numbers = " (numbers: --sparsity)" if len(settings) > 1 else ""
            finals = [setting.final for setting in settings]
            y = [final[setting.accuracy] for final, setting in zip(finals, settings, strict=True)]
            mean, spread = [values.mean() for values in y], [values.std() for values in y]
            style = _style(index)
            stored, coded = (
                [final[of].mean() / MEGABYTE for final in finals] for of in ("Bytes CSC-16", "Bytes Coded")
            )
            axes.plot(stored, mean, label=label + numbers, **style)
            axes.errorbar(stored, mean, spread, fmt="none", capsize=3, color=style["color"])
            for setting, *point in zip(settings, stored, mean, strict=True) if len(settings) > 1 else ():
                _beside(axes, point, f"{setting.runs[0].settings['sparsity']:g}", (0, -15))
            if coded != stored:
                hollow = style | {"markerfacecolor": "white", "linewidth": 0.8}
                axes.plot(coded, mean, label=f"{label}, entropy-coded", **hollow)
            index += 1
    for place, (label, points) in enumerate(_printed(paper, figure).items()):
        x, y, _ = zip(*points, strict=True)
        axes.plot(x, y, "*", color="black", markersize=11, label=None if place else "paper")
        for *point, name in points:
            _beside(axes, point, name or label, (0, 8))
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(10 ** floor(log10(low)), 10 ** ceil(log10(high)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.set_xlabel("kept for all tasks, masks as CSC with 16-bit indices (MB)")


def _beside(axes: Axes, point: Sequence[float], text: str, offset: tuple[float, float]) -> None:
    """A few letters beside a point, so many points of type away."""
    axes.annotate(text, point, offset, textcoords="offset points", ha="center", fontsize=8)


def _printed(paper: dict, figure: str) -> dict[str, list[tuple[float, float, str]]]:
    """The points that the paper prints: by method (megabytes, accuracy, sparsity if it has several)."""
    points: dict[str, list] = {}
    for number in paper["numbers"]:
        if number["figure"] == figure and "bytes" in number:
            label = number.get("label") or paper["experiments"][number["experiment"]]["label"]
            name = str(number.get("settings", {}).get("sparsity", ""))
            points.setdefault(label, []).append((number["bytes"] / MEGABYTE, number["accuracy"], name))
    return points


def over_steps(axes: Axes, experiments: Sequence[Experiment], paper: dict, figure: str) -> None:
    index = 0
    for experiment in experiments:
        for setting in experiment.settings:
            table = setting.table("hopfield")
            table = table[table["tasks_learned"] == table["tasks_learned"].max()]
            for task, rows in table.groupby("task"):
                by_seed = rows.groupby(["seed", "step"])["hamming"].mean()
                by_step = by_seed.groupby("step").agg(["mean", "std"])
                style = _style(index) | {"markevery": (index, 5)}
                label = f"task {task}" if len(experiment.settings) == 1 else f"{setting.label}, task {task}"
                axes.plot(by_step.index, by_step["mean"], label=label, **style)
                low, high = by_step["mean"] - by_step["std"], by_step["mean"] + by_step["std"]
                axes.fill_between(by_step.index, low.clip(lower=0), high, color=style["color"], alpha=0.2, linewidth=0)
                index += 1
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    _whole(axes.xaxis)
    _whole(axes.yaxis)
    axes.set_xlabel("steps of recovery (test batches seen)")
    axes.set_ylabel("Hamming distance to the task's mask (bits)")


# About one experiment


def by_task(axes: Axes, experiment: Experiment, setting: Setting, paper: dict) -> None:
    scores = setting.table("adapt_results")
    if setting.in_parts:
        scores = scores.drop_duplicates(["seed", "task"], keep="last")
    else:
        scores = scores[scores["tasks_learned"] == scores["tasks_learned"].max()]
    by_seed = scores.groupby(["seed", "task"])[["given", "adapted"]].mean()
    table = by_seed.groupby("task").agg(["mean", "std"])
    kinds = _kinds(table, [setting])
    for place, (column, label, color, hatch) in enumerate(kinds):
        mean, spread = table[column]["mean"], table[column]["std"]
        if len(table) <= BARS_UP_TO:
            x, width = _offsets(len(table), place, len(kinds))
            style = {"color": color, "hatch": hatch, "edgecolor": "black", "label": label}
            bars = axes.bar(x, mean, width, yerr=spread, capsize=2, **style)
            if len(table) * len(kinds) <= NUMBERED_UP_TO:
                axes.bar_label(bars, fmt="%.3f", fontsize=7, padding=1)
        else:  # rings around dots, where both are the same
            face = "none" if column == "given" else color
            dots = {"fmt": "o", "markersize": 6 - 3 * place, "markerfacecolor": face, "linewidth": 0.8}
            axes.errorbar(range(len(table)), mean, spread, color=("#0072B2", color)[place], label=label, **dots)
    scale_accuracy(axes, None)
    if len(table) <= BARS_UP_TO:
        axes.set_ylim(0, 1.08)  # bars begin at zero
    _name(axes.xaxis, table.index)
    axes.grid(axis="x", visible=False)
    axes.set_xlabel("task")
    axes.set_ylabel("accuracy (share of test images)")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2)


def by_setting(axes: Axes, experiment: Experiment, setting: Setting, paper: dict) -> None:
    """Lying bars, so that there is room for what each setting is called."""
    finals = pandas.concat([one.final.assign(place=place) for place, one in enumerate(experiment.settings)])
    finals = finals.rename(columns={"Accuracy Given": "given", "Accuracy Adapted": "adapted"})
    table = finals.groupby("place")[["given", "adapted"]].agg(["mean", "std"])
    kinds = _kinds(table, experiment.settings)
    for place, (column, label, color, hatch) in enumerate(kinds):
        y, height = _offsets(len(table), place, len(kinds))
        style = {"color": color, "hatch": hatch, "edgecolor": "black", "label": label}
        bars = axes.barh(y, table[column]["mean"], height, xerr=table[column]["std"], capsize=2, **style)
        axes.bar_label(bars, fmt="%.4f", fontsize=8, padding=2)
    axes.set_yticks(
        range(len(table)), [wrapped(published.short(one, paper)) for one in experiment.settings], fontsize=8
    )
    axes.invert_yaxis()
    axes.set_xlim(0, 1.3)  # the numbers stand at the bars' ends
    axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("accuracy (share of test images)")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2)


def _kinds(table: pandas.DataFrame, settings: Sequence[Setting]) -> list[tuple[str, str, str, str]]:
    """What was measured: column, label, colour, hatch."""
    how = "mask recovered" if any("hopfield" in run.tables for one in settings for run in one.runs) else "task inferred"
    kinds = [("given", "task given", "#56B4E9", ""), ("adapted", how, "#D55E00", "///")]
    return [kind for kind in kinds if table[kind[0]]["mean"].notna().any()]


def _offsets(count: int, place: int, kinds: int) -> tuple[list[float], float]:
    """Where the bars of one of several kinds stand, and how wide they are, so that a group is 0.8 wide."""
    width = 0.8 / kinds
    return [index + (place - (kinds - 1) / 2) * width for index in range(count)], width


def matrix_of(axes: Axes, experiment: Experiment, setting: Setting, paper: dict) -> None:
    run = setting.runs[0]
    matrix = metrics.accuracy_matrix(run.scores("adapted" if setting.inferred else "given"))
    how = "inferred" if setting.inferred else "given"
    _heat(axes, matrix, f"accuracy, task {how} (seed {run.settings['seed']})", "cividis")
    axes.set_xlabel("task")
    axes.set_ylabel("number of tasks learned")


def confusion_of(axes: Axes, experiment: Experiment, setting: Setting, paper: dict) -> None:
    table = setting.table("confusion")
    seed = table["seed"].iloc[0]
    shares = metrics.confusion(table[table["seed"] == seed])
    _heat(axes, shares, f"share of the task's batches (seed {seed})", "Greys")
    axes.set_xlabel("inferred mask" if setting.runs[0].settings.get("trainer") == "nns" else "inferred task")
    axes.set_ylabel("true task")


def _heat(axes: Axes, table: pandas.DataFrame, label: str, colors: str) -> None:
    image = axes.imshow(table, aspect="auto", interpolation="nearest", cmap=colors)
    axes.grid(visible=False)
    _name(axes.xaxis, table.columns)
    _name(axes.yaxis, table.index)
    axes.figure.colorbar(image, ax=axes, label=label)


def _name(axis: Axis, names: Sequence[object]) -> None:
    """Name the rows or columns 0, 1, ...; of many every second, fifth, tenth and so on."""
    steps = (10**power * first for power in range(9) for first in (1, 2, 5))
    most = max(3, NAMED_UP_TO - 2 * (max(len(f"{name}") for name in names) - 1))  # fewer long ones
    every = next(step for step in steps if len(names) <= most * step)
    axis.set_ticks(range(0, len(names), every), [f"{name}" for name in names[::every]])


# What all of them share


def wrapped(name: str) -> str:
    """A name on as many lines as it needs, none of them long."""
    return "\n".join(wrap(name, LINE, break_on_hyphens=False))


def _style(index: int) -> dict:
    color, dashes, marker = COLORS[index % 7], DASHES[index % 4], MARKERS[index % 9]  # no common factor: 252 styles
    return {"color": color, "linestyle": dashes, "marker": marker}


def _whole(axis: Axis) -> None:
    """Marks at whole numbers, of what comes in no other."""
    axis.set_major_locator(MaxNLocator(integer=True, steps=(1, 2, 5, 10)))


def upper_part(axes: Axes) -> tuple[float, float] | None:
    """The range of the lines that stay high, if there are several and another falls to where they cannot be told."""
    lowest = {line: line.get_ydata().min() for line in axes.lines if len(line.get_ydata())}
    high = [line for line in lowest if lowest[line] > 0.8]
    if len(high) < 2 or min(lowest.values()) > 0.5:
        return None
    low, top = min(lowest[line] for line in high), max(line.get_ydata().max() for line in high)
    edge = max(0.1 * (top - low), (LEAST_RANGE - (top - low)) / 2)
    return low - edge, min(1.002, top + edge)


def scale_accuracy(axes: Axes, chance: float | None) -> None:
    """An accuracy axis that shows the differences, and zero and chance where anything comes near them."""
    axes.set_ylabel("mean accuracy (share of test images)")
    low, high = axes.get_ylim()
    middle = (low + high) / 2
    low, high = min(low, middle - LEAST_RANGE / 2), max(high, middle + LEAST_RANGE / 2)
    axes.set_ylim(low, min(1.002, high))
    if low < 0.5:
        axes.set_ylim(0, 1)
        if chance is not None:
            axes.axhline(chance, color="grey", linewidth=1, linestyle=(0, (1, 3)), label="chance")
