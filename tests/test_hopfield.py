"""HopSupSup: the Storkey rule, what is stored, and that recovery finds it."""

import csv
from functools import partial

import pytest
import torch

from data import DATASETS
from models import Builder, get_model, masks, multitask
from models.hopfield import FastHopMaskBN, hamming_distance
from trainers import hopfield, inference
from trainers.evaluation import evaluate
from trainers.options import InferenceOptions
from utils.seeding import generator

SHAPE, OUTPUTS, PLANES = (1, 6, 6), 10, 2048


def network(num_tasks: int = 3):
    builder = Builder(partial(generator, 0), num_tasks, "StandardConv", "FastHopMaskBN")
    return get_model("BNNet", builder, SHAPE, OUTPUTS)


def layers_of(model):
    return [layer for layer in model.modules() if isinstance(layer, FastHopMaskBN)]


def store(model, task: int) -> None:
    """Learn a random mask."""
    multitask.begin_task(model, task, partial(generator, 0))
    with torch.no_grad():
        for index, scores in enumerate(multitask.task_parameters(model).values()):
            scores.copy_(torch.randn(PLANES, generator=generator("scores", index, task)))
    multitask.end_task(model)


def test_a_fresh_mask_keeps_everything():
    model = network()
    multitask.begin_task(model, 0, partial(generator, 0))
    assert all((layer.mask_in_use() == 1).all() for layer in layers_of(model))
    assert all((scores == 0).all() for scores in multitask.task_parameters(model).values())


def test_the_matrix_is_that_of_the_storkey_rule_in_explicit_loops():
    builder = Builder(partial(generator, 0), 3, bn_type="FastHopMaskBN")
    layer, d = builder.batchnorm(8), 8
    psi, stored = [[0.0] * d for _ in range(d)], []
    for task in (2, 0, 1):
        layer.begin_task(task, generator("unused"))
        with torch.no_grad():
            layer.scores.copy_(torch.randn(d, generator=generator("loops", task)))
        z = [1 if score >= 0 else -1 for score in layer.scores.tolist()]
        layer.end_task()
        h = [sum(psi[i][j] * z[j] for j in range(d)) for i in range(d)]
        psi = [
            [psi[i][j] + (z[i] * z[j] - (i == j) - z[i] * h[j] - h[i] * z[j]) / d for j in range(d)] for i in range(d)
        ]
        stored.append(z)
        assert torch.allclose(layer.psi, torch.tensor(psi), atol=1e-6)
        assert torch.allclose(layer.mean, torch.tensor(stored).float().mean(dim=0), atol=1e-6)
    z = 2 * layer.mask_in_use() - 1
    energy = -sum(z[i] * psi[i][j] * z[j] for i in range(d) for j in range(d)) / 2
    assert torch.allclose(layer.energy(), energy, atol=1e-5)


def test_the_network_computes_masked_batch_statistics():
    model, x = network(), torch.randn(9, *SHAPE, generator=generator("x"))
    store(model, 1)
    model.eval()
    hidden = x.flatten(1)
    for index, weight in enumerate(model.layers[i].weight.flatten(1) for i in (0, 3, 6)):
        hidden = hidden @ weight.T
        if index < 2:
            hidden = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + 1e-5).sqrt()
            hidden = hidden * (torch.randn(PLANES, generator=generator("scores", index, 1)) >= 0)
            hidden = hidden * hidden.sigmoid()
    assert torch.allclose(model(x), hidden, atol=1e-4)
    assert model(x[:1]).isfinite().all(), "one image has statistics too"


@pytest.mark.bits
def test_what_is_stored_survives_a_round_trip_and_is_stored_once():
    model, fresh = network(), network()
    for task in (1, 0):
        store(model, task)
        multitask.load_task_state(fresh, task, multitask.task_state(model, task))
    for ours, theirs in zip(layers_of(model), layers_of(fresh), strict=True):
        assert torch.equal(ours.psi, theirs.psi) and torch.equal(ours.mean, theirs.mean)
    with pytest.raises(ValueError, match="already"):
        multitask.load_task_state(fresh, 0, multitask.task_state(model, 0))
    store(model, 2)
    for task in (0, 1):
        for name, state in multitask.task_state(model, task).items():
            assert torch.equal(state, multitask.task_state(fresh, task)[name]), "later tasks change no bit"


def test_the_energy_alone_leads_from_a_damaged_mask_to_the_stored_one():
    builder = Builder(partial(generator, 0), 3, bn_type="FastHopMaskBN")
    layer = builder.batchnorm(200)
    for task in range(3):
        layer.begin_task(task, generator("unused"))
        with torch.no_grad():
            layer.scores.copy_(torch.randn(200, generator=generator("three", task)))
        layer.end_task()
    scores = layer.begin_recovery()
    with torch.no_grad():
        scores.copy_(2 * masks.unpack(layer.packed[1], 200) - 1)
        scores[:20] *= -1
    assert layer.hamming_distance(1) == 20
    optimizer = torch.optim.SGD([scores], lr=1.0)
    for _ in range(20):
        optimizer.zero_grad()
        layer.energy().backward()
        optimizer.step()
    layer.end_recovery()
    assert layer.hamming_distance(1) == 0 and layer.scores is None


def test_recovery_goes_from_the_objective_to_the_energy(monkeypatch):
    model = network()
    for task in range(3):
        store(model, task)
    images = torch.randn(5, 4, *SHAPE, generator=generator("batches"))
    factors = []
    energy = torch.tensor(2.0, requires_grad=True)
    monkeypatch.setattr("models.hopfield.energy", lambda model: energy)
    energy.register_hook(lambda gradient: factors.append(float(gradient)))
    steps = hopfield.recover(model, [(x, None) for x in images], 1, inference.entropy, gamma=0.5)
    assert factors == pytest.approx([0, 0.125, 0.25, 0.375, 0.5]), "gamma t, t from 0 to 1"
    assert [step["step"] for step in steps] == [0, 1, 2, 3, 4, 5]
    assert all(0 <= step["hamming"] <= 2 * PLANES for step in steps)


def test_of_a_single_batch_the_objective_and_the_energy_lead_alike(monkeypatch):
    model = network()
    store(model, 0)
    energy, factors = torch.tensor(2.0, requires_grad=True), []
    monkeypatch.setattr("models.hopfield.energy", lambda model: energy)
    energy.register_hook(lambda gradient: factors.append(float(gradient)))
    images = torch.randn(4, *SHAPE, generator=generator("single"))
    hopfield.recover(model, [(images, None)], 0, inference.entropy, gamma=0.5)
    assert factors == [0.25]


def test_each_further_try_starts_without_what_was_found_and_the_surest_mask_is_kept(monkeypatch):
    builder = Builder(partial(generator, 0), 3, "StandardConv", "FastHopMaskBN", width_mult=0.1)
    model, starts, goals = get_model("BNNet", builder, SHAPE, OUTPUTS), [], [1, 0, 2]
    for task in range(3):
        multitask.begin_task(model, task, partial(generator, task))
        for index, scores in enumerate(multitask.task_parameters(model).values()):
            scores.data.copy_(torch.randn(len(scores), generator=generator("tries", index, task)))
        multitask.end_task(model)
    stored = [
        [2 * masks.unpack(layer.packed[task], layer.planes) - 1 for layer in layers_of(model)] for task in range(3)
    ]

    def descend(model, *_):
        goal = goals[len(starts)]
        starts.append([layer.scores.detach().clone() for layer in layers_of(model)])
        for layer, z in zip(layers_of(model), stored[goal], strict=True):
            layer.scores.data.copy_(z)
        return [{"step": goal}]

    def objective(logits):
        return hamming_distance(model, 0)

    monkeypatch.setattr(hopfield, "_descend", descend)
    images = torch.randn(7, *SHAPE, generator=generator("batches"))
    steps = hopfield.recover(model, [(x, None) for x in images.split(3)], 2, objective, tries=3)
    assert steps == [{"step": 0}] and hamming_distance(model, 0) == 0
    parts = ([1, 1, 1], [1, -0.1, 1], [-0.1, -0.1, 1])  # of each task's mask; what was found counts against itself
    for start, shares in zip(starts, parts, strict=True):
        for layer, scores in enumerate(start):
            expected = sum(share * stored[task][layer] for task, share in enumerate(shares)) / 3
            assert torch.allclose(scores, expected, atol=1e-6)


def test_the_objective_of_a_try_is_the_mean_over_images():
    model = network()
    store(model, 0)
    multitask.select_task(model, 0)
    images = torch.randn(7, *SHAPE, generator=generator("mean"))
    values = iter([torch.tensor(2.0), torch.tensor(5.0), torch.tensor(9.0)])
    mean = hopfield._mean(model, [(x, None) for x in images.split(3)], lambda logits: next(values))
    assert mean == pytest.approx((3 * 2 + 3 * 5 + 9) / 7)


def test_places_in_which_masks_tie_are_kept_at_the_start_and_what_was_found_is_shunned_there():
    layer = Builder(partial(generator, 0), 6, bn_type="FastHopMaskBN").batchnorm(1000)
    for task in range(6):
        layer.begin_task(task, generator("unused"))
        layer.scores.data.copy_(torch.randn(1000, generator=generator("ties", task)))
        layer.end_task()
    stored = [2 * masks.unpack(layer.packed[task], 1000) - 1 for task in range(6)]
    for found in ((), (4,), (2, 5)):
        layer.begin_recovery([(stored[task] + 1) / 2 for task in found])
        left = sum((-0.1 if task in found else 1) * z.double() for task, z in enumerate(stored))
        assert torch.equal(layer.mask_in_use(), (left > -1e-9).float())
        layer.end_recovery()


def test_a_run_reports_every_step_of_recovery(call, tmp_path):
    words = "--set SplitDigits --num-tasks 2 --model BNNet --conv-type StandardConv --bn-type FastHopMaskBN --epochs 3 "
    words += "--optimizer sgd --lr 0.1 --batch-size 32 --test-batch-size 8 --adaptor hopfield_recovery --output-size 10"
    result = call("main.py", *words.split(), "--threads", 1, "--log-dir", "runs", "--name", "hop")
    assert result.returncode == 0, result.stderr
    with open(tmp_path / "runs" / "hop" / "hopfield.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(int(row["task"]), int(row["step"])) for row in rows] == [
        (task, step) for task in (0, 1) for step in range(10)
    ]
    assert int(rows[9]["hamming"]) < int(rows[0]["hamming"])
    with open(tmp_path / "runs" / "hop" / "confusion.csv") as file:
        assert [(row["task"], row["batches"]) for row in csv.DictReader(file)] == [("0", "1"), ("1", "1")]
    # The matrices and the mean vectors of both layers in float32: all that recovery needs, however many tasks.
    kept = 2 * (PLANES**2 + PLANES) * 4
    with open(tmp_path / "runs" / "results.csv") as file:
        sizes = [[int(row[name]) for name in row if name.startswith("Bytes")] for row in csv.DictReader(file)]
    assert sizes == [[kept, kept, kept, kept, 0]] * 3
    assert f"Hopfield networks that masks are recovered from: {kept:,}, however many tasks" in result.stdout


def test_with_the_task_given_its_mask_is_what_must_be_kept(call, tmp_path):
    words = "--set SplitDigits --num-tasks 2 --model BNNet --conv-type StandardConv --bn-type FastHopMaskBN"
    result = call("main.py", *words.split(), "--adaptor=gt", "--iter-lim=2", "--threads=1", "--log-dir=runs")
    assert result.returncode == 0, result.stderr
    with open(tmp_path / "runs" / "results.csv") as file:
        assert [int(row["Bytes"]) for row in csv.DictReader(file)] == [512, 1024, 1024]


def test_the_order_of_the_data_in_recovery_is_drawn_from_the_seed(monkeypatch):
    met = []

    def recover(model, loader, *args, **kwargs):
        met.append(torch.cat([x for x, _ in loader]))
        return []

    monkeypatch.setattr(hopfield, "recover", recover)
    for seed in (0, 0, 1):
        builder = Builder(partial(generator, 0), 2, "StandardConv", "FastHopMaskBN")
        data = DATASETS["SplitDigits"](seed=seed, num_tasks=2)
        model = get_model("BNNet", builder, data.input_shape, OUTPUTS)
        store(model, 1)
        evaluate(model, data, [1], "hopfield_recovery", InferenceOptions())
    first, again, other = met
    in_file_order = torch.cat([x for x, _ in data.val_loader])
    assert torch.equal(first, again) and not torch.equal(first, other) and not torch.equal(first, in_file_order)
    assert torch.allclose(first.sum(dim=0), in_file_order.sum(dim=0), atol=1e-4)
