"""How many threads a run computes with: what it may, what pays, what it was told, and what it began with."""

import os
import re

import pytest
import torch
import yaml

import main
from models import MODELS
from models.builder import product_sizes
from trainers import setup
from trainers.options import Settings
from utils import cores, memory
from utils.checkpoint import Checkpoint
from utils.cores import ALLOTTED, WORTH_THREADS, available_cores, choose_threads, sleep_while_waiting, wanted_threads

SHORT = "--num-tasks 1 --epochs 1 --iter-lim 1 --adaptor gt --multigpu cpu --name run".split()
LARGE = ("--batch-size", "2000")  # 188 million multiplications in a mean product of LeNet
FOUR_CORES = set(range(4))


@pytest.fixture(autouse=True)
def four_cores(monkeypatch):
    """A machine with four cores, and nobody who says how many threads there are to be."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: FOUR_CORES, raising=False)
    for name in ("OMP_NUM_THREADS", "SUPSUP_RUNS_AT_ONCE", *ALLOTTED):
        monkeypatch.delenv(name, raising=False)


def container(root, cgroup: str, mountinfo: str, **files: str):
    """The files of a container: its groups, its mounts, and quotas by path with ``/`` written ``__``."""
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "self" / "cgroup").write_text(cgroup)
    (root / "proc" / "self" / "mountinfo").write_text(mountinfo)
    for name, text in files.items():
        path = root / "sys" / "fs" / "cgroup" / name.replace("__", "/").replace("cpu_", "cpu.")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


VERSION_2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup rw,nsdelegate\n"
VERSION_1 = "31 23 0:27 {} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"


@pytest.mark.parametrize(
    ("cores", "cgroup", "mounts", "files"),
    [
        (2, "0::/\n", VERSION_2, {"cpu_max": "200000 100000\n"}),
        (4, "0::/\n", VERSION_2, {"cpu_max": "max 100000\n"}),
        (1, "0::/\n", VERSION_2, {"cpu_max": "50000 100000\n"}),  # half a core
        (3, "0::/\n", VERSION_2, {"cpu_max": "380000 100000\n"}),
        (4, "0::/\n", VERSION_2, {"cpu_max": "9000000 100000\n"}),
        (2, "0::/a/b\n", VERSION_2, {"a__cpu_max": "200000 100000\n", "a__b__cpu_max": "max 100000\n"}),
        (4, "0::/a/b\n", VERSION_2, {"a__b__cpu_max": "what is this"}),
        (2, "4:memory:/\n3:cpu,cpuacct:/\n0::/\n", VERSION_1.format("/"), {"q": "200000", "p": "100000"}),
        (4, "3:cpu,cpuacct:/\n", VERSION_1.format("/"), {"q": "-1", "p": "100000"}),
        (2, "3:cpu,cpuacct:/docker/0f\n", VERSION_1.format("/docker/0f"), {"q": "200000", "p": "100000"}),
        (2, "3:cpu,cpuacct:/elsewhere/0f\n", VERSION_1.format("/"), {"q": "200000", "p": "100000"}),
        (4, "", "", {}),
    ],
)
def test_a_containers_quota_is_respected(cores, cgroup, mounts, files, tmp_path):
    short = {"q": "cpu,cpuacct__cpu_cfs_quota_us", "p": "cpu,cpuacct__cpu_cfs_period_us"}
    files = {short.get(name, name): text for name, text in files.items()}
    assert available_cores({}, container(tmp_path, cgroup, mounts, **files)) == cores


@pytest.mark.parametrize("name", ALLOTTED)
def test_a_jobs_cores_are_respected(name, tmp_path):
    assert available_cores({name: "2"}, tmp_path) == 2
    assert available_cores({name: "64"}, tmp_path) == 4  # what the process may run on is less
    for text in ("", "0", "-1", "two", "2(x3)", "²", "9" * 5000):
        assert available_cores({name: text}, tmp_path) == 4


def test_runs_of_one_launcher_share_the_cores(tmp_path):
    for runs, share in (("1", 4), ("2", 2), ("3", 1), ("9", 1), ("none", 4)):
        assert available_cores({"SUPSUP_RUNS_AT_ONCE": runs}, tmp_path) == share
    assert available_cores({"SUPSUP_RUNS_AT_ONCE": "2", "SLURM_CPUS_PER_TASK": "2"}, tmp_path) == 1


def test_what_omp_num_threads_asks_for():
    for text, threads in (("3", 3), (" 3 ", 3), ("3,2", 3), ("64", 64)):
        assert wanted_threads({"OMP_NUM_THREADS": text}) == threads
    for text in ("", "0", "-2", "1.5", "all", "9" * 5000, ",2", "5000"):
        assert wanted_threads({"OMP_NUM_THREADS": text}) is None


def test_waiting_threads_sleep_unless_the_user_says_how_they_wait():
    environ = {}
    sleep_while_waiting(environ)
    assert environ == {"OMP_WAIT_POLICY": "PASSIVE"}
    for name, value in (("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "9"), ("KMP_BLOCKTIME", "1")):
        environ = {name: value}
        sleep_while_waiting(environ)
        assert environ == {name: value}


def test_products_are_counted_without_making_the_network():
    lenet = product_sizes(MODELS["LeNet"], (128, 1, 28, 28), 500)
    assert lenet == [128 * 784 * 300, 128 * 300 * 100, 128 * 100 * 500]
    resnet = product_sizes(MODELS["GEMResNet18"], (2, 3, 32, 32), 5)
    assert len(resnet) == 21 and resnet[0] == 2 * 32 * 32 * 20 * 3 * 9 and resnet[-1] == 2 * 160 * 5
    widest = product_sizes(MODELS["ResNet50"], (256, 3, 224, 224), 100)  # a real one would take 11 GB
    assert widest[0] == 256 * 112 * 112 * 64 * 3 * 49


@pytest.mark.parametrize(
    "asked, began, wanted, size, threads, why",
    [
        (3, 2, 1, None, 3, "as `threads` says"),
        (None, 2, 1, None, 2, "as the run began"),
        (None, None, 1, None, 1, "as OMP_NUM_THREADS says"),
        (None, None, None, WORTH_THREADS, 4, "large products, 134 million multiplications each; 4 cores"),
        (None, None, None, WORTH_THREADS - 1, 1, "small products, 134 million multiplications each; 4 cores"),
    ],
)
def test_the_first_who_says_how_many_threads_decides(asked, began, wanted, size, threads, why):
    assert choose_threads(asked, began, wanted, 4, size and (lambda: size)) == (threads, why)


def test_a_run_that_computes_elsewhere_may_keep_all_cores_busy():
    assert choose_threads(None, None, None, 4, None) == (4, "all cores open to the run")


def threads_of(tmp_path, *words: str) -> int:
    """The threads that a run computed with, which must be those that it tells of and keeps."""
    assert main.main([*SHORT, "--log-dir", str(tmp_path), *map(str, words)]) == 0
    run = tmp_path / "run"
    threads = yaml.safe_load((run / "settings.yaml").read_text())["settings"]["threads"]
    assert torch.get_num_threads() == threads
    assert int(re.findall(r"threads: (\d+) \(", (run / "log.txt").read_text())[-1]) == threads
    return threads


def test_products_that_gain_by_threads_get_all_cores(tmp_path):
    assert threads_of(tmp_path / "small") == 1
    assert threads_of(tmp_path / "large", *LARGE) == 4

    def gains(model: str, shape: tuple[int, ...]) -> bool:
        sizes = product_sizes(MODELS[model], shape, 100)
        return sum(sizes) / len(sizes) >= WORTH_THREADS

    assert not gains("LeNet", (8 * 128, 1, 28, 28)) and gains("LeNet", (16 * 128, 1, 28, 28))
    assert not gains("GEMResNet18", (16, 3, 32, 32)) and gains("GEMResNet18", (128, 3, 32, 32))


def test_tasks_that_are_trained_at_once_make_products_larger(tmp_path, monkeypatch):
    size = sum(product_sizes(MODELS["LeNet"], (128, 1, 28, 28), 100)) / 3
    monkeypatch.setattr(cores, "WORTH_THREADS", 1.5 * size)
    assert threads_of(tmp_path / "one", "--tasks-in-parallel", "2") == 1  # for there is one task
    assert threads_of(tmp_path / "two", "--tasks-in-parallel", "2", "--num-tasks", "2") == 4


def test_who_decides_the_number_of_threads(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    assert threads_of(tmp_path / "slurm", *LARGE) == 3
    assert threads_of(tmp_path / "small") == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert threads_of(tmp_path / "omp") == threads_of(tmp_path / "omp large", *LARGE) == 2
    assert threads_of(tmp_path / "flag", *LARGE, "--threads", "1") == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert threads_of(tmp_path / "nonsense", *LARGE) == 3


def test_a_run_goes_on_with_the_threads_it_began_with(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert threads_of(tmp_path) == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads_of(tmp_path, "--resume") == 2
    assert threads_of(tmp_path, "--resume", "--threads", "1") == 1
    assert threads_of(tmp_path, "--resume") == 2
    records, _ = Checkpoint(tmp_path / "run" / "checkpoint.pt").read()
    assert records[0].values["threads"] == 2 and "threads" not in records[0].values["settings"]


def test_processes_share_the_threads(tmp_path, monkeypatch):
    settings = Settings(threads=4)
    for processes, threads in ((1, 4), (2, 2), (3, 1), (8, 1)):
        setup.share_threads(settings, processes)
        assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("expected", "environ", "files"),
    [
        (2**20, {}, {"memory.max": f"{2**20}\n"}),
        (2**19, {"SUPSUP_RUNS_AT_ONCE": "2"}, {"memory.max": f"{2**20}\n"}),
        (3 * 2**20, {"SLURM_MEM_PER_NODE": "3"}, {"memory.max": "max\n"}),
        (2**21, {"SLURM_MEM_PER_NODE": "3"}, {"a/memory.max": f"{2**21}\n", "memory.max": "max\n"}),
        (None, {"SLURM_MEM_PER_NODE": "what"}, {"memory.max": "max\n"}),
    ],
)
def test_memory_is_what_the_container_the_job_and_other_runs_leave(expected, environ, files, tmp_path):
    container(tmp_path, "0::/a\n", VERSION_2)
    for name, text in files.items():
        path = tmp_path / "sys" / "fs" / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert memory.available_memory(environ, tmp_path) == (expected or machine)
