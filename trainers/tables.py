"""What follows a run's checkpoint: rows in results.csv, tables and settings in its folder, curves for TensorBoard."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from statistics import fmean

from trainers import ADAPTORS
from trainers.evaluation import TaskScore
from trainers.export import Storage
from utils.files import write_whole
from utils.paths import PROJECT
from utils.results import Results, to_csv
from utils.run import RunFolder


@dataclass(frozen=True)
class RecordOptions:
    """The settings that rows of results tell of, and how many minutes lie between checkpoints inside a task."""

    set: str
    seed: int
    conv_type: str
    sparsity: float
    trainer: str
    adaptor: str
    unshared_labels: bool
    score_when_learned: bool
    checkpoint_minutes: float

    @property
    def scenario(self) -> str:
        """The three letters of the paper: is the task given in training, at inference; are labels shared."""
        if self.trainer == "nns":
            return "NNs"
        if ADAPTORS[self.adaptor].gives:
            return "GG"
        return "GNu" if self.unshared_labels else "GNs"


class Tables:
    """All that a run writes beside its checkpoint. Nothing is read from it again.

    Args:
        settings: all settings of the run as they are resolved.
    """

    def __init__(self, folder: RunFolder, options: RecordOptions, settings: Mapping[str, object]):
        self.folder, self.options, self.settings = folder, options, dict(settings)
        self._results = Results(folder.path.parent / "results.csv")
        table = "".join(f"| `{name}` | `{value}` |\n" for name, value in settings.items())
        folder.tensorboard.add_text("settings", f"| setting | value |\n|---|---|\n{table}")

    def agree(self, rows: Sequence[dict]) -> None:
        """Make ``results.csv`` say of this run what ``rows`` say."""
        if bad := self._results.agree(rows, self._save_directory()):
            which = f"line{'s' * (len(bad) > 1)} {', '.join(map(str, bad[:10]))}{' ...' * (len(bad) > 10)}"
            self.folder.log(f"warning: {self._results.path}: {which}: no row of results; left as it is")

    def publish(self, rows: Sequence[dict], again: bool = False) -> None:
        """Add rows to ``results.csv``; ``again``: they may stand there already, as what a damaged checkpoint lost."""
        (self._results.agree if again else self._results.add)(rows)

    def row(
        self, what: str, current: float | None, best: float | None, learned: int, storage: Storage, **more: object
    ) -> dict[str, object]:
        """A row of ``results.csv``, which says ``what``, once so many tasks are learned."""
        options = self.options
        return {
            "Date Finished": datetime.now().isoformat(sep=" ", timespec="seconds"),
            "Name": f"{self.folder.path.parent.name} {self.folder.path.name}: {what}",
            "Current Val": current,
            "Best Val": best,
            "Save Directory": self._save_directory(),
            "Set": options.set,
            "Scenario": options.scenario,
            "Tasks Learned": learned,
            "Seed": options.seed,
            "Sparsity": options.sparsity if options.conv_type in ("MaskConv", "MultitaskMaskConv") else None,
            "Bytes": storage.packed + storage.rest,
            "Bytes CSC-16": storage.csc16 + storage.rest,
            "Bytes Coded": storage.coded + storage.rest,
            "Bytes Bound": round(storage.bound + storage.rest),
            "Bytes Batch Norm": storage.batch_norm,
            **more,
        }

    def _save_directory(self) -> str:
        path = self.folder.path.resolve()
        return str(path.relative_to(PROJECT) if path.is_relative_to(PROJECT) else path)

    def write_evaluations(self, evaluations: Mapping[int, Sequence[TaskScore]]) -> None:
        """``adapt_results.csv``, a row a task; ``confusion.csv``, a row for each task that it was taken for; and
        ``hopfield.csv``, a row a step of recovery."""
        rows, taken, steps = [], [], []
        for count, scores in sorted(evaluations.items()):
            for score in scores:
                row = {"tasks_learned": count, **asdict(score)}
                about = {name: row[name] for name in ("tasks_learned", "task")}
                taken += [about | other for other in row.pop("inferred")]
                steps += [about | step for step in row.pop("steps")]
                rows.append(row)
        for name, table in (("adapt_results.csv", rows), ("confusion.csv", taken), ("hopfield.csv", steps)):
            if table:
                write_whole(self.folder.path / name, to_csv(list(table[0]), table))

    def write_settings(self, kept: Mapping[str, float], storage: Storage) -> None:
        """``settings.yaml``, with the fractions of the weights that the first mask keeps, and what all costs."""
        sizes = {name: round(size) for name, size in asdict(storage).items()}
        self.folder.write_settings(self.settings, kept_fraction=kept, bytes=sizes)

    def write(self, tables: Mapping[str, Sequence[Mapping[str, object]]]) -> None:
        """Tables of the trainer's own: rows by the name of their file."""
        for name, rows in tables.items():
            if rows:
                write_whole(self.folder.path / name, to_csv(list(rows[0]), rows))

    def draw(self, means: Mapping[str, float], scores: Sequence[TaskScore]) -> None:
        """The curves of an evaluation."""
        count, board = len(scores), self.folder.tensorboard
        for name, value in means.items():
            board.add_scalar(f"mean/{name.lower()}", value, count)
        for name in ("given", "adapted"):
            for score in scores:
                if (value := getattr(score, name)) is not None:
                    board.add_scalar(f"tasks after {count}/accuracy {name}", value, score.task)
        for score in scores:
            for step in score.steps:
                name = f"recovery after {count}/hamming distance of task {score.task}"
                board.add_scalar(name, step["hamming"], int(step["step"]))


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of those that are there; None if there is none."""
    there = [value for value in values if value is not None]
    return fmean(there) if there else None
