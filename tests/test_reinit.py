"""Transfer: what the scores of a new task start from."""

from functools import partial

import pytest
import torch

import main
from models import Builder, get_model, masks, multitask
from tests.batches import BatchList
from trainers import ADAPTATIONS
from trainers.options import TrainingOptions
from trainers.reinit import ReinitTrainer
from utils.checkpoint import Checkpoint
from utils.errors import UserError
from utils.seeding import generator

RNG = partial(generator, 2)
SHAPE = (1, 5, 5)


class Batches(BatchList):
    """Images around the mean that each class has in the task, with the interface of a loader."""

    def __init__(self, task):
        keyed = generator("images", task)
        means = torch.randn(3, *SHAPE, generator=keyed) * 2
        y = torch.randint(0, 3, (12, 32), generator=keyed)
        super().__init__(list(zip(means[y] + torch.randn(12, 32, *SHAPE, generator=keyed) / 2, y, strict=True)))


def make(adapt, most_recent_k=None, reinit_from=None):
    builder = Builder(RNG, 6, "MultitaskMaskConv", sparsity=0.3)
    model = get_model("LeNet", builder, SHAPE, 5)
    options = TrainingOptions(
        lr=1e-2, reinit_adapt=adapt, reinit_most_recent_k=most_recent_k, reinit_from=reinit_from, epochs=2
    )
    return ReinitTrainer(model, options, RNG)


def learn(trainer, tasks):
    for task in tasks:
        trainer.begin_task(task)
        trainer.train(Batches(task), 0)
        trainer.end_task()


def scores(trainer):
    return {name: value.detach().clone() for name, value in multitask.task_parameters(trainer.model).items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def fresh(task):
    trainer = make("n-1")
    multitask.begin_task(trainer.model, task, RNG)
    return scores(trainer)


@pytest.mark.parametrize("adapt", [name for name in ADAPTATIONS if name != "n-1-imagenet"])
def test_the_first_task_starts_from_fresh_scores(adapt):
    trainer = make(adapt)
    trainer.begin_task(3)
    assert same(scores(trainer), fresh(3))


@pytest.mark.parametrize(
    "adapt, most_recent_k, parts",
    [
        ("running_mean", None, [4, 0, 1]),
        ("running_mean", 2, [0, 1]),
        ("n-1", None, [1]),
        ("starting_from_task_0", None, [4]),
        ("starting_from_task_0", 1, [4]),
    ],
)
def test_a_later_task_starts_from_the_mean_of_these_tasks(adapt, most_recent_k, parts):
    trainer = make(adapt, most_recent_k)
    learn(trainer, [4, 0, 1])
    trainer.begin_task(2)
    for name, value in scores(trainer).items():
        mean = sum(trainer.learned[task][name] for task in parts) / len(parts)
        torch.testing.assert_close(value, mean, rtol=1e-6, atol=1e-7)  # summed in another order
    assert all(value.device.type == "cpu" for kept in trainer.learned.values() for value in kept.values())


def test_a_random_earlier_task_is_drawn_by_the_task():
    trainer = make("random", most_recent_k=3)
    learn(trainer, [0, 1, 2, 3])
    chosen = []
    for task in (4, 5, 4):
        trainer.begin_task(task)
        chosen += [other for other in (0, 1, 2, 3) if same(scores(trainer), trainer.learned[other])]
    assert len(chosen) == 3 and chosen[0] == chosen[2] and 0 not in chosen


@pytest.mark.parametrize("adapt", ["gradient", "binary"])
def test_the_task_most_like_the_new_one_is_found_by_its_first_batch(adapt):
    trainer, begun = make(adapt), []
    learn(trainer, [0, 1, 2, 3])
    step = trainer.step

    def first_step(x, y):
        begun.append(scores(trainer))
        return step(x, y)

    trainer.step = first_step
    trainer.begin_task(5)
    trainer.train(Batches(2), 0)  # a task of the same images as task 2
    assert same(begun[0], trainer.learned[2])
    trainer.train(Batches(2), 1)
    assert len(begun) == 24 and not same(begun[12], trainer.learned[2]), "the second epoch goes on"
    before = multitask.task_state(trainer.model, 2)["layers.0.mask"].clone()
    trainer.end_task()
    assert torch.equal(multitask.task_state(trainer.model, 2)["layers.0.mask"], before)


# The program

FLAGS = "--set DigitsPerm --conv-type MultitaskMaskConv --sparsity 0.3 --trainer reinit --adaptor gt --epochs 1"
FLAGS = [*FLAGS.split(), "--threads", "1", "--multigpu", "cpu"]


def states(run):
    records, damaged = Checkpoint(run / "checkpoint.pt").read()
    assert damaged == 0
    return {record.values["task"]: record.tensors for record in records if record.kind == "task"}


@pytest.mark.parametrize("adapt", ["running_mean", "gradient"])
def test_kept_scores_survive_a_resume(adapt, tmp_path):
    words = [*FLAGS, "--reinit-adapt", adapt, "--num-tasks", "4", "--log-dir", str(tmp_path)]
    assert main.main([*words, "--name", "whole"]) == 0
    whole = tmp_path / "whole" / "checkpoint.pt"
    records, _ = Checkpoint(whole).read()
    (tmp_path / "cut").mkdir()
    cut = Checkpoint(tmp_path / "cut" / "checkpoint.pt")
    for record in records[:3]:  # the settings and two tasks
        cut.append(record)
    assert main.main([*words, "--name", "cut", "--resume"]) == 0
    ours, theirs = states(tmp_path / "whole"), states(tmp_path / "cut")
    assert ours.keys() == theirs.keys() == {0, 1, 2, 3}
    assert all(same(ours[task], theirs[task]) for task in ours)


def test_a_run_can_be_exported_imported_and_resumed(tmp_path):
    path = tmp_path / "model.sup"
    words = [*FLAGS, "--num-tasks", "2", "--log-dir", str(tmp_path)]
    assert main.main([*words, "--name", "first", "--export", str(path)]) == 0
    assert main.main([*words, "--name", "again", "--import", str(path)]) == 0
    assert main.main([*words, "--name", "again", "--resume"]) == 0
    results = [(tmp_path / name / "adapt_results.csv").read_text() for name in ("first", "again")]
    assert results[0] == results[1]


@pytest.mark.parametrize("kept_scores", [True, False])
def test_a_run_can_start_from_another_runs_task(kept_scores, tmp_path):
    first = [*FLAGS, "--log-dir", str(tmp_path), "--task-eval", "0", "--name", "first"]
    first += [] if kept_scores else ["--trainer", "default"]
    assert main.main(first) == 0
    path = tmp_path / "first" / "checkpoint.pt"
    state = states(tmp_path / "first")[0]
    trainer = make("n-1-imagenet", reinit_from=str(path))
    with pytest.raises(UserError, match="no mask for the layer"):
        trainer.check([2])  # of images of another size
    trainer.model = get_model("LeNet", Builder(RNG, 5, "MultitaskMaskConv", sparsity=0.3), (1, 28, 28), 100)
    trainer.check([2])
    trainer.begin_task(2)
    started = scores(trainer)
    if kept_scores:
        assert all(torch.equal(value, state[f"trainer.{name}"]) for name, value in started.items())
    for name, value in started.items():
        dropped = masks.dropped_weights(value.shape, 0.3, er_sparsity=False)
        packed = masks.pack(masks.top_k(value.abs(), dropped).flatten())
        assert torch.equal(packed, state[f"own.{name.replace('scores', 'mask')}"])


@pytest.mark.parametrize("model, norm", [("LeNet", "MultitaskNonAffineBN"), ("BNNet", "FastHopMaskBN")])
def test_fresh_scores_get_the_signs_of_a_mask_where_layers_have_a_threshold(model, norm):
    builder = Builder(RNG, 3, "FastMultitaskMaskConv", norm)
    trainer = ReinitTrainer(get_model(model, builder, SHAPE, 5), TrainingOptions(reinit_adapt="n-1-imagenet"), RNG)
    multitask.begin_task(trainer.model, 0, RNG)
    for parameter in multitask.task_parameters(trainer.model).values():
        torch.nn.init.uniform_(parameter, -1, 1, generator=generator(1, "scores"))
    multitask.end_task(trainer.model)
    kept = {name: value.clone() for name, value in multitask.task_state(trainer.model, 0).items()}
    trainer.foreign = {f"own.{name}": value for name, value in kept.items()}
    trainer.begin_task(1)
    multitask.end_task(trainer.model)
    state = multitask.task_state(trainer.model, 1)
    own = [name for name in kept if name.endswith(".mask")]
    assert own and all(torch.equal(state[name], kept[name]) for name in own)


@pytest.mark.parametrize(
    "words, said",
    [
        (["--reinit-adapt", "n-1-imagenet"], "--reinit-from None"),
        (["--reinit-from", "somewhere"], "--reinit-from somewhere: goes with"),
        (["--reinit-adapt", "n-1-imagenet", "--reinit-from", "nowhere"], "nowhere"),
        (["--reinit-adapt", "mean"], "invalid choice"),
        (["--reinit-most-recent-k", "0"], "'0' is not a whole number that is at least 1"),
        (["--reinit-adapt", "binary", "--individual-heads", "--adaptor", "gt"], "no masks to choose among"),
    ],
)
def test_bad_flags_are_refused_in_one_line(words, said, tmp_path, capsys):
    log_dir = tmp_path / "runs"
    assert main.main([*FLAGS, *words, "--log-dir", str(log_dir)]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not log_dir.exists()
