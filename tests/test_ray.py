"""The backend of Ray: a cluster of two nodes on this machine, one of which dies, and one of the launcher's own."""

import csv
import importlib.util
import json
import os
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

import main
from experiments import launcher, status
from experiments.attempts import is_finished, last_attempt
from experiments.backends import ray as backend
from experiments.plan import Plan, Run
from tests.conftest import PROJECT, processes_below
from utils.errors import UserError

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
SUPSUP_H = PROJECT / "experiments/GNu/MNISTPerm/LeNet-250-tasks/supsup_h.py"
RN18 = PROJECT / "experiments/GG/splitcifar100/rn18-supsup.py"
SMALL_H = "--set DigitsPerm --num-tasks 9 --epochs 1 --iter-lim 60 --batch-size 20 --eval-ckpts 2,9 --seeds 2"
SMALL_RN18 = "--set SplitDigits --output-size 10 --sparsity 8 --num-tasks 1 --epochs 1 --iter-lim 5 --batch-size 8"

# Records what it was given; waits until it is told to end with --wait.
FAKE_MAIN = """
import json, os, signal, sys, time
from pathlib import Path
words = dict(zip(sys.argv, sys.argv[1:]))
run = Path(words["--log-dir"]) / words["--name"]
run.mkdir()
blocked = [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])]
call = {"environ": dict(os.environ), "argv": sys.argv, "pid": os.getpid(), "blocked": blocked, "cwd": os.getcwd()}
signal.signal(signal.SIGTERM, lambda *_: ((run / "kept").touch(), os._exit(143)))
(run / "part").write_text(json.dumps(call))
(run / "part").rename(run / "call.json")
if "--wait" in sys.argv:
    time.sleep(60)
(run / "finished").touch()
"""

DRIVER = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test runner in the background ignores it
from pathlib import Path
from experiments.launcher import launch
launch({script!r}, config="configs/supsup_h.yaml", main=Path({main!r}))
"""


@pytest.fixture
def around(monkeypatch, tmp_path):
    """What Ray's processes are given: a folder for their files whose path is short enough for sockets, and no grammar.

    A library of Jupyter's that jsonschema loads where it is installed takes seconds, in each process of Ray.
    """
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "rfc3987_syntax.py").write_text("raise ImportError")
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    settings = {"PYTHONPATH": str(tmp_path / "without"), "RAY_TMPDIR": folder, "OMP_NUM_THREADS": "1"}
    for name, value in (settings | backend.SETTINGS | backend.ALONE_SETTINGS).items():
        monkeypatch.setenv(name, value)
    yield
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def cluster(around):
    """Two nodes, a core each; the second, ``node``, has two GPUs too."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        cluster.node = cluster.add_node(**node, num_gpus=2)
        yield cluster
    finally:
        cluster.shutdown()


def call(monkeypatch, script, words, folder):
    """Call a script as a user does; gives its exit status."""
    monkeypatch.setattr(launcher, "write_report", lambda folder: None)
    monkeypatch.setattr(sys, "argv", [str(script), "--threads", "1", "--log-dir", str(folder), *words])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    return ended.value.code


def rows(folder):
    """What lies in the only ``results.csv`` below, but for dates, folders and order."""
    (path,) = folder.glob("*/results.csv")
    with path.open(newline="") as file:
        found = list(csv.DictReader(file))
    for row in found:
        row["Save Directory"] = Path(row.pop("Save Directory")).name
        del row["Date Finished"]
    return sorted(found, key=lambda row: row["Name"])


def kill_node_in_the_middle(cluster, folder):
    """When a run on the second node has learned a task, halt it there and kill the node; gives the run's log.

    A node dies in its own time, in which a run so short would end.
    """
    raylet = cluster.node.all_processes["raylet"][0].process.pid
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        actors = processes_below(raylet)
        for log in folder.glob("*/*.log"):
            attempt = last_attempt(log)
            actor = int(attempt.starter.split()[1]) if attempt else None
            if actor in actors and status.read(log.with_suffix("")).done:
                for pid in processes_below(actor):
                    with suppress(ProcessLookupError):  # such as git's, which a run asks for the commit
                        os.kill(pid, signal.SIGSTOP)
                finished = is_finished(log)
                cluster.remove_node(cluster.node, allow_graceful=False)
                assert not finished, "halted too late for this test to say anything"
                return log
        time.sleep(0.02)
    return None


@needs_ray
def test_a_cluster_gives_what_this_machine_gives_and_the_death_of_a_node_changes_nothing(
    cluster, monkeypatch, tmp_path, capsys
):
    on_ray, killed = ["--gpu-sets", "cpu", "--ray", cluster.address], []
    killer = threading.Thread(target=lambda: killed.append(kill_node_in_the_middle(cluster, tmp_path / "supsup_h")))
    for script, words in ((RN18, SMALL_RN18.split()), (SUPSUP_H, SMALL_H.split())):
        there, here = tmp_path / script.stem, tmp_path / f"{script.stem}-here"
        capsys.readouterr()
        call(monkeypatch, script, [*words, "--gpu-sets", "cpu", "--dry-run"], here)
        for command in capsys.readouterr().out.splitlines():
            main.main(shlex.split(command)[2:])
        if script == SUPSUP_H:
            killer.start()
        assert call(monkeypatch, script, [*words, *on_ray], there) == 0
        assert rows(there) == rows(here)
    killer.join()
    assert "lost with its machine or its worker" in capsys.readouterr().out
    begun = [line for line in killed[0].read_text().splitlines() if line.startswith("$ ") and "  # " in line]
    assert len(begun) == 2, "the run of the node that was killed was started once more"


@needs_ray
def test_a_cluster_of_its_own_hands_on_what_a_run_needs_and_ctrl_c_leaves_no_process(around, tmp_path):
    (tmp_path / "fake_main.py").write_text(FAKE_MAIN)
    driver = DRIVER.format(script=str(SUPSUP_H), main=str(tmp_path / "fake_main.py"))
    words = ["--log-dir", str(tmp_path / "runs"), "--ray", "--gpu-sets", "cpu", "--wait", "yes"]
    mark = f"SUPSUP_TEST={tmp_path}"
    environ = {**os.environ, "PYTHONPATH": f"{PROJECT}:{os.environ['PYTHONPATH']}", "SUPSUP_TEST": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-c", driver, *words], env=environ, cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    deadline, calls = time.monotonic() + 60, []
    while not calls and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
        calls = list(tmp_path.glob("runs/*/*/call.json"))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err and len(list(tmp_path.glob("runs/*/*/kept"))) == len(calls) > 0
    call = json.loads(calls[0].read_text())
    assert call["blocked"] == [] and call["cwd"] == str(tmp_path)
    assert not [name for name in call["environ"] if name.startswith("RAY_")]
    assert call["environ"]["OMP_NUM_THREADS"] == "1" and call["environ"]["SUPSUP_TEST"] == str(tmp_path)
    left = [path.parent.name for path in Path("/proc").glob("[0-9]*/environ") if mark in environment_of(path)]
    assert left == []


def environment_of(path):
    try:
        return path.read_text(errors="replace").split("\0")
    except OSError:
        return []


@pytest.fixture
def machines(monkeypatch):
    """The machines of a cluster that is none."""
    machines = []
    nodes = [lambda: [{"Alive": alive, "Resources": has} for alive, has in machines]]
    monkeypatch.setattr(backend, "_connected", lambda _: SimpleNamespace(nodes=nodes[0], shutdown=lambda: None))
    monkeypatch.setattr(backend, "LOOK_SECONDS", 0)
    return machines


def of(sets, *flags, runs=99):
    plan = Plan([Run(str(seed), seed, flags) for seed in range(runs)], Path("x"), Path("x"), Path("x"), None)
    return backend.Ray(plan, sets, "auto")


@pytest.mark.parametrize(
    "sets, flags, places, devices",
    [
        (None, [], 5, "0"),  # the third machine has fewer cores than GPUs
        (["0", "0"], [], 9, "0"),
        (["0,1", "2,3"], [], 3, "0,1"),
        (["cpu"], [], 13, "cpu"),
        (["cpu"], ["--threads", "4"], 3, "cpu"),
        (["3"], ["--threads=4"], 2, "0"),
    ],
)
def test_runs_are_as_many_at_once_as_fit_on_the_machines(machines, sets, flags, places, devices):
    machines += [(True, {"CPU": 8.0, "GPU": 4.0}), (True, {"CPU": 4.0}), (True, {"CPU": 1.0, "GPU": 3.0})]
    machines += [(False, {"CPU": 64.0, "GPU": 8.0})]
    ray = of(sets, *flags)
    assert (len(ray.places), ray._devices) == (places, devices)
    assert len(of(sets, *flags, runs=2).places) == 2
    machines[:] = [(True, {"CPU": 4.0, "GPU": 2.0})]
    assert 1 <= len(ray.places) <= 4, "machines have gone"


@pytest.mark.parametrize("sets, said", [(["0"], "1 GPU, 1 CPU"), (["0,1"], "2 GPU, 1 CPU")])
def test_what_no_machine_has_is_told(machines, sets, said):
    machines += [(True, {"CPU": 8.0})]
    with pytest.raises(UserError, match=f"--ray: a run asks for {said} of the cluster"):
        of(sets)
    assert len(of(None).places) == 8, "without GPUs a run takes a core"


def test_without_ray_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="--ray: .*pip install -r requirements-ray.txt"):
        of(None)
