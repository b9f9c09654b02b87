"""Some of a run's tasks, in words: ``0-99,150``. Imports nothing, so that all may ask."""

from collections.abc import Iterable

MOST_TASKS = 10**6


def tasks_of(text: str) -> list[int]:
    """The tasks that a text names, in their order: ``"0-2,5"`` is 0, 1, 2 and 5.

    Raises:
        ValueError: it names none, or one twice, or has something that is neither a number nor A-B.
    """
    tasks: list[int] = []
    for word in text.split(","):
        first, dash, last = (part.strip() for part in word.partition("-"))
        ends = [first, last] if dash else [first, first]
        if not all(end.isascii() and end.isdigit() and len(end) <= 7 for end in ends):
            raise ValueError(f"{text!r} is no list of tasks such as 0-99 or 3,5,8-10")
        low, high = map(int, ends)
        if not low <= high < MOST_TASKS:
            raise ValueError(f"{text!r}: {word.strip()} is no range of tasks from 0 to {MOST_TASKS - 1}")
        tasks += range(low, high + 1)
    if len(set(tasks)) < len(tasks):
        raise ValueError(f"{text!r} names a task twice")
    return sorted(tasks)


def named(tasks: Iterable[int]) -> str:
    """The inverse of ``tasks_of``, as short as can be."""
    ranges: list[list[int]] = []
    for task in sorted(tasks):
        if ranges and task == ranges[-1][1] + 1:
            ranges[-1][1] = task
        else:
            ranges.append([task, task])
    return ",".join(f"{low}-{high}" if high > low else f"{low}" for low, high in ranges)
