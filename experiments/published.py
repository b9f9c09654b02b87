"""What the paper shows, as ``paper.yaml`` has it, and where what was measured stands beside it."""

from collections.abc import Sequence
from pathlib import Path

import yaml

from experiments.records import Experiment, Setting


def load() -> dict:
    """``paper.yaml``."""
    return yaml.safe_load((Path(__file__).parent / "paper.yaml").read_text(encoding="utf-8"))


def by_figure(experiments: Sequence[Experiment], paper: dict) -> list[tuple[str, dict, list[Experiment]]]:
    """The experiments by figure in the order of the paper's; one that fits into none is a figure of its own."""
    known = {name: index for index, name in enumerate(paper["experiments"])}
    found: dict[str, tuple[dict, list[Experiment]]] = {}
    for experiment in sorted(experiments, key=lambda e: (known.get(e.name, len(known)), e.name)):
        name = paper["experiments"].get(experiment.name, {}).get("figure")
        about = paper["figures"].get(name, {})
        if not about or not all(has(setting, about.get("settings", {})) for setting in experiment.settings):
            name, about = f"curve of {experiment.name}", {"title": experiment.name, "form": about.get("form", "tasks")}
        if about["form"] == "hamming" and not any(len(setting.table("hopfield")) for setting in experiment.settings):
            about = about | {"form": "tasks"}
        found.setdefault(name, (about, []))[1].append(experiment)
    return [(name, *of) for name, of in found.items()]


def printed(setting: Setting, paper: dict) -> str:
    """The published numbers that stand beside a setting's."""
    found = []
    for number in paper["numbers"]:
        wanted = paper["figures"][number["figure"]].get("settings", {}) | number.get("settings", {})
        if number.get("experiment") == setting.experiment and has(setting, wanted):
            found.append(f"{number['accuracy']:.4f} after {number['tasks']} tasks ({number['source']})")
    return "; ".join(found) or "–"


def drawn(experiments: Sequence[Experiment], about: dict) -> Sequence[Experiment]:
    """What a figure draws of its experiments: those settings that its ``draws`` asks for, if there are such."""
    wanted = about.get("draws", {})
    kept = [Experiment(one.name, [setting for setting in one.settings if has(setting, wanted)]) for one in experiments]
    return [one for one in kept if one.settings] or experiments


def has(setting: Setting, wanted: dict) -> bool:
    return all(run.settings.get(name, value) == value for run in setting.runs for name, value in wanted.items())


def name_of(experiment: Experiment, setting: Setting, paper: dict) -> str:
    """What the runs of a setting are called: the method, and what tells the setting apart."""
    return ", ".join(filter(None, [label_of(experiment, paper), short(setting, paper)]))


def short(setting: Setting, paper: dict) -> str:
    """What tells a setting apart from the experiment's others, in the words of ``paper.yaml`` where it has some."""
    hidden = paper["experiments"].get(setting.experiment, {}).get("hides", ())
    parts = [part for part in setting.label.split(", ") if part.partition(" ")[0] not in hidden]
    return ", ".join(filter(None, (paper["short"].get(part, part) for part in parts)))


def label_of(experiment: Experiment, paper: dict) -> str:
    return paper["experiments"].get(experiment.name, {}).get("label", experiment.name)
