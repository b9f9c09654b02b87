"""The form in which results are committed: tables and settings without a machine's paths, and the README's table."""

import csv
import gzip
import io
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

import yaml

from experiments import cells, published, records
from experiments.records import ROOT, Experiment, Run, without_paths
from experiments.tables import MEASURED, last_part, text_of

RESULTS = ROOT / "experiments" / "results"
README = RESULTS / "README.md"
BEGIN, END = "<!-- results: written by experiments/report.py --collect -->", "<!-- end of results -->"
GZIP_ABOVE = 256 * 1024  # bytes of a committed table


def write(experiments: Iterable[Experiment], into: Path) -> None:
    """Put the tables and settings of runs into ``into/<experiment>``, beside what other runs left there.

    Numbers stay as they are. Paths of the machine do not: the data folder is ``DIR``, the project is where commands
    are called. A long table is compressed.
    """
    for experiment in experiments:
        folder = into / experiment.name
        folder.mkdir(parents=True, exist_ok=True)
        names = {run.name for run in experiment.runs}
        old = csv.DictReader(io.StringIO(text_of(folder, "results")[1] or ""))
        rows = [row for row in old if last_part(row["Save Directory"]) not in names]
        for run in experiment.runs:
            rows += _collect_run(run, folder / run.name, experiment.name)
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, dict.fromkeys(name for row in rows for name in row), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        _write_table(folder, "results", text.getvalue())


def _collect_run(run: Run, folder: Path, experiment: str) -> list[dict[str, str]]:
    """Write a run's folder anew; gives its rows of ``results.csv``."""
    tables = {name: text_of(run.folder, name)[1] or "" for name in run.tables}
    if folder.name in ("", ".", ".."):  # a name out of a table: nothing but a run's own folder is written anew
        raise ValueError(f"{run.folder}: is not the folder of a run")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, text in tables.items():
        _write_table(folder, name, text)
    about = without_paths(run.about, experiment) | {"finished": run.finished, "seconds": run.seconds}
    (folder / "settings.yaml").write_text(yaml.safe_dump(about, sort_keys=False), encoding="utf-8")
    return [line | {"Save Directory": f"runs/{experiment}/{run.name}"} for line in run.lines]


def _write_table(folder: Path, name: str, text: str) -> None:
    plain, packed = folder / f"{name}.csv", folder / f"{name}.csv.gz"
    for path in (plain, packed):
        path.unlink(missing_ok=True)
    if len(text) > GZIP_ABOVE:
        packed.write_bytes(gzip.compress(text.encode(), mtime=0))  # the same bytes whenever it is written
    else:
        plain.write_text(text, encoding="utf-8")


def read(folder: Path = RESULTS) -> list[Experiment]:
    """The experiments that were collected."""
    experiments, _ = records.read(sorted(path for path in folder.iterdir() if path.is_dir()))
    return experiments


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
    for figure, _, members in published.by_figure(experiments, paper):
        for experiment in members:
            for setting in experiment.settings:
                final = setting.final
                name = next(experiment.runs[0].folder.parent.glob("results.csv*")).name
                link = (
                    f"[{published.name_of(experiment, setting, paper)}]({quote(f'{link_to}/{experiment.name}/{name}')})"
                )
                row = [figure if figure in paper["figures"] else "–", link, str(final["Tasks Learned"].iloc[0])]
                row += [cells.spread(final[column]) for column in MEASURED]
                row += [published.printed(setting, paper), str(len(final)), cells.duration(cells.run_time(setting))]
                row += [cells.machine(setting.runs[0]), f"`{cells.call_of(setting)}`"]
                lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def with_table(readme: str, table: str) -> str:
    """The README with its block of results replaced. Raises ``ValueError`` if it has none."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{README}: has no lines {BEGIN} and {END}")
    return f"{before}{begin}\n{table}\n{end}{after}"
