"""The README and its pages: every number in them stands in a committed file, and nothing of a machine does."""

import csv
import gzip
import io
import re
import statistics
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

from args import make_parser, parse_arguments
from experiments import collected, pages, published, report
from models import BN_TYPES, CONV_TYPES
from trainers import ADAPTATIONS, ADAPTORS

PROJECT = Path(__file__).resolve().parents[1]
COLUMNS = {"given": "Accuracy Given", "inferred": "Accuracy Adapted", "batches inferred right": "Share Inferred Right"}
README = (PROJECT / "README.md").read_text()
RESULTS = collected.README.read_text()
BLOCK = RESULTS.partition(collected.BEGIN)[2].partition(collected.END)[0]
SPEED = (PROJECT / "docs" / "speed.md").read_text()
PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in (PROJECT / "docs").glob("*.md"))]
PAGES += ["experiments/results/README.md", "experiments/results/report.md"]


def rows(table: str = BLOCK) -> list[dict[str, str]]:
    """The rows of a table, by its header."""
    header, _, *lines = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines())
    return [dict(zip(header, line, strict=True)) for line in lines]


def link(row: dict[str, str]) -> Path:
    """The file that the numbers of a row are from."""
    return collected.RESULTS / unquote(re.fullmatch(r"\[.+\]\((\S+)\)", row["what"])[1])


def evaluations(path: Path) -> list[dict[str, str]]:
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    return [row for row in csv.DictReader(io.StringIO(text)) if not row["Task"]]


def test_the_table_is_that_of_the_committed_results():
    kept = collected.read()
    assert kept, "results are committed"
    assert BLOCK.strip() == collected.readme_table(kept, published.load(), ".")


@pytest.mark.parametrize("row", rows(), ids=lambda row: row["what"].partition("]")[0][1:])
def test_every_number_stands_in_the_file_that_the_row_links_to(row):
    """Computed again from the CSV alone, without what wrote the table."""
    settings: dict[str, dict[str, list]] = {}
    for line in evaluations(link(row)):
        run = Path(line["Save Directory"]).name
        setting = re.sub(r"(^|,)((seed|task-eval)=\d+|eval-ckpts=\d+(,\d+)*)", "", run)
        if "task-eval=" in run or line["Tasks Learned"] == row["tasks"]:  # each of these runs has learned one task
            settings.setdefault(setting, {}).setdefault(line["Seed"], []).append(line)
    found = []
    for seeds in settings.values():
        cells = {"seeds": str(len(seeds))}
        for name, column in COLUMNS.items():
            values = [[float(line[column]) for line in lines if line[column]] for lines in seeds.values()]
            means = [statistics.fmean(of) for of in values if of]
            cells[name] = f"{statistics.fmean(means):.4f}" if means else "–"
            cells[name] += f" ± {statistics.stdev(means):.4f}" if len(means) > 1 else ""
        found.append(cells)
    assert {name: row[name] for name in [*COLUMNS, "seeds"]} in found


@pytest.mark.parametrize("row", rows(), ids=lambda row: row["what"].partition("]")[0][1:])
def test_every_command_can_be_called(row, call, monkeypatch):
    python, script, *words = row["command"].strip("`").split()
    assert python == "python" and (PROJECT / script).is_file()
    settings = [yaml.safe_load(path.read_text()) for path in link(row).parent.glob("*/settings.yaml")]
    names = {about["settings"]["name"] for about in settings}
    if script == "main.py":
        monkeypatch.chdir(PROJECT)
        assert parse_arguments(words).name in names
        return
    done = call(script, *words, "--gpu-sets", "cpu", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert set(re.findall(r"--name '?([^' ]+)", done.stdout)) & names, "it makes the runs that were kept"


def test_the_headlines_are_rows_of_the_table():
    table = README.partition("## Measured\n")[2].strip().partition("\n\n")[0]
    full = rows()
    for row in rows(table):
        row["what"] = row["what"].replace("](experiments/results/", "](./")
        assert row in [{name: other[name] for name in row} for other in full]
    speed = next(line for line in SPEED.splitlines() if line.startswith("| one-shot, 250 tasks"))
    assert f"takes a {speed.strip('| ').rpartition('| ')[2]}th" in " ".join(README.split())


def test_nothing_of_a_machine_is_committed():
    texts = []
    for path in collected.RESULTS.rglob("*"):
        if path.suffix == ".gz":
            texts.append((path, gzip.decompress(path.read_bytes()).decode()))
        elif path.suffix in (".csv", ".yaml", ".md"):
            texts.append((path, path.read_text()))
        else:
            assert path.is_dir() or path.suffix == ".png", path
    assert len(texts) > 5
    absolute = re.compile(r"(?:^|[\s\"'=,(`])(?:/[A-Za-z]|~/|[A-Z]:\\)", re.MULTILINE)
    found = {str(path): match[0] for path, text in [*texts, ("README", README)] if (match := absolute.search(text))}
    assert not found


def test_the_committed_page_and_its_pictures_are_there():
    blocks, pictures = report.page(collected.read(), published.load())
    assert (collected.RESULTS / "report.md").read_text() == pages.markdown(blocks)
    for picture in pictures:
        assert (collected.RESULTS / f"{picture.name}.png").read_bytes().startswith(b"\x89PNG")
    drawn = {picture.name for picture in pictures} | {"benchmark", "scale"}
    assert {path.stem for path in collected.RESULTS.glob("*.png")} == drawn


@pytest.mark.parametrize("text", PAGES)
def test_links_lead_somewhere(text):
    prose = re.sub(r"```.*?```", "", (PROJECT / text).read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\((?!http)([^)#\s]+)\)", prose):
        assert ((PROJECT / text).parent / unquote(target)).exists(), target


def test_what_pages_name_is_there(call):
    """Every flag is one of main.py, an experiment, the report or another tool named here; files and functions are."""
    scripts = ("main.py", "experiments/NNs/supsup.py")
    scripts += tuple(f"experiments/{name}.py" for name in ("report", "benchmark", "status"))
    known = set(re.findall(r"--[a-z][a-z-]+", "".join(call(script, "--help").stdout for script in scripts)))
    known |= {"--full", "--logdir", "--log-interval"}  # of the stress tests, TensorBoard, the original alone
    known |= {"--array", "--time", "--gpus-per-node", "--cpus-per-task", "--requeue", "--signal"}  # of sbatch
    known |= {"--head", "--address"}  # of ray start
    for page in PAGES[:-1]:
        text = (PROJECT / page).read_text()
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) <= known, page
        named = re.findall(
            r"`(?:python )?((?:data|models|trainers|utils|experiments|docs|tests|images)/[\w./-]+)", text
        )
        assert not [name for name in named if not (PROJECT / name).exists()], page
        for file, name in re.findall(r"([\w/]+\.py)::(\w+)", text):
            assert re.search(rf"^ *(?:def|class) {name}\b", (PROJECT / file).read_text(), re.MULTILINE), (page, name)


@pytest.mark.parametrize(
    "flag, names",
    [
        ("--conv-type", CONV_TYPES),
        ("--bn-type", BN_TYPES),
        ("--adaptor", ADAPTORS),
        ("--reinit-adapt", ADAPTATIONS),
    ],
)
def test_what_a_flag_chooses_among_is_explained(flag, names):
    (action,) = (action for action in make_parser()._actions if flag in action.option_strings)
    assert "docs/runs.md" in action.help
    page = (PROJECT / "docs" / "runs.md").read_text().partition("\n## What flags choose among\n")[2]
    table = page.partition(f"\n`{flag}`, ")[2].partition("\n| name |")[2].partition("\n\n")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    assert sorted(re.findall("`(.+?)`", " ".join(first for first, *_ in cells))) == sorted(names)
    assert f"`{action.default}` (the default)" in [first for first, *_ in cells] and all(map(all, cells))


def test_the_workflow_calls_ci_with_every_python_that_the_readme_promises():
    (job,) = yaml.safe_load((PROJECT / ".github" / "workflows" / "ci.yml").read_text())["jobs"].values()
    versions = job["strategy"]["matrix"]["python"]
    assert all(isinstance(version, str) for version in versions), "3.10 is no number"
    first, *rest = (int(version.removeprefix("3.")) for version in versions)
    assert f"Python ≥ 3.{first}," in README
    assert rest == list(range(first + 1, first + 1 + len(rest)))
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"] and (PROJECT / ".ci/run").is_file()


def test_what_is_said_of_the_notebook_stands_in_its_outputs():
    said = README.partition("## The method in one notebook")[2].partition("##")[0]
    accuracy, right, seconds, threads = re.search(
        r"\((0\.\d+) with the task given\nand inferred, (\d+ of \d+) batches.+?; (\d+ s) in all, on (\d+ thread)", said
    ).groups()
    notebook = (PROJECT / "mnist.ipynb").read_text()
    assert f"| **mean, sum** | **{accuracy}** | **{accuracy}** | **{accuracy}** | **{right}** |" in notebook
    assert f"The notebook took {seconds} on {threads}" in notebook


@pytest.mark.parametrize("number, name", [(0, "inferred.csv"), (1, "first_layer.csv"), (2, "routers.csv")])
def test_the_tables_of_ways_to_infer_are_those_of_the_committed_files(number, name):
    page = (PROJECT / "docs" / "inference.md").read_text()
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:1] == "|"]
    starts = [place - 1 for place, cells in enumerate(found) if set(cells) == {"---"}]
    table = found[starts[number] : [*starts[1:], len(found)][number]]
    with open(collected.RESULTS / name, newline="") as file:
        header, *measured = csv.reader(file)
    assert measured and [table[0], *table[2:]] == [header, *measured]


@pytest.mark.parametrize(
    "number, name",
    [
        *enumerate(
            ["benchmark.csv", "threads.csv", "host.csv", "scale.csv", "screened.csv", "decision.csv", "slices.csv"],
            start=1,
        )
    ],
)
def test_the_tables_of_speed_are_those_of_the_committed_benchmarks(number, name):
    lines = (PROJECT / "experiments" / "results" / name).read_text().splitlines()
    measured = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    header = "| what | unit | here | beside it | ratio |"
    table = SPEED.split(header)[number].partition("\n\n")[0].strip().splitlines()[1:]
    assert len(table) == len(measured) > 1

    def short(number: str) -> str:
        if not number:
            return ""
        return f"{float(number):.3g}" if float(number) < 1000 else f"{float(number):,.0f}"

    for line, row in zip(table, measured, strict=True):
        expected = [row["what"], row["unit"], *(short(row[name]) for name in ("ours", "naive", "ratio"))]
        assert [cell.strip() for cell in line.strip("|").split("|")] == expected


@pytest.mark.parametrize("experiment", ["MNISTPerm-siblings", "rn18-siblings"])
def test_the_tables_of_relatives_are_those_of_the_committed_runs(experiment):
    header = "| method | given | inferred | lost by earlier tasks, given | lost, inferred | bytes a task | s a task |"
    said = (PROJECT / "docs" / "runs.md").read_text().partition(f"{Path(experiment).name}/results.csv")[2]
    table = rows(header + said.partition(header)[2].partition("\n\n")[0])
    assert [row["method"] for row in table] == ["SupSup", "Piggyback", "WSN", "PackNet", "ExSSNeT"]
    for row in table:
        kind = {"SupSup": "*MultitaskMask"}.get(row["method"], row["method"])
        (folder,) = (collected.RESULTS / experiment).glob(f"conv-type={kind}Conv*,seed=0")
        about = yaml.safe_load((folder / "settings.yaml").read_text())
        lines = [
            line
            for line in csv.DictReader((folder.parent / "results.csv").open())
            if Path(line["Save Directory"]).name == folder.name
        ]
        last, learned = lines[-1], [float(line["Accuracy Given"]) for line in lines if line["Task"]]
        scores: dict[str, list[dict[str, str]]] = {}
        for score in csv.DictReader((folder / "adapt_results.csv").open()):
            scores.setdefault(score["tasks_learned"], []).append(score)
        first, end = list(scores.values())[0], list(scores.values())[-1]
        given = [one - float(score["given"]) for one, score in zip(learned, end[:-1], strict=False)]
        inferred = [float(a["adapted"]) - float(b["adapted"]) for a, b in zip(first, end, strict=False)]
        assert row == {
            "method": row["method"],
            "given": f"{float(last['Accuracy Given']):.4f}",
            "inferred": f"{float(last['Accuracy Adapted']):.4f}",
            "lost by earlier tasks, given": f"{statistics.mean(given):.4g}",
            "lost, inferred": f"{statistics.mean(inferred):.4g}" if len(scores) > 1 else "–",
            "bytes a task": f"{round(int(last['Bytes']) / len(end)):,}",
            "s a task": f"{about['seconds'] / len(end):.0f}",
        }
