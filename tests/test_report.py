"""The report, on folders as runs leave them: numbers computed again plainly, pictures there, bad input refused."""

import csv
import html
import re
import shutil
import statistics
from pathlib import Path

import pytest
import yaml

from experiments import cells, collected, launcher, published, records, report
from experiments.tables import TABLES

PROJECT = Path(__file__).resolve().parents[1]
LENET = "MNISTPerm-LeNet-250-tasks-supsup_h"
HEADER = (
    "Date Finished,Name,Current Val,Best Val,Save Directory,Set,Scenario,Task,Tasks Learned,Seed,Sparsity,"
    "Accuracy Given,Accuracy Adapted,Share Inferred Right,Bytes,Bytes CSC-16,Bytes Coded,Bytes Bound,Bytes Batch Norm"
).split(",")


def accuracy(seed: int, task: int, count: int, how: str) -> float:
    """What the made-up runs answer, any numbers as long as they differ."""
    return 0.9 - 0.01 * seed - 0.001 * task - 0.0007 * count - 0.0301 * (how == "adapted") + 1 / 3000


def make_run(
    folder: Path, name: str, seed: int = 0, tasks: int = 4, evaluated=(2, 4), inferred=True, **settings
) -> Path:
    """Write what a run leaves: its rows in results.csv, its folder with settings, evaluations and log."""
    run = folder / name
    run.mkdir(parents=True)
    rows, scores = [], []
    where = {"Save Directory": f"/home/someone/runs/{folder.name}/{name}", "Set": "MNISTPerm", "Seed": seed}
    for count in range(1, tasks + 1):
        size = {"Bytes": 100 * count, "Bytes CSC-16": 800 * count, "Bytes Coded": 70 * count}
        given = accuracy(seed, count - 1, count, "given")
        rows.append(
            {"Name": f"task {count - 1}", "Task": count - 1, "Tasks Learned": count, "Accuracy Given": given}
            | where
            | size
        )
        if count in evaluated:
            of = {how: [accuracy(seed, task, count, how) for task in range(count)] for how in ("given", "adapted")}
            row = {"Name": f"mean of {count}", "Tasks Learned": count} | where | size
            row["Accuracy Given"] = statistics.fmean(of["given"])
            if inferred:
                row |= {"Accuracy Adapted": statistics.fmean(of["adapted"]), "Share Inferred Right": 0.95 - 0.01 * seed}
            rows.append(row)
            for task in range(count):
                adapted, right = (of["adapted"][task], 0.95 - 0.01 * seed) if inferred else ("", "")
                scores.append((count, task, of["given"][task], adapted, right))
    with open(folder / "results.csv", "a", newline="") as file:
        writer = csv.DictWriter(file, HEADER, lineterminator="\n")
        if file.tell() == 0:
            writer.writeheader()
        writer.writerows(rows)
    write_table(run / "adapt_results.csv", TABLES["adapt_results"], scores)
    about = {
        "settings": {
            **{"config": "/home/someone/supsup/experiments/GNu/MNISTPerm/LeNet-250-tasks/configs/supsup_h.yaml"},
            **{
                "data": "/home/someone/data",
                "log_dir": f"/home/someone/runs/{folder.name}",
                "name": name,
                "seed": seed,
            },
            **{"multigpu": "cpu", "threads": 2, "task_eval": None, "num_tasks": tasks, "lr": 0.0001},
            **{"trainer": "default", "train_weight_tasks": 0, "bn_type": "MultitaskNonAffineBN", **settings},
        },
        "command": ["/home/someone/supsup/main.py", "--config"]
        + ["/home/someone/supsup/experiments/GNu/MNISTPerm/LeNet-250-tasks/configs/supsup_h.yaml"]
        + ["--seed", str(seed), "--data", "/home/someone/data", "--threads", "2", "--resume"]
        + [f"--num-tasks={tasks}", "--threads", "2"],
        "started": "2026-01-01T00:00:00",
        "commit": "0123456789abcdef",
        "machine": "Linux-6, A Processor, 8 cores",
        "versions": {"python": "3.11", "torch": "2.15"},
    }
    (run / "settings.yaml").write_text(yaml.safe_dump(about))
    (run / "log.txt").write_text(
        "2026-01-01 00:01:00 task 0: accuracy 0.9, 50.0 s\n"
        "2026-01-01 00:02:00 task 1: accuracy 0.9, 59.0 s\n"
        "2026-01-02 00:00:00 going on after 2 learned tasks\n"
        "2026-01-02 00:00:30 task 2: accuracy 0.9, 30.0 s\n"
        "2026-01-02 00:00:40 after 3 tasks: accuracy given 0.9\n"
    )
    (run / "finished").write_text("2026-01-02T00:00:40\n")
    return run


def write_table(path: Path, columns, rows) -> None:
    with open(path, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([columns, *rows])


def tables(page: Path) -> list[list[list[str]]]:
    """The tables of a Markdown page: rows of cells."""
    found, inside = [], False
    for line in page.read_text().splitlines():
        if line.startswith("|"):
            found += [] if inside else [[]]
            if not line.startswith("|---"):
                found[-1].append([cell.strip().replace("\\", "") for cell in line.strip("|").split(" | ")])
        inside = line.startswith("|")
    return found


def table_with(page: Path, column: str) -> list[dict[str, str]]:
    """The rows of the first table that has this column."""
    header, *rows = next(table for table in tables(page) if column in table[0])
    return [dict(zip(header, row, strict=True)) for row in rows]


def drawn(page: Path) -> set[str]:
    """The pictures that a page shows, each of which must be there, as PNG and as PDF."""
    names = set(re.findall(r'<img src="([^"]+)\.png"', page.read_text()))
    for name in names:
        png, pdf = (page.parent / f"{name}.{form}" for form in ("png", "pdf"))
        assert png.read_bytes().startswith(b"\x89PNG") and png.stat().st_size > 5000
        assert pdf.read_bytes().startswith(b"%PDF") and pdf.stat().st_size > 5000
    return names


def plain(values: list[float]) -> str:
    return f"{statistics.fmean(values):.4f} ± {statistics.stdev(values):.4f}"


def refused(capsys, *words: object) -> str:
    """The one line with which a call is refused."""
    with pytest.raises(SystemExit) as ended:
        report.main(list(map(str, words)))
    printed = capsys.readouterr()
    assert ended.value.code == 2 and printed.out == ""
    assert printed.err.count("\n") == 1 and "Traceback" not in printed.err
    return printed.err


# Numbers


@pytest.fixture(scope="module")
def three_seeds(tmp_path_factory):
    """An experiment's folder with its report in it."""
    folder = tmp_path_factory.mktemp("runs") / LENET
    for seed in range(3):
        make_run(folder, f"seed={seed}", seed)
    assert report.report([folder]) == (folder / "report.html", [])
    return folder


def test_numbers_are_those_of_the_runs(three_seeds):
    for row in table_with(three_seeds / "report.md", "tasks learned"):
        count = int(row["tasks learned"])
        for how, column in (("given", "given"), ("adapted", "inferred")):
            means = [statistics.fmean(accuracy(s, t, count, how) for t in range(count)) for s in range(3)]
            assert row[column] == plain(means)
        assert row["batches inferred right"] == plain([0.95, 0.94, 0.93])
        assert row["seeds"] == "3"
    first = table_with(three_seeds / "report.md", "method")[0]
    assert first["method"] == "SupSup (H)" and first["tasks"] == "4" and first["seeds"] == "3"
    assert first["MB kept: bit-packed / CSC-16 / entropy-coded"] == "0.000 / 0.003 / 0.000"
    assert "0.9491 after 250 tasks (paper" in first["published"]
    assert drawn(three_seeds / "report.html") == {"figure-4-left", LENET}


def test_the_fields_measures(three_seeds):
    given, inferred = table_with(three_seeds / "report.md", "forgetting")

    def r(seed, count, task):
        return accuracy(seed, task, count, "given")

    best = {(s, t): max(r(s, c, t) for c in {t + 1, 2} if c > t) for s in range(3) for t in range(3)}
    assert given["average accuracy"] == plain([statistics.fmean(r(s, 4, t) for t in range(4)) for s in range(3)])
    assert given["forgetting"] == plain([statistics.fmean(best[s, t] - r(s, 4, t) for t in range(3)) for s in range(3)])
    backward = [statistics.fmean(r(s, 4, t) - r(s, t + 1, t) for t in range(3)) for s in range(3)]
    assert given["backward transfer"] == plain(backward)
    # Inferred, tasks 0 and 1 were measured once before the end.
    assert inferred["forgetting"] == plain([0.0014] * 3)
    assert (inferred["backward transfer"], inferred["forward transfer"]) == ("not measured", "not measured")
    assert given["forward transfer"] == plain([0.0] * 3), "tasks that share nothing transfer nothing"


def test_run_settings_versions_and_command_are_told(three_seeds):
    page = three_seeds / "report.md"
    runs = table_with(page, "commit")
    assert [row["run"] for row in runs] == ["`seed=0`", "`seed=1`", "`seed=2`"]
    assert runs[0]["run time"] == "2 min 30 s", "50 + 60 s, then 30 + 10 s, and not the night between"
    assert (runs[0]["commit"], runs[0]["machine"]) == ("0123456789ab", "A Processor, 8 cores, 2 threads")
    assert (runs[0]["finished"], runs[0]["versions"]) == ("2026-01-02T00:00:40", "python 3.11, torch 2.15")
    told = {row["flag"]: row["value"] for row in table_with(page, "flag")}
    assert told == {"`--num-tasks`": "`4`", "`--lr`": "`0.0001`"}
    command = "python experiments/GNu/MNISTPerm/LeNet-250-tasks/supsup_h.py --data DIR --seeds 3 --num-tasks=4"
    assert f"```\n{command}\n```" in page.read_text()


def test_the_web_page_says_the_same(three_seeds):
    page = (three_seeds / "report.html").read_text()
    cells = [html.unescape(re.sub("<.*?>", "", cell)) for cell in re.findall(r"<t[dh]>(.*?)</t[dh]>", page)]
    expected = [cell.strip("`") for table in tables(three_seeds / "report.md") for row in table for cell in row]
    assert cells == expected


# Which runs belong together


def test_settings_are_told_apart_and_seeds_are_not(tmp_path):
    folder = tmp_path / "rn18-supsup"
    for sparsity in (16.0, 4.0):
        for seed in range(2):
            make_run(
                folder,
                f"sparsity={sparsity:g},seed={seed}",
                seed,
                inferred=False,
                sparsity=sparsity,
                multigpu=str(seed),
            )
    made, _ = report.report([folder])
    rows = table_with(folder / "report.md", "method")
    assert [(row["method"], row["seeds"]) for row in rows] == [
        ("SupSup, sparsity 4", "2"),
        ("SupSup, sparsity 16", "2"),
    ]
    assert all(row["inferred"] == "–" for row in rows)
    assert drawn(made) == {"figure-3-right", "rn18-supsup"}


def test_a_flag_that_came_later_tells_no_runs_apart(tmp_path):
    make_run(tmp_path / "a", "seed=0", 0)
    make_run(tmp_path / "a", "seed=1", 1, later=True)
    (experiment,), _ = records.read([tmp_path / "a"])
    assert [len(setting.runs) for setting in experiment.settings] == [2]


def test_a_flag_that_came_later_tells_runs_apart_that_have_another_value(tmp_path):
    for seed, more in enumerate(({}, {"stream_jitter": 0}, {"stream_jitter": 50})):
        make_run(tmp_path / "NNs-supsup", f"seed={seed}", seed, **more)
    (experiment,), _ = records.read([tmp_path / "NNs-supsup"])
    labels = {setting.label: [run.settings["seed"] for run in setting.runs] for setting in experiment.settings}
    assert labels == {"stream-jitter 0": [0, 1], "stream-jitter 50": [2]}
    (drawn,) = published.drawn([experiment], {"draws": {"stream_jitter": 0}})
    assert [setting.label for setting in drawn.settings] == ["stream-jitter 0"]
    assert published.drawn([experiment], {"draws": {"stream_jitter": 7}}) == [experiment]


@pytest.mark.parametrize(
    "name, values, set_, labels",
    [
        (
            "weights",
            ["/x/a.pt", "/x/b.pt", "/x/a.pt"],
            "DigitsPerm",
            {"weights /x/a.pt": [0, 1], "weights /x/b.pt": [0]},
        ),
        (
            "import_file",
            ["/x/a.sup", None, None],
            "DigitsPerm",
            {"import-file /x/a.sup": [0], "import-file None": [0, 1]},
        ),
        ("import_file", ["/x/0.sup", "/x/0.sup", "/x/1.sup"], "DigitsPerm", {"": [0, 0, 1]}),
        ("weights", [None, None, "/x/a.pt"], "DigitsPerm", {"weights None": [0, 0], "weights /x/a.pt": [1]}),
        ("weights", ["/x/a.pt", "/x/a.pt", "/y/a.pt"], "DigitsPerm", {"": [0, 0, 1]}),
        ("data", ["/x/a", "/x/b", "/x/b"], "npz:d.npz", {"data /x/a": [0], "data /x/b": [0, 1]}),
        ("data", ["/x", "/y", "/z"], "MNISTPerm", {"": [0, 0, 1]}),
        ("data", ["/x", "/x", "/y"], "folder:photos", {"": [0, 0, 1]}),
    ],
)
def test_what_came_from_other_files_is_another_setting(tmp_path, name, values, set_, labels):
    """What lies elsewhere on another machine, or is another file for another seed, is not."""
    for run, (seed, value) in enumerate(zip((0, 0, 1), values, strict=True)):
        make_run(tmp_path / "a", f"run {run}", seed, set=set_, **{name: value})
    (experiment,), _ = records.read([tmp_path / "a"])
    found = {setting.label: [run.settings["seed"] for run in setting.runs] for setting in experiment.settings}
    assert found == labels


def test_two_runs_of_one_part_are_one_part_learned_twice(tmp_path):
    """As a slice, and what --merge --allow-missing made of it."""
    in_parts(tmp_path / "a", 0, ["0-2"], 6)
    path = make_run(tmp_path / "a", "merged", 0, tasks=3, evaluated=(3,), num_tasks=6) / "settings.yaml"
    about = yaml.safe_load(path.read_text())
    about["settings"] |= {"tasks": "0-2"}
    path.write_text(yaml.safe_dump(about))
    (experiment,), _ = records.read([tmp_path / "a"])
    (setting,) = experiment.settings
    final = setting.final.iloc[0]
    assert (final["Tasks Learned"], final["Bytes"]) == (3, 300) and setting.inferred


@pytest.mark.parametrize("measured", [True, False])
def test_what_a_set_measures_on_its_images_is_no_label(tmp_path, measured):
    make_run(tmp_path / "a", "one", 0, set="folder:photos", mean=[0.1, 0.2, 0.3] if measured else [0.5], std=[1.0])
    make_run(tmp_path / "a", "two", 0, set="MNISTPerm" if measured else "folder:photos", mean=None, std=[1.0])
    (experiment,), _ = records.read([tmp_path / "a"])
    labels = {setting.label for setting in experiment.settings}
    assert labels == ({"set MNISTPerm", "set folder:photos"} if measured else {"mean None", "mean [0.5]"})


@pytest.mark.parametrize("name, sizes", [("task_eval", [1, 1, 1]), ("tasks", [1, 2, 3])])
def test_runs_of_parts_of_the_tasks_count_as_one_that_learned_them_all(tmp_path, name, sizes):
    folder = tmp_path / "rn50-supsup"
    for part, size in enumerate(sizes):
        path = make_run(folder, f"seed=0,{part}", 0, size, list(range(1, size + 1)), inferred=False) / "settings.yaml"
        about = yaml.safe_load(path.read_text())
        about["settings"] |= {name: part, "num_tasks": sum(sizes)}
        path.write_text(yaml.safe_dump(about))
    (experiment,), _ = records.read([folder])
    (setting,) = experiment.settings
    final = setting.final.iloc[0]
    every = [accuracy(0, task, size, "given") for size in sizes for task in range(size)]
    assert (final["Tasks Learned"], final["Bytes"]) == (sum(sizes), 100 * sum(sizes))
    assert final["Accuracy Given"] == pytest.approx(statistics.fmean(every), abs=1e-12)
    assert cells.measures(setting, "given") == [{"average accuracy": final["Accuracy Given"]}]
    assert name.replace("_", "-") not in setting.label


def in_parts(folder: Path, seed: int, parts: list[str], tasks: int) -> None:
    """Write what runs leave that learned a part of a seed's tasks each."""
    for part in parts:
        run = make_run(folder, f"seed={seed},{part}", seed, tasks=3, evaluated=(3,), num_tasks=tasks)
        about = yaml.safe_load((run / "settings.yaml").read_text())
        about["settings"] |= {"tasks": part}
        (run / "settings.yaml").write_text(yaml.safe_dump(about))
        scores = (run / "adapt_results.csv").read_text().splitlines()
        moved = [line.split(",") for line in scores[1:]]
        moved = [(count, int(part[0]) + int(task), *rest) for count, task, *rest in moved]
        write_table(run / "adapt_results.csv", TABLES["adapt_results"], moved)
        write_table(run / "confusion.csv", TABLES["confusion"], [(3, int(part[0]), int(part[0]), 9)])


def test_parts_of_a_seed_infer_among_their_own_tasks_alone(tmp_path):
    in_parts(tmp_path / "a", 0, ["0-2", "3-5"], 6)
    page = report.report([tmp_path / "a"])[0].with_suffix(".md")
    for column in ("method", "tasks learned"):
        (row,) = table_with(page, column)
        assert [row[name] for name in ("inferred", "batches inferred right", "seeds")] == ["–", "–", "1"]
        assert row["given"] == f"{statistics.fmean(accuracy(0, task, 3, 'given') for task in range(3)):.4f}"
    assert [row["task"] for row in table_with(page, "forgetting")] == ["given"]
    assert "once main.py --merge has joined the runs" in page.read_text() and "taken for which" not in page.read_text()
    (experiment,), _ = records.read([tmp_path / "a"])
    (setting,) = experiment.settings
    assert not setting.inferred and setting.table("confusion").empty
    scores = setting.table("adapt_results")
    assert list(scores["task"]) == [*range(6)] and scores["given"].notna().all() and scores["adapted"].isna().all()


def test_a_seed_with_one_part_infers_among_all_its_tasks(tmp_path):
    in_parts(tmp_path / "a", 0, ["0-2"], 6)
    page = report.report([tmp_path / "a"])[0].with_suffix(".md")
    (row,) = table_with(page, "method")
    assert row["inferred"] == f"{statistics.fmean(accuracy(0, task, 3, 'adapted') for task in range(3)):.4f}"
    assert [row["task"] for row in table_with(page, "forgetting")] == ["given", "inferred"]
    assert "--merge" not in page.read_text() and "taken for which" in page.read_text()


@pytest.mark.parametrize("tasks", [["0-9", "5-14"], [None, "5-9"]])
def test_runs_that_have_learned_a_task_twice_are_apart(tmp_path, tasks):
    for part, some in enumerate(tasks):
        path = make_run(tmp_path / "LeNet", f"seed=0,{part}", 0) / "settings.yaml"
        about = yaml.safe_load(path.read_text())
        about["settings"] |= {"tasks": some, "num_tasks": 15}
        path.write_text(yaml.safe_dump(about))
    (experiment,), _ = records.read([tmp_path / "LeNet"])
    assert [len(setting.runs) for setting in experiment.settings] == [1, 1]


def test_the_call_of_a_merged_run_is_that_of_the_whole(tmp_path):
    make_run(tmp_path / "a", "seed=0", 0, tasks=3, evaluated=(3,))
    (experiment,), _ = records.read([tmp_path / "a"])
    (setting,) = experiment.settings
    command, call = setting.runs[0].about["command"], cells.call_of(setting)
    command += ["--merge", "/x/slices/seed=0,tasks=0-1", "/x/slices/seed=0,tasks=2", "--allow-missing"]
    assert cells.call_of(setting) == call and "--merge" not in call
    command += ["--lr", "1"]
    assert cells.call_of(setting) == f"{call} --lr 1"


def test_rows_of_a_run_that_was_begun_afresh_do_not_count(tmp_path):
    folder = tmp_path / "a"
    make_run(folder, "seed=0", 1, evaluated=(2, 4)).rename(tmp_path / "old")
    make_run(folder, "seed=0", 0, evaluated=(3,), tasks=3)
    (experiment,), _ = records.read([folder])
    (run,) = experiment.runs
    assert list(run.evaluations["Tasks Learned"]) == [3] and len(run.learned) == 3


@pytest.mark.parametrize("column", ["Task", "Tasks Learned", "Accuracy Given", "Bytes"])
@pytest.mark.parametrize("falling", [False, True])
def test_a_table_that_somebody_sorted_says_the_same(three_seeds, tmp_path, column, falling):
    folder = shutil.copytree(three_seeds, tmp_path / LENET)
    rows = list(csv.DictReader(open(folder / "results.csv", newline="")))
    rows.sort(key=lambda row: float(row[column] or "inf"), reverse=falling)
    write_table(folder / "results.csv", HEADER, [[row[name] for name in HEADER] for row in rows])
    (before,), (after,) = (records.read([path])[0] for path in (three_seeds, folder))
    (was,), (now,) = before.settings, after.settings
    assert was.evaluations.equals(now.evaluations)
    for how in ("given", "adapted"):
        assert repr(cells.measures(was, how)) == repr(cells.measures(now, how))


@pytest.mark.parametrize("column", ["given", "adapted"])
def test_a_seed_counts_once_and_only_where_it_came_to_the_end(tmp_path, column):
    """In the field's table as in the overview."""
    folder = tmp_path / "a"
    make_run(folder, "seed=0", 0)
    again = make_run(folder, "seed=0,again", 0)
    make_run(folder, "seed=1", 1)
    (make_run(folder, "seed=2", 2, tasks=3, evaluated=(2,), num_tasks=4) / "finished").unlink()
    (again / "log.txt").write_text((again / "log.txt").read_text().replace("00:00:40", "00:00:50"))
    page = report.report([folder])[0].with_suffix(".md")
    field = {row["task"]: row["average accuracy"] for row in table_with(page, "forgetting")}
    name = "inferred" if column == "adapted" else "given"
    expected = plain([statistics.fmean(accuracy(seed, task, 4, column) for task in range(4)) for seed in range(2)])
    (row,) = table_with(page, "method")
    assert (field[name], row[name], row["seeds"]) == (expected, expected, "2")
    (experiment,), _ = records.read([folder])
    assert cells.run_time(experiment.settings[0]) == (155 + 150) / 2, "that of a seed is not the sum of its runs"


def test_the_same_experiment_of_two_machines_is_one(tmp_path):
    for seed, machine in enumerate(("here", "there")):
        make_run(tmp_path / machine / "a", f"seed={seed}", seed)
    made, _ = report.report([tmp_path / "here" / "a", tmp_path / "there" / "a"])
    assert made == tmp_path / "report" / "report.html"
    assert table_with(made.with_suffix(".md"), "method")[0]["seeds"] == "2"


def test_what_is_not_finished_is_shown_as_far_as_it_is(tmp_path, capsys):
    folder = tmp_path / "runs" / "a"
    (make_run(folder, "seed=0", evaluated=(2,), tasks=3) / "finished").unlink()
    make_run(folder, "seed=1", evaluated=(), tasks=1)
    with open(folder / "results.csv", "a") as file:
        file.write("2026-01-01 00:00:00,a row that is just being wri")
    (tmp_path / "runs" / "empty").mkdir()
    assert report.main([str(folder), str(tmp_path / "runs" / "empty")]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"report: {tmp_path / 'runs' / 'report' / 'report.html'}; figures beside it\n"
    assert printed.err.splitlines() == [
        f"left out: {folder / 'seed=1'}: no evaluation is finished",
        f"left out: {tmp_path / 'runs' / 'empty'}: holds no results.csv",
    ]
    (row,) = table_with(tmp_path / "runs" / "report" / "report.md", "commit")
    assert (row["run"], row["finished"]) == ("`seed=0`", "not finished")


def without_rows_of(name: str, folder: Path) -> None:
    """Make ``results.csv`` that of a machine which does not know a run."""
    lines = (folder / "results.csv").read_text().splitlines(keepends=True)
    (folder / "results.csv").write_text("".join(line for line in lines if f"/{name}," not in line))


@pytest.mark.parametrize("table", ["without its rows", "with its first rows", "missing", "of a spreadsheet"])
def test_a_run_folder_of_another_machine_counts(three_seeds, tmp_path, table):
    folder = shutil.copytree(three_seeds, tmp_path / "runs" / LENET)
    before = table_with(three_seeds / "report.md", "tasks learned")
    if table == "missing":
        (folder / "results.csv").unlink()
    else:
        without_rows_of("seed=1", folder)
    if table == "with its first rows":
        make_run(tmp_path / "earlier" / LENET, "seed=1", 1, tasks=3, evaluated=(2,))
        rows = (tmp_path / "earlier" / LENET / "results.csv").read_text().splitlines(keepends=True)[1:]
        (folder / "results.csv").open("a").writelines(rows)
    if table == "of a spreadsheet":
        text = (folder / "results.csv").read_text()
        (folder / "results.csv").write_text(text.replace("\n", "\r\n"), encoding="utf-8-sig")
    assert report.report([folder])[1] == []
    assert table_with(folder / "report.md", "tasks learned") == before
    assert {row["run"] for row in table_with(folder / "report.md", "commit")} == {f"`seed={n}`" for n in range(3)}
    collected.write(records.read([folder])[0], tmp_path / "kept")
    (kept,), skipped = records.read([tmp_path / "kept" / LENET])
    assert skipped == [] and {run.name for run in kept.runs} == {"seed=0", "seed=1", "seed=2"}


# Pictures of every form


def test_every_form_is_drawn(tmp_path):
    make_run(tmp_path / LENET, "seed=0", tasks=50, evaluated=(10, 50))
    make_run(tmp_path / LENET.replace("supsup_h", "batche"), "seed=0", inferred=False)
    make_run(
        tmp_path / LENET.replace("supsup_h", "upperbound"),
        "seed=0",
        inferred=False,
        score_when_learned=True,
        train_weight_tasks=-1,
    )
    hop = make_run(tmp_path / "SplitMNIST-hopsupsup", "seed=0", evaluated=(4,))
    steps = [(4, task, step, 100 // (step + 1)) for task in range(4) for step in range(5)]
    write_table(hop / "hopfield.csv", TABLES["hopfield"], steps)
    nns = make_run(tmp_path / "NNs-supsup", "seed=0", trainer="nns")
    decisions = [(100 * d, d // 2, ("allocate", "go on")[d % 2], d // 2, d != 5) for d in range(8)]
    write_table(nns / "nns.csv", TABLES["nns"], decisions)
    write_table(nns / "confusion.csv", TABLES["confusion"], [(4, 0, 0, 9), (4, 1, 1, 7), (4, 1, 0, 2)])
    for sparsity in (4.0, 8.0, 16.0):
        make_run(tmp_path / "rn50-supsup", f"sparsity={sparsity:g}", inferred=False, sparsity=sparsity)
    make_run(tmp_path / "main", "main", lr=0.1)
    make_run(tmp_path / "main", "other", lr=0.2)
    made, skipped = report.report(sorted(tmp_path.iterdir()), tmp_path / "out")
    assert not skipped
    figures = {"figure-3-left", "figure-4-left", "figure-5", "figure-7", "curve-of-main"}
    assert drawn(made) == figures | {path.name for path in tmp_path.iterdir()} - {"out"}
    page = made.with_suffix(".md")
    assert table_with(page, "masks allocated")[0] == {
        **{"run": "`seed=0`", "hidden tasks": "4", "masks allocated": "4", "decisions right": "0.8750"}
    }
    ends = [row["Hamming distance in the end (bits)"] for row in table_with(page, "Hamming distance in the end (bits)")]
    assert ends == ["20.0"] * 4
    made, _ = report.report([tmp_path / LENET.replace("supsup_h", "upperbound")])
    (row,) = table_with(made.with_suffix(".md"), "forgetting")
    measures = [row[name] for name in ("forgetting", "backward transfer", "forward transfer")]
    assert measures == ["not measured"] * 3, "tasks that are scored when just learned are never seen again"


def test_hostile_names_stay_text(tmp_path):
    folder = tmp_path / "a|b <b>#1 *x*"
    make_run(folder, "seed=0,note=<script>`|")
    made, _ = report.report([folder], tmp_path / "out")
    page = made.read_text()
    assert "<script>" not in page and "<b>" not in page
    for name in re.findall(r'<img src="([^"]+)"', page):
        assert re.fullmatch(r"[\w%.-]+", name)
    for table in tables(made.with_suffix(".md")):
        assert len({len(row) for row in table}) == 1
    assert len(list((tmp_path / "out").glob("*.png"))) == 2


# Bad input


def test_a_clock_that_is_set_back_takes_nothing_off_the_run_time():
    log = "2026-10-25 02:59:50 threads: 1\n2026-10-25 02:59:59 task 0: a, 7 s\n2026-10-25 02:00:08 task 1: a, 7 s"
    assert records.seconds_of(log) == 14


def test_bad_input_is_refused_in_one_line(tmp_path, capsys):
    def broken(name: str, text: str, replaced: str) -> Path:
        folder = tmp_path / replaced.replace("/", "-")
        make_run(folder, "seed=0")
        path = folder / name
        path.write_bytes(text(path.read_text()).encode("latin-1") if callable(text) else text.encode("latin-1"))
        return folder

    assert "RUN_FOLDER" in refused(capsys)
    assert "is not there" in refused(capsys, tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert "holds no results.csv" in refused(capsys, tmp_path / "empty")
    header = ",".join(HEADER) + "\n"
    for torn in ("", header[:20], header.strip()):  # by a writer that lost its power
        (tmp_path / "empty" / "results.csv").write_text(torn)
        assert "nothing is finished" in refused(capsys, tmp_path / "empty")
    (tmp_path / "empty" / "results.csv").write_text(header)
    assert "nothing is finished" in refused(capsys, tmp_path / "empty")
    assert "results.csv: cannot be read" in refused(capsys, broken("results.csv", "\n", "nothing in it"))
    ragged = refused(capsys, broken("results.csv", "a,b\n1,2\n4,5,6,7\n", "ragged"))
    assert "results.csv: cannot be read: line 3 is no row with 2 columns" in ragged
    assert "results.csv: cannot be read" in refused(capsys, broken("results.csv", "\xff\xfe\x00\n", "binary"))
    assert "no column 'Name'" in refused(capsys, broken("results.csv", "a,b\n1,2\n", "other"))
    wordy = broken("results.csv", lambda text: text.replace(",0.8", ",very good"), "wordy")
    assert "'Accuracy Given' holds something that is no number" in refused(capsys, wordy)
    assert "no evaluation is finished" in refused(capsys, make_run(tmp_path / "begun", "seed=0", evaluated=()).parent)
    assert "settings.yaml: cannot be read" in refused(capsys, broken("seed=0/settings.yaml", "a: [", "yaml"))
    assert "is not the settings.yaml" in refused(capsys, broken("seed=0/settings.yaml", "a: 1", "other yaml"))
    seedless = broken("seed=0/settings.yaml", lambda text: text.replace("seed: 0", "seed: one"), "seedless")
    assert "is not the settings.yaml" in refused(capsys, seedless)
    scores = broken("seed=0/adapt_results.csv", "task\n1\n", "scores")
    assert "adapt_results.csv: has no column 'tasks_learned'" in refused(capsys, scores)
    (scores / "seed=0" / "adapt_results.csv").unlink()
    assert "adapt_results.csv: is not there" in refused(capsys, scores)
    twice = make_run(tmp_path / "one" / "a", "seed=0").parent
    make_run(tmp_path / "two" / "a", "seed=0")
    assert "was read from" in refused(capsys, twice, tmp_path / "two" / "a")
    (tmp_path / "file").write_text("")
    assert "file" in refused(capsys, twice, "--out", tmp_path / "file" / "below")
    assert "--out" in refused(capsys, twice, "--collect", "--out", tmp_path / "out")
    assert not list(tmp_path.rglob("report.*")), "nothing was written"


# What is committed


def test_runs_that_were_merged_are_named_without_paths():
    merged = ["/somewhere/h.sup", "b", "/l/tasks=0-4", "/elsewhere/seed=1,lr=0.1"]
    settings = {"data": "/d", "log_dir": "/l", "merge": merged, "eval_ckpts": [10, 250]}
    about = records.without_paths({"command": ["/p/main.py", "--merge", *merged], "settings": settings}, "X")
    plain = ["h.sup", "b", "runs/X/tasks=0-4", "runs/X/seed=1,lr=0.1"]
    assert about["settings"] == {"data": "DIR", "log_dir": "runs/X", "merge": plain, "eval_ckpts": [10, 250]}
    assert about["command"] == ["main.py", "--merge", *plain]


def test_what_is_collected_gives_the_same_numbers_without_paths(three_seeds, tmp_path):
    into, readme = tmp_path / "results", tmp_path / "README.md"
    readme.write_text(f"before\n{collected.BEGIN}\nold\n{collected.END}\nafter\n")
    report.collect([three_seeds], into, readme)
    kept = collected.read(into)
    own, _ = records.read([three_seeds])
    paper = published.load()
    (before,), (after,) = own, kept
    (was,), (now,) = before.settings, after.settings
    assert was.evaluations.equals(now.evaluations)
    assert repr(cells.measures(was, "given")) == repr(cells.measures(now, "given"))
    assert cells.run_time(was) == cells.run_time(now) and cells.call_of(was) == cells.call_of(now)
    texts = [path for path in into.rglob("*") if path.suffix in (".csv", ".yaml", ".md")]
    assert len(texts) == 1 + 1 + 3 * 2
    assert not [path for path in texts if "someone" in path.read_text()]
    rows = list(csv.DictReader(open(into / LENET / "results.csv", newline="")))
    assert {row["Save Directory"] for row in rows} == {f"runs/{LENET}/seed={seed}" for seed in range(3)}
    assert rows[0]["Accuracy Given"] == repr(accuracy(0, 0, 1, "given")) and rows[0]["Task"] == "0"
    settings = yaml.safe_load((into / LENET / "seed=0" / "settings.yaml").read_text())
    assert settings["settings"]["data"] == "DIR" and settings["seconds"] == 150
    assert settings["command"][:4] == ["main.py", "--config", settings["settings"]["config"], "--seed"]
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert collected.readme_table(kept, paper, "results") in text
    assert f"[SupSup (H)](results/{LENET}/results.csv)" in text
    assert (into / "figure-4-left.png").exists() and not list(into.glob("*.pdf"))


def test_runs_are_collected_one_by_one(tmp_path):
    into, readme = tmp_path / "results", tmp_path / "README.md"
    readme.write_text(f"{collected.BEGIN}\n{collected.END}\n")
    for seed in range(2):
        report.collect([make_run(tmp_path / f"machine {seed}" / "a", f"seed={seed}", seed).parent], into, readme)
    make_run(tmp_path / "machine 0 later" / "a", "seed=0", 0, tasks=6, evaluated=(4, 6), num_tasks=4)
    report.collect([tmp_path / "machine 0 later" / "a"], into, readme)
    (experiment,) = collected.read(into)
    (setting,) = experiment.settings
    counts = setting.evaluations.groupby("Seed")["Tasks Learned"].apply(list).to_dict()
    assert counts == {0: [4, 6], 1: [2, 4]}
    before = sorted((path, path.read_bytes()) for path in into.rglob("*") if path.is_file())
    report.collect([], into, readme)
    assert sorted((path, path.read_bytes()) for path in into.rglob("*") if path.is_file()) == before


def test_a_long_table_is_compressed(tmp_path, monkeypatch):
    monkeypatch.setattr(collected, "GZIP_ABOVE", 2000)
    make_run(tmp_path / "runs" / "a", "seed=0", tasks=30, evaluated=(15, 30))
    before, _ = records.read([tmp_path / "runs" / "a"])
    collected.write(before, tmp_path / "results")
    names = {path.name for path in (tmp_path / "results").rglob("*") if path.is_file()}
    assert names == {"results.csv.gz", "adapt_results.csv.gz", "settings.yaml"}
    after = collected.read(tmp_path / "results")
    assert after[0].settings[0].evaluations.equals(before[0].settings[0].evaluations)
    assert "results/a/results.csv.gz" in collected.readme_table(after, published.load(), "results")


# Real runs


def test_the_launcher_reports_real_runs(call, tmp_path):
    script = "experiments/GNu/MNISTPerm/LeNet-250-tasks/supsup_h.py"
    words = ["--set", "DigitsPerm", "--num-tasks", 3, "--epochs", 1, "--iter-lim", 10, "--eval-ckpts", "2,3"]
    done = call(script, "--gpu-sets", "cpu", "--log-dir", tmp_path / "runs", "--threads", 1, *words)
    folder = tmp_path / "runs" / LENET
    assert done.returncode == 0 and f"report: {folder / 'report.html'}" in done.stdout, done.stderr
    rows = [row for row in csv.DictReader(open(folder / "results.csv", newline="")) if not row["Task"]]
    shown = table_with(folder / "report.md", "tasks learned")
    assert len(rows) == len(shown) == 2
    for row, of in zip(rows, shown, strict=True):
        names = {
            "given": "Accuracy Given",
            "inferred": "Accuracy Adapted",
            "batches inferred right": "Share Inferred Right",
        }
        assert [of[name] for name in names] == [f"{float(row[column]):.4f}" for column in names.values()]
        assert of["tasks learned"] == row["Tasks Learned"]
    assert drawn(folder / "report.html") == {f"curve-of-{LENET}", LENET}, "digits stand in no figure of the paper"
    assert table_with(folder / "report.md", "method")[0]["published"] == "–"


def test_a_real_run_of_another_machine_has_the_rows_of_its_checkpoint(call, tmp_path):
    words = ["--num-tasks", 2, "--epochs", 1, "--iter-lim", 5, "--threads", 1, "--name", "there"]
    assert call("main.py", *words, "--log-dir", tmp_path / "there" / "a").returncode == 0
    (tmp_path / "here" / "a").mkdir(parents=True)
    shutil.copytree(tmp_path / "there" / "a" / "there", tmp_path / "here" / "a" / "there")
    ((there,), _), ((here,), skipped) = (records.read([tmp_path / place / "a"]) for place in ("there", "here"))
    assert not skipped and here.runs[0].lines == there.runs[0].lines and len(here.runs[0].lines) == 3


def test_a_runs_own_folder_is_enough(three_seeds, tmp_path, monkeypatch):
    shutil.copytree(three_seeds / "seed=1", tmp_path / LENET / "seed=1")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert report.main([str(tmp_path / LENET / "seed=1"), "--out", "~/out"]) == 0
    monkeypatch.chdir(three_seeds / "seed=2")
    assert report.main([".", "--out", str(tmp_path / "other")]) == 0
    for page, name in ((tmp_path / "out" / "report.md", "seed=1"), (tmp_path / "other" / "report.md", "seed=2")):
        assert table_with(page, "method")[0]["method"] == "SupSup (H)"
        assert [row["run"] for row in table_with(page, "commit")] == [f"`{name}`"]


def test_the_command_names_the_seeds(tmp_path):
    for name, seeds, words in (("a", [0, 1], "--seeds 2"), ("b", [3, 4], "--seeds 3,4"), ("c", [5], "--seeds 5,")):
        for seed in seeds:
            make_run(tmp_path / name, f"seed={seed}", seed)
        (experiment,), _ = records.read([tmp_path / name])
        assert f" {words} " in cells.call_of(experiment.settings[0])


def test_no_report_is_no_failed_run(tmp_path, capsys):
    (tmp_path / "results.csv").write_text("torn\n")
    launcher.write_report(tmp_path)
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("warning: no report of") and printed.err.count("\n") == 1
