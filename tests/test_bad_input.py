"""Bad input of every kind gets one clear line and status 2, before anything is written; never a traceback."""

import io
import os
import pickle
import random
import shutil
import signal
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch

import main
from args import parse_arguments
from trainers.setup import set_up
from utils.checkpoint import MAGIC, Checkpoint, Record

# What makes a run that is not refused, though it should be, end at once.
SHORT = ["--threads", "1", "--multigpu", "cpu", "--num-tasks", "2", "--epochs", "1", "--iter-lim", "1"]
HUGE = str(10**30)
DIGITS_5000 = "9" * 5000  # more than Python turns into a number


@pytest.fixture(autouse=True)
def empty_folder_and_no_network(tmp_path, monkeypatch):
    def refuse(url, *args, **kwargs):
        raise URLError("no network in tests")

    for source in ("mnist", "cifar"):
        monkeypatch.setattr(f"torchvision.datasets.{source}.download_and_extract_archive", refuse)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def learned(tmp_path_factory) -> Path:
    """The folder of an experiment with one run, ``run``, that learned two tasks."""
    folder = tmp_path_factory.mktemp("learned") / "log"
    assert main.main([*SHORT, "--log-dir", str(folder), "--name", "run"]) == 0
    return folder


@pytest.fixture
def experiment(learned, tmp_path) -> Path:
    """A copy of ``learned`` to spoil."""
    return Path(shutil.copytree(learned, tmp_path / "log"))


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file below ``folder`` with its bytes, every folder with None."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def refused(tmp_path, capsys):
    """Call the program and see that it refuses: ``refused(argv, *said) -> message``."""

    def check(argv: list[object], *said: object) -> str:
        argv = [*map(str, argv)]
        log = [] if "--log-dir" in argv else ["--log-dir", str(tmp_path / "log")]
        before = contents(tmp_path)
        capsys.readouterr()
        status = main.main([*SHORT, *log, *argv])
        out, err = capsys.readouterr()
        assert status == 2, f"not refused: {out}{err}"
        assert err.startswith("main.py: error: ") and err.endswith("\n") and len(err.splitlines()) == 1, err
        assert out == ""
        for part in said:
            assert str(part) in err, err
        assert contents(tmp_path) == before, "something was written"
        return err

    return check


# Flags by themselves


@pytest.mark.parametrize(
    "flag, values",
    {
        "--seed": ["-1", "1.5", "x", "", "2147483648", DIGITS_5000],
        "--threads": ["0", "-2", "4097", "all"],
        "--num-tasks": ["0", "-3", "1000001", "2.0", "nan"],
        "--task-eval": ["-2", "first"],
        "--batch-size": ["0", "-128"],
        "--test-batch-size": ["0", "1e3"],
        "--output-size": ["0", "-1", "1000001"],
        "--epochs": ["0", "-1", "many"],
        "--iter-lim": ["0", "-2"],
        "--lr": ["0", "-0.1", "nan", "inf", "-inf", "fast", "1e400"],
        "--train-weight-tasks": ["-2", "all"],
        "--train-weight-lr": ["0", "nan"],
        "--momentum": ["-0.1", "1.1", "nan"],
        "--weight-decay": ["-1", "inf"],
        "--warmup-length": ["-1", "0.5"],
        "--data-to-repeat": ["0", "-1"],
        "--real-neurons": ["0", "-1"],
        "--log-base": ["1", "0", "-2", "nan", "inf"],
        "--eval-ckpts": ["", ",", "0", "1,,2", "1;2", "-2", "1,x"],
        "--set": ["CIFAR", "digitsperm", "", "two\nlines"],
        "--model": ["ResNet5000", "lenet"],
        "--conv-type": ["Conv", "nn.Conv2d"],
        "--bn-type": ["NoBN"],
        "--conv-init": ["zeros"],
        "--mode": ["fan"],
        "--nonlinearity": ["sin"],
        "--trainer": ["fancy"],
        "--optimizer": ["RMSProp"],
        "--lr-policy": ["step"],
        "--adaptor": ["guess", "se_oneshot"],
        "--multigpu": ["-1", "gpu", "0,0", "cpu,0", "0,", "cuda:0", "", "1.0", "4095", DIGITS_5000],
        "--sparsity": ["0", "-1", "nan", "inf", "dense"],
        "--classes-per-task": ["0", "-2", "2.0"],
        "--workers": ["-2", "1025", "all"],
        "--reinit-adapt": ["mean", ""],
        "--stream-tasks": ["0", "-2", "2.0"],
        "--nns-every": ["0", "-1", "1.5"],
        "--nns-epsilon": ["-0.1", "nan", "inf"],
        "--nns-surprise": ["0.9", "nan", "often"],
        "--stream-jitter": ["-1", "0.5"],
        "--adapt-lr": ["0", "-2", "nan", "inf"],
        "--adapt-steps": ["0", "1.5"],
        "--adapt-tries": ["0", "1.5"],
        "--infer": ["fast", ""],
        "--infer-layers": ["0", "-2", "1.5", "last", ""],
        "--gamma": ["-1", "nan", "inf"],
        "--reinit-most-recent-k": ["0", "-2"],
        "--amp": ["fp8", "true"],
        "--name": ["a/b", "/", "..", ".", "", "a\\b", "two\nlines", "\x1b[31m", "/etc/passwd", "../up"],
    }.items(),
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_a_value_that_a_flag_cannot_take_is_refused(flag, values, refused):
    for value in values:
        # The value as it was given, if that can be read at all; of a list, the part that is wrong.
        readable = value.isprintable() and value != DIGITS_5000 and flag != "--eval-ckpts"
        said = (value.replace("\\", "\\\\"),) if readable else ()
        refused([f"{flag}={value}"], flag, *said)


@pytest.mark.parametrize("argv", [["--frobnicate"], ["--frobnicate=3"], ["positional"], ["-x"], ["--", "x"]])
def test_what_is_no_flag_is_refused(argv, refused):
    refused(argv, f"{argv[0]}: there is no such flag")


def test_a_flag_that_is_no_flag_for_its_line_end_is_refused_in_one_line(refused):
    refused(["--frob\nnicate"], "nicate")


@pytest.mark.parametrize("flag", ["--seed", "--set", "--config", "--data", "--eval-ckpts", "--name"])
def test_a_flag_without_its_value_is_refused(flag, refused):
    refused([flag], flag)
    refused([flag, "--epochs", "1"], flag)


def test_a_value_for_a_switch_is_refused(refused):
    refused(["--unshared-labels=yes"], "--unshared-labels", "yes")


# Flags and the data, flags among themselves


@pytest.mark.parametrize(
    "argv, said",
    [
        (["--output-size", "9"], ["--output-size 9", "DigitsPerm", "10"]),
        (["--set", "SplitDigits", "--output-size", "2"], ["--output-size 2", "SplitDigits", "10"]),
        (["--num-tasks", "6", "--set", "SplitDigits"], ["--num-tasks 6", "SplitDigits", "1 to 5"]),
        (["--num-tasks", "361", "--set", "RotatingDigits"], ["--num-tasks 361", "RotatingDigits"]),
        (["--task-eval", "2"], ["--task-eval 2", "0 ... 1"]),
        (["--task-eval", HUGE], ["--task-eval", HUGE]),
        (["--set", "SplitDigits", "--num-tasks", "5", "--task-eval", "5"], ["--task-eval 5", "0 ... 4"]),
        (
            ["--conv-type", "StandardConv", "--train-weight-tasks", "-1"],
            ["--adaptor se_oneshot_entropy_minimization", "--conv-type", "gt"],
        ),
        (
            ["--conv-type", "StandardConv", "--train-weight-tasks", "-1", "--adaptor", "se_be_adapt"],
            ["--adaptor se_be_adapt", "--conv-type", "gt"],
        ),
        (["--individual-heads"], ["--adaptor se_oneshot_entropy_minimization", "--individual-heads", "gt"]),
        (["--adaptor", "hopfield_recovery"], ["--adaptor hopfield_recovery", "BNNet", "FastHopMaskBN"]),
        (
            ["--conv-type", "PSPRotation", "--adaptor", "gt"],
            ["--train-weight-tasks 0", "task 0", "nothing to train", "-1"],
        ),
        (["--stream-jitter", "3"], ["--stream-jitter 3", "--trainer nns"]),
        (["--trainer", "nns", "--stream-jitter", "3"], ["--stream-jitter 3", "--iter-lim 1"]),
        (["--trainer", "nns", "--iter-lim", "3", "--stream-jitter", "3"], ["--stream-jitter 3", "--iter-lim 3"]),
        (["--stream-tasks", "3"], ["--stream-tasks 3", "--trainer nns", "--num-tasks"]),
        (["--trainer", "nns", "--adaptor", "gt"], ["--adaptor gt", "nns", "se_oneshot_entropy_minimization"]),
        (["--trainer", "nns", "--unshared-labels"], ["--unshared-labels", "nns"]),
        (["--trainer", "nns", "--task-eval", "1"], ["--task-eval 1", "nns"]),
        (["--trainer", "nns", "--multigpu", "cpu,cpu"], ["--multigpu cpu,cpu", "nns", "one"]),
        (["--trainer", "nns", "--lr-policy", "cosine_lr"], ["--lr-policy cosine_lr", "nns", "constant_lr"]),
        (["--trainer", "nns", "--warmup-length", "1"], ["--warmup-length 1", "nns"]),
        (["--trainer", "nns", "--train-weight-tasks", "1"], ["--train-weight-tasks 1", "nns", "0"]),
        (
            ["--conv-type", "StandardConv", "--adaptor", "gt"],
            ["--train-weight-tasks 0", "task 0", "nothing to train", "-1"],
        ),
        (
            ["--conv-type", "StandardConv", "--adaptor", "gt", "--train-weight-tasks", "1"],
            ["--train-weight-tasks 1", "task 1", "nothing to train"],
        ),
        (
            ["--adaptor", "se_oneshot_g_minimization", "--output-size", "10"],
            ["--real-neurons 10", "superfluous", "--output-size 10"],
        ),
        (
            ["--adaptor", "se_binary_g_minimization", "--real-neurons", "200"],
            ["--real-neurons 200", "superfluous", "--output-size 100"],
        ),
        (
            ["--adaptor", "se_binary_g_minimization", "--real-neurons", "9"],
            ["--real-neurons 9", "DigitsPerm", "10 classes"],
        ),
    ],
    ids=lambda part: " ".join(part) if part[0].startswith("--") and len(part[0]) < 16 else "",
)
def test_flags_that_do_not_go_together_are_refused(argv, said, refused):
    refused(argv, *said)


def test_a_task_of_the_sets_own_number_of_tasks_is_refused_if_it_is_out_of_range(tmp_path, capsys):
    argv = ["--threads", "1", "--multigpu", "cpu", "--epochs", "1", "--iter-lim", "1"]
    assert main.main([*argv, "--task-eval", "5", "--log-dir", str(tmp_path / "log")]) == 2
    assert capsys.readouterr().err == "main.py: error: --task-eval 5: tasks are 0 ... 4\n"
    assert contents(tmp_path) == {}


def test_a_gpu_that_is_not_there_is_refused_and_what_is_there_is_said(refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    refused(["--multigpu", "0"], "--multigpu 0", "no GPU", "cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    refused(["--multigpu", "2"], "--multigpu 2", "0 ... 1", "cpu")


def test_a_gpu_whose_driver_cannot_be_used_leaves_the_run_to_the_processor(refused, monkeypatch, capsys):
    def fail():
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nPlease update it.")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "init", fail)
    refused(["--multigpu", "0"], "--multigpu 0", "driver on your system is too old", "say cpu")
    assert set_up(parse_arguments(["--threads", "1"])) == [torch.device("cpu")]
    said = capsys.readouterr().out
    assert len(said.splitlines()) == 1 and "too old" in said and "goes on with the processor" in said
    assert set_up(parse_arguments(["--multigpu", "cpu"])) == [torch.device("cpu")]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "words, tf32, fast", [([], False, False), (["--tf32"], True, False), (["--fast"], False, True)]
)
def test_gpus_compute_in_full_precision_with_the_same_bits_unless_told_otherwise(words, tf32, fast):
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    places = [(products, "allow_tf32"), *((cudnn, name) for name in ("allow_tf32", "deterministic", "benchmark"))]
    before = [getattr(place, name) for place, name in places]
    try:
        set_up(parse_arguments(["--multigpu", "cpu", *words]))
        assert [getattr(place, name) for place, name in places] == [tf32, tf32, not fast, fast]
    finally:
        for (place, name), value in zip(places, before, strict=True):
            setattr(place, name, value)


# --config

DEEP = "[" * 20000
CONFIGS = {
    "no mapping: a list": "- seed\n- 1\n",
    "no mapping: a word": "seed\n",
    "nothing": "",
    "only a comment": "# seed: 1\n",
    "no YAML": "seed: [1\n",
    "a tab": "seed:\n\t1\n",
    "two documents": "seed: 1\n---\nseed: 2\n",
    "an unknown key": "sede: 1\n",
    "a key that is no text": "[1, 2]: 3\n",
    "a value of the wrong kind": "epochs: many\n",
    "a number of 5,000 digits": f"seed: {DIGITS_5000}\n",
    "an anchor that is not there": "seed: *x\n",
    "a config in a config": "config: other.yaml\n",
    "deep": DEEP,
    "an object of Python": "seed: !!python/object/apply:os.mkdir [made-by-yaml]\n",
    "another object of Python": "seed: !!python/name:os.system\n",
}


@pytest.mark.parametrize("text", CONFIGS.values(), ids=CONFIGS)
def test_a_config_that_cannot_be_read_is_refused_by_name(text, tmp_path, refused):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    message = refused(["--config", path], f"--config {path}")
    assert len(message) < len(str(path)) + 400 or DIGITS_5000 in text


def test_a_config_with_a_null_character_in_a_path_is_refused(tmp_path, refused):
    (tmp_path / "bad.yaml").write_text('data: "a\\0b"\n')
    refused(["--config", "bad.yaml", *MNIST])


@pytest.mark.parametrize("content", [b"\xff\xfe\0", b"seed: \xe9\n", b"\x89PNG\r\n\x1a\n\0", b"seed: 1\0"])
def test_a_config_that_is_no_text_is_refused_by_name(content, tmp_path, refused):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    refused(["--config", path], f"--config {path}")


def test_a_config_that_is_not_there_or_is_a_folder_is_refused_by_name(tmp_path, refused):
    refused(["--config", "none.yaml"], "--config none.yaml", "No such file")
    refused(["--config", tmp_path], f"--config {tmp_path}", "directory")
    refused(["--config", ""], "--config")
    refused(["--config", "x" * 5000], "--config")
    refused(["--config", "two\nlines"], "--config", "lines")
    refused(["--config", "null\0character"], "--config")


# --data


def write_npz(root: Path, **changes) -> Path:
    """A small MNIST in ``<root>/mnist/mnist.npz``; a change to None leaves an array out."""
    numbers = np.random.RandomState(0)
    arrays = {
        "train_images": numbers.randint(0, 256, (60, 28, 28)).astype(np.uint8),
        "train_labels": (np.arange(60) % 10).astype(np.int64),
        "test_images": numbers.randint(0, 256, (20, 28, 28)).astype(np.uint8),
        "test_labels": (np.arange(20) % 10).astype(np.int64),
    }
    path = root / "mnist" / "mnist.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{name: array for name, array in (arrays | changes).items() if array is not None})
    return path


MNIST = ["--set", "MNISTPerm"]


def test_the_small_mnist_of_these_tests_is_good_as_it_is(tmp_path):
    write_npz(tmp_path / "data")
    assert main.main([*SHORT, *MNIST, "--data", "data", "--log-dir", "log"]) == 0


def test_data_that_are_not_there_are_refused_with_where_they_were_looked_for(tmp_path, refused):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    refused([*MNIST, "--data", ""], "--data")
    refused([*MNIST, "--data", "empty"], "MNIST", Path("empty", "mnist"), "missing")
    refused([*MNIST, "--data", "none"], "MNIST", Path("none", "mnist"), "missing")
    refused([*MNIST, "--data", "file"], "--data file", "is a file")
    refused([*MNIST, "--data", "two\nlines"], "lines")
    refused([*MNIST, "--data", "x" * 5000])
    refused([*MNIST, "--data", "null\0character"])


def test_a_truncated_data_file_is_refused_by_name_wherever_it_was_cut(tmp_path, refused):
    path = write_npz(tmp_path / "data")
    whole = path.read_bytes()
    for length in (0, 1, 4, 100, len(whole) // 3, len(whole) // 2, len(whole) - 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        refused([*MNIST, "--data", "data"], Path("data", "mnist", "mnist.npz"))


def test_a_data_file_with_one_wrong_byte_in_its_images_is_refused_by_name(tmp_path, refused):
    path = write_npz(tmp_path / "data")
    wrong = bytearray(path.read_bytes())
    wrong[5000] ^= 1
    path.write_bytes(wrong)
    refused([*MNIST, "--data", "data"], Path("data", "mnist", "mnist.npz"))


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"train_labels": None}, "train_labels"),
        ({"test_images": None}, "test_images"),
        ({"train_images": np.zeros((60, 28, 28))}, "train_images"),
        ({"train_images": np.zeros((60, 32, 32), np.uint8)}, "train_images"),
        ({"train_images": np.zeros((59, 28, 28), np.uint8)}, "59 images and 60 labels"),
        ({"train_labels": np.zeros(60)}, "train_labels"),
        ({"train_labels": np.full(60, 10)}, "train_labels"),
        ({"test_labels": np.full(20, -1)}, "test_labels"),
        ({"test_labels": np.array(3)}, "test_labels"),
        (
            {"test_images": np.zeros((0, 28, 28), np.uint8), "test_labels": np.zeros(0, np.int64)},
            "test has 0",
        ),
    ],
    ids=lambda part: part.replace(" ", "-") if isinstance(part, str) else "",
)
def test_a_data_file_with_wrong_arrays_is_refused_by_name(changes, said, tmp_path, refused):
    write_npz(tmp_path / "data", **changes)
    refused([*MNIST, "--data", "data"], Path("data", "mnist", "mnist.npz"), said)


def test_a_data_file_that_is_a_folder_or_text_is_refused_by_name(tmp_path, refused):
    path = tmp_path / "data" / "mnist" / "mnist.npz"
    path.mkdir(parents=True)
    refused([*MNIST, "--data", "data"], Path("data", "mnist", "mnist.npz"))
    path.rmdir()
    path.write_text("just some text")
    refused([*MNIST, "--data", "data"], Path("data", "mnist", "mnist.npz"))


# --log-dir and --name


def test_a_log_folder_that_cannot_be_written_is_refused_by_name(tmp_path, refused):
    (tmp_path / "file").touch()
    (tmp_path / "two\nlines").touch()
    (tmp_path / "loop").symlink_to("loop")
    for folder in ("file", "file/below", "/dev/null/below", "/proc/no-such-place", "loop", "x" * 5000):
        refused(["--log-dir", folder], "--log-dir", folder[:100])
    refused(["--log-dir", "two\nlines"], "--log-dir", "lines")
    refused(["--log-dir", "null\0character"], "--log-dir")


def test_a_log_folder_with_a_name_that_cannot_be_written_down_is_refused(refused):
    # What Python makes of the byte 0xff on the command line: no CSV file in UTF-8 can hold it.
    refused(["--log-dir", "log-\udcff"], "--log-dir")


def test_a_name_longer_than_a_folder_may_have_is_refused(refused):
    refused(["--name", "x" * 300])


@pytest.mark.parametrize("taken", ["results.csv", "results.csv.lock"])
def test_a_results_file_that_cannot_be_written_is_refused_before_learning(taken, tmp_path, refused):
    (tmp_path / "log" / taken).mkdir(parents=True)
    refused([], Path("log", "results.csv"))


def test_a_results_file_of_something_else_is_refused_before_learning(tmp_path, refused):
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "results.csv").write_text("colour,price\nred,3\n")
    refused([], Path("log", "results.csv"))


@pytest.mark.parametrize("name", ["results.csv", "Results.CSV", "results.csv.lock"])
def test_a_name_that_a_file_of_the_experiment_has_is_refused(name, refused):
    refused(["--name", name], f"--name {name}", "choose another")


# --resume


def own(experiment: Path) -> Path:
    return experiment / "run" / "checkpoint.pt"


def test_a_run_that_is_learned_can_be_resumed_as_it_is(experiment, capsys):
    for words in (["--resume", str(own(experiment))], ["--resume"]):
        argv = [*SHORT, "--log-dir", str(experiment), "--name", "run", *words]
        assert main.main(argv) == 0, capsys.readouterr().err


def test_a_resume_file_that_is_missing_is_refused_by_name(tmp_path, refused):
    (tmp_path / "loop").symlink_to("loop")
    refused(["--resume", "none.pt"], "none.pt", "No such file")
    refused(["--resume", "none/none/none.pt"], "none/none/none.pt", "No such file")
    refused(["--resume", tmp_path], tmp_path, "directory")
    refused(["--resume", "x" * 5000], "xxx")
    refused(["--resume", "two\nlines"], "lines")
    refused(["--resume", "loop"], "loop")
    refused(["--resume", "null\0character"], "null")


def torch_file() -> bytes:
    file = io.BytesIO()
    torch.save({"epoch": 3, "state_dict": {"weight": torch.ones(3)}}, file)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"just some text\n", b"\0" * 100, pickle.dumps({"epoch": 3}), torch_file(), b" " + MAGIC],
    ids=["text", "zeros", "pickle", "torch", "shifted"],
)
@pytest.mark.parametrize("named", [True, False], ids=["named", "the run's own"])
def test_a_resume_file_that_is_no_checkpoint_is_refused_by_name(content, named, experiment, refused):
    own(experiment).write_bytes(content)
    words = ["--resume", own(experiment)] if named else ["--name", "run", "--resume"]
    refused(words, own(experiment), "SupSup checkpoint")


@pytest.mark.parametrize(
    "words, said",
    [
        (["--seed", "1"], "--seed 0 there, 1 here"),
        (["--model", "FC1024"], "--model LeNet there, FC1024 here"),
        (["--num-tasks", "1"], "--num-tasks 2 there, 1 here"),
        (["--lr", "0.5"], "--lr 0.001 there, 0.5 here"),
        (["--output-size", "50", "--set", "RotatingDigits"], "--output-size 100 there, 50 here"),
        (["--task-eval", "1"], "--task-eval None there, 1 here"),
    ],
    ids=lambda part: part[0] if isinstance(part, list) else "",
)
def test_a_resume_file_of_other_settings_is_refused_and_says_which(words, said, experiment, refused):
    told = "say its own again, settings.yaml beside it has its command, or give a new run another --name"
    refused([*words, "--resume", own(experiment)], own(experiment), "other settings", said, told)
    refused([*words, "--name", "run", "--resume"], own(experiment), "other settings", said, told)


def settings(path: Path) -> Record:
    return Checkpoint(path).read()[0][0]


@pytest.mark.parametrize(
    "record",
    [
        Record("task", {"task": 0, "row": {}}, {"own.layers.0.mask": torch.zeros(3, dtype=torch.uint8)}),
        Record("task", {"task": 99, "row": {}}),
        Record("task", {"task": "0", "row": {}}),
        Record("task", {"row": {}}),
        Record("task", {"task": 0, "row": {}}, {"own.elsewhere.mask": torch.zeros(3, dtype=torch.uint8)}),
        Record("task", {"task": 0, "row": {}}, {"shared.nothing": torch.zeros(3)}),
        Record("evaluation", {"scores": [{"colour": "red"}], "row": {}}),
        Record("evaluation", {"scores": 3}),
        Record("run", {"settings": None}),
        Record("run", {}),
    ],
    ids=["short mask", "no such task", "task as text", "no task", "no such layer", "nothing shared"]
    + ["strange score", "no scores", "no settings", "nothing at all"],
)
def test_a_checkpoint_with_strange_records_is_refused_by_name(record, experiment, refused):
    path = own(experiment)
    first = settings(path)
    path.unlink()
    for each in (first, record):
        Checkpoint(path).append(each)
    refused(["--resume", path], path)


def test_a_checkpoint_under_another_name_is_refused_or_keeps_all_tasks(experiment, capsys):
    # The journal goes on in checkpoint.pt beside it, which must not begin in the middle.
    own(experiment).rename(experiment / "run" / "backup.pt")
    backup = experiment / "run" / "backup.pt"
    before = contents(experiment)
    status = main.main([*SHORT, "--resume", str(backup)])
    if status == 2:
        assert str(backup) in capsys.readouterr().err and contents(experiment) == before
    else:
        kinds = [record.kind for record in Checkpoint(own(experiment)).read()[0]]
        assert status == 0 and kinds == ["run", "task", "task", "evaluation"]


def test_a_damaged_end_of_a_checkpoint_under_another_name_is_no_crash(experiment):
    backup = experiment / "run" / "backup.pt"
    own(experiment).rename(backup)
    backup.write_bytes(backup.read_bytes()[:-10])
    assert main.main([*SHORT, "--resume", str(backup)]) in (0, 2)


# Files that would run code


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.fixture
def bomb(tmp_path) -> Bomb:
    marker = tmp_path / "marker"
    pickle.loads(pickle.dumps(Bomb(marker)))
    assert marker.exists(), "the bomb must work for these tests to say anything"
    marker.unlink()
    return Bomb(marker)


def bombs(bomb: Bomb) -> dict[str, bytes]:
    in_torch, in_npz = io.BytesIO(), io.BytesIO()
    torch.save(bomb, in_torch)
    array = np.empty(1, dtype=object)
    array[0] = bomb
    np.savez(in_npz, train_images=array, train_labels=array, test_images=array, test_labels=array)
    return {
        "pickle": pickle.dumps(bomb),
        "torch": in_torch.getvalue(),
        "npz": in_npz.getvalue(),
        "behind the first line": MAGIC + pickle.dumps(bomb),
    }


@pytest.mark.parametrize("kind", ["pickle", "torch", "npz"])
def test_a_resume_file_that_would_run_code_does_not(kind, bomb, experiment, refused):
    own(experiment).write_bytes(bombs(bomb)[kind])
    refused(["--resume", own(experiment)], own(experiment), "nothing of it was run")
    assert not bomb.marker.exists()


def test_a_pickle_behind_the_first_line_of_a_checkpoint_runs_no_code(bomb, experiment):
    own(experiment).write_bytes(bombs(bomb)["behind the first line"])
    records, damaged = Checkpoint(own(experiment)).read()
    assert records == [] and damaged > 0
    assert main.main([*SHORT, "--resume", str(own(experiment))]) in (0, 2)
    assert not bomb.marker.exists()


@pytest.mark.parametrize("kind", ["pickle", "torch", "npz", "behind the first line"])
def test_a_data_file_that_would_run_code_does_not(kind, bomb, tmp_path, refused):
    path = tmp_path / "data" / "mnist" / "mnist.npz"
    path.parent.mkdir(parents=True)
    path.write_bytes(bombs(bomb)[kind])
    refused([*MNIST, "--data", "data"], Path("data", "mnist", "mnist.npz"))
    assert not bomb.marker.exists()


CIFAR_BATCHES = [f"cifar-10-batches-py/{name}" for name in ("batches.meta", "test_batch")]
CIFAR_BATCHES += [f"cifar-10-batches-py/data_batch_{number}" for number in range(1, 6)]


@pytest.mark.parametrize("kind", ["pickle", "torch", "npz"])
@pytest.mark.parametrize("names", [["cifar10.npz"], CIFAR_BATCHES, ["cifar-10-python.tar.gz"]], ids=lambda n: n[0])
def test_a_cifar_file_that_would_run_code_does_not(kind, names, bomb, tmp_path, refused):
    for name in names:  # torchvision unpickles those of the set, after it has compared their checksums
        path = tmp_path / "data" / "cifar10" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bombs(bomb)[kind])
    refused(["--set", "SplitCIFAR10", "--data", "data"], Path("data", "cifar10"))
    assert not bomb.marker.exists()


@pytest.mark.parametrize("kind", ["pickle", "torch", "npz", "behind the first line"])
@pytest.mark.parametrize(
    "words",
    [["--import"], ["--trainer", "reinit", "--reinit-adapt", "n-1-imagenet", "--reinit-from"]],
    ids=lambda w: w[-1],
)
def test_a_file_to_start_from_that_would_run_code_does_not(kind, words, bomb, tmp_path, refused):
    path = tmp_path / "model.sup"
    path.write_bytes(bombs(bomb)[kind])
    refused([*words, path], path)
    assert not bomb.marker.exists()


# As a process


@pytest.mark.parametrize(
    "words, said",
    [
        (["--log-dir", "/dev/null/below", *SHORT], ["--log-dir /dev/null/below"]),
        (["--set", "MNIST", "--data", "data", *SHORT[:4]], ["data/mnist/mnist.npz"]),
    ],
    ids=["log folder", "data file"],
)
def test_the_program_itself_ends_with_status_2_and_one_line(words, said, call, tmp_path):
    write_npz(tmp_path / "data").write_bytes(b"PK\x03\x04 no more")
    before = contents(tmp_path)
    result = call("main.py", *words, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("main.py: error: ") and len(result.stderr.splitlines()) == 1
    assert all(part in result.stderr for part in said), result.stderr
    assert contents(tmp_path) == before


# Extreme values that a flag allows, and anything at all


@pytest.mark.parametrize(
    "words",
    [
        ["--batch-size", HUGE],
        ["--test-batch-size", HUGE],
        ["--data-to-repeat", HUGE],
        ["--epochs", HUGE],
        ["--iter-lim", HUGE],
        ["--warmup-length", HUGE],
        ["--train-weight-tasks", HUGE],
        ["--eval-ckpts", HUGE],
        ["--lr", "1e308"],
        ["--lr", "1e-308"],
        ["--weight-decay", "1e308"],
        ["--momentum", "1", "--optimizer", "sgd"],
        ["--log-base", "1e308", "--adaptor", "se_binary_entropy_minimization"],
        ["--log-base", "1.5", "--adaptor", "se_binary_entropy_minimization"],
        ["--seed", str(2**31 - 1)],
        ["--name", "é ✓ 名"],
        ["--name", "-"],
    ],
    ids=lambda words: " ".join(words)[:30],
)
def test_the_extremes_that_a_flag_allows_are_served_or_refused(words, tmp_path, capsys):
    def stop(number, frame):
        raise TimeoutError("the run does not come to an end")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(10)
    try:
        status = main.main([*SHORT, "--log-dir", str(tmp_path / "log"), *words])
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    err = capsys.readouterr().err
    if status == 2:
        assert len(err.splitlines()) == 1 and words[0] in err and contents(tmp_path) == {}
    else:
        assert status == 0 and (tmp_path / "log" / "results.csv").exists()


HOSTILE = [
    *(
        "",
        " ",
        "-",
        "--",
        "-1",
        "0",
        "1",
        "2",
        "1e-3",
        "nan",
        "inf",
        "-inf",
        "1e999",
        "0x10",
        "1_0",
        "٣",
        "²",
    ),
    *(HUGE, DIGITS_5000, "true", "null", "None", "[]", "{}", "%s", "%(prog)s", "{0}", "é", "\udcff", "\0"),
    *("a\nb", "a\rb", "\u2028", "\x1b[0m", "..", "/", "a/b", "~", "$HOME", ",", "1,2", "1,,2", "10,5", "*"),
    *("--seed", "--resume", "@file", "=", "a=b", "cpu", "gt", "LeNet", "MNIST", "DigitsPerm", "x" * 5000),
]


GOOD = {
    "--seed": "3",
    "--set": "MNIST",
    "--num-tasks": "7",
    "--lr": "1e-3",
    "--adaptor": "gt",
    "--eval-ckpts": "5,10",
    "--name": "a name",
    "--multigpu": "cpu",
    "--data": "data",
    "--momentum": "0.5",
}


def hostile_config(rng: random.Random, flags: list[str], path: Path) -> None:
    keys = [rng.choice([*flags, *HOSTILE]).removeprefix("--") for _ in range(rng.randint(0, 2))]
    lines = [f"{key}: {rng.choice(HOSTILE)}" for key in keys]
    path.write_text("\n".join(lines), errors="surrogateescape")


def test_100_random_command_lines_are_parsed_or_refused(tmp_path, monkeypatch, capsys):
    from args import make_parser

    monkeypatch.setattr(main, "run", lambda *args: None)
    flags = [flag for action in make_parser()._actions for flag in action.option_strings if flag[:2] == "--"]
    flags.remove("--help")
    rng, statuses = random.Random(0), []
    for _ in range(100):
        argv: list[str] = []
        for _ in range(rng.randint(1, 2)):
            flag, value = rng.choice(flags), rng.choice(HOSTILE)
            if rng.random() < 0.2:
                hostile_config(rng, flags, tmp_path / "hostile.yaml")
                flag, value = "--config", str(tmp_path / "hostile.yaml")
            if rng.random() < 0.3:
                flag, value = rng.choice(list(GOOD.items()))
            if rng.random() < 0.3:
                flag = flag.replace("-", "_").replace("__", "--", 1)
            argv += rng.choice([[flag, value], [f"{flag}={value}"], [flag], [value]])
        status = main.main(argv)
        out, err = capsys.readouterr()
        assert all(line.startswith("note: ") for line in out.splitlines()) and status in (0, 2), argv
        if status == 2:
            assert err.startswith("main.py: error: ") and len(err.splitlines()) == 1, (argv, err)
        else:
            assert err == "", (argv, err)
        statuses.append(status)
    assert statuses.count(0) > 5 and statuses.count(2) > 50, "the lines are of both kinds"
