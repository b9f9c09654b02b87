"""The report of finished runs: figures as the paper's, a Markdown and an HTML page, the published numbers beside ours.

  python experiments/report.py runs/*                 a report of all experiments, in runs/report
  python experiments/report.py runs/NNs-supsup        of one, in its folder
  python experiments/report.py --collect runs/*       keep their results in experiments/results, and draw what lies
                                                      there and write the table in its README.md anew

Numbers are means over seeds, with the sample standard deviation where there are several. Only the files are read that
main.py writes (README, "What lands where"), so a run's folder of another machine can be copied in beside the others:
what results.csv lacks of it is read from the folder. Unfinished runs are shown as far as they were evaluated.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

try:
    import matplotlib  # noqa: F401
    import pandas  # noqa: F401
except ModuleNotFoundError as error:  # runs do without
    missing = f"{error.name} is missing; pip install -r requirements-notebook.txt"
    if __name__ == "__main__":
        sys.exit(f"report.py: error: {missing}")
    raise ModuleNotFoundError(missing) from None

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from experiments import cells, collected, figures, published, records  # noqa: E402
from experiments.options import Parser, parse_path  # noqa: E402
from experiments.pages import Block, Code, markdown, web_page  # noqa: E402
from experiments.records import Experiment, Run  # noqa: E402
from experiments.tables import MEASURED  # noqa: E402
from utils.output import lasting_output, one_line  # noqa: E402

FIELD = ("average accuracy", "forgetting", "backward transfer", "forward transfer")
NOT_MEASURED = "not measured"
JOINED = (
    "Where several runs have learned a part of a seed's tasks each, every one infers among its own part alone. How all "
    "of these tasks are inferred is told once main.py --merge has joined the runs."
)


# The page


def page(experiments: Sequence[Experiment], paper: dict) -> tuple[list[Block], list[figures.Picture]]:
    """The blocks of the report and the pictures that it shows."""
    blocks: list[Block] = [
        ("heading", 1, "Supermasks in Superposition: what was measured"),
        (
            "text",
            "Accuracies are shares of test images; beside the mean over seeds stands the sample standard deviation. "
            "Given: with the task given; inferred: with the task inferred, or its mask recovered. Forward transfer is "
            "0 by construction where each task starts from fresh scores and shares nothing that is trained.",
        ),
    ]
    pictures = []
    for name, about, members in published.by_figure(experiments, paper):
        picture = figures.of_paper(name, about, members, paper)
        pictures.append(picture)
        head = f"Figure {name}: {about['title']}" if name[0].isdigit() else about["title"]
        blocks += [
            ("heading", 2, head),
            ("image", f"{picture.name}.png", picture.caption),
            _overview(name, members, paper),
        ]
        for experiment in members:
            picture = figures.of_experiment(experiment, paper)
            pictures.append(picture)
            blocks += [("heading", 3, experiment.name), ("image", f"{picture.name}.png", picture.caption)]
            blocks += _about(experiment, paper)
    return blocks, pictures


def _overview(figure: str, experiments: Sequence[Experiment], paper: dict) -> Block:
    header = ["method", "tasks", "given", "inferred", "batches inferred right"]
    header += ["MB kept: bit-packed / CSC-16 / entropy-coded", "run time a task", "seeds", "published"]
    rows = []
    for experiment in experiments:
        for setting in experiment.settings:
            final = setting.final
            accuracies = [cells.spread(final[column]) for column in MEASURED]
            rows.append(
                [published.name_of(experiment, setting, paper), str(final["Tasks Learned"].iloc[0]), *accuracies]
                + [cells.megabytes(final), cells.time_a_task(setting), str(len(final))]
                + [published.printed(setting, paper)]
            )
    for number in paper["numbers"]:  # of methods that are not run here
        if number["figure"] == figure and "label" in number:
            size = f"– / {number['bytes'] / records.MEGABYTE:,.3f} / –" if "bytes" in number else "–"
            given = f"{number['accuracy']:.4f} ({number['source']})"
            rows.append([number["label"], str(number["tasks"]), "–", "–", "–", size, "–", "–", given])
    return ("table", header, rows)


def _about(experiment: Experiment, paper: dict) -> list[Block]:
    curve, field = [], []
    names = [published.short(setting, paper) or "all runs" for setting in experiment.settings]
    for name, setting in zip(names, experiment.settings, strict=True):
        for tasks, rows in setting.evaluations.groupby("Tasks Learned"):
            accuracies = [cells.spread(rows[column]) for column in MEASURED]
            curve.append([name, str(tasks), *accuracies, str(len(rows))])
        for column, how in (("given", "given"), ("adapted", "inferred"))[: 1 + setting.inferred]:
            values = cells.measures(setting, column)
            row = [cells.spread(of.get(key, float("nan")) for of in values) for key in FIELD]
            field.append([name, how, *(NOT_MEASURED if cell == "–" else cell for cell in row)])
    blocks: list[Block] = [
        ("table", ["setting", "tasks learned", "given", "inferred", "batches inferred right", "seeds"], curve),
        ("table", ["setting", "task", *FIELD], field),
    ]
    in_parts = [run for setting in experiment.settings if setting.joined for run in setting.runs]
    if any(run.evaluations["Accuracy Adapted"].notna().any() for run in in_parts):
        blocks.append(("text", JOINED))
    blocks += _of_nns(experiment) + _of_recovery(experiment, names)
    blocks += _settings(experiment, names)
    blocks.append(("code", "\n".join(dict.fromkeys(map(cells.call_of, experiment.settings)))))
    rows = []
    for run in experiment.runs:
        versions = ", ".join(f"{name} {version}" for name, version in run.about["versions"].items())
        rows.append(
            [Code(run.name), run.finished or "not finished", cells.duration(run.seconds), cells.machine(run)]
            + [run.about["commit"][:12], versions]
        )
    return [*blocks, ("table", ["run", "finished", "run time", "machine", "commit", "versions"], rows)]


def _of_nns(experiment: Experiment) -> list[Block]:
    rows = []
    for setting in experiment.settings:
        for run in setting.runs:
            if (table := run.tables.get("nns")) is not None:
                allocated = (table["decision"] == "allocate").sum()
                right = table["right"].astype(str).eq("True")
                rows.append(
                    [Code(run.name), str(table["hidden_task"].nunique()), str(allocated), f"{right.mean():.4f}"]
                )
    return [("table", ["run", "hidden tasks", "masks allocated", "decisions right"], rows)] if rows else []


def _of_recovery(experiment: Experiment, names: Sequence[str]) -> list[Block]:
    rows = []
    for name, setting in zip(names, experiment.settings, strict=True):
        table = setting.table("hopfield")
        ends = table[table["step"] == table.groupby(["seed", "tasks_learned", "task"])["step"].transform("max")]
        for (tasks, task), of in ends.groupby(["tasks_learned", "task"]):
            by_seed = of.groupby("seed")["hamming"].mean()
            rows.append([name, str(tasks), str(task), cells.spread(by_seed, ".1f")])
    return [("table", ["setting", "tasks learned", "task", "Hamming distance in the end (bits)"], rows)] if rows else []


def _settings(experiment: Experiment, names: Sequence[str]) -> list[Block]:
    """What was told to all runs, and what tells the settings apart."""
    flags = dict.fromkeys(flag for run in experiment.runs for flag in cells.told(run))

    def value(flag: str, runs: Sequence[Run]) -> str:
        return ", ".join(dict.fromkeys(str(run.settings.get(flag)) for run in runs))

    of_each = {flag: [value(flag, setting.runs) for setting in experiment.settings] for flag in flags}
    same = [flag for flag, values in of_each.items() if len(set(values)) == 1]
    differing = [flag for flag in flags if flag not in same]
    typed = {flag: Code(f"--{flag.replace('_', '-')}") for flag in flags}
    blocks: list[Block] = [
        ("text", "Settings that were told; all others stand at main.py's defaults."),
        ("table", ["flag", "value"], [[typed[flag], Code(of_each[flag][0])] for flag in same]),
    ]
    if differing:
        rows = [[name, *(Code(of_each[flag][place]) for flag in differing)] for place, name in enumerate(names)]
        blocks.append(("table", ["setting", *(typed[flag] for flag in differing)], rows))
    return blocks


# The command


def write(experiments: Sequence[Experiment], out: Path, formats: Sequence[str], page_forms: Sequence[str]) -> Path:
    """Write the pages and the pictures; gives the path of the page."""
    blocks, pictures = page(experiments, published.load())
    out.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        picture.save(out, formats)
    writers: dict[str, Callable[[], str]] = {
        "md": lambda: markdown(blocks),
        "html": lambda: web_page(blocks, "Supermasks in Superposition"),
    }
    for form in page_forms:
        (out / f"report.{form}").write_text(writers[form](), encoding="utf-8")
    return out / f"report.{page_forms[-1]}"


def report(folders: Sequence[Path], out: Path | None = None) -> tuple[Path, list[str]]:
    """The report of run folders, by default in the folder itself, or of several in ``report`` beside them.

    Returns: the path of the HTML page, and a line for each folder or run that it leaves out.

    Raises:
        ValueError: nothing was evaluated yet, or something cannot be read.
    """
    experiments, skipped = records.read(folders)
    if not experiments:
        raise ValueError("; ".join(skipped))
    if out is None:
        paths = [folder.resolve() for folder in folders]
        out = paths[0] if len(paths) == 1 else Path(os.path.commonpath([path.parent for path in paths])) / "report"
    return write(experiments, out, ("png", "pdf"), ("md", "html")), skipped


def collect(
    folders: Sequence[Path], into: Path = collected.RESULTS, readme: Path = collected.README
) -> tuple[Path, list[str]]:
    """Keep the results of run folders in ``into``, then draw all that lies there and write the table of its README."""
    experiments, skipped = records.read(folders)
    if folders and not experiments:
        raise ValueError("; ".join(skipped))
    # A README without a place for the table is found before anything is written.
    collected.with_table(readme.read_text(encoding="utf-8"), "")
    collected.write(experiments, into)
    there = collected.read(into)
    made = write(there, into, ("png",), ("md",))
    table = collected.readme_table(there, published.load(), os.path.relpath(into, readme.parent))
    readme.write_text(collected.with_table(readme.read_text(encoding="utf-8"), table), encoding="utf-8")
    return made, skipped


@lasting_output()
def main(argv: Sequence[str] | None = None) -> int:
    """Write what the command line asks for; the exit status: 0, or 2 and one line for bad input."""
    parser = Parser(prog="report.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folders",
        nargs="*",
        type=parse_path,
        metavar="RUN_FOLDER",
        help="what holds results.csv, or a run's own folder",
    )
    parser.add_argument("--out", type=parse_path, metavar="DIR", help="where the report goes")
    parser.add_argument("--collect", action="store_true", help="keep the results in experiments/results as well")
    options = parser.parse_args(argv)
    if options.collect and options.out:
        parser.error("--out: --collect writes to experiments/results")
    if not (options.folders or options.collect):
        parser.error("RUN_FOLDER: give the folders that hold results.csv, such as runs/*")
    try:
        made, skipped = collect(options.folders) if options.collect else report(options.folders, options.out)
    except (ValueError, OSError) as error:
        parser.error(one_line(error))
    for line in skipped:
        print(f"left out: {line}", file=sys.stderr)
    print(f"report: {made}; figures beside it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
