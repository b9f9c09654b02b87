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
import html
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote

try:
    import matplotlib  # noqa: F401
    import pandas
except ModuleNotFoundError as error:  # runs do without
    missing = f"{error.name} is missing; pip install -r requirements-notebook.txt"
    if __name__ == "__main__":
        sys.exit(f"report.py: error: {missing}")
    raise ModuleNotFoundError(missing) from None
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from experiments import figures, metrics, records  # noqa: E402
from experiments.options import parse_path  # noqa: E402
from experiments.records import Experiment, Run, Setting  # noqa: E402
from utils.output import lasting_output  # noqa: E402
from utils.settings import SHOWN  # noqa: E402

RESULTS = ROOT / "experiments" / "results"
README = RESULTS / "README.md"
BEGIN, END = "<!-- results: written by experiments/report.py --collect -->", "<!-- end of results -->"
FIELD = ("average accuracy", "forgetting", "backward transfer", "forward transfer")
NOT_MEASURED = "not measured"
CSS = """
:root { color-scheme: light dark; --line: #bbb; --soft: #f1f1f1 }
@media (prefers-color-scheme: dark) { :root { --line: #555; --soft: #2b2b2b } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72em; margin: 2em auto; padding: 0 1em }
body, pre { overflow-wrap: anywhere }
h2 { margin-top: 2.5em; border-bottom: 1px solid var(--line) }
figure { margin: 1.5em 0 }
img { max-width: 100%; background: white }
.table { overflow-x: auto; margin: 1.5em 0 }
table { border-collapse: collapse; overflow-wrap: normal }
th, td { border: 1px solid var(--line); padding: .2em .6em; text-align: left; vertical-align: top }
th, pre { background: var(--soft) }
pre { padding: .6em; white-space: pre-wrap }
""".strip()


class Code(str):
    """Text that is shown as it is typed."""


# A page is a list of blocks: ("heading", level, text), ("text", text), ("table", header, rows), ("code", text) or
# ("image", file, caption). A cell of a table is text or Code.
Block = tuple


def markdown(blocks: Iterable[Block]) -> str:
    """A page in Markdown."""

    def text(value: str) -> str:
        if isinstance(value, Code):
            return f"`{value.replace('`', chr(39)).replace('|', chr(92) + '|')}`"
        return re.sub(r"([\\`*_\[\]<>#|])", r"\\\1", value)

    def row(cells: Sequence[str]) -> str:
        return f"| {' | '.join(text(cell) for cell in cells)} |"

    parts = []
    for kind, *of in blocks:
        if kind == "heading":
            parts.append(f"{'#' * of[0]} {text(of[1])}")
        elif kind == "text":
            parts.append(text(of[0]))
        elif kind == "code":
            parts.append(f"```\n{of[0].rstrip()}\n```")
        elif kind == "image":
            parts.append(f"![{text(Path(of[0]).stem)}]({quote(of[0])})\n\n{text(of[1])}")
        else:
            parts.append("\n".join([row(of[0]), f"|{'---|' * len(of[0])}", *map(row, of[1])]))
    return "\n\n".join(parts) + "\n"


def web_page(blocks: Iterable[Block], title: str) -> str:
    """The same page in HTML."""

    def text(value: str) -> str:
        escaped = html.escape(value)
        return f"<code>{escaped}</code>" if isinstance(value, Code) else escaped

    def row(cells: Sequence[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{text(cell)}</{tag}>' for cell in cells)}</tr>"

    parts = [
        '<!DOCTYPE html>\n<html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>\n{CSS}\n</style>"
    ]
    for kind, *of in blocks:
        if kind == "heading":
            parts.append(f"<h{of[0]}>{text(of[1])}</h{of[0]}>")
        elif kind == "text":
            parts.append(f"<p>{text(of[0])}</p>")
        elif kind == "code":
            parts.append(f"<pre>{html.escape(of[0].rstrip())}</pre>")
        elif kind == "image":
            image = f'<a href="{quote(of[0])}"><img src="{quote(of[0])}" alt="{text(of[1])}"></a>'  # larger, on a phone
            parts.append(f"<figure>{image}<figcaption>{text(of[1])}</figcaption></figure>")
        else:
            rows = [row(of[0], "th"), *(row(cells, "td") for cells in of[1])]
            parts.append("\n".join(['<div class="table"><table>', *rows, "</table></div>"]))
    return "\n".join(parts) + "\n</html>\n"


# Numbers as text


def spread(values: Iterable[float], form: str = ".4f") -> str:
    """The mean ± the sample standard deviation of what was measured; the mean alone of one value; ``–`` of none."""
    there = pandas.Series(list(values), dtype=float).dropna()
    if there.empty:
        return "–"
    mean = f"{there.mean():{form}}"
    return mean if len(there) == 1 else f"{mean} ± {there.std():{form}}"


def duration(seconds: float | None) -> str:
    """A time as one would say it."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def megabytes(final: pandas.DataFrame) -> str:
    """What must be kept in its three forms; ``–`` where a run does not say."""
    return " / ".join(spread([final[column].mean() / figures.MEGABYTE], ",.3f") for column in records.SIZES)


def printed(setting: Setting, paper: dict) -> str:
    """The published numbers that stand beside a setting's."""
    found = []
    for number in paper["numbers"]:
        wanted = paper["figures"][number["figure"]].get("settings", {}) | number.get("settings", {})
        if number.get("experiment") == setting.experiment and _has(setting, wanted):
            found.append(f"{number['accuracy']:.4f} after {number['tasks']} tasks ({number['source']})")
    return "; ".join(found) or "–"


def _has(setting: Setting, wanted: dict) -> bool:
    return all(run.settings.get(name, value) == value for run in setting.runs for name, value in wanted.items())


def call_of(setting: Setting) -> str:
    """The command that makes the runs of a setting, from the project's root."""
    run = setting.runs[0]
    about = records.without_paths(run.about, setting.experiment)
    words = about["command"]
    script = re.search(r"(experiments/.+)/configs/([^/]+)\.yaml$", str(about["settings"].get("config")))
    if not script or "--resume" not in words:
        return shlex.join(["python", *words])
    kept, passed = [], iter(words[words.index("--resume") + 1 :])
    for word in passed:  # what the launcher does by itself, and where a run computes, is left out
        flag = word.lstrip("-").partition("=")[0].replace("-", "_")
        if not (word.startswith("--") and flag in records.NEUTRAL - SHOWN):
            kept.append(word)
        elif "=" not in word:
            next(passed, None)
    seeds = sorted({run.settings["seed"] for run in setting.runs})
    first = seeds == list(range(len(seeds)))
    which = str(len(seeds)) if first else ",".join(map(str, seeds)) + "," * (len(seeds) == 1)
    words = ["python", f"{script[1]}/{script[2]}.py", "--data", "DIR", *(["--seeds", which] if seeds != [0] else [])]
    return shlex.join([*words, *kept])


def run_time(setting: Setting) -> float | None:
    """Seconds for a seed, on average."""
    by_seed: dict[int, float] = {}
    for run in setting.runs:
        if run.seconds is None:
            return None
        by_seed[run.settings["seed"]] = by_seed.get(run.settings["seed"], 0) + run.seconds
    return sum(by_seed.values()) / len(by_seed)


def machine(run: Run) -> str:
    """What a run computed on, without the name of the system."""
    threads = run.settings.get("threads")
    where = run.about["machine"].partition(", ")[2]
    return ", ".join(filter(None, [where, f"{threads} thread{'s' * (threads != 1)}" if threads else ""])) or "–"


def measures(setting: Setting, column: str) -> list[dict[str, float]]:
    """The field's measures of the accuracies ``given`` or ``adapted``, for each seed."""
    if setting.run_a_task:  # no network has learned two tasks
        means = setting.final["Accuracy Given" if column == "given" else "Accuracy Adapted"]
        return [{"average accuracy": mean} for mean in means]
    found = []
    for run in setting.runs:
        names = {"Tasks Learned": "tasks_learned", "Task": "task", "Accuracy Given": "accuracy"}
        learned = run.learned.rename(columns=names)[list(names.values())] if column == "given" else None
        matrix = metrics.accuracy_matrix(run.scores(column), learned)
        values = {"average accuracy": metrics.average_accuracy(matrix)}
        if not run.settings.get("score_when_learned"):  # or else no task is measured again
            values["forgetting"] = metrics.forgetting(matrix)
            values["backward transfer"] = metrics.backward_transfer(matrix)
        known = column == "given" and matrix.shape[1] > 1 and apart(run)
        found.append(values | {"forward transfer": 0.0 if known else metrics.forward_transfer(matrix)})
    return found


def apart(run: Run) -> bool:
    """Whether each task starts as if it were the first: then the earlier ones cannot have transferred anything."""
    s = run.settings
    return (
        s["trainer"] == "default" and not s["train_weight_tasks"] and s["bn_type"] not in ("StandardBN", "NonAffineBN")
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
    for name, about, members in by_figure(experiments, paper):
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


def by_figure(experiments: Sequence[Experiment], paper: dict) -> list[tuple[str, dict, list[Experiment]]]:
    """The experiments by figure in the order of the paper's; one that fits into none is a figure of its own."""
    known = {name: index for index, name in enumerate(paper["experiments"])}
    found: dict[str, tuple[dict, list[Experiment]]] = {}
    for experiment in sorted(experiments, key=lambda e: (known.get(e.name, len(known)), e.name)):
        name = paper["experiments"].get(experiment.name, {}).get("figure")
        about = paper["figures"].get(name, {})
        if not about or not all(_has(setting, about.get("settings", {})) for setting in experiment.settings):
            name, about = f"curve of {experiment.name}", {"title": experiment.name, "form": about.get("form", "tasks")}
        if about["form"] == "hamming" and not any("hopfield" in run.tables for run in experiment.runs):
            about = about | {"form": "tasks"}
        found.setdefault(name, (about, []))[1].append(experiment)
    return [(name, *of) for name, of in found.items()]


def _overview(figure: str, experiments: Sequence[Experiment], paper: dict) -> Block:
    header = ["method", "tasks", "given", "inferred", "batches inferred right"]
    header += ["MB kept: bit-packed / CSC-16 / entropy-coded", "seeds", "published"]
    rows = []
    for experiment in experiments:
        for setting in experiment.settings:
            final = setting.final
            accuracies = [spread(final[column]) for column in records.MEASURED]
            rows.append(
                [figures.name_of(experiment, setting, paper), str(final["Tasks Learned"].iloc[0]), *accuracies]
                + [megabytes(final), str(len(final)), printed(setting, paper)]
            )
    for number in paper["numbers"]:  # of methods that are not run here
        if number["figure"] == figure and "label" in number:
            size = f"– / {number['bytes'] / figures.MEGABYTE:,.3f} / –" if "bytes" in number else "–"
            given = f"{number['accuracy']:.4f} ({number['source']})"
            rows.append([number["label"], str(number["tasks"]), "–", "–", "–", size, "–", given])
    return ("table", header, rows)


def _about(experiment: Experiment, paper: dict) -> list[Block]:
    curve, field = [], []
    names = [figures.short(setting, paper) or "all runs" for setting in experiment.settings]
    for name, setting in zip(names, experiment.settings, strict=True):
        for tasks, rows in setting.evaluations.groupby("Tasks Learned"):
            accuracies = [spread(rows[column]) for column in records.MEASURED]
            curve.append([name, str(tasks), *accuracies, str(len(rows))])
        for column, how in (("given", "given"), ("adapted", "inferred"))[: 1 + setting.inferred]:
            values = measures(setting, column)
            cells = [spread(of.get(key, float("nan")) for of in values) for key in FIELD]
            field.append([name, how, *(NOT_MEASURED if cell == "–" else cell for cell in cells)])
    blocks: list[Block] = [
        ("table", ["setting", "tasks learned", "given", "inferred", "batches inferred right", "seeds"], curve),
        ("table", ["setting", "task", *FIELD], field),
    ]
    blocks += _of_nns(experiment) + _of_recovery(experiment, names)
    blocks += _settings(experiment, names)
    blocks.append(("code", "\n".join(dict.fromkeys(map(call_of, experiment.settings)))))
    rows = []
    for run in experiment.runs:
        versions = ", ".join(f"{name} {version}" for name, version in run.about["versions"].items())
        rows.append(
            [Code(run.name), run.finished or "not finished", duration(run.seconds), machine(run)]
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
            rows.append([name, str(tasks), str(task), spread(of["hamming"], ".1f")])
    return [("table", ["setting", "tasks learned", "task", "Hamming distance in the end (bits)"], rows)] if rows else []


def _settings(experiment: Experiment, names: Sequence[str]) -> list[Block]:
    """What was told to all runs, and what tells the settings apart."""
    flags = dict.fromkeys(flag for run in experiment.runs for flag in told(run))

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


def told(run: Run) -> dict[str, object]:
    """The settings that the configuration file or the command line named."""
    names = {
        word[2:].partition("=")[0].replace("-", "_") for word in map(str, run.about["command"]) if word[:2] == "--"
    }
    inside = re.search(r"experiments/.+", str(run.settings.get("config")))
    if inside and (ROOT / inside[0]).is_file():
        names |= {name.replace("-", "_") for name in yaml.safe_load((ROOT / inside[0]).read_text())}
    wanted = (names - records.NEUTRAL) | {"eval_ckpts"}
    return {name: value for name, value in run.settings.items() if name in wanted}


# The README's table


def readme_table(experiments: Sequence[Experiment], paper: dict, link_to: str) -> str:
    """One row for each setting: its last evaluation, the published number, and how to get it again.

    Args:
        experiments: those that were collected.
        link_to: their folder, as the README names it.
    """
    header = ["figure", "what", "tasks", "given", "inferred", "batches inferred right", "paper, or original code"]
    header += ["seeds", "run time a seed", "machine", "command"]
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    for figure, _, members in by_figure(experiments, paper):
        for experiment in members:
            for setting in experiment.settings:
                final = setting.final
                name = next(experiment.runs[0].folder.parent.glob("results.csv*")).name
                link = (
                    f"[{figures.name_of(experiment, setting, paper)}]({quote(f'{link_to}/{experiment.name}/{name}')})"
                )
                cells = [figure if figure in paper["figures"] else "–", link, str(final["Tasks Learned"].iloc[0])]
                cells += [spread(final[column]) for column in records.MEASURED]
                cells += [printed(setting, paper), str(len(final)), duration(run_time(setting))]
                cells += [machine(setting.runs[0]), f"`{call_of(setting)}`"]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def with_table(readme: str, table: str) -> str:
    """The README with its block of results replaced. Raises ``ValueError`` if it has none."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{README}: has no lines {BEGIN} and {END}")
    return f"{before}{begin}\n{table}\n{end}{after}"


# The command


def load_paper() -> dict:
    """``paper.yaml``: what the paper shows."""
    return yaml.safe_load((ROOT / "experiments" / "paper.yaml").read_text())


def write(experiments: Sequence[Experiment], out: Path, formats: Sequence[str], page_forms: Sequence[str]) -> Path:
    """Write the pages and the pictures; gives the path of the page."""
    blocks, pictures = page(experiments, load_paper())
    out.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        picture.save(out, formats)
    writers: dict[str, Callable[[], str]] = {
        "md": lambda: markdown(blocks),
        "html": lambda: web_page(blocks, "Supermasks in Superposition"),
    }
    for form in page_forms:
        (out / f"report.{form}").write_text(writers[form]())
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


def collect(folders: Sequence[Path], into: Path = RESULTS, readme: Path = README) -> tuple[Path, list[str]]:
    """Keep the results of run folders in ``into``, then draw all that lies there and write the table of its README."""
    experiments, skipped = records.read(folders)
    if folders and not experiments:
        raise ValueError("; ".join(skipped))
    with_table(readme.read_text(), "")  # a README without a place for the table is found before anything is written
    records.collect(experiments, into)
    kept = committed(into)
    made = write(kept, into, ("png",), ("md",))
    table = readme_table(kept, load_paper(), os.path.relpath(into, readme.parent))
    readme.write_text(with_table(readme.read_text(), table))
    return made, skipped


def committed(folder: Path = RESULTS) -> list[Experiment]:
    """The experiments that were collected."""
    experiments, _ = records.read(sorted(path for path in folder.iterdir() if path.is_dir()))
    return experiments


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")  # one line, without the usage


@lasting_output()
def main(argv: Sequence[str] | None = None) -> int:
    """Write what the command line asks for; the exit status: 0, or 2 and one line for bad input."""
    parser = _Parser(prog="report.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
        line = "".join(char if char.isprintable() else repr(char)[1:-1] for char in str(error))
        parser.error(line)
    for line in skipped:
        print(f"left out: {line}", file=sys.stderr)
    print(f"report: {made}; figures beside it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
