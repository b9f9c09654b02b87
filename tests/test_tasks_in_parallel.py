"""Several tasks trained at once: each comes out as it would alone."""

from functools import partial

import pytest
import torch

import main
from data import DATASETS
from data.loader import StackedLoader
from models import Builder, get_model, modules, multitask
from tests.test_main import masks, rows, same_masks
from trainers.options import TrainingOptions
from trainers.record import RunRecord
from trainers.several import SeveralTrainer
from utils.seeding import generator

RNG = partial(generator, 0)


def learn(model_name, options, batches, together, tasks=range(3), **layers):
    """The state of each task, and what training and testing said of it, learned one by one or at once."""
    data = DATASETS["DigitsPerm"](num_tasks=len(tasks))
    model = get_model(model_name, Builder(RNG, len(tasks), **layers), data.input_shape, 20)
    trainer = SeveralTrainer(model, TrainingOptions(iter_lim=batches, **{"lr": 1e-4, **options}), RNG)
    said = {}
    for group in [list(tasks)] if together else [[task] for task in tasks]:
        train_loader, val_loader = data.loaders(group)
        trainer.begin_tasks(group)
        losses, shares = trainer.train(train_loader, 0), trainer.test(val_loader)
        assert [learned.task for learned in trainer.end_tasks()] == group
        said |= dict(zip(group, zip(losses, shares, strict=True), strict=True))
    return {task: multitask.task_state(model, task) for task in tasks}, said


def test_shared_weights_have_no_gradient_in_tasks_at_once():
    model = get_model("LeNet", Builder(RNG, 2, conv_type="VectorizedBatchEnsembles"), (1, 8, 8), 10)
    trainer = SeveralTrainer(model, TrainingOptions(optimizer="sgd"), RNG)
    trainer.begin_tasks([0, 1])
    trainer.step(torch.randn(2, 4, 1, 8, 8), torch.zeros(2, 4, dtype=torch.int64))
    shared = multitask.shared_parameters(model)
    assert shared and all(weight.grad is None for weight in shared)


@pytest.mark.parametrize(
    "model, layers, options",
    [
        ("LeNet", {}, {}),
        ("FC1024", {"conv_type": "MultitaskMaskConv", "sparsity": 0.4}, {"optimizer": "adam"}),
        ("LeNet", {"conv_type": "VectorizedBatchEnsembles"}, {"optimizer": "sgd", "lr": 0.1}),
        ("LeNet", {"individual_heads": True}, {"lr": 1e-3}),
        ("GEMResNet18", {"conv_type": "MultitaskMaskConv", "sparsity": 8, "er_sparsity": True}, {"optimizer": "adam"}),
        ("GEMResNet18", {}, {"channels_last": True}),
    ],
)
def test_a_task_comes_out_as_it_would_alone(model, layers, options):
    deep = model == "GEMResNet18"  # noise in the sums grows with its steps
    batches, tasks = (1, range(2)) if deep else (8, range(3))
    alone, said_alone = learn(model, options, batches, together=False, tasks=tasks, **layers)
    together, said = learn(model, options, batches, together=True, tasks=tasks, **layers)
    for task in alone:
        assert torch.tensor(said[task]) == pytest.approx(torch.tensor(said_alone[task]), abs=5e-3)
        for name, value in alone[task].items():
            if value.dtype == torch.uint8:  # scores about 0 may fall on either side
                differing = masks_bits(value) != masks_bits(together[task][name])
                assert differing.float().mean() < 2e-3, name
            else:
                torch.testing.assert_close(together[task][name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_residual_networks_train_at_once_in_mixed_precision(monkeypatch):
    kinds, whole = [], modules.convolve

    def seen(*given, **how):
        kinds.append(answer.dtype) if (answer := whole(*given, **how)).requires_grad else None
        return answer

    monkeypatch.setattr(modules, "convolve", seen)
    (alone, said_alone), (together, said) = (
        learn("GEMResNet18", {"amp": "bf16"}, 1, together, tasks=range(2), width_mult=0.5) for together in (False, True)
    )
    assert len(kinds) == 2 * 2 * 21 and set(kinds) == {torch.bfloat16}
    assert torch.tensor(said[1]) == pytest.approx(torch.tensor(said_alone[1]), abs=0.05)  # loss and accuracy
    for name, value in alone[1].items():
        if value.dtype == torch.uint8:
            assert (masks_bits(value) != masks_bits(together[1][name])).float().mean() < 0.02, name
        else:
            torch.testing.assert_close(together[1][name], value, rtol=0.05, atol=0.05, msg=name)


def masks_bits(packed):
    return packed[:, None] >> torch.arange(8) & 1


def test_mixed_precision_and_a_weight_decay_reach_every_task():
    plain, _ = learn("LeNet", {}, 8, together=True)
    mixed, said = learn("LeNet", {"amp": "bf16", "weight_decay": 1e-4}, 8, together=True)
    for task, (loss, _) in said.items():
        assert loss < 3
        same = masks_bits(plain[task]["layers.0.mask"]) == masks_bits(mixed[task]["layers.0.mask"])
        assert 0.97 < same.float().mean() < 1


def test_eight_tasks_at_once_are_as_accurate_as_one_by_one(tmp_path):
    def run(name, *more):
        words = ["--threads", "1", "--multigpu", "cpu", "--num-tasks", "8", "--epochs", "6", "--eval-ckpts", "3"]
        assert main.main([*words, "--log-dir", str(tmp_path / name), "--name", "run", *more]) == 0
        learned = {row["Task"]: float(row["Current Val"]) for row in rows(tmp_path / name / "results.csv")}
        for row in rows(tmp_path / name / "run" / "adapt_results.csv"):
            assert float(row["given"]) == learned[row["task"]]  # however it was learned, it answers as it did then
        return learned

    alone, at_once = run("alone"), run("at once", "--tasks-in-parallel", "5")
    assert len(alone) == 9 and alone.keys() == at_once.keys()  # eight tasks, and means that share a name
    assert all(abs(alone[task] - at_once[task]) <= 0.005 for task in alone)


def test_a_run_cut_short_goes_on_with_what_it_has_not_kept(tmp_path, monkeypatch):
    words = ["--threads", "1", "--multigpu", "cpu", "--num-tasks", "5", "--iter-lim", "4", "--tasks-in-parallel", "3"]
    words += ["--eval-ckpts", "2", "--log-dir", str(tmp_path / "log"), "--name", "run"]

    kept, keep_tasks = [], RunRecord.keep_tasks

    def keep_two(self, tasks):
        if kept:
            raise KeyboardInterrupt
        kept.append(len(tasks))
        keep_tasks(self, tasks)

    monkeypatch.setattr(RunRecord, "keep_tasks", keep_two)
    with pytest.raises(KeyboardInterrupt):
        main.main(words)
    monkeypatch.undo()
    assert kept == [2]  # no group goes beyond an evaluation, which is due after two
    assert main.main([*words, "--resume"]) == 0
    whole = [*words[:-4], "--log-dir", str(tmp_path / "whole"), "--name", "run"]
    assert main.main(whole) == 0
    ours, others = masks(tmp_path / "log" / "run"), masks(tmp_path / "whole" / "run")
    assert list(ours) == list(others) == [0, 1, 2, 3, 4]
    for task in (0, 1):
        assert same_masks(ours[task], others[task])


@pytest.mark.parametrize(
    "words, said",
    [
        (["--trainer", "nns"], "--trainer nns a task depends on those before it"),
        (["--trainer", "reinit"], "--trainer reinit a task depends on those before it"),
        (["--train-weight-tasks", "1"], "with --train-weight-tasks 1 tasks train weights that they share"),
        (["--model", "GEMResNet18", "--bn-type", "StandardBN"], "StandardBN has statistics that all tasks share"),
        (["--multigpu", "cpu,cpu"], "needs one device"),
        (["--model", "GEMResNet18", "--width-mult", "0.2", "--compile", "--amp", "bf16"], "with --amp bf16, --compile"),
        (["--set", "SplitDigits"], "SplitDigits cannot serve several at once: the tasks have not equally many images"),
    ],
)
def test_tasks_that_cannot_be_trained_at_once_are_refused(words, said, tmp_path, capsys):
    assert main.main([*words, "--tasks-in-parallel", "2", "--log-dir", str(tmp_path / "log"), "--threads", "1"]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "log").exists()


def test_loaders_that_are_one_and_the_same_are_not_stacked():
    loader = DATASETS["DigitsPerm"]().train_loader
    with pytest.raises(ValueError, match="one task at a time"):
        StackedLoader([loader, loader])


@pytest.mark.parametrize("share", [(0, 1), (1, 2)])
def test_batches_of_several_tasks_are_those_of_each(share):
    data = DATASETS["DigitsPerm"](num_tasks=3, batch_size=100, share=share)
    own = [data.loaders([task])[0] for task in (2, 0)]
    together, _ = data.loaders([2, 0])
    for loader in (*own, together):
        loader.set_epoch(1, 3)
    for (x, y), *each in zip(together, *own, strict=True):
        assert torch.equal(x, torch.stack([x for x, _ in each])) and torch.equal(y, torch.stack([y for _, y in each]))
