"""The measures of continual learning, from the accuracies R[i][j] on task j after i tasks were learned.

R is a table with a row for each measured i and a column for each task, in the order they were learned in. What was
not measured is NaN, and so is a measure that lacks what it needs.
"""

import numpy
import pandas


def accuracy_matrix(scores: pandas.DataFrame, learned: pandas.DataFrame | None = None) -> pandas.DataFrame:
    """R, up to the last evaluation, which has the tasks in the order they were learned in.

    Args:
        scores: what evaluations gave: ``tasks_learned``, ``task``, ``accuracy``.
        learned: what each task gave when it was just learned, with the same columns; evaluations win.
    """
    both = scores if learned is None else pandas.concat([scores, learned])
    both = both.drop_duplicates(["tasks_learned", "task"])
    last = scores["tasks_learned"].max()
    table = both[both["tasks_learned"] <= last]
    matrix = table.pivot(index="tasks_learned", columns="task", values="accuracy").sort_index()
    return matrix[scores["task"][scores["tasks_learned"] == last].drop_duplicates()]


def average_accuracy(matrix: pandas.DataFrame) -> float:
    """The mean accuracy over all tasks in the end (Lopez-Paz and Ranzato 2017, equation 2)."""
    return matrix.iloc[-1].mean()


def forgetting(matrix: pandas.DataFrame) -> float:
    """How far below its best each task but the last has fallen in the end, on average (Chaudhry et al. 2018, eq. 3).

    Tasks that were never measured before the end do not count.
    """
    before = matrix.loc[1:].iloc[:-1, :-1].max()
    return (before - matrix.iloc[-1, :-1]).mean()


def backward_transfer(matrix: pandas.DataFrame) -> float:
    """What learning the later tasks did to each task but the last, on average (Lopez-Paz and Ranzato 2017, eq. 3)."""
    ended, learned = matrix.iloc[-1].to_numpy(), _after(matrix, 1)
    return _mean((ended - learned)[:-1])


def forward_transfer(matrix: pandas.DataFrame) -> float:
    """What the earlier tasks did to each task but the first before it was learned (the same, eq. 4).

    The accuracies at random initialisation are the row for no learned task, R[0].
    """
    before = _after(matrix, 0)
    fresh = matrix.loc[0].to_numpy() if 0 in matrix.index else numpy.full(len(before), numpy.nan)
    return _mean((before - fresh)[1:])


def confusion(table: pandas.DataFrame) -> pandas.DataFrame:
    """The share of each task's batches, a row, that were taken for each task, a column, in the last evaluation.

    Args:
        table: ``tasks_learned``, ``task``, ``inferred``, ``batches``.
    """
    last = table[table["tasks_learned"] == table["tasks_learned"].max()]
    counts = last.pivot_table(index="task", columns="inferred", values="batches", aggfunc="sum", fill_value=0)
    return counts.div(counts.sum(axis=1), axis=0)


def _after(matrix: pandas.DataFrame, more: int) -> numpy.ndarray:
    """The accuracy on each task when it and ``more - 1`` later ones were learned; 0 more: just before it was."""
    counts = range(more, len(matrix.columns) + more)
    return numpy.diagonal(matrix.reindex(counts).to_numpy()).astype(float)


def _mean(values: numpy.ndarray) -> float:
    return float(numpy.mean(values)) if len(values) else numpy.nan
