"""One run on several devices, and the options that make training faster: each gives what plain training gives."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

import main
from models import Builder, multitask
from trainers.default import DefaultTrainer
from trainers.options import TrainingOptions
from utils import parallel
from utils.checkpoint import Checkpoint
from utils.parallel import Group, group_of
from utils.seeding import generator

# All weights are trained, by SGD: what differs in a gradient shows in the weights, in proportion.
WEIGHTS = "--conv-type StandardConv --train-weight-tasks -1 --optimizer sgd --train-weight-lr 0.01 --conv-init default"
MASKS = "--conv-type MultitaskMaskConv --sparsity 0.3 --optimizer adam --lr 1e-3"
SHORT = "--set DigitsPerm --num-tasks 2 --epochs 2 --adaptor gt --threads 1"


def learned(tmp_path, name, *words):
    """Every tensor in the checkpoint of a run, by task and name, and the accuracies."""
    words = [*SHORT.split(), *words, "--log-dir", str(tmp_path / name), "--name", "run"]
    assert main.main(words) == 0
    records, damaged = Checkpoint(tmp_path / name / "run" / "checkpoint.pt").read()
    assert damaged == 0
    with open(tmp_path / name / "results.csv", newline="") as file:
        accuracies = [float(row["Current Val"]) for row in csv.DictReader(file)]
    tasks = [record for record in records if record.kind == "task"]
    return {(r.values["task"], name): value for r in tasks for name, value in r.tensors.items()}, accuracies


def test_two_processes_give_the_result_of_one_with_the_same_batch(tmp_path):
    # 1,437 images in batches of 100: the last one has 37, so the shares are not equal.
    words = [*WEIGHTS.split(), *"--batch-size 100 --epochs 1 --seed 1".split()]
    one, accuracies = learned(tmp_path, "one", *words, "--multigpu", "cpu")
    two, again = learned(tmp_path, "two", *words, "--multigpu", "cpu,cpu")
    assert one.keys() == two.keys() and len(one) == 3  # layers, after the last task
    for name, value in one.items():
        # float32 sums in another order. Few steps: once a rectified unit falls to the other side of 0, they grow.
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-4)
    assert again == pytest.approx(accuracies, abs=1e-4)


def test_two_processes_go_on_from_a_checkpoint_and_take_part_in_transfer(tmp_path):
    words = [*MASKS.split(), *"--trainer reinit --reinit-adapt gradient --multigpu cpu,cpu --num-tasks 3".split()]
    whole, _ = learned(tmp_path, "whole", *words)
    records, _ = Checkpoint(tmp_path / "whole" / "run" / "checkpoint.pt").read()
    (tmp_path / "cut" / "run").mkdir(parents=True)
    cut = Checkpoint(tmp_path / "cut" / "run" / "checkpoint.pt")
    for record in records[:2]:
        cut.append(record)
    again, _ = learned(tmp_path, "cut", *words, "--resume")
    assert whole.keys() == again.keys() and all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_share_without_images_adds_nothing(tmp_path):
    # 1,437 images in batches of 359: the last one has a single image, and the second process none of it.
    words = [*WEIGHTS.split(), "--batch-size", "359", "--num-tasks", "1"]
    one, _ = learned(tmp_path, "one", *words, "--multigpu", "cpu")
    two, _ = learned(tmp_path, "two", *words, "--multigpu", "cpu,cpu")
    assert all(torch.allclose(one[name], two[name], rtol=1e-4, atol=1e-4) for name in one)


NORMS = ("StandardBN", "NonAffineBN", "NonAffineNoStatsBN", "MultitaskNonAffineBN", "FastHopMaskBN")


def trained(group):
    """What a small network with each batch norm holds after batches of 9, 4 and 1 images and how it then answers."""
    state = {}
    for norm in NORMS:
        rng = partial(generator, 3)
        builder = Builder(rng, 1, "StandardConv", norm, "kaiming_normal")
        model = nn.Sequential(builder.conv3x3(2, 4), builder.batchnorm(4), nn.ReLU(), builder.conv3x3(4, 5, stride=2))
        model.extend([builder.batchnorm(5), nn.AdaptiveAvgPool2d(1), nn.Flatten()])
        trainer = DefaultTrainer(
            model, TrainingOptions(optimizer="sgd", train_weight_lr=0.1, train_weight_tasks=-1), rng
        )
        trainer.join(group)
        trainer.begin_task(0)
        for count in (9, 4, 1):
            x, y = torch.randn(count, 2, 6, 6, generator=rng("x", count)), torch.arange(count) % 5
            trainer.step(x[group.rank :: group.size], y[group.rank :: group.size])
        trainer.end_task()
        state |= {f"{norm}.{name}": value for name, value in multitask.shared_state(model).items()}
        state |= {f"{norm}.{name}": value for name, value in multitask.task_state(model, 0).items()}
        if group.rank == 0:  # as in a run
            state[f"{norm} logits"] = model.eval()(torch.randn(7, 2, 6, 6, generator=rng("test"))).detach()
    return state


def test_batch_norm_sees_the_whole_batch(monkeypatch):
    all_reduce, messages = dist.all_reduce, []
    monkeypatch.setattr(dist, "all_reduce", lambda value: [messages.append(value), all_reduce(value)])
    # Shares of 5 and 4 images, of 2 and 2, of 1 and none.
    with group_of([torch.device("cpu")] * 2, trained) as group:
        two = trained(group)
    steps = 3 * len(NORMS)
    assert len(messages) == steps * (2 * 2 + 1), "a norm sends one forward and one backward, and a step its gradients"
    one = trained(Group())
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    "words",  # SGD, for Adam's first steps are as long however small a gradient, and so whatever its rounding
    [f"{WEIGHTS} --bn-type StandardBN", f"{MASKS} --bn-type MultitaskNonAffineBN --optimizer sgd --lr 0.1"],
    ids=["weights", "masks"],
)
def test_two_processes_give_the_residual_network_of_one(words, tmp_path):
    words = [*words.split(), *"--model GEMResNet18 --batch-size 51 --iter-lim 2 --epochs 1 --num-tasks 1".split()]
    words += ["--train-weight-lr", "1e-3"]  # through rectified units, sums in another order grow fast
    one, accuracies = learned(tmp_path, "one", *words, "--multigpu", "cpu")
    two, again = learned(tmp_path, "two", *words, "--multigpu", "cpu,cpu")
    assert one.keys() == two.keys() and len(one) > 60
    masks = [name for name, value in one.items() if value.dtype == torch.uint8]
    differing = sum(int((one[name] ^ two[name]).count_nonzero()) for name in masks)
    assert differing <= 2e-3 * sum(one[name].numel() for name in masks)  # where scores nearly tie
    for name, value in one.items():
        if name not in masks:
            torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-4)
    assert again == pytest.approx(accuracies, abs=1e-4)


def test_alone_a_group_changes_nothing():
    parameter = torch.nn.Parameter(torch.ones(3))
    Group().backward((parameter * 2).sum(), [parameter], images=5)
    assert parameter.grad.tolist() == [2, 2, 2]
    assert Group().from_first(torch.tensor(3)) == 3 and Group().total(torch.tensor(3)) == 3


def test_an_error_of_the_first_process_ends_the_others(tmp_path, monkeypatch):
    def fail(*args):
        raise RuntimeError("while the others wait")

    monkeypatch.setattr("trainers.run.Run.learn", fail)
    words = [*SHORT.split(), *MASKS.split(), "--multigpu", "cpu,cpu", "--log-dir", str(tmp_path)]
    with pytest.raises(RuntimeError, match="while the others wait"):
        main.main(words)
    assert not torch.distributed.is_initialized()


# A run of two processes whose group is destroyed as NCCL does it: nobody is done before all are. Each process runs it,
# for the other one imports the program of the first.
PARTING = """
import sys
import time
sys.path[:0] = [{root!r}, {here!r}]
import torch
import torch.distributed as dist
from test_parallel import nothing
from utils.parallel import group_of

destroy = dist.destroy_process_group

def destroy_together():
    store = dist.distributed_c10d._get_default_store()
    store.add("parting", 1)
    while store.add("parting", 0) < 2:
        time.sleep(0.01)
    destroy()

dist.destroy_process_group = destroy_together
if __name__ == "__main__":
    with group_of([torch.device("cpu")] * 2, nothing):
        {end}
"""


def nothing(group):
    """What the other process of a group may have to do."""


@pytest.mark.parametrize("end, status", [("pass", 0), ("dist.destroy_process_group = destroy; sys.exit(3)", 3)])
def test_processes_that_part_together_do_not_wait_for_each_other(end, status, tmp_path):
    script = tmp_path / "run.py"
    here = Path(__file__).parent
    script.write_text(PARTING.format(root=str(here.parent), here=str(here), end=end))
    process = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=100)
    assert process.returncode == status, process.stderr


def test_a_store_is_as_patient_as_the_group(monkeypatch):
    """Its own five minutes would end the others while the first process evaluates."""

    class Enough(Exception):
        pass

    def store(*_, timeout, **more):
        seen.append(timeout)
        raise Enough

    seen, processor = [], torch.device("cpu")
    monkeypatch.setattr(dist, "TCPStore", store)
    for name in ("ignore", "_end_with_first"):
        monkeypatch.setattr(parallel, name, lambda: None)
    with pytest.raises(Enough), group_of([processor, processor], print, words=str):
        pass
    with pytest.raises(Enough):
        parallel._follow("gloo", 1, Group(1, 2), processor, str, print, ())
    assert seen == [parallel.PATIENCE] * 2 and parallel.PATIENCE.days > 1


def running(group):
    """The processes of a process group that still run."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it has just gone
            continue
        if int(its_group) == group and state != "Z":
            yield int(stat.parent.name)


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
def test_a_first_process_that_is_killed_leaves_no_other(tmp_path):
    words = [*SHORT.split(), *MASKS.split(), "--multigpu", "cpu,cpu", "--epochs", "100000", "--log-dir", str(tmp_path)]
    command = [sys.executable, main.__file__, *words, "--name", "run"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        run = tmp_path / "run"
        # Until epochs are done.
        wait_for(lambda: any(b"loss/task 0" in path.read_bytes() for path in run.glob("events.out*")))
        others = set(running(process.pid)) - {process.pid}
        for pid in others:  # as a cluster does, which tells every process of a job to end
            os.kill(pid, signal.SIGTERM)
        time.sleep(0.5)
        assert others and others <= set(running(process.pid)), "the first process finishes its batch with them"
        process.kill()
        process.wait()
        wait_for(lambda: not list(running(process.pid)))
    finally:
        for pid in running(process.pid):
            os.kill(pid, 9)


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("devices", ["99", "0,99"])
def test_a_gpu_that_is_not_there_is_refused_before_anything_is_written(devices, tmp_path, capsys):
    log_dir = tmp_path / "runs"
    assert main.main(["--multigpu", devices, "--log-dir", str(log_dir)]) == 2
    error = capsys.readouterr().err
    assert f"--multigpu {devices}" in error and error.count("\n") == 1 and not log_dir.exists()


# Faster training


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return learned(tmp_path_factory.mktemp("plain"), "plain", *MASKS.split(), "--multigpu", "cpu", "--epochs", "4")


@pytest.fixture
def compilations(monkeypatch):
    """What is compiled: by the compiler's own view of the gradients, without the C++ that it makes of them."""
    found = []

    def compiled(graph, inputs):
        found.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=compiled))
    return found


@pytest.mark.parametrize("norm", ["MultitaskNonAffineBN", "FastHopMaskBN"])
@pytest.mark.parametrize(
    "conv, weights",
    [
        *(("FastMultitaskMaskConv", 0), ("MultitaskMaskConv", 0), ("BatchEnsembles", 0)),
        *(("VectorizedBatchEnsembles", -1), ("PSPRotation", -1), ("StandardConv", -1)),
    ],
)
def test_every_layer_learns_when_compiled_as_it_does_otherwise(conv, norm, weights, compilations):
    def steps(compiled):
        rng = partial(generator, 3)
        builder = Builder(rng, 3, conv, norm, "kaiming_normal")
        model = nn.Sequential(builder.conv3x3(2, 4), builder.batchnorm(4), nn.ReLU(), builder.conv3x3(4, 5, stride=2))
        model.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten()])
        trainer = DefaultTrainer(model, TrainingOptions(train_weight_tasks=weights, compile=compiled), rng)
        for task in range(3):
            trainer.begin_task(task)
            model.train()
            loss = trainer.step(torch.randn(9, 2, 6, 6, generator=rng("x", task)), torch.arange(9) % 5)
            own = {name: value.detach() for name, value in multitask.training_state(model).items()}
            yield from (loss, *own.values(), *(p.grad for p in trainer.parameters))
            trainer.end_task()

    for plain, compiled in zip(steps(False), steps(True), strict=True):
        assert plain.count_nonzero()
        torch.testing.assert_close(compiled, plain, rtol=1e-5, atol=1e-6)
    assert len(compilations) == 1, "later tasks are other inputs of the same code"


@pytest.mark.parametrize("more", ["--trainer nns --nns-every 3 --iter-lim 6", "--tasks-in-parallel 2 --iter-lim 3"])
def test_neither_decisions_nor_tasks_at_once_are_compiled_again(more, tmp_path, compilations):
    words = "--compile --num-tasks 4 --epochs 1 --threads 1 --multigpu cpu --eval-ckpts 1,2,3"
    assert main.main([*words.split(), *more.split(), "--log-dir", str(tmp_path)]) == 0
    assert len(compilations) == 1


@pytest.mark.parametrize("option", ["--amp=bf16", "--channels-last", "--compile"])
def test_faster_training_keeps_the_accuracy(option, plain, tmp_path):
    if option == "--compile" and not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("torch.compile needs a C++ compiler, and there is none")
    words = [*MASKS.split(), "--multigpu", "cpu", "--epochs", "4", option]
    state, accuracies = learned(tmp_path, "fast", *words)
    assert min(plain[1]) > 0.8
    assert accuracies == pytest.approx(plain[1], abs=0.03)
    # Masks have the same counts whatever the arithmetic; only where scores nearly tie they may differ.
    for name, value in plain[0].items():
        differing = (state[name] ^ value).count_nonzero() / value.numel()
        assert state[name].shape == value.shape and differing < 0.25
