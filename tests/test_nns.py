"""NNs: masks are allocated where the data change, trained on from where they were left, and survive a kill."""

import csv
import math
from functools import partial

import pytest
import torch

import main
from models import Builder, get_model, multitask
from tests.batches import BatchList
from tests.conftest import kill_at_step
from trainers import nns
from trainers.inference import entropy
from trainers.nns import NNsTrainer
from trainers.options import TrainingOptions
from utils.checkpoint import Checkpoint
from utils.seeding import generator

# 8 epochs of 12 batches a task; decisions fall on the first batch of each.
STREAM = "--trainer nns --epochs 8 --nns-every 12 --output-size 500 --threads 1 --multigpu cpu --name nns --lr 1e-3"
SHAPE, OUTPUTS = (1, 6, 6), 20


def make(num_tasks=3, every=4, epsilon=0.125, **more):
    builder = Builder(partial(generator, 0), max(num_tasks, NNsTrainer.room))
    model = get_model("LeNet", builder, SHAPE, OUTPUTS)
    options = TrainingOptions(num_tasks=num_tasks, nns_every=every, nns_epsilon=epsilon, **{"lr": 1e-4, **more})
    return NNsTrainer(model, options, partial(generator, 0))


class Loader(BatchList):
    """Random batches with labels that the first pixels tell."""

    def __init__(self, task: int, batches: int = 8):
        x = torch.randn(batches, 16, *SHAPE, generator=generator("x", task))
        super().__init__([(images, images.flatten(1)[:, task : task + 5].argmax(dim=1)) for images in x])


def decide_as(trainer, monkeypatch, *choices):
    """Let decisions come out as ``choices``: the mask that explains the data, or None when they are new."""
    choices = iter(choices)

    def gradients(model, masks, alphas, images, objective):
        choice = next(choices)
        return torch.tensor([[-10.0 if mask == choice else 0.0 for mask in masks]])

    monkeypatch.setattr(nns, "alpha_gradients", gradients)


def learn(trainer, task, **more):
    trainer.begin_task(task)
    trainer.train(Loader(task, **more), 0)
    return trainer.end_task()


def kinds(trainer):
    return [(d.batch, d.hidden_task, d.decision, d.mask, d.right) for d in trainer.decisions]


def test_the_criterion_is_the_papers(monkeypatch):
    trainer, seen = make(), {}
    original = nns.alpha_gradients

    def spy(model, masks, alphas, images, objective):
        seen.update(masks=list(masks), alphas=alphas, objective=objective)
        seen["gradient"] = original(model, masks, alphas, images, objective)
        return seen["gradient"]

    monkeypatch.setattr(nns, "alpha_gradients", spy)
    learn(trainer, 0, batches=1)
    assert seen["masks"] == [0, 1, 2, 3, 4] and torch.equal(seen["alphas"], torch.full((5,), 0.2))
    assert seen["objective"] is entropy
    grads = seen["gradient"][0].tolist()
    nu = [math.exp(-g) / sum(math.exp(-other) for other in grads) for g in grads]
    assert trainer.decisions[0].strength == pytest.approx(5 * max(nu), rel=1e-5)
    assert kinds(trainer) == [(0, 0, "allocate", 0, True)]


def test_the_masks_that_are_compared_are_the_current_scores_and_initial_ones(monkeypatch):
    trainer = make(every=4, optimizer="sgd", lr=10.0)
    bits = []

    def gradients(model, masks, alphas, images, objective):
        bits.append({mask: multitask.task_state(model, mask)["layers.0.mask"].clone() for mask in masks})
        return torch.tensor([[-10.0, *[0.0] * (len(masks) - 1)]])

    monkeypatch.setattr(nns, "alpha_gradients", gradients)
    learn(trainer, 0)
    assert not torch.equal(bits[0][0], bits[1][0]), "the mask in training takes part as it is now"
    assert all(torch.equal(bits[0][mask], bits[1][mask]) for mask in (1, 2, 3, 4))
    multitask.begin_task(trainer.model, 3, trainer.rng)
    multitask.end_task(trainer.model)
    assert torch.equal(bits[1][3], multitask.task_state(trainer.model, 3)["layers.0.mask"])


def test_a_decision_does_not_disturb_the_training_of_the_mask_that_goes_on(monkeypatch):
    often, seldom = make(every=2, momentum=0.9, optimizer="sgd"), make(every=100, momentum=0.9, optimizer="sgd")
    decide_as(often, monkeypatch, *[0] * 20)
    learn(often, 0)
    decide_as(seldom, monkeypatch, 0)
    learn(seldom, 0)
    for name, scores in seldom._scores[0].items():
        assert torch.equal(scores, often._scores[0][name])


def test_an_old_mask_goes_on_from_its_own_scores_with_a_fresh_optimiser(monkeypatch):
    trainer = make(every=8, optimizer="rmsprop")
    decide_as(trainer, monkeypatch, None, None, 0)
    learn(trainer, 0)
    first = {name: scores.clone() for name, scores in trainer._scores[0].items()}
    learn(trainer, 1)
    trainer.begin_task(0)
    trainer._decide(Loader(0).batches[0][0])
    assert not any(state["exp_avg_sq"].any() for state in trainer.optimizer.state.values())
    for name, scores in multitask.task_parameters(trainer.model).items():
        assert torch.equal(scores, first[name])
    assert kinds(trainer) == [(0, 0, "allocate", 0, True), (8, 1, "allocate", 1, True), (16, 0, "go on", 0, True)]


def test_data_that_an_unallocated_mask_explains_best_are_new(monkeypatch):
    trainer = make(every=8)
    decide_as(trainer, monkeypatch, None, 3)
    changed = {*learn(trainer, 0).changed, *learn(trainer, 1).changed}
    assert [d.mask for d in trainer.decisions] == [0, 1] and changed == {0, 1}


def test_batches_that_ask_for_more_than_the_budget_are_skipped_and_harm_nothing(monkeypatch):
    trainer = make(num_tasks=1, every=8)
    decide_as(trainer, monkeypatch, None, None, 0)
    first = learn(trainer, 0)
    before = {name: scores.clone() for name, scores in trainer._scores[0].items()}
    trainer.begin_task(1)
    assert math.isnan(trainer.train(Loader(1), 0)[0])
    second = trainer.end_task()
    assert "8 batches skipped" in second.note and "`num_tasks`" in second.note
    assert all(torch.equal(scores, before[name]) for name, scores in trainer._scores[0].items())
    assert (first.mask, second.mask) == (0, None)
    assert kinds(trainer)[1] == (8, 1, "skipped", 0, True)
    learn(trainer, 2)  # a wrong decision: task 2 has no mask, so to go on is none
    assert kinds(trainer)[2] == (16, 2, "go on", 0, False)


def test_decisions_are_right_or_wrong_by_the_hidden_task(monkeypatch):
    trainer = make(num_tasks=4, every=2)
    decide_as(trainer, monkeypatch, None, 0, None, 0, 0, None, 1, 2)
    learn(trainer, 0)
    learn(trainer, 1)
    rights = [(d.decision, d.mask, d.right) for d in trainer.decisions]
    assert rights == [
        ("allocate", 0, True),
        ("go on", 0, True),
        ("allocate", 1, False),  # a second mask for the same task
        ("go on", 0, True),
        ("go on", 0, False),  # a new task taken for an old one
        ("allocate", 2, False),  # too late
        ("go on", 1, False),
        ("go on", 2, True),
    ]


@pytest.mark.parametrize("surprise", [None, 1.0])
def test_what_a_record_keeps_is_all_that_is_needed_to_go_on(surprise, monkeypatch):
    decisions = [None, 0, 0, None, 1, 1, 0, 0, 1] if surprise is None else [None, *[0] * 99]
    make = partial(globals()["make"], every=3, optimizer="rmsprop", nns_surprise=surprise)
    through, cut = make(), make()
    decide_as(through, monkeypatch, *decisions)
    for task in range(3):
        learn(through, task)
    decide_as(cut, monkeypatch, *decisions)
    for task in range(2):
        learn(cut, task)
    fresh = make()
    for task in range(2):
        fresh.load_task_record(task, cut.task_record(task) if task == 1 else through_record(cut, task))
    learn(fresh, 2)
    assert kinds(fresh) == kinds(through)
    for mask, scores in through._scores.items():
        assert all(torch.equal(value, fresh._scores[mask][name]) for name, value in scores.items())
        ours, theirs = (multitask.task_state(t.model, mask) for t in (through, fresh))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_batch_that_surprises_is_decided_upon_before_the_mask_trains_on_it(monkeypatch):
    alone, trainer = (make(every=100, nns_surprise=surprise) for surprise in (None, 2.0))
    decide_as(alone, monkeypatch, None)
    learn(alone, 0)
    decide_as(trainer, monkeypatch, None, None)
    learn(trainer, 0)
    trainer.begin_task(1)
    trainer.train(BatchList([(100 * x, y) for x, y in Loader(1).batches]), 0)
    trainer.end_task()
    assert kinds(trainer) == [(0, 0, "allocate", 0, True), (8, 1, "allocate", 1, True)]
    assert all(torch.equal(scores, alone._scores[0][name]) for name, scores in trainer._scores[0].items())


def test_batches_that_are_skipped_surprise_nobody_and_a_run_may_go_on_among_them(monkeypatch):
    trainer = make(num_tasks=1, every=100, nns_surprise=2.0)
    decide_as(trainer, monkeypatch, None, None)
    learn(trainer, 0)
    strange = [(100 * x, y) for x, y in Loader(1).batches]
    trainer.begin_task(1)
    trainer.train(BatchList(strange), 0)
    assert [(d.batch, d.decision) for d in trainer.decisions] == [(0, "allocate"), (8, "skipped")]
    fresh = make(num_tasks=1, every=100, nns_surprise=2.0)
    fresh.load_task_record(0, through_record(trainer, 0))
    fresh.load_task_record(1, trainer.task_record(1))
    fresh.begin_task(2)
    assert fresh.step(*strange[0]) is None and len(fresh.decisions) == 2


def test_looking_for_surprises_changes_nothing_where_there_are_none(monkeypatch):
    plain, looking = make(every=100), make(every=100, nns_surprise=1e6)
    for trainer in (plain, looking):
        decide_as(trainer, monkeypatch, None)
        learn(trainer, 0)
    assert all(torch.equal(scores, plain._scores[0][name]) for name, scores in looking._scores[0].items())


def test_the_lengths_of_hidden_tasks_are_drawn(monkeypatch):
    lengths = []
    for jitter in (0, 3, 3):
        trainer = make(every=1000, iter_lim=5, stream_jitter=jitter)
        decide_as(trainer, monkeypatch, None)
        for task in range(12):
            learn(trainer, task, batches=9)
        ends = [sum(trainer._trained[task].values()) for task in range(12)]
        lengths.append(ends)
    assert lengths[0] == [5] * 12 and lengths[1] == lengths[2]
    assert {2, 8} <= set(lengths[1]) <= set(range(2, 9))


def through_record(trainer, task):
    """What the record of an earlier task has left once the later ones replaced the rest."""
    record = {f"{kind}.{task}": trainer.task_record(task)[f"{kind}.{task}"] for kind in ("trained", "decisions")}
    return record | {f"scores.0.{name}": value for name, value in trainer._scores[0].items()}


def stream(folder, *words):
    """The words of a run of hidden tasks in ``folder``."""
    return [*STREAM.split(), "--log-dir", str(folder / "runs"), *map(str, words)]


def rows(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def test_a_run_allocates_a_mask_for_each_hidden_task_and_infers_them(tmp_path, capsys):
    assert main.main(stream(tmp_path, "--num-tasks", 3)) == 0
    assert "24 of 24 decisions right (100.0%)" in capsys.readouterr().out
    table = rows(tmp_path / "runs" / "nns" / "nns.csv")
    assert [row["mask"] for row in table if row["decision"] == "allocate"] == ["0", "1", "2"]
    scores = rows(tmp_path / "runs" / "nns" / "adapt_results.csv")
    assert all(float(row["adapted"]) > 0.9 and float(row["inferred_right"]) == 1 for row in scores)
    assert rows(tmp_path / "runs" / "results.csv")[-1]["Scenario"] == "NNs"


def test_a_budget_of_masks_is_kept_and_the_learned_ones_are_unharmed(tmp_path, capsys):
    assert main.main(stream(tmp_path, "--num-tasks", 2, "--stream-tasks", 4, "--eval-ckpts", 2)) == 0
    assert "96 batches skipped, for they asked for more than the 2 masks of --num-tasks" in capsys.readouterr().out
    scores = rows(tmp_path / "runs" / "nns" / "adapt_results.csv")
    two, four = scores[:2], scores[2:]
    assert [row["given"] for row in two] == [row["given"] for row in four[:2]]
    assert [row["given"] for row in four[2:]] == ["", ""] and all(row["adapted"] for row in four)
    shares = [float(row["inferred_right"]) for row in four]
    assert shares[2:] == [0, 0]  # no mask of theirs could be inferred
    last = rows(tmp_path / "runs" / "results.csv")[-1]
    assert float(last["Share Inferred Right"]) == pytest.approx(sum(shares) / 4)
    assert last["Name"].endswith("given of the 2 that have a mask of their own")


def test_killed_in_a_hidden_task_and_called_again_it_ends_the_same(tmp_path):
    words = stream(tmp_path, "--num-tasks", 4, "--resume")
    assert main.main(words) == 0
    whole = tmp_path / "runs"
    whole.rename(tmp_path / "whole")
    kill_at_step(8 * 12 + 50, words)  # in the second task
    assert Checkpoint(tmp_path / "runs" / "nns" / "checkpoint.pt").read()[0]
    assert main.main(words) == 0
    for name in ("nns.csv", "adapt_results.csv"):
        assert (tmp_path / "runs" / "nns" / name).read_text() == (tmp_path / "whole" / "nns" / name).read_text()
    names = [row["Name"] for row in rows(tmp_path / "runs" / "results.csv")]
    assert len(names) == len(set(names)) == 5


def test_a_record_holds_the_scores_of_masks_that_its_task_trained_alone(monkeypatch):
    trainer = make()
    decide_as(trainer, monkeypatch, None, 0, None, 1, 0, 0)
    for task, trained in enumerate(({0}, {1}, {0})):  # the next begins with the mask of the one before
        assert set(learn(trainer, task).changed) == trained
        scores = {name.split(".")[1] for name in trainer.task_record(task) if name.startswith("scores.")}
        assert scores == {str(mask) for mask in trained}


def test_masks_are_candidates_in_the_order_of_learning_though_later_records_have_their_scores(monkeypatch):
    trainer = make()
    decide_as(trainer, monkeypatch, None, 0, None, 1, 0, 0)
    changed = [learn(trainer, task).changed for task in range(3)]
    records = [trainer.task_record(task) for task in range(3)]
    records[0] = {name: value for name, value in records[0].items() if name not in records[2]}  # as they are read
    again = make()
    assert [again.load_task_record(task, record).changed for task, record in enumerate(records)] == changed


def test_state_of_a_task_that_is_no_mask_is_refused(tmp_path, capsys):
    words = ["--trainer", "nns", "--model", "BNNet", "--bn-type", "MultitaskNonAffineBN", "--threads", "1"]
    assert main.main([*words, "--log-dir", str(tmp_path / "runs")]) == 2
    assert "keeps masks alone" in capsys.readouterr().err and not (tmp_path / "runs").exists()
