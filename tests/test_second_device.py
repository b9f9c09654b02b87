"""Nothing computes with tensors of two devices at once: small runs on a device that refuses to."""

import pytest
import torch
import yaml
from device import DEVICE, There, second_device
from tiny import RUNS, Tiny, TinyBN, call_main

from data.kept import crop
from models import BN_TYPES, CONV_TYPES, MODELS
from trainers import ADAPTORS, setup

SHORT = "--epochs 1 --iter-lim 2 --num-tasks 2 --test-batch-size 500 "
LAYERS = {
    "MaskConv": "--task-eval 0",
    "MultitaskMaskConv": "--sparsity 0.3 --train-weight-tasks 1",
    "PackNetConv": "--trainer halves --sparsity 0.3",
    "ExSSNeTConv": "--trainer halves --sparsity 0.3",
    "WSNConv": "--sparsity 0.3",
    "PSPRotation": "--conv-init default --train-weight-tasks -1",
    "StandardConv": "--conv-init default --train-weight-tasks -1",
}


@pytest.fixture
def device(monkeypatch):
    """Runs are on the second device."""
    monkeypatch.setitem(MODELS, "Tiny", Tiny)
    monkeypatch.setitem(MODELS, "TinyBN", TinyBN)
    with second_device(monkeypatch):
        yield


def test_the_device_refuses_to_mix(device):
    there, here = torch.ones(3, device=DEVICE), torch.ones(3)
    assert isinstance(there.add(1), There) and there.device == DEVICE and there.cpu().tolist() == [1, 1, 1]
    with pytest.raises(RuntimeError, match="of the device and of the processor"):
        there + here


@pytest.mark.parametrize("name", RUNS)
def test_trainers(name, device, tmp_path):
    assert call_main(tmp_path, *RUNS[name].split(), *SHORT.split()) == 0


@pytest.mark.parametrize("name", sorted(ADAPTORS))
def test_adaptors(name, device, tmp_path):
    layers = RUNS["hopsupsup"] if ADAPTORS[name].recovers else "--output-size 12"
    assert call_main(tmp_path, *layers.split(), "--adaptor", name, *SHORT.split()) == 0


@pytest.mark.parametrize("name", sorted(CONV_TYPES))
def test_layers_with_weights(name, device, tmp_path):
    words = LAYERS.get(name, "").split()
    assert call_main(tmp_path, "--conv-type", name, "--adaptor", "gt", *words, *SHORT.split()) == 0


@pytest.mark.parametrize("name", sorted(BN_TYPES))
def test_norms(name, device, tmp_path):
    words = RUNS["hopsupsup"] if "Hop" in name else "--adaptor gt --train-weight-tasks 1"
    assert call_main(tmp_path, "--model", "TinyBN", "--bn-type", name, *words.split(), *SHORT.split()) == 0


def test_crops_of_kept_images(device):
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in ((40, 50), (30, 60))]
    what = images, torch.tensor([[3, 5, 20, 30], [0, 1, 30, 20]]), torch.tensor([False, True]), (16, 16)
    here, there = crop(*what, torch.device("cpu")), crop(*what, DEVICE)
    assert there.device == DEVICE and (there.cpu().int() - here.int()).abs().max() <= 1


def at_once_of(run):
    return yaml.safe_load((run / "settings.yaml").read_text())["settings"]["tasks_in_parallel"]


@pytest.mark.parametrize(
    "memory, words, at_once",
    [
        (10**9, "", 3),
        (10**6, "", 1),
        (24 * 10**6, "", 2),
        (10**9, "--tasks-in-parallel 2", 2),
        (10**9, "--trainer nns", 1),
        (10**9, "--train-weight-tasks 1 --adaptor gt", 1),
        (10**9, RUNS["at once, batch norm"].replace("--tasks-in-parallel 2", ""), 1),
        (10**9, "--set SplitDigits", 1),
        (10**9, "--conv-type BatchEnsembles --conv-init default --adaptor gt", 1),
    ],
)
def test_as_many_tasks_at_once_as_memory_has_room_for(memory, words, at_once, device, tmp_path, monkeypatch):
    monkeypatch.setattr(setup, "gpu_memory", lambda device: memory)
    assert call_main(tmp_path, *SHORT.split(), "--num-tasks", "3", *words.split()) == 0
    assert at_once_of(tmp_path / "run") == at_once


def test_on_a_processor_tasks_are_trained_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "Tiny", Tiny)
    assert call_main(tmp_path, *SHORT.split()) == 0
    assert at_once_of(tmp_path / "run") == 1
