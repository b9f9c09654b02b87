"""What the flags of an experiment script mean; wrong ones are refused in test_launcher.py."""

import argparse

import pytest
import torch

from experiments import gpus, options


@pytest.mark.parametrize(
    "text, sets",
    [
        ("0", ["0"]),
        ("0|1|2|3", ["0", "1", "2", "3"]),
        ("0,1|2,3", ["0,1", "2,3"]),
        ("cpu", ["cpu"]),
        ("cpu|cpu", ["cpu", "cpu"]),
        ("0|cpu", ["0", "cpu"]),
        (" 0 , 1 | 02 ", ["0,1", "2"]),
        ("0|0", ["0", "0"]),
    ],
)
def test_gpu_sets(text, sets):
    assert gpus.parse_sets(text) == sets


@pytest.mark.parametrize("text", ["", "|", "0||1", "0|", "a", "0,cpu", "cpu,cpu", "0,0", "0,00", "-1", "1.0"])
def test_malformed_gpu_sets(text):
    with pytest.raises(argparse.ArgumentTypeError):
        gpus.parse_sets(text)


@pytest.mark.parametrize(
    "text, gpus_a_run, numbered",
    [("cpu|cpu", 0, "cpu"), ("5", 1, "0"), ("0,1|2,3", 2, "0,1"), ("0|0", 0.5, "0"), ("0|1|1", 0.5, "0")],
)
def test_what_sets_ask_of_a_cluster(text, gpus_a_run, numbered):
    sets = gpus.parse_sets(text)
    assert gpus.asked_for(sets) == gpus_a_run and set(gpus.renumbered(sets)) == {numbered}


@pytest.mark.parametrize("text", ["0|cpu", "0|1,2", "0,1|0,1", "0,1|1,2"])
def test_sets_that_no_cluster_can_give(text):
    with pytest.raises(ValueError, match="--gpu-sets"):
        gpus.asked_for(gpus.parse_sets(text))


@pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "1/0", "-1/2", "1/2/3", "a/b", "1/²", "1.0/2", "1/123456789"])
def test_malformed_shards(text):
    with pytest.raises(argparse.ArgumentTypeError, match="I/N"):
        options.parse_shard(text)


@pytest.mark.parametrize(
    "text, seeds",
    [("1", [0]), ("3", [0, 1, 2]), ("3,4", [3, 4]), ("5,", [5]), ("0,", [0]), ("7, 2", [7, 2]), ("02,1", [2, 1])],
)
def test_seeds(text, seeds):
    assert options.parse_seeds(text) == seeds


@pytest.mark.parametrize("of_torch, of_driver, there", [(1, 0, 0), (0, 1, 0), (2, 2, 2)])
def test_a_gpu_counts_if_torch_and_the_driver_can_use_it(of_torch, of_driver, there, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: of_torch)
    monkeypatch.setattr(gpus, "driver_count", lambda: of_driver)
    assert gpus.count() == there
    assert gpus.default_sets(to_print=False) == ([str(gpu) for gpu in range(there)] or ["cpu"])
