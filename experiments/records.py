"""What runs left on the disk, read for the report.

Reads what ``main.py`` writes (README, "What lands where") and nothing else of it. Raises ``ValueError`` with one line
that names the file for what cannot be read.
"""

import csv
import io
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby, pairwise
from pathlib import Path

import pandas
import yaml

from experiments.tables import COLUMNS, MEASURED, SIZES, TABLES, last_part, parsed, table_of, text_of
from trainers.options import Settings
from utils import journal
from utils.results import COLUMNS as RESULTS
from utils.results import of_last_start, to_csv
from utils.settings import NEITHER, PART, SETTLED
from utils.slices import tasks_of

ROOT = Path(__file__).resolve().parents[1]
# Runs that differ in nothing else are of one setting.
NEUTRAL = NEITHER | PART | {"seed"}
# Two runs of one seed that differ in these are not. On other machines, or of other seeds, the same lies elsewhere.
ORIGINS = ("data", "import_file", "weights")
MEGABYTE = 1e6


@dataclass
class Run:
    """One run.

    Attributes:
        about: its ``settings.yaml``.
        rows: its rows of ``results.csv``: of learned tasks, and without a task of evaluations.
        lines: the same rows as they are written.
        tables: those of ``TABLES`` that it wrote.
        finished: when it was complete; None if it is not.
        seconds: how long it ran; None if it cannot be known.
    """

    folder: Path
    about: dict
    rows: pandas.DataFrame
    lines: list[dict[str, str]]
    tables: dict[str, pandas.DataFrame]
    finished: str | None
    seconds: float | None

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def settings(self) -> dict:
        return self.about["settings"]

    @property
    def part(self) -> list[int] | None:
        """The tasks, of its seed's, that it was to learn alone: one, or a slice; None for all."""
        told = [value for name in PART if (value := self.settings.get(name)) is not None]
        return tasks_of(str(told[0])) if told else None

    @property
    def evaluations(self) -> pandas.DataFrame:
        return self.rows[self.rows["Task"].isna()]

    @property
    def learned(self) -> pandas.DataFrame:
        return self.rows[self.rows["Task"].notna()]

    def scores(self, column: str) -> pandas.DataFrame:
        """The evaluations in the form that ``metrics`` takes: ``tasks_learned``, ``task``, ``accuracy``."""
        return self.tables["adapt_results"].rename(columns={column: "accuracy"})[["tasks_learned", "task", "accuracy"]]


@dataclass
class Setting:
    """The runs of an experiment that differ in their seed alone, or in which of the seed's tasks they have learned.

    Runs that were given weights, or imported tasks, are not of a setting with those that were not; nor are two of one
    seed that had these from other files, or data of the user's own from other places.

    Attributes:
        label: in what it differs from the experiment's other settings.
    """

    experiment: str
    label: str
    runs: list[Run]

    @property
    def evaluations(self) -> pandas.DataFrame:
        """For each seed and number of tasks learned what was measured and what must be kept.

        Of a seed in ``joined`` nobody has measured what its tasks infer, each among all of them.
        """
        columns = [*MEASURED, *SIZES]
        if self.in_parts:  # they count as one run that learned all their tasks
            rows = pandas.concat([run.evaluations.tail(1) for run in self.runs])
            learned = rows["Tasks Learned"]
            by_seed = rows.assign(**{name: rows[name] * learned for name in MEASURED}).groupby("Seed")
            table = by_seed[[*columns, "Tasks Learned"]].sum(min_count=1)
            table[list(MEASURED)] = table[list(MEASURED)].div(table["Tasks Learned"], axis=0)
            table.loc[self.joined, ["Accuracy Adapted", "Share Inferred Right"]] = float("nan")
            return table.reset_index()
        rows = pandas.concat([run.evaluations for run in self.runs])
        return rows.groupby(["Seed", "Tasks Learned"])[columns].mean().reset_index()

    @property
    def final(self) -> pandas.DataFrame:
        """The evaluation of each seed after the most tasks that any was evaluated after."""
        table = self.evaluations
        return table[table["Tasks Learned"] == table["Tasks Learned"].max()]

    @property
    def ended(self) -> dict[int, list[Run]]:
        """By seed the runs that ``final`` is of: in parts all of them, else those that came as far."""
        last = self.final["Tasks Learned"].iloc[0]
        found: dict[int, list[Run]] = {seed: [] for seed in self.final["Seed"]}
        for run in self.runs:
            seed = run.settings["seed"]
            if seed in found and (self.in_parts or run.evaluations["Tasks Learned"].max() == last):
                found[seed].append(run)
        return found

    @property
    def in_parts(self) -> bool:
        """Whether each run has learned a part of its seed's tasks: one task, or a slice."""
        return all(run.part is not None for run in self.runs) and _apart(self.runs)

    @property
    def joined(self) -> list[int]:
        """The seeds whose tasks several runs have learned a part of each, and inferred among this part alone."""
        seeds = [run.settings["seed"] for run in self.runs] if self.in_parts else []
        return sorted({seed for seed in seeds if seeds.count(seed) > 1})

    @property
    def inferred(self) -> bool:
        """Whether tasks were inferred, or masks recovered."""
        return bool(self.final["Accuracy Adapted"].notna().any())

    @property
    def accuracy(self) -> str:
        """The column with the accuracy that counts."""
        return "Accuracy Adapted" if self.inferred else "Accuracy Given"

    def table(self, name: str) -> pandas.DataFrame:
        """One of ``TABLES`` of all runs, with the seed of each row; empty if no run wrote it.

        It tells nothing that was inferred of a seed in ``joined``.
        """
        parts = [run.tables[name].assign(seed=run.settings["seed"]) for run in self.runs if name in run.tables]
        if not parts:
            return pandas.DataFrame(columns=["seed", *TABLES[name]])
        table = pandas.concat(parts, ignore_index=True)
        whole = ~table["seed"].isin(self.joined)
        if name != "adapt_results":
            return table[whole]
        return table.assign(**{column: table[column].where(whole) for column in ("adapted", "inferred_right")})


@dataclass
class Experiment:
    """All runs of an experiment, by setting."""

    name: str
    settings: list[Setting]

    @property
    def runs(self) -> list[Run]:
        return [run for setting in self.settings for run in setting.runs]


def read(folders: Iterable[Path]) -> tuple[list[Experiment], list[str]]:
    """Read experiments' folders; those of the same name, from several machines perhaps, are one experiment.

    Returns: the experiments, and a line for each folder without anything evaluated and each run that is left out.

    Raises:
        ValueError: a folder is not there, or something in it cannot be read.
    """
    runs: dict[str, dict[str, Run]] = {}
    skipped = []
    for folder in folders:
        if not folder.exists():
            raise ValueError(f"{folder}: is not there; give the folders that hold results.csv, such as runs/NNs-supsup")
        alone = (folder / "settings.yaml").is_file()  # a run's own folder
        there, notes = _runs(folder.resolve().parent, folder.resolve().name) if alone else _runs(folder)
        skipped += notes
        known = runs.setdefault(folder.resolve().parent.name if alone else folder.resolve().name, {})
        for run in there:
            if run.name in known:
                raise ValueError(f"{run.folder}: the same run was read from {known[run.name].folder} already")
            known[run.name] = run
    experiments = [Experiment(name, _by_setting(name, list(of.values()))) for name, of in runs.items() if of]
    return experiments, skipped


def _runs(folder: Path, only: str | None = None) -> tuple[list[Run], list[str]]:
    """The runs of an experiment's folder: those in its ``results.csv``, and those whose folders were copied in.

    Args:
        only: the name of a run if no other is wanted.
    """
    path, text = text_of(folder, "results")
    table = parsed(path, ",".join(COLUMNS) if text is None else text, COLUMNS)
    lines = list(csv.DictReader(io.StringIO(text or "")))
    places = table.groupby(table["Save Directory"].map(last_part), sort=False).groups if len(table) else {}
    copied = sorted(path.parent.name for path in folder.glob("*/settings.yaml") if path.parent.name not in places)
    runs, skipped = [], []
    for name in [*places, *copied] if only is None else [only]:
        run = folder / name
        if not (run / "settings.yaml").is_file():
            skipped.append(f"{run}: has rows in results.csv but no settings.yaml")
            continue
        rows = table.loc[places.get(name, [])]
        found = _run(run, rows, [lines[place] for place in rows.index])
        if found.evaluations.empty:
            skipped.append(f"{run}: no evaluation is finished")
        else:
            runs.append(found)
    if not (runs or skipped):
        skipped = [f"{folder}: holds no results.csv" if text is None else f"{folder}: nothing is finished"]
    return runs, skipped


def _run(folder: Path, rows: pandas.DataFrame, lines: list[dict[str, str]]) -> Run:
    path = folder / "settings.yaml"
    try:
        about = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
    if not _is_settings(about):
        raise ValueError(f"{path}: is not the settings.yaml of a run")
    tables = {name: table_of(folder, name, columns) for name, columns in TABLES.items()}
    scores = tables["adapt_results"]
    kept = of_last_start(lines)
    rows, lines = rows.iloc[kept], [lines[place] for place in kept]
    evaluated = set(rows.loc[rows["Task"].isna(), "Tasks Learned"]) if len(rows) else set()
    if scores is None and evaluated:
        raise ValueError(f"{folder / 'adapt_results.csv'}: is not there, though the run was evaluated")
    if scores is not None and not evaluated.issuperset(scores["tasks_learned"]):  # of another machine, perhaps
        text = to_csv(RESULTS, _of_checkpoint(folder) or _of_scores(folder, about, scores))
        rows, lines = parsed(folder, text, COLUMNS), list(csv.DictReader(io.StringIO(text)))
    finished, log = folder / "finished", folder / "log.txt"
    return Run(
        folder,
        about,
        rows,
        lines,
        {name: table for name, table in tables.items() if table is not None},
        about.get("finished") or (finished.read_text(encoding="utf-8").strip() if finished.exists() else None),
        about.get("seconds")
        or (seconds_of(log.read_text(encoding="utf-8", errors="replace")) if log.exists() else None),
    )


def _of_checkpoint(folder: Path) -> list[dict]:
    """The rows that a run's checkpoint keeps; none without one."""
    path = folder / "checkpoint.pt"
    return [said["row"] for said in journal.values(path) if said.get("row")] if path.is_file() else []


def _of_scores(folder: Path, about: dict, scores: pandas.DataFrame) -> list[dict]:
    """The rows of a run's evaluations from what it wrote of each task; sizes are known of the last."""
    means = scores.groupby("tasks_learned")[["given", "adapted", "inferred_right"]].mean().rename_axis("Tasks Learned")
    rows = means.set_axis(MEASURED, axis=1).reset_index().to_dict("records")
    if size := about.get("bytes"):
        rest = size["batch_norm"] + size["other"]
        rows[-1] |= {name: size[key] + rest for name, key in zip(SIZES, ("packed", "csc16", "coded"), strict=True)}
    where = {"Save Directory": str(folder), "Set": about["settings"].get("set"), "Seed": about["settings"]["seed"]}
    return [{"Name": f"mean over the {row['Tasks Learned']} tasks learned so far"} | where | row for row in rows]


def _is_settings(about: object) -> bool:
    kinds = {"settings": dict, "command": list, "versions": dict, "machine": str, "commit": str}
    if not isinstance(about, dict) or not all(isinstance(about.get(name), kind) for name, kind in kinds.items()):
        return False
    return isinstance(about["settings"].get("seed"), int)


def seconds_of(log: str) -> float | None:
    """How long a run ran, from its ``log.txt``: the times between its lines, but for those in which it lay still.

    The first task, or several that were learned at once, are over when their lines are written, which say how long
    they took.
    """
    lines = [found.groups() for line in log.splitlines() if (found := re.match(r"(\d{4}-\S+ \S+) (.*)", line))]
    stamped = [(datetime.fromisoformat(stamp), text) for stamp, text in lines]
    tasks = [(stamp, float(took[1])) for stamp, text in stamped if (took := re.match(r"task \d+: .*, (\S+) s$", text))]
    if not tasks:
        return None
    first = max(stamp for stamp, _ in tasks if stamp <= tasks[0][0] + timedelta(seconds=1))
    total = sum(seconds for stamp, seconds in tasks if stamp <= first)
    for (before, _), (stamp, text) in pairwise(stamped):
        if before >= first and not re.match("going on after|warning: .* damaged", text):
            total += max(0.0, (stamp - before).total_seconds())  # clocks are set back, as in autumn
    return total


def _by_setting(experiment: str, runs: Sequence[Run]) -> list[Setting]:
    defaults = vars(Settings())  # a flag that came later than a run stands at its default there
    known = set.intersection(*(set(run.settings) | set(defaults) for run in runs)) - NEUTRAL

    def value(run: Run, key: str) -> object:
        return run.settings.get(key, defaults.get(key))

    telling = [key for key in sorted(known) if any(value(run, key) != value(runs[0], key) for run in runs)]

    def grouped(runs: Iterable[Run], keys: Sequence[str]) -> list[list[Run]]:
        def place(run: Run) -> list[tuple]:
            return [_sortable(value(run, key)) for key in keys]

        return [list(group) for _, group in groupby(sorted(runs, key=place), key=place)]

    # What a set of the user's own has measured on its images goes with the set.
    apart = grouped(runs, [key for key in telling if key not in SETTLED])
    same = [key for key in SETTLED if all(len(grouped(group, [key])) == 1 for group in apart)]
    telling = [key for key in telling if key not in same]
    brought = [key for key in ("import_file", "weights") if len({value(run, key) is None for run in runs}) > 1]
    settings = []
    for alike in grouped(runs, telling):
        origins = [key for key in ORIGINS if key in brought or _differ_within_a_seed(alike, key)]
        for group in grouped(alike, origins):
            keys = [*telling, *origins, *([] if _apart(group) else sorted(PART))]
            for members in grouped(group, keys):
                label = ", ".join(f"{key.replace('_', '-')} {_plain(value(members[0], key))}" for key in keys)
                settings.append(Setting(experiment, label, sorted(members, key=lambda run: run.settings["seed"])))
    return settings


def _differ_within_a_seed(runs: Sequence[Run], origin: str) -> bool:
    """Whether two runs of one seed had something from other places: of data the user's own, for a set is a set."""
    own = [run.settings for run in runs if origin != "data" or ":" in str(run.settings.get("set"))]
    found = {(settings["seed"], settings.get(origin)) for settings in own}
    return len(found) > len({seed for seed, _ in found})


def _apart(runs: Sequence[Run]) -> bool:
    """Whether no task of a seed was learned by two of these runs, or each learned all tasks."""
    of_parts = [run for run in runs if run.part is not None]
    learned = [(run.settings["seed"], task) for run in of_parts for task in run.part or ()]
    return len(of_parts) in (0, len(runs)) and len(learned) == len(set(learned))


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _sortable(value: object) -> tuple:
    return (0, value, "") if isinstance(value, (int, float)) else (1, 0, str(value))


def without_paths(about: dict, experiment: str) -> dict:
    """``settings.yaml`` as it would read on any machine."""
    command = [str(word) for word in about["command"]]
    project = os.path.dirname(command[0])
    data = about["settings"].get("data")
    log_dir = about["settings"].get("log_dir")

    def plain(text: object) -> object:
        if isinstance(text, list):  # such as the runs that were merged
            return [plain(part) for part in text]
        if not isinstance(text, str) or not text:
            return text
        flag, equals, value = text.partition("=") if text.startswith("-") else ("", "", text)
        if value == data:
            value = "DIR"
        elif value == log_dir:
            value = f"runs/{experiment}"
        elif os.path.isabs(value):
            inside, name = project and Path(value).is_relative_to(project), os.path.basename(value)
            # A run of a script's, such as one that was merged, lies where that script's runs lie.
            value = os.path.relpath(value, project) if inside else f"runs/{experiment}/{name}" if "=" in name else name
        return f"{flag}{equals}{value}"

    settings = {key: plain(value) for key, value in about["settings"].items()}
    return {**about, "settings": settings, "command": [plain(word) for word in command]}
