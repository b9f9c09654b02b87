"""The measures of continual learning, beside their definitions in slow and obvious form."""

import math
import random

import numpy
import pandas
import pytest

from experiments import metrics


def random_matrix(tasks: int, seed: int) -> tuple[list[list[float]], pandas.DataFrame]:
    """R as a list, R[i][j] on the j-th task after i tasks, both counted from 1 (and i from 0); and as a table."""
    draw = random.Random(seed)
    plain = [[math.nan] + [draw.random() for _ in range(tasks)] for _ in range(tasks + 1)]
    names = draw.sample(range(100), tasks)  # tasks need not be learned in their order
    return plain, pandas.DataFrame([row[1:] for row in plain], index=range(tasks + 1), columns=names)


@pytest.mark.parametrize("tasks, seed", [(2, 0), (3, 1), (7, 2), (20, 3)])
def test_measures_are_their_definitions(tasks, seed):
    r, matrix = random_matrix(tasks, seed)
    last = tasks
    acc = sum(r[last][i] for i in range(1, last + 1)) / last
    bwt = sum(r[last][i] - r[i][i] for i in range(1, last)) / (last - 1)
    fwt = sum(r[i - 1][i] - r[0][i] for i in range(2, last + 1)) / (last - 1)
    drops = [max(r[i][j] for i in range(1, last)) - r[last][j] for j in range(1, last)]
    assert metrics.average_accuracy(matrix) == pytest.approx(acc, abs=1e-12)
    assert metrics.backward_transfer(matrix) == pytest.approx(bwt, abs=1e-12)
    assert metrics.forward_transfer(matrix) == pytest.approx(fwt, abs=1e-12)
    assert metrics.forgetting(matrix) == pytest.approx(sum(drops) / (last - 1), abs=1e-12)


def test_what_was_not_measured_is_nan():
    _, matrix = random_matrix(4, 0)
    assert math.isnan(metrics.forward_transfer(matrix.loc[1:])), "needs the accuracy at random initialisation"
    learned = matrix.where(numpy.tril(numpy.ones((5, 4)), -1).astype(bool))
    assert math.isnan(metrics.forward_transfer(learned)), "needs the accuracy before a task is learned"
    assert metrics.backward_transfer(learned) == metrics.backward_transfer(matrix)
    assert math.isnan(metrics.backward_transfer(matrix.loc[[2, 4]])), "needs every task when it was just learned"
    alone = pandas.DataFrame([[0.5]], index=[1], columns=[0])
    assert metrics.average_accuracy(alone) == 0.5
    assert all(
        math.isnan(of(alone)) for of in (metrics.forgetting, metrics.backward_transfer, metrics.forward_transfer)
    )


def test_forgetting_counts_tasks_that_were_measured_before():
    matrix = pandas.DataFrame({7: [0.9, 0.6], 3: [math.nan, 0.8], 5: [math.nan, 0.7]}, index=[1, 3])
    assert metrics.forgetting(matrix) == pytest.approx(0.3)


def test_the_matrix_has_evaluations_and_what_was_just_learned():
    scores = pandas.DataFrame(
        [(2, 4, 0.1), (2, 1, 0.2), (3, 4, 0.3), (3, 1, 0.4), (3, 0, 0.5)], columns=["tasks_learned", "task", "accuracy"]
    )
    learned = pandas.DataFrame([(1, 4, 0.9), (2, 1, 0.8), (3, 0, 0.7), (4, 2, 0.6)], columns=scores.columns)
    matrix = metrics.accuracy_matrix(scores, learned)
    assert list(matrix.columns) == [4, 1, 0] and list(matrix.index) == [1, 2, 3], "no further than the last evaluation"
    expected = [[0.9, math.nan, math.nan], [0.1, 0.2, math.nan], [0.3, 0.4, 0.5]]
    numpy.testing.assert_array_equal(matrix.to_numpy(), expected)
    alone = metrics.accuracy_matrix(scores)
    numpy.testing.assert_array_equal(alone.to_numpy(), expected[1:])
    assert list(alone.columns) == [4, 1, 0]


def test_tasks_that_were_imported_count():
    """Nobody measured them when they were just learned; and the rows of a run may lie in any order."""
    scores = pandas.DataFrame(
        [(4, 0, 0.5), (4, 1, 0.6), (4, 2, 0.9), (4, 3, 0.7)], columns=["tasks_learned", "task", "accuracy"]
    )
    learned = pandas.DataFrame([(4, 3, 0.7), (3, 2, 0.95)], columns=scores.columns)
    matrix = metrics.accuracy_matrix(scores, learned)
    assert list(matrix.columns) == [0, 1, 2, 3] and list(matrix.index) == [3, 4]
    assert metrics.average_accuracy(matrix) == pytest.approx(0.675)
    assert metrics.forgetting(matrix) == pytest.approx(0.05), "of the one that was measured before the end"
    assert math.isnan(metrics.backward_transfer(matrix))


def test_confusion_is_the_share_of_each_tasks_batches():
    rows = [(2, 0, 0, 5), (3, 0, 0, 6), (3, 0, 2, 2), (3, 1, 1, 8), (3, 2, 0, 1), (3, 2, 2, 3)]
    table = pandas.DataFrame(rows, columns=["tasks_learned", "task", "inferred", "batches"])
    shares = metrics.confusion(table)
    numpy.testing.assert_allclose(shares.to_numpy(), [[0.75, 0, 0.25], [0, 1, 0], [0.25, 0, 0.75]])
