"""Runs as jobs of SLURM: through submitit's local executor, and with commands in the place of SLURM's.

With ``--full`` also on a real cluster of one node, which ``slurm_cluster.py`` starts and stops; that takes minutes.
"""

import errno
import itertools
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
import slurm_cluster
import torch
from tiny import outcome

import main
from experiments import launcher, slurm
from experiments.attempts import last_attempt
from experiments.backends import queues
from experiments.backends import slurm as backend
from experiments.plan import Plan, Run

pytest.importorskip("submitit", reason="requirements-slurm.txt is not installed")

SCRIPT = launcher.ROOT / "experiments/GNu/MNISTPerm/LeNet-250-tasks/supsup_h.py"
FOLDER = "MNISTPerm-LeNet-250-tasks-supsup_h"
SMALL = "--set DigitsPerm --num-tasks 3 --epochs 8 --threads 1 --checkpoint-minutes 0".split()
RUN = "seed=0,epochs=8,num-tasks=3,set=DigitsPerm"


def launch(folder, *words):
    with pytest.raises(SystemExit) as ended:
        launcher.launch(SCRIPT, "configs/supsup_h.yaml", argv=["--log-dir", str(folder), *words])
    return ended.value.code


def run_alone(folder, flags, name):
    words = ["--config", str(SCRIPT.parent / "configs/supsup_h.yaml"), *flags, "--multigpu", "cpu", "--name", name]
    assert main.main([*words, "--log-dir", str(folder)]) == 0


def assert_same(one, other):
    (tensors, *values), (other_tensors, *other_values) = one, other
    assert tensors.keys() == other_tensors.keys()
    assert all(torch.equal(tensors[name], other_tensors[name]) for name in tensors)
    assert values == other_values


def wait_for(condition, seconds=300):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def test_jobs_whose_time_limit_is_near_go_on_and_end_with_the_same_bits(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(launcher, "write_report", lambda folder: None)
    cut = tmp_path / "jobs" / FOLDER / "slices" / f"{RUN},tasks=1"

    def near_the_limit():
        wait_for(lambda: (cut / "training.pt").exists())  # it is in the middle of its task
        job = last_attempt(cut.with_name(f"{cut.name}.log")).starter
        os.kill(int(job.split()[1]), signal.SIGUSR2)

    thread = threading.Thread(target=near_the_limit)
    thread.start()
    status = launch(tmp_path / "jobs", *SMALL, "--split-tasks", "1", "--slurm", "cluster=local", "time=10", "at-once=3")
    thread.join()
    assert status == 0, capsys.readouterr().err
    log = cut.with_name(f"{cut.name}.log").read_text()
    assert re.search(r"stopped: by SIG.* batches of task 1 are saved", log) and log.count("ended with status") == 2
    run_alone(tmp_path / "sequence", SMALL, RUN)
    assert_same(outcome(tmp_path / "jobs" / FOLDER, RUN), outcome(tmp_path / "sequence", RUN))


def test_a_real_cluster_requeues_runs_at_their_time_limit_and_they_end_with_the_same_bits(tmp_path, full):
    if not full:
        pytest.skip("takes minutes; --full has it")
    (tmp_path / "cluster").mkdir()
    flags = "--set DigitsPerm --num-tasks 2 --epochs 80 --threads 1".split()
    jobs = ["--slurm", "time=2", "signal-delay=30", "at-once=2", "job-name=of-a-test"]
    words = [str(SCRIPT), *flags, "--seeds", "4", "--log-dir", str(tmp_path / "jobs"), *jobs]
    try:
        with slurm_cluster.cluster(tmp_path / "cluster") as env:
            done = subprocess.run([sys.executable, *words], env=env, capture_output=True, text=True)
    except slurm_cluster.Unavailable as error:
        pytest.skip(f"no SLURM cluster: {error}")
    assert done.returncode == 0, done.stderr
    names = [f"seed={seed},epochs=80,num-tasks=2,set=DigitsPerm" for seed in range(4)]
    logs = [(tmp_path / "jobs" / FOLDER / f"{name}.log").read_text() for name in names]
    stopped = [re.findall(r"stopped: by SIG.* of task \d are saved", log) for log in logs]
    print(f"attempts at the runs: {[log.count('ended with status') for log in logs]}; in the middle: {stopped}")
    assert any(stopped) and all(log.count("ended with status 0") == 1 for log in logs)
    for seed, name in enumerate(names):
        run_alone(tmp_path / name, [*flags, "--seed", str(seed)], name)
        tensors, values, table = outcome(tmp_path / "jobs" / FOLDER, name)
        own = [row for row in values if isinstance(row, list) or row["Seed"] == str(seed)]
        assert_same((tensors, own, table), outcome(tmp_path / name, name))


@pytest.fixture
def plan(tmp_path):
    """Two runs of a program that waits."""
    program = tmp_path / "program.py"
    program.write_text("import time; print('waiting', flush=True); time.sleep(60)")
    (tmp_path / "runs").mkdir()
    return Plan([Run("a", 0), Run("b", 1)], tmp_path / "runs", program, tmp_path / "config.yaml", None)


def test_a_call_finds_the_jobs_of_one_that_was_lost_and_ends_them(plan):
    options = slurm.parse(["cluster=local", "time=10", "at-once=2"])
    lost, found = backend.Slurm(plan, options), backend.Slurm(plan, options)
    jobs = [lost.start(run, lost.places[0]) for run in plan.runs]
    assert [job.status() for job in jobs] == [None, None]
    ids = [job.id for job in jobs]
    wait_for(lambda: all(plan.log(run).exists() and "waiting" in plan.log(run).read_text() for run in plan.runs))
    jobs = [found.start(run, found.places[0]) for run in plan.runs]
    assert [job.status() for job in jobs] == [None, None] and [job.id for job in jobs] == ids
    for job in jobs:
        job.tell_to_end()
    assert [wait_for(job.status) for job in jobs] == [-signal.SIGTERM] * 2
    assert [last_attempt(plan.log(run)).status for run in plan.runs] == [-signal.SIGTERM] * 2
    assert json.loads((plan.folder / "slurm" / "jobs.json").read_text()) == {}, "nobody asks after them any more"
    assert found.start(plan.runs[0], found.places[0]).id is None, "what has ended is submitted anew"


@pytest.fixture
def local(plan, monkeypatch):
    """The queue of this machine, which submits nothing and says that it was "7 then"."""
    found = backend.Slurm(plan, slurm.parse(["cluster=local", "time=10"]))
    monkeypatch.setattr(found.queue, "submit", lambda whats: ["7 then"] * len(whats))
    monkeypatch.setattr(found.queue, "look_seconds", 0.0)
    return found


@pytest.mark.parametrize("born", ["", " then"], ids=["of an earlier version", "born at another time"])
def test_a_process_that_has_the_number_of_an_earlier_job_is_not_taken_for_it(born, plan, local):
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        earlier = f"{other.pid}{born}"
        (plan.folder / "slurm" / "jobs.json").write_text(json.dumps({"a": earlier}))
        jobs = [local.start(run, local.places[0]) for run in plan.runs]
        assert [job.status() for job in jobs] == [None, None] and {job.id for job in jobs} == {"7 then"}
        local.queue.cancel(earlier, kill=True)
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(0.5)
    finally:
        other.kill()
        other.wait()


def test_a_process_that_may_not_be_told_to_end_is_left_alone(local, monkeypatch):
    own = f"{os.getpid()} {queues._born(str(os.getpid()))}"
    assert local.queue.states([own, "1", f"{own}0"]) == {own: "RUNNING"}

    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    local.queue.cancel(own, kill=False)


def test_jobs_are_seen_through_though_the_disk_is_too_full_to_note_them(plan, local, monkeypatch):
    def full(path, text):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(backend, "write_whole", full)
    states = {"7 then": "RUNNING"}
    monkeypatch.setattr(local.queue, "states", lambda ids: {id: states[id] for id in ids if id in states})
    job = local.start(plan.runs[0], local.places[0])
    assert [job.status() for _ in range(4)] == [None] * 4 and (job.id, job.state) == ("7 then", "RUNNING")
    states.clear()
    assert [job.status() for _ in range(2)] == [None, -signal.SIGTERM]


@pytest.mark.parametrize("seconds, status", [(-60, -signal.SIGTERM), (60, 0)], ids=["older", "its own"])
def test_a_result_from_before_a_job_was_submitted_is_of_another(seconds, status, plan, local):
    result, submitted = (plan.folder / "slurm" / name for name in ("7_0_result.pkl", "7_submitted.pkl"))
    submitted.touch()
    result.write_bytes(pickle.dumps(("success", 0)))
    os.utime(result, ns=(time.time_ns(), submitted.stat().st_mtime_ns + seconds * 10**9))
    job = local.start(plan.runs[0], local.places[0])
    assert [job.status() for _ in range(3)] == [None, None, status]
    assert json.loads((plan.folder / "slurm" / "jobs.json").read_text()) == {}


# With commands in the place of SLURM's


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Commands in the place of SLURM's, which keep what they were told in ``told``; the folder of both."""
    folder = tmp_path / "bin"
    folder.mkdir()
    scripts = {
        "srun": "",
        "scancel": "",
        "sbatch": 'case "$*" in *partition=none*) echo "sbatch: error: invalid partition: none" >&2; exit 1;; '
        '*--test-only*) exit 0;; esac; cat "$1" > "$0.script"; echo Submitted batch job 7',
        "squeue": 'cat "$0.says"',
    }
    for name, does in scripts.items():
        (folder / name).write_text(f'#!/bin/sh\necho "{name} $*" >> {folder}/told\n{does}\n')
        (folder / name).chmod(0o755)
    (folder / "squeue.says").write_text("")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def test_runs_are_an_array_that_is_asked_after_and_cancelled(plan, cluster, monkeypatch):
    options = slurm.parse(["time=1:30:00", "at-once=1", "partition=gpu", "gpus-per-node=a100:2", "signal_delay=90"])
    queue = backend.Slurm(plan, options)
    monkeypatch.setattr(queue.queue, "look_seconds", 0.0)
    jobs = [queue.start(run, place) for run, place in zip(plan.runs, queue.places, strict=True)]
    assert [job.status() for job in jobs] == [None, None] and [job.id for job in jobs] == ["7_0", "7_1"]
    script = (cluster / "sbatch.script").read_text().splitlines()
    for line in ("array=0-1%1", "time=90", "partition=gpu", "gpus-per-node=a100:2", "signal=USR2@90", "requeue"):
        assert f"#SBATCH --{line}" in script
    attempt = plan.command(plan.runs[0], options.devices)
    assert attempt[attempt.index("--multigpu") + 1] == "0,1"
    (cluster / "squeue.says").write_text("7_0 RUNNING\n7_1 PENDING\n8 RUNNING\n")
    assert [job.status() for job in jobs] == [None, None] and [job.state for job in jobs] == ["RUNNING", "PENDING"]
    assert not jobs[1].is_silent(0)
    jobs[0].ask_to_end()
    (cluster / "squeue.says").write_text("7_0 RUNNING\n")
    assert [jobs[1].status() for _ in range(3)][-1] == -signal.SIGTERM, "somebody took it out of the queue"
    told = (cluster / "told").read_text()
    assert "scancel --state=PENDING 7_0\nscancel --signal=TERM 7_0\n" in told
    (cluster / "squeue").write_text("#!/bin/sh\nexit 1")
    assert [jobs[0].status() for _ in range(4)] == [None] * 4, "a cluster that does not answer has lost nothing"


@pytest.mark.parametrize("state", ["PENDING", "SUSPENDED"])
def test_a_job_is_not_silent_for_the_time_that_it_waits_in_the_queue_or_is_suspended(state, plan, cluster, monkeypatch):
    queue = backend.Slurm(plan, slurm.parse(["time=60"]))
    monkeypatch.setattr(queue.queue, "look_seconds", 0.0)
    job, clock = queue.start(plan.runs[0], queue.places[0]), itertools.count(time.monotonic())
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    assert job.status() is None
    job.log.write_text("batches of a task are saved\n")  # and no more until it goes on

    def is_silent(looks, state):
        (cluster / "squeue.says").write_text(f"{job.id} {state}\n")
        return [job.status() or job.is_silent(30) for _ in range(looks)][-1]

    assert not is_silent(3, "RUNNING")
    assert not is_silent(20, state)
    assert not is_silent(3, "RUNNING"), "it has just been started again"
    assert is_silent(20, "RUNNING")


@pytest.mark.parametrize(
    "words, said",
    [
        (["partition"], "--slurm partition: is not KEY=VALUE"),
        (["partition=gpu"], "--slurm: time=MINUTES"),
        (["time=soon"], "--slurm time=soon: is not a time such as"),
        (["time=0"], "--slurm time=0: is not a time such as"),
        (["time=1-2-3"], "--slurm time=1-2-3: is not a time such as"),
        (["time=2"], "--slurm signal-delay=120: the seconds before the limit"),
        (["time=60", "time=70"], "--slurm time=70: time is said twice"),
        (["time=60", "at-once=0"], "--slurm at-once=0: is not a whole number"),
        (["time=60", "array=0-3"], "--slurm array=0-3: is set by this script; say at-once=N"),
        (["time=60", "cluster=mine"], "--slurm cluster=mine: is neither"),
        (["time=60", "partition=none"], "no job can be submitted so: sbatch: error: invalid partition: none"),
        (["time=60", "--gpu-sets", "cpu"], "with --slurm say gpus-per-node=N"),
    ],
)
def test_what_cannot_be_submitted_is_refused_in_one_line_before_anything_starts(words, said, tmp_path, cluster, capsys):
    assert launch(tmp_path / "runs", "--slurm", *words) == 2
    out, err = capsys.readouterr()
    assert said in err and len(err.splitlines()) == 1 and out == "" and not (tmp_path / "runs").exists()


def test_without_a_cluster_it_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    assert launch(tmp_path / "runs", "--slurm", "time=60") == 2
    assert "--slurm: there is no sbatch here" in capsys.readouterr().err and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "text, minutes",
    [("90", 90), ("1:30", 1.5), ("1:30:00", 90), ("2-12", 3600), ("1-0:30", 1470), ("0-0:0:30", 0.5)],
)
def test_times_are_those_of_sbatch(text, minutes):
    assert slurm.parse([f"time={text}", "signal-delay=1"]).minutes == minutes


@pytest.mark.parametrize(
    "word, devices",
    [
        ("gpus-per-node=2", "0,1"),
        ("gres=gpu", "0"),
        ("gres=gpu:a100:4", "0,1,2,3"),
        ("gres=disk:3", "cpu"),
        ("gres=ssd:1,gpu:2", "0,1"),
        ("gres=gpu:2,ssd:1", "0,1"),
        ("gres=gpu:a100:2(S:0-1)", "0,1"),
        ("gres=gpu:a100:1(IDX:0,2),gpu:v100:1,license:4", "0,1"),
        ("gres=gpu:1g.10gb:2", "0,1"),
        ("gres=gpu:a100", "0"),
        ("gres=gpu:0", "cpu"),
        ("gpus=a100:2,v100:1", "0,1,2"),
        ("mem=4G", "cpu"),
    ],
)
def test_a_run_uses_the_gpus_that_its_job_asks_for(word, devices):
    assert slurm.parse(["time=60", word]).devices == devices


@pytest.mark.parametrize(
    "word", ["gres=gpu:", "gres=gpu:2k", "gres=gres/gpu:2", "gres=gpu:a:b:2", "gpus=2,", "gpus=a100:x"]
)
def test_how_many_gpus_a_job_asks_for_is_understood_or_refused(word, tmp_path, capsys):
    assert launch(tmp_path / "runs", "--slurm", "cluster=local", "time=60", word) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"--slurm {word}: does not tell how many GPUs" in line and not (tmp_path / "runs").exists()
