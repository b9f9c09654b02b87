"""Files that somebody else wrote, or that were changed since: nothing wrong is taken from them without a word."""

import csv
import hashlib
import io
import json
import os
import pickle
import random
import shutil
import signal
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

import main
from data.digits import Digits
from models import MODELS
from models.small import FullyConnected
from trainers.export import check_export
from utils.checkpoint import MAGIC, Checkpoint, Record
from utils.results import COLUMNS

EARLY = Path(__file__).parent / "format-1"  # a checkpoint of two tasks of three and an export, before records had marks
WORDS = "--set SplitDigits --model Small --output-size 10 --num-tasks 3 --epochs 2 --adaptor gt --threads 1"
WORDS = [*WORDS.split(), "--multigpu", "cpu"]


class Small(FullyConnected):
    """A network whose masks are a few hundred bytes."""

    def __init__(self, builder, input_shape, output_size):
        super().__init__(builder, (8, 8), input_shape, output_size)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(MODELS, "Small", Small)
    monkeypatch.setitem(MODELS, "Tiny", Small)  # its name in the early files


@pytest.fixture(autouse=True)
def no_endless_wait():
    """What waits for a pipe fails instead."""

    def stop(number, frame):
        raise TimeoutError("waited")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(300)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """The folder of an experiment: ``run``, its export, and a run of another seed."""
    folder = tmp_path_factory.mktemp("learned")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "Small", Small)
        patch.chdir(folder)
        assert main.main([*WORDS, "--log-dir", "log", "--name", "run", "--export", "model.sup"]) == 0
        assert main.main([*WORDS, "--log-dir", "log", "--name", "other", "--seed", "1"]) == 0
    return folder


@pytest.fixture
def folder(learned, tmp_path, monkeypatch):
    """A copy of ``learned`` to spoil, in which the program is called."""
    shutil.copytree(learned, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def resume(*words):
    return main.main([*WORDS, "--log-dir", "log", "--name", "run", "--resume", *words])


def refused(status, capsys, *said):
    error = capsys.readouterr().err
    assert status == 2 and error.startswith("main.py: error: ") and error.count("\n") == 1, error
    assert len(error) < 1000 and all(part in error for part in said), error


def records_of(name="run"):
    return Checkpoint(f"log/{name}/checkpoint.pt").read()[0]


def write(path, records):
    Path(path).unlink(missing_ok=True)
    for record in records:
        Checkpoint(path).append(record)


# Records and their run


def test_a_checkpoint_from_before_records_had_marks_is_gone_on_with(tmp_path, capsys):
    run = tmp_path / "log" / "run"
    run.mkdir(parents=True)
    (run / "checkpoint.pt").write_bytes((EARLY / "checkpoint.pt").read_bytes())
    words = [*WORDS, "--model", "Tiny", "--log-dir", str(tmp_path / "log"), "--name", "run", "--resume"]
    assert main.main(words) == 0
    out = capsys.readouterr().out
    assert "going on after 2 learned tasks" in out and "task 2: accuracy" in out
    assert "task 0: accuracy" not in out and "task 1: accuracy" not in out and "warning" not in out
    given = [float(row["given"]) for row in csv.DictReader(open(run / "adapt_results.csv"))]
    assert given[:2] == pytest.approx([0.8333, 0.5], abs=0.05)
    assert main.main(words) == 0 and "warning" not in capsys.readouterr().out


def test_an_export_from_before_data_had_a_fingerprint_is_imported(tmp_path, capsys):
    words = ["--import", str(EARLY / "model.sup"), "--adaptor", "gt", "--threads", "1", "--multigpu", "cpu"]
    assert main.main([*words, "--log-dir", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "after 3 tasks: accuracy given 0.6" in out and "warning" not in out and "task 0: accuracy" not in out


def changed(records, place, **values):
    return [Record(r.kind, r.values | (values if n == place else {}), r.tensors) for n, r in enumerate(records)]


TAMPERED = {
    "another seed's task": lambda ours, theirs: [ours[0], theirs[1], *ours[2:]],
    "no first record": lambda ours, theirs: ours[1:],
    "the settings twice": lambda ours, theirs: [ours[0], *ours],
    "a task twice": lambda ours, theirs: [*ours[:2], ours[1], *ours[2:]],
    "a task too few": lambda ours, theirs: [ours[0], *ours[2:]],
    "two tasks exchanged": lambda ours, theirs: [ours[0], ours[2], ours[1], *ours[3:]],
    "an evaluation twice": lambda ours, theirs: [*ours, ours[-1]],
    "an evaluation too early": lambda ours, theirs: [*ours[:2], ours[-1]],
    "a task without its mark": lambda ours, theirs: changed(ours, 1, run=None),
    "a kind that is none": lambda ours, theirs: [*ours, Record("surprise", {"run": ours[0].values["run"]})],
    **{
        f"accuracy {value!r}": lambda ours, theirs, value=value: changed(ours, 1, accuracy=value)
        for value in (float("nan"), float("inf"), -0.1, 1.1, True, "0.5", None, [0.5])
    },
    **{
        f"task {value!r}": lambda ours, theirs, value=value: changed(ours, 1, task=value)
        for value in (3, -1, 10**30, 0.0, False, "0", None, [0])
    },
    **{
        f"row {value!r}": lambda ours, theirs, value=value: changed(ours, 1, row=value)
        for value in ("text", {}, {"Colour": "red"}, 7, [])
    },
    "a row with a list": lambda ours, theirs: changed(ours, 1, row=ours[1].values["row"] | {"Set": []}),
    "a row of another accuracy": lambda ours, theirs: changed(ours, 1, row=ours[1].values["row"] | {"Current Val": 1}),
    **{
        f"score {key} {value!r}": lambda ours, theirs, key=key, value=value: changed(
            ours, 4, scores=[score | {key: value} for score in ours[4].values["scores"]]
        )
        for key, value in {
            **{"task": 0, "given": float("nan"), "adapted": 2, "inferred_right": "all", "colour": 1},
            **{"inferred": [{"inferred": 0, "batches": "x"}], "steps": [{"step": 0}]},
        }.items()
    },
    "scores that are none": lambda ours, theirs: changed(ours, 4, scores=7),
    "settings that are none": lambda ours, theirs: changed(ours, 0, settings=[1]),
    "settings deep": lambda ours, theirs: changed(ours, 0, settings=ours[0].values["settings"] | {"lr": [[[[1]]]]}),
}


@pytest.mark.parametrize("how", TAMPERED)
def test_a_record_that_is_not_of_this_run_or_makes_no_sense_is_refused(how, folder, capsys):
    path = "log/run/checkpoint.pt"
    write(path, TAMPERED[how](records_of(), records_of("other")))
    before = Path(path).read_bytes()
    refused(resume(), capsys, path)
    assert Path(path).read_bytes() == before


def deep(kind):
    text = b'{"kind":"' + kind.encode() + b'","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    block = save({"values": torch.frombuffer(bytearray(text), dtype=torch.uint8)})
    return struct.pack("<Q32s", len(block), hashlib.sha256(block).digest()) + block


def test_json_that_is_nested_without_end_is_damage(folder, capsys):
    path = Path("log/run/checkpoint.pt")
    path.write_bytes(path.read_bytes() + deep("task"))
    assert resume() == 0 and "are damaged" in capsys.readouterr().out
    Path("deep.sup").write_bytes(MAGIC + deep("export"))
    refused(main.main(["--import", "deep.sup"]), capsys, "deep.sup")


@pytest.mark.parametrize("accuracies", [[[float("nan")]], [["1"]], [[0.5, 0.5]], [0.5], 7, [[2.0]]], ids=repr)
def test_a_task_in_training_with_accuracies_that_are_none_starts_anew(accuracies, folder, capsys):
    (run, *tasks, _) = records_of()
    write("log/run/checkpoint.pt", [run, *tasks[:2]])
    about = {name: run.values[name] for name in ("settings", "data")}
    values = {**about, "learned": [0, 1], "tasks": [2], "accuracies": accuracies}
    write("log/run/training.pt", [Record("training", values, {})])
    assert resume() == 0 and "training.pt is damaged; its task starts anew" in capsys.readouterr().out


# Data


@pytest.fixture
def other_labels(monkeypatch):
    load, fingerprint = Digits.load, Digits.fingerprint

    def loaded(self, root):
        base = load(self, root)
        return type(base)(
            base.train_images, 9 - base.train_labels, base.test_images, 9 - base.test_labels, (0.5,), (1.0,)
        )

    monkeypatch.setattr(Digits, "load", loaded)
    monkeypatch.setattr(Digits, "fingerprint", super(Digits, Digits).fingerprint)
    assert fingerprint


def test_a_resume_with_other_data_is_refused_and_an_import_says_so(folder, other_labels, capsys):
    refused(resume(), capsys, "checkpoint.pt was made with other data")
    words = ["--import", "model.sup", "--adaptor", "gt", "--threads", "1", "--multigpu", "cpu", "--log-dir", "log"]
    assert main.main([*words, "--name", "imported"]) == 0
    warnings = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert len(warnings) == 1 and "model.sup was learned from other data" in warnings[0]
    assert warnings[0] in Path("log/imported/log.txt").read_text()


# Exports


def export_with(path, **settings):
    first, *tasks = Checkpoint("model.sup").read()[0]
    write(path, [Record(first.kind, first.values | {"settings": first.values["settings"] | settings}), *tasks])
    return str(path)


def test_an_import_decides_nothing_but_the_network(folder, capsys):
    elsewhere = {name: "elsewhere" for name in ("export", "log_dir", "name", "data", "config", "resume")}
    path = export_with("evil.sup", **elsewhere, task_eval=1, eval_ckpts=[1], lr=7.0, threads=3, import_file="x")
    before = {str(one) for one in folder.rglob("*")}
    words = ["--import", path, "--adaptor", "gt", "--threads", "1", "--multigpu", "cpu"]
    assert main.main([*words, "--log-dir", "log", "--name", "imported"]) == 0
    made = {str(one) for one in folder.rglob("*")} - before
    assert all(one.startswith(str(folder / "log" / "imported")) for one in made)
    settings = records_of("imported")[0].values["settings"]
    assert settings["task_eval"] is None and settings["lr"] == 1e-3 and settings["num_tasks"] == 3
    assert "after 3 tasks" in capsys.readouterr().out


@pytest.mark.parametrize(
    "settings",
    [
        {"set": ["DigitsPerm"]},
        {"model": 7},
        {"model": None},
        {"seed": float("inf")},
        {"seed": float("nan")},
        {"seed": True},
        {"seed": -1},
        {"num_tasks": 10**30},
        {"num_tasks": "many"},
        {"sparsity": "nan"},
        {"er_sparsity": "yes"},
        {"output_size": {"a": 1}},
        {"conv_type": "../../etc"},
    ],
    ids=repr,
)
def test_a_value_in_an_import_is_checked_as_on_the_command_line(settings, folder, capsys):
    path = export_with("evil.sup", **settings)
    refused(main.main(["--import", path, "--log-dir", "new"]), capsys, f"--import {path}", next(iter(settings)))
    assert not Path("new").exists()


@pytest.mark.parametrize(
    "values",
    [
        *({"accuracy": value} for value in (float("nan"), 2, "all", None)),
        *({"kept": value} for value in ([1.5] * 3, [-1] * 3, [10**30] * 3, 7, [True] * 3, [1])),
    ],
    ids=repr,
)
def test_a_task_in_an_import_is_checked(values, folder, capsys):
    records = Checkpoint("model.sup").read()[0]
    write("evil.sup", changed(records, 1, **values))
    refused(main.main(["--import", "evil.sup", "--log-dir", "new"]), capsys, "--import evil.sup")
    for tasks in ([0, 0, 1], [0, 1, 99], [0, 1, "2"], [0, 1, True]):
        write("evil.sup", changed(records, 0, tasks=tasks))
        for place, task in enumerate(tasks, start=1):
            write("evil.sup", changed(Checkpoint("evil.sup").read()[0], place, task=task))
        refused(main.main(["--import", "evil.sup", "--log-dir", "new"]), capsys, "--import evil.sup")
    assert not Path("new").exists()


@pytest.mark.parametrize("name", ["log/results.csv", "log/run/checkpoint.pt", "notes", "log", "pipe", "/dev/null"])
def test_an_export_takes_the_place_of_nothing_but_an_export(name, folder, capsys):
    Path("notes").write_text("mine")
    os.mkfifo("pipe")
    refused(resume("--export", name), capsys, f"--export {name}")
    Path("link").symlink_to(name)
    refused(resume("--export", "link"), capsys, "--export link")
    assert resume("--export", "model.sup") == 0
    Path("link").unlink()
    Path("link").symlink_to("elsewhere.sup")
    assert resume("--export", "link") == 0 and Path("link").is_symlink()
    assert Path("elsewhere.sup").read_bytes() == Path("model.sup").read_bytes()


def test_an_export_that_would_become_the_table_of_results_is_refused(folder, capsys):
    Path("new").mkdir()
    refused(main.main([*WORDS, "--log-dir", "new", "--export", "new/results.csv"]), capsys, "new/results.csv")
    assert list(Path("new").iterdir()) == []


@pytest.mark.parametrize("name", ["new/log/a", "new/log/A", "new/log/a~2", "new/./log/../log/a", "new/log/"])
@pytest.mark.parametrize("there", [True, False], ids=["the experiment is there", "it is not"])
def test_an_export_where_the_run_will_have_its_folder_is_refused(name, there, folder, capsys):
    Path("new/log" if there else "new").mkdir(parents=True)
    refused(main.main([*WORDS, "--log-dir", "new/log", "--name", "a", "--export", name]), capsys, "--export new/")
    assert [path.name for path in Path("new").rglob("*")] == ["log"] * there


def test_an_export_beside_the_folder_of_the_run_is_none_of_it(folder):
    for name in ("log/run~", "log/runs", "log/a", "model.sup"):
        check_export(Path(name), Path("log/run"))


# Pipes and devices


@pytest.mark.parametrize("name", ["checkpoint.pt", "log.txt", ".lock", "../results.csv", "../results.csv.lock"])
def test_a_pipe_in_the_place_of_a_file_of_the_run_is_refused(name, folder, capsys):
    path = Path("log/run", name)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    refused(resume(), capsys, path.name)


@pytest.mark.parametrize("name", ["log.txt", ".lock"])
def test_nothing_is_written_where_a_link_in_the_folder_of_a_run_leads(name, folder, capsys):
    Path("mine").write_text("mine")
    Path("log/run", name).unlink(missing_ok=True)
    Path("log/run", name).symlink_to(folder / "mine")
    refused(resume(), capsys, name, "Is a link")
    assert Path("mine").read_text() == "mine"


@pytest.mark.parametrize(
    "name", ["training.pt", ".settings.yaml.part", ".training.pt.part", "settings.yaml", "finished"]
)
def test_a_pipe_in_the_place_of_what_is_written_anew_makes_room(name, folder):
    path = Path("log/run", name)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    assert resume() == 0 and not path.is_fifo()


@pytest.mark.parametrize("flag", ["--import", "--resume", "--reinit-from"])
@pytest.mark.parametrize("name", ["pipe", "/dev/zero", "/dev/stdin"])
def test_a_pipe_or_a_device_to_start_from_is_refused(flag, name, folder, capsys):
    os.mkfifo("pipe")
    words = "--trainer reinit --reinit-adapt n-1-imagenet".split() if flag == "--reinit-from" else []
    if name == "/dev/stdin" and Path(name).is_file():
        pytest.skip("the tests' own input is a file")
    refused(main.main([*WORDS, *words, flag, name, "--log-dir", "new"]), capsys, name, "not a file")


# Other programs' files


def torch_file(content, legacy):
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


ORIGINAL = {
    "epoch": 3,
    "arch": "LeNet",
    "state_dict": {"weight": torch.ones(3)},
    "best_acc1": [0.5],
    "curr_acc1": [0.5],
}


@pytest.mark.parametrize("legacy", [True, False], ids=["legacy", "zip"])
def test_a_file_of_torch_that_lacks_what_the_original_code_keeps_is_told_so(legacy, folder, capsys):
    Path("original.pt").write_bytes(torch_file(ORIGINAL, legacy))
    Path("other.pt").write_bytes(torch_file({"weight": torch.ones(3)}, legacy))
    for flag in ("--import", "--resume"):
        for name in ("original.pt", "other.pt"):
            status = main.main([*WORDS, flag, name, "--log-dir", "new"])
            refused(status, capsys, f"{name}: is no SupSup checkpoint, nor one of the original code, which")


@pytest.mark.parametrize(
    "content",
    [b"PK\x03\x04", b"PK\x05\x06" + b"\0" * 18, pickle.dumps(ORIGINAL["epoch"]), torch_file(ORIGINAL, False)[:-30]],
    ids=["zip, cut", "zip, empty", "pickle", "torch, cut"],
)
def test_a_damaged_file_of_another_program_is_refused(content, folder, capsys):
    Path("strange").write_bytes(content)
    refused(main.main(["--import", "strange"]), capsys, "strange: is no SupSup checkpoint", "nothing of it was run")


# The table of results


def test_a_damaged_table_agrees_with_the_checkpoint_after_a_resume(folder, capsys):
    path, rng = Path("log/results.csv"), random.Random(0)
    whole = path.read_bytes()
    header = whole.index(b"\n") + 1
    end = whole.rindex(b"\n", 0, whole.index(b"log other"))
    for _ in range(20):
        wrong = bytearray(whole)
        place = rng.randrange(header, end)  # in the rows of the run that is resumed
        wrong[place] ^= 1 << rng.randrange(8)
        path.write_bytes(wrong)
        assert resume() == 0 and capsys.readouterr().err == ""
        content = path.read_bytes()
        assert all(line in content for line in whole.splitlines())
        if not {wrong[place], whole[place]} & {*b"\r\n"}:
            assert content == whole


def test_a_table_without_its_rows_or_with_cut_ones_gets_them_back(folder, capsys):
    path = Path("log/results.csv")
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for content in (lines[0], b"".join(lines[:2]), whole[:-10], lines[0] + b"".join(lines[3:]), b"", whole + lines[2]):
        path.write_bytes(content)
        assert resume() == 0
        rows = list(csv.DictReader(open(path, newline="")))
        own = [row for row in rows if row["Save Directory"].endswith("run")]
        assert [row["Task"] for row in own] == ["0", "1", "2", ""] and list(rows[0]) == list(COLUMNS)
    capsys.readouterr()
    path.write_bytes(whole + b"a note of mine\n")
    assert resume() == 0 and "results.csv: line 10: no row of results" in capsys.readouterr().out
    assert path.read_bytes() == whole + b"a note of mine\n"


# Memory


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("can't start new thread"),
        OSError(12, "Cannot allocate memory"),
        ImportError("libx.so: failed to map segment from shared object"),
    ],
    ids=repr,
)
def test_memory_that_is_refused_while_a_run_is_set_up_is_one_line(error, tmp_path, monkeypatch, capsys):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(Digits, "load", refuse)
    assert main.main([*WORDS, "--log-dir", str(tmp_path / "log")]) in (1, 2)
    said = capsys.readouterr().err
    assert said.startswith("main.py: ") and said.count("\n") == 1 and "memory" in said
    assert not (tmp_path / "log").exists()


def test_json_of_a_record_has_no_path_of_a_machine(learned):
    # The files kept with the tests are what a run wrote: nothing in them tells where.
    for path in EARLY.iterdir():
        values = [record.values for record in Checkpoint(path).read()[0]]
        assert "/root" not in json.dumps(values) and "/home" not in json.dumps(values)
