"""What masks cost, the coder, and files of exported masks."""

import math
import os

import numpy as np
import pytest
import torch
import yaml

import main
import trainers.run
from models import Builder, get_model, multitask
from trainers.export import Storage, load_export, read_export, task_storage
from utils import storage
from utils.checkpoint import Checkpoint
from utils.seeding import generator


def random_masks(*sizes_and_densities):
    random = np.random.RandomState(0)
    return [(random.rand(size) < density).astype(np.uint8) for size, density in sizes_and_densities]


def test_the_coder_is_lossless_and_near_the_bound():
    masks = random_masks((40_000, 0.5), (300_000, 0.01), (20_000, 0.1), (64, 0), (64, 1), (9, 0.4))
    code, kept = storage.encode(masks)
    assert kept == [int(mask.sum()) for mask in masks]
    decoded = storage.decode(code, kept, [len(mask) for mask in masks])
    assert all(np.array_equal(mask, again) for mask, again in zip(masks, decoded, strict=True))
    bound = sum(storage.bound_bytes(len(mask), count) for mask, count in zip(masks, kept, strict=True))
    assert bound <= len(code) <= 1.01 * bound + 8


def test_a_code_that_was_changed_does_not_pass_for_masks():
    masks = random_masks((5_000, 0.2), (5_000, 0.3))
    code, kept = storage.encode(masks)
    for wrong in (code[:-4], code[:-1], np.zeros_like(code)):
        with pytest.raises(ValueError):
            storage.decode(wrong, kept, [5_000, 5_000])
    with pytest.raises(ValueError, match="cannot keep"):
        storage.decode(code, [kept[0], 6_000], [5_000, 5_000])


def test_sizes_are_those_of_the_formulas():
    scipy_sparse = pytest.importorskip("scipy.sparse")
    (mask,) = random_masks((20 * 30 * 9, 0.1))
    matrix = scipy_sparse.csc_array(mask.reshape(20, 270))
    indices = matrix.indices.astype(np.uint16).nbytes + matrix.indptr.astype(np.uint16).nbytes
    assert storage.csc16_bytes((20, 30, 3, 3), int(mask.sum())) == indices
    assert storage.bound_bytes(800, 400) == 100 and storage.bound_bytes(800, 0) == 0
    assert storage.bound_bytes(1000, 110) == pytest.approx(125 * (-0.11 * math.log2(0.11) - 0.89 * math.log2(0.89)))


@pytest.mark.parametrize("multiplier, share", [(4, 0.65), (8, 0.58), (16, 0.45)])
def test_resnet50_masks_and_statistics_are_smaller_than_the_papers(multiplier, share):
    published = {4: 65.50e6, 8: 100.98e6, 16: 195.18e6}[multiplier]  # bytes of 100 tasks (paper, table 1)
    rng = lambda *key: generator("storage", *key)  # noqa: E731
    builder = Builder(rng, 1, "MaskConv", "MultitaskNonAffineBN", sparsity=multiplier, er_sparsity=True)
    model = get_model("ResNet50", builder, (3, 224, 224), 10)
    multitask.begin_task(model, 0, rng)
    multitask.end_task(model)  # a mask that was not trained has as many weights as one that was
    size = task_storage(model, 0)
    assert size.bound <= size.coded <= 1.12 * size.bound
    assert 100 * (size.coded + size.batch_norm) <= share * published
    assert size.other == 0 and size.batch_norm == 2 * 4 * 26_560


# Files

FLAGS = "--set DigitsPerm --num-tasks 2 --threads 1 --multigpu cpu".split()
KINDS = {
    "threshold": "--epochs 1",
    "top-k": "--conv-type MultitaskMaskConv --sparsity 0.1 --adaptor gt --epochs 2",
    "trained trunk": "--conv-type VectorizedBatchEnsembles --train-weight-tasks 1 --individual-heads "
    "--adaptor gt --epochs 1",
}


def logits(path):
    """Of every task in an exported file or a checkpoint, on a network made of its settings."""
    settings, records = read_export(path)
    args = main.parse_arguments(["--threads", "1", "--multigpu", "cpu"], settings)
    data, model, _ = main.build(args, torch.device("cpu"), main.Group())
    load_export(path, model, records)
    with torch.no_grad():
        for task in range(2):
            data.update_task(task)
            multitask.select_task(model, task)
            yield model.eval()(next(iter(data.val_loader))[0])


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_model_gives_the_same_logits_and_runs(kind, tmp_path, monkeypatch):
    seen = []

    def remember(model, data, tasks, *more, **how):
        with torch.no_grad():
            for task in tasks:
                data.update_task(task)
                multitask.select_task(model, task)
                seen.append(model.eval()(next(iter(data.val_loader))[0]))
        return evaluate(model, data, tasks, *more, **how)

    evaluate = trainers.run.evaluate
    monkeypatch.setattr(trainers.run, "evaluate", remember)
    path = tmp_path / "model.sup"
    words = [*FLAGS, *KINDS[kind].split(), "--log-dir", str(tmp_path / "runs")]
    assert main.main([*words, "--export", str(path)]) == 0
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(seen, logits(path), strict=True))

    how = [*FLAGS, *KINDS[kind].split()]  # how tasks are learned and tested is not taken from the file
    assert main.main(["--import", str(path), *how, "--log-dir", str(tmp_path / "again")]) == 0
    assert len(seen) == 4 and all(torch.equal(seen[task], seen[task + 2]) for task in range(2))
    (first,), (again,) = ((tmp_path / name).glob("*/adapt_results.csv") for name in ("runs", "again"))
    assert first.read_text() == again.read_text()
    about = yaml.safe_load((first.parent / "settings.yaml").read_text())
    assert set(about["bytes"]) == set(Storage.__dataclass_fields__)
    # An imported run has a checkpoint of its own, which can be resumed.
    records, damaged = Checkpoint(again.parent / "checkpoint.pt").read()
    assert damaged == 0 and [record.kind for record in records] == ["run", "task", "task", "evaluation"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "model.sup"
    words = [*FLAGS, "--epochs", "1", "--log-dir", str(path.parent / "runs"), "--export", str(path)]
    assert main.main(words) == 0
    return path


@pytest.mark.parametrize(
    "words, said",
    [
        (["--seed", "3"], "--seed 0 there, 3 here"),
        (["--num-tasks", "3"], "--num-tasks 2 there, 3 here"),
        (["--model", "FC1024"], "--model LeNet there, FC1024 here"),
    ],
)
def test_an_import_under_other_settings_is_refused(words, said, exported, tmp_path, capsys):
    log_dir = tmp_path / "runs"
    assert main.main(["--import", str(exported), *words, "--log-dir", str(log_dir)]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not log_dir.exists()


def test_a_file_that_is_damaged_missing_or_something_else_is_refused(exported, tmp_path, capsys):
    content = exported.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    checkpoint = next((exported.parent / "runs").glob("*/checkpoint.pt")).read_bytes()
    for name, text in {"cut": content[:-1], "flipped": flipped, "text": b"no", "checkpoint": checkpoint}.items():
        (tmp_path / name).write_bytes(text)
        assert main.main(["--import", str(tmp_path / name), "--log-dir", str(tmp_path / "runs")]) == 2
        error = capsys.readouterr().err
        assert str(tmp_path / name) in error and error.count("\n") == 1
    assert main.main(["--import", str(tmp_path / "none")]) == 2
    assert main.main(["--export", str(tmp_path / "no" / "folder"), "--log-dir", str(tmp_path / "runs")]) == 2
    assert "folder does not exist" in capsys.readouterr().err and not (tmp_path / "runs").exists()


def test_a_half_written_export_leaves_the_old_one(exported, monkeypatch):
    before = exported.read_bytes()

    def full(source, target):
        if target == exported:
            raise OSError(28, "No space left on device")
        replace(source, target)

    replace = os.replace
    monkeypatch.setattr(os, "replace", full)
    words = [*FLAGS, "--epochs", "1", "--log-dir", str(exported.parent / "runs"), "--resume"]
    assert main.main([*words, "--export", str(exported)]) == 1
    assert exported.read_bytes() == before
