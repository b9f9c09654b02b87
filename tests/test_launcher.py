"""The launcher, called as the experiment scripts call it, with a small program in the place of main.py."""

import csv
import errno
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock
from tqdm import tqdm

from experiments import gpus, launcher, schedule
from experiments.backends import local
from experiments.options import WORK_REMAINS
from experiments.plan import experiment_name
from utils import signals

FOLDER = "MNISTPerm-LeNet-250-tasks-supsup_h"
SCRIPT = launcher.ROOT / "experiments/GNu/MNISTPerm/LeNet-250-tasks/supsup_h.py"

# Does what --act says, and records how it was called.
FAKE_MAIN = """
import argparse, json, os, signal, subprocess, sys, time
from pathlib import Path
parser = argparse.ArgumentParser()
for flag in ("--config", "--data", "--log-dir", "--name", "--multigpu", "--act"):
    parser.add_argument(flag)
parser.add_argument("--seed", type=int)
parser.add_argument("--threads", type=int)
parser.add_argument("--resume", nargs="?", const=True)
args, _ = parser.parse_known_args()
run = Path(args.log_dir) / args.name
run.mkdir(exist_ok=True)
call = {"argv": sys.argv[1:], "pid": os.getpid(), "at_once": os.environ["SUPSUP_RUNS_AT_ONCE"],
        "began": time.time(), "resume": args.resume, "sees": os.environ.get("CUDA_VISIBLE_DEVICES")}
(run / "attempts").open("a").write("x")
attempts = (run / "attempts").stat().st_size
if args.act in ("wait", "stubborn", "polite"):
    if args.act == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if args.act == "polite":
        signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), (run / "kept").touch(), os._exit(143)))
    (run / "call.json").write_text(json.dumps(call))
    time.sleep(60)
if args.act == "crash" and (args.seed == 1 and attempts == 1 or args.seed == 2):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    (run / f"child{attempts}").write_text(str(child.pid))
    print(f"attempt {attempts} fails")
    os._exit(1)
if args.act == "hang":
    if args.seed == 2 or args.seed == 1 and attempts == 1:
        time.sleep(60)
    for _ in range(45 if args.seed == 0 else 0):  # longer than a silent run may live
        os.utime(sys.stdout.fileno())
        time.sleep(0.1)
if args.act == "told":
    os.kill(os.getpid(), signal.SIGTERM)
if args.act == "mixed" and args.seed == 1:
    print("first line\\n--lr: the last line\\n\\n", file=sys.stderr)
    sys.exit(1)
if args.act == "taken" and attempts == 1:
    print("x: another process is running in this folder", file=sys.stderr)
    sys.exit(2)
if args.act == "refuse":
    print("--lr: no such rate", file=sys.stderr)
    sys.exit(2)
if args.act == "die":
    os.kill(os.getpid(), 9)
time.sleep(0.2)
call["ended"] = time.time()
(run / "call.json").write_text(json.dumps(call))
(run / "finished").touch()
"""

DRIVER = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test runner in the background ignores it
sys.path.insert(0, {root!r})
from experiments.launcher import launch
from pathlib import Path
launch({script!r}, config="configs/supsup_h.yaml", main=Path({main!r}))
"""


@pytest.fixture
def fake_main(tmp_path):
    path = tmp_path / "fake_main.py"
    path.write_text(FAKE_MAIN)
    return path


@pytest.fixture
def call(tmp_path, fake_main, capsys):
    """Call the launcher here; gives its exit status, what it printed, and the records of the runs."""

    def call(*words, variants=({},)):
        with pytest.raises(SystemExit) as ended:
            launcher.launch(
                SCRIPT,
                "configs/supsup_h.yaml",
                variants,
                main=fake_main,
                argv=["--log-dir", str(tmp_path / "runs"), *words],
            )
        printed = capsys.readouterr()
        return ended.value.code, printed.out, printed.err

    return call


@pytest.fixture
def records(tmp_path):
    def records():
        return {
            path.parent.name: json.loads(path.read_text()) for path in (tmp_path / "runs" / FOLDER).glob("*/call.json")
        }

    return records


@pytest.mark.parametrize("text", ["", ",", "0", "3,,4", ",3", "3,3", "3,03", "-1", "1.0", "a", "3-5", "²", "12345678"])
def test_malformed_seeds(call, tmp_path, text):
    status, out, err = call(f"--seeds={text}")
    assert (status, out) == (2, "") and len(err.splitlines()) == 1 and "--seeds" in err and repr(text) in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "words, said",
    [
        (["--seed", "3"], "--seeds"),
        (["--name=x"], "named after"),
        (["--config", "x"], "main.py"),
        (["--multigpu", "0"], "--gpu-sets"),
        (["--resume"], "always go on"),
        (["--seeds", "-1"], "--seeds"),
        (["--seeds=0"], "--seeds"),
        (["--seeds", "two"], "--seeds"),
        (["--stop-after", "0"], "--stop-after"),
        (["--hung_after=nan"], "--hung-after"),
        (["10"], "'10'"),
        (["--gpu-sets", "0||1"], "--gpu-sets"),
        (["--gpu-sets", "GPU-1 2"], "GPU-..."),
        (["--gpu-sets", "GPU-1,GPU-1"], "twice"),
        (["--log-dir", "~nobody-of-this-name/x"], "--log-dir"),
        (["--data=~nobody-of-this-name"], "--data"),
        (["--gpu_sets=5"], "GPU 5"),
        (["--gpu-sets", "0,2"], "GPU 2"),
        (["--ray", "--gpu-sets", "0|cpu"], "--gpu-sets"),
        (["--ray", "127.0.0.1:1"], "--ray 127.0.0.1:1: no cluster of Ray ([Errno"),
        (["--ray", "--slurm", "time=60"], "--ray: is a cluster of another kind than --slurm; say one of them"),
        (["--shard", "0/3"], "--shard"),
    ],
)
def test_bad_input_gets_one_line_and_starts_nothing(call, tmp_path, monkeypatch, words, said):
    monkeypatch.setattr(gpus, "count", lambda: 2)
    status, out, err = call(*words)
    assert status == 2 and out == ""
    assert len(err.splitlines()) == 1 and said in err
    assert not (tmp_path / "runs").exists()


def test_log_folder_that_cannot_be_made(call, tmp_path):
    (tmp_path / "runs").write_text("a file in the way")
    status, _, err = call("--gpu-sets", "cpu")
    assert status == 2 and len(err.splitlines()) == 1 and "--log-dir" in err


def test_sets_left_out_are_all_gpus_or_the_processor(call, monkeypatch):
    for count, sets in ((3, ["0", "1", "2"]), (0, ["cpu"] * 3)):
        monkeypatch.setattr(gpus, "driver_count", lambda count=count: count)
        assert devices(call("--seeds", "3", "--dry-run")) == [("cpu", None) if s == "cpu" else ("0", s) for s in sets]


def devices(called):
    """Of each command that a call printed, what ``--multigpu`` says and what the run sees."""
    status, out, err = called
    assert (status, err) == (0, "")
    commands = [shlex.split(line) for line in out.splitlines()]
    seen = [words[1].partition("CUDA_VISIBLE_DEVICES=")[2] if words[0].endswith("env") else None for words in commands]
    return [(words[words.index("--multigpu") + 1], see) for words, see in zip(commands, seen, strict=True)]


@pytest.mark.parametrize(
    "sets, here, seen",
    [
        ("0,1|2", None, [("0,1", "0,1"), ("0", "2")]),
        ("0,1|2", "5,3,7", [("0,1", "5,3"), ("0", "7")]),  # numbers are those of what is visible to the launcher
        ("1|0", "GPU-8f1c,MIG-77aa", [("0", "MIG-77aa"), ("0", "GPU-8f1c")]),
        ("GPU-8f1c,GPU-02|MIG-GPU-8f1c/1/0", None, [("0,1", "GPU-8f1c,GPU-02"), ("0", "MIG-GPU-8f1c/1/0")]),
    ],
)
def test_a_run_sees_the_gpus_of_its_set_alone(sets, here, seen, call, monkeypatch):
    if here:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", here)
    assert devices(call("--gpu-sets", sets, "--seeds", "2", "--dry-run")) == seen


def test_what_a_run_sees_is_what_its_process_sees(call, tmp_path, monkeypatch):
    monkeypatch.setattr(gpus, "count", lambda: 4)
    assert call("--gpu-sets", "3")[0] == 0
    (told,) = (json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*/*/call.json"))
    assert told["sees"] == "3" and told["argv"][told["argv"].index("--multigpu") + 1] == "0"


@pytest.mark.parametrize("script", sorted((launcher.ROOT / "experiments").glob("G*/**/*.py")), ids=str)
def test_scripts_from_another_folder(tmp_path, script):
    words = ["--gpu-sets", "cpu|cpu", "--seeds", "2", "--data", "sets", "--num_tasks=10", "--dry-run"]
    done = subprocess.run([sys.executable, script, *words], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    first, *more = (shlex.split(line) for line in done.stdout.splitlines())
    assert first[:2] == [sys.executable, str(launcher.ROOT / "main.py")]
    flags = dict(zip(first, first[1:], strict=False))
    assert Path(flags["--config"]).is_file()
    assert flags["--data"] == str(tmp_path / "sets")
    assert flags["--log-dir"] == str(launcher.ROOT / "runs" / experiment_name(script))
    assert (flags["--seed"], flags["--multigpu"]) == ("0", "cpu")
    assert flags["--name"].endswith("seed=0,num-tasks=10")
    assert "--resume" in first and "--num_tasks=10" in first
    assert len(more) % 2 == 1 and any(word.endswith("seed=1,num-tasks=10") for word in more[-1])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("more", [["--dry-run"], []])
def test_flags_that_the_program_refuses_are_told_before_anything_starts(more, tmp_path, capsys):
    words = ["--gpu-sets", "cpu", "--seeds", "3", "--log-dir", str(tmp_path / "runs"), *more]
    for flags, said in (
        (["--lr", "fast"], "--lr: 'fast' is not a number"),
        (["--no-such-flag", "1"], "--no-such-flag"),
        (["--adaptor", "gt,nothing"], "--adaptor: invalid choice"),
    ):
        with pytest.raises(SystemExit) as ended:
            launcher.launch(SCRIPT, "configs/supsup_g.yaml", [{"adaptor": "gt"}], argv=[*words, *flags])
        out, error = capsys.readouterr()
        assert (ended.value.code, out) == (2, "") and said in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_help_tells_of_the_experiment_and_of_further_flags(call):
    status, out, _ = call("--help")
    assert status == 0 and "Figure 4 (left)" in out and "main.py" in out and "--gpu-sets" in out


def test_runs_share_the_processor_and_go_side_by_side(call, records):
    status, out, _ = call("--gpu-sets", "cpu|cpu|cpu", "--seeds", "2", "--data", "some/where")
    assert status == 0 and "seed=1: done" in out
    first, second = records()["seed=0"], records()["seed=1"]
    assert first["began"] < second["ended"] and second["began"] < first["ended"]
    for record in (first, second):  # of three sets two are used
        assert record["at_once"] == "2" and "--threads" not in record["argv"]
        assert str(Path("some/where").absolute()) in record["argv"] and record["resume"] is True


def test_shards_take_every_run_once(call):
    words = ["--gpu-sets", "cpu", "--seeds", "5", "--dry-run"]
    shards = [call(*words, "--shard", f"{one}/3")[1].splitlines() for one in (1, 2, 3)]
    assert [len(shard) for shard in shards] == [2, 2, 1] and sorted(sum(shards, [])) == sorted(
        call(*words)[1].splitlines()
    )
    assert call(*words[:4], "--shard", "6/6")[0] == 0, "one of more shards than runs has nothing to do"


def test_a_cluster_s_runs_call_their_gpus_by_new_numbers(call):
    status, out, _ = call("--ray", "--gpu-sets", "2,3|4,5", "--seeds", "2", "--dry-run")
    assert status == 0 and [line.split("--multigpu ")[1].split()[0] for line in out.splitlines()] == ["0,1"] * 2


def test_one_set_runs_one_at_a_time_and_threads_can_be_set(call, records):
    call("--gpu-sets", "cpu", "--seeds", "2", "--threads", "3")
    first, second = records()["seed=0"], records()["seed=1"]
    assert second["began"] > first["ended"]
    assert first["at_once"] == "1" and first["argv"][-2:] == ["--threads", "3"]


def test_finished_runs_are_skipped_and_the_others_go_on(call, records):
    call("--gpu-sets", "cpu", "--seeds", "1")
    before = records()["seed=0"]
    status, out, _ = call("--gpu-sets", "cpu", "--seeds", "2")
    assert status == 0 and "seed=0: finished before, skipped" in out
    assert records()["seed=0"] == before and "seed=1" in records()


def test_failed_runs_are_listed_with_their_last_line(call, records, tmp_path):
    status, _, err = call("--gpu-sets", "cpu", "--seeds", "3", "--act", "mixed")
    assert status == 1
    assert err.splitlines()[-1] == "failed: seed=1,act=mixed: status 1: --lr: the last line"
    assert sorted(records()) == ["seed=0,act=mixed", "seed=2,act=mixed"]
    log = (tmp_path / "runs" / FOLDER / "seed=1,act=mixed.log").read_text().splitlines()
    assert log[0].startswith("$ ") and log[1] == "first line"


def attempts(tmp_path):
    """How often each run was started."""
    return {path.parent.name[5]: path.stat().st_size for path in (tmp_path / "runs" / FOLDER).glob("*/attempts")}


def test_flags_that_every_run_refuses_make_status_2(call, tmp_path):
    assert call("--gpu-sets", "cpu", "--seeds", "2", "--act", "refuse")[0] == 2
    assert attempts(tmp_path) == {"0": 1, "1": 1}, "what was refused once is not tried again"


def test_a_crashed_run_is_tried_once_more_and_leaves_no_process(call, records, tmp_path):
    status, out, err = call("--gpu-sets", "cpu|cpu", "--seeds", "4", "--act", "crash")
    assert status == 1 and attempts(tmp_path) == {"0": 1, "1": 2, "2": 2, "3": 1}
    assert "seed=1,act=crash: status 1: attempt 1 fails; trying once more" in out
    assert err.splitlines()[-1] == "failed: seed=2,act=crash: status 1: attempt 2 fails"
    assert sorted(records()) == [f"seed={seed},act=crash" for seed in (0, 1, 3)]
    children = [int(path.read_text()) for path in (tmp_path / "runs" / FOLDER).glob("*/child*")]
    assert len(children) == 3
    wait_for(lambda: all(gone(pid) for pid in children))


def test_a_run_for_which_there_is_no_process_is_told_of(call, monkeypatch):
    def refuse(*_, **__):
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(local.subprocess, "Popen", refuse)
    status, out, err = call("--gpu-sets", "cpu", "--act", "wait", "--stop-after", "0.05")
    assert status == 1 and "in another process" not in out
    assert err.splitlines()[-1] == "failed: seed=0,act=wait: not started: Resource temporarily unavailable"


def test_a_run_that_somebody_stopped_is_not_tried_again(call, tmp_path):
    status, _, err = call("--gpu-sets", "cpu", "--act", "told")
    assert status == 1 and "killed by SIGTERM" in err and attempts(tmp_path) == {"0": 1}


def test_a_silent_run_is_ended_and_tried_once_more_and_the_others_go_on(call, records, tmp_path):
    # Seed 0 takes longer than that but gives signs of life, seed 1 hangs once, seed 2 hangs again.
    status, out, err = call("--gpu-sets", "cpu|cpu|cpu", "--seeds", "4", "--act", "hang", "--hung-after", "0.05")
    assert status == 1 and attempts(tmp_path) == {"0": 1, "1": 2, "2": 2, "3": 1}
    assert "seed=1,act=hang: hung and was ended: it wrote nothing; trying once more" in out
    assert err.splitlines()[-1] == "failed: seed=2,act=hang: hung and was ended: it wrote nothing"
    assert sorted(records()) == [f"seed={seed},act=hang" for seed in (0, 1, 3)]


def test_a_time_limit_has_runs_keep_what_they_learned_and_says_that_work_remains(call, tmp_path):
    words = ["--gpu-sets", "cpu|cpu", "--seeds", "3", "--act", "polite"]
    status, out, err = call(*words, "--stop-after", "0.03")
    assert status == WORK_REMAINS and "seed=1,act=polite: stopped" in out
    assert err == "stopped after 0.03 minutes with 3 of 3 runs unfinished; the same call goes on from here\n"
    folder = tmp_path / "runs" / FOLDER
    assert sorted(path.parent.name for path in folder.glob("*/kept")) == ["seed=0,act=polite", "seed=1,act=polite"]
    for seed in range(3):
        (folder / f"seed={seed},act=polite").mkdir(exist_ok=True)
        (folder / f"seed={seed},act=polite" / "finished").touch()
    assert call(*words, "--stop-after", "0.00001")[0] == 0, "no work remains"


def test_a_run_that_dies_in_silence(call):
    for _ in range(2):  # the second time the log already has lines of the first
        status, _, err = call("--gpu-sets", "cpu", "--act", "die")
        assert status == 1 and "killed by SIGKILL: it wrote nothing" in err


def test_table_of_the_results(call, tmp_path):
    folder = tmp_path / "runs" / FOLDER
    folder.mkdir(parents=True)
    columns = ["Name", "Save Directory", "Task", *launcher.TABLE]
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for seed in (1, 0, 2):
            for task in ("0", ""):
                writer.writerow(["a, b", folder / f"seed={seed}", task, "5", f"0.9{seed}", "", "1", "99"])
    status, out, _ = call("--gpu-sets", "cpu", "--seeds", "2")
    assert status == 0
    *_, head, first, second, where = out.splitlines()
    assert head.split("  ")[0].strip() == "Run" and "Accuracy Given" in head
    assert first.split() == ["seed=0", "5", "0.9000", "-", "1", "99"]
    assert second.split() == ["seed=1", "5", "0.9100", "-", "1", "99"]
    assert where.endswith(str(folder / "results.csv"))


def test_the_table_shows_the_last_start_of_a_run_whose_folder_was_deleted(call, tmp_path):
    folder = tmp_path / "runs" / FOLDER
    folder.mkdir(parents=True)
    rows = []
    for accuracy in ("0.8", "0.4"):
        for count in (1, 2, 3):
            for task in (str(count - 1), "")[: 2 if count > 1 else 1]:
                name = f"task {task}" if task else f"mean over {count}"
                rows.append([name, folder / "seed=0", task, count, accuracy, "", "1", "99"])
    rows.insert(5, ["mean over 9", folder / "seed=1", "", "9", "0.7", "", "1", "99"])
    with (folder / "results.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["Name", "Save Directory", "Task", *launcher.TABLE], *rows])
    status, out, _ = call("--gpu-sets", "cpu", "--seeds", "2")
    assert status == 0
    shown = [line.split()[:3] for line in out.splitlines() if line.split()[0] in ("seed=0", "seed=1")]
    assert shown == [["seed=0", "2", "0.4000"], ["seed=0", "3", "0.4000"], ["seed=1", "9", "0.7000"]]


def start_waiting(tmp_path, fake_main, act="wait"):
    """Start the launcher as a process with two runs that wait; gives it and the runs' process ids."""
    driver = DRIVER.format(root=str(launcher.ROOT), script=str(SCRIPT), main=str(fake_main))
    words = ["--log-dir", str(tmp_path / "runs"), "--gpu-sets", "cpu|cpu", "--seeds", "3", "--act", act]
    process = subprocess.Popen(
        [sys.executable, "-c", driver, *words], text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    files = [tmp_path / "runs" / FOLDER / f"seed={seed},act={act}" / "call.json" for seed in (0, 1)]
    wait_for(lambda: all(file.exists() and file.read_text().endswith("}") for file in files))
    return process, [json.loads(file.read_text())["pid"] for file in files]


def wait_for(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    # Killed, but nobody has asked for its status yet: it runs no more.
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.parametrize("number", signals.NUMBERS)
def test_signals_end_the_runs(tmp_path, fake_main, number):
    process, pids = start_waiting(tmp_path, fake_main)
    process.send_signal(number)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 128 + number and "Traceback" not in err
    assert all(gone(pid) for pid in pids)
    assert not (tmp_path / "runs" / FOLDER / "seed=2,act=wait").exists()


def test_a_second_signal_ends_stubborn_runs_at_once(tmp_path, fake_main):
    process, pids = start_waiting(tmp_path, fake_main, act="stubborn")
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=5)
    assert process.returncode == 128 + signal.SIGTERM and all(gone(pid) for pid in pids)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends the runs of a killed launcher")
def test_sigkill_of_the_launcher_ends_the_runs(tmp_path, fake_main):
    process, pids = start_waiting(tmp_path, fake_main, act="stubborn")
    process.kill()
    process.communicate(timeout=5)
    wait_for(lambda: all(gone(pid) for pid in pids))


def test_a_terminal_that_closes_tells_it_twice_and_kills_nothing(tmp_path, fake_main):
    process, pids = start_waiting(tmp_path, fake_main, act="polite")
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=20)
    assert process.returncode - 128 in (signal.SIGTERM, signal.SIGHUP) and all(gone(pid) for pid in pids)
    assert len(list((tmp_path / "runs" / FOLDER).glob("*/kept"))) == 2


@pytest.fixture
def impatient(monkeypatch):
    """Runs under way elsewhere are looked at often."""
    monkeypatch.setattr(schedule, "HELD_SECONDS", 0.01)
    monkeypatch.setattr(schedule, "LOCK_SECONDS", 0.1)


def test_a_run_under_way_is_not_started_again_and_has_not_failed(call, tmp_path, fake_main, impatient):
    process, _ = start_waiting(tmp_path, fake_main)
    try:
        status, out, err = call("--gpu-sets", "cpu", "--seeds", "2", "--act", "wait", "--stop-after", "0.01")
        assert status == WORK_REMAINS
        where = f"process {process.pid} on {platform.node()}"
        assert out.splitlines()[1:] == [f"waiting for 2 runs under way in another process, started by {where}"]
        assert err == "2 runs under way in another process, not waited for any longer\n"
        (tmp_path / "runs" / FOLDER / "seed=0,act=wait" / "finished").touch()
        assert call("--gpu-sets", "cpu", "--act", "wait")[0] == 0
    finally:
        process.terminate()
        process.communicate(timeout=10)
    assert attempts(tmp_path) == {"0": 1, "1": 1}


def test_two_launchers_at_once_run_each_run_once_and_both_end_well(tmp_path, fake_main):
    driver = DRIVER.format(root=str(launcher.ROOT), script=str(SCRIPT), main=str(fake_main))
    words = ["--log-dir", str(tmp_path / "runs"), "--gpu-sets", "cpu", "--seeds", "3"]
    both = [subprocess.Popen([sys.executable, "-c", driver, *words], stdout=subprocess.PIPE) for _ in range(2)]
    said = [process.communicate(timeout=20)[0].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert attempts(tmp_path) == {"0": 1, "1": 1, "2": 1} and all(": done" in text for text in said)


def test_a_run_that_another_is_at_holds_up_nothing_and_is_taken_over_when_that_ends(
    call, tmp_path, monkeypatch, impatient
):
    folder = tmp_path / "runs" / FOLDER
    folder.mkdir(parents=True)
    monkeypatch.setattr(schedule, "LOCK_SECONDS", 10)
    lock, said = local.open_log(folder / "seed=0.log"), []

    def write(line):
        said.append(line)
        if line.startswith("seed=1: done"):
            lock.close()

    monkeypatch.setattr(tqdm, "write", write)
    assert call("--gpu-sets", "cpu", "--seeds", "2")[0] == 0
    done = [line.split(":")[0] for line in said if ": done" in line]
    assert done == ["seed=1", "seed=0"] and not [line for line in said if "another process" in line]


def test_a_run_that_main_py_is_at_by_itself_is_waited_for(call, tmp_path, monkeypatch, impatient):
    folder, said = tmp_path / "runs" / FOLDER / "seed=0", []
    folder.mkdir(parents=True)
    lock = FileLock(folder / ".lock")

    def write(line):
        said.append(line)
        if line.startswith("waiting for"):
            lock.release()

    monkeypatch.setattr(tqdm, "write", write)
    with lock:
        assert call("--gpu-sets", "cpu")[0] == 0
    assert said[0] == "waiting for 1 run under way in another process" and ": done" in said[-1]
    assert attempts(tmp_path) == {"0": 1}


def test_a_run_that_main_py_finds_taken_is_no_failure(call, tmp_path):
    status, out, err = call("--gpu-sets", "cpu", "--act", "taken")
    assert (status, err) == (0, "") and attempts(tmp_path) == {"0": 2}
    assert "seed=0,act=taken: under way in another process" in out


def test_no_bar_goes_into_a_file(call):
    assert call("--gpu-sets", "cpu")[2] == ""
