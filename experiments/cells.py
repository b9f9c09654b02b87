"""What stands in the cells of the report's tables: numbers and runs as text."""

import re
import shlex
from collections.abc import Iterable
from statistics import fmean

import pandas

from experiments import metrics, records
from experiments.plan import by_flag
from experiments.records import MEGABYTE, ROOT, Run, Setting
from experiments.tables import SIZES
from models import SIBLINGS
from utils.configs import named_in
from utils.settings import PART, SHOWN


def spread(values: Iterable[float], form: str = ".4f") -> str:
    """The mean ± the sample standard deviation of what was measured; the mean alone of one value; ``–`` of none."""
    there = pandas.Series(list(values), dtype=float).dropna()
    if there.empty:
        return "–"
    mean = f"{there.mean():{form}}"
    return mean if len(there) == 1 else f"{mean} ± {there.std():{form}}"


def duration(seconds: float | None) -> str:
    """A time as one would say it."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def megabytes(final: pandas.DataFrame) -> str:
    """What must be kept in its three forms; ``–`` where a run does not say."""
    return " / ".join(spread([final[column].mean() / MEGABYTE], ",.3f") for column in SIZES)


def call_of(setting: Setting) -> str:
    """The command that makes the runs of a setting, from the project's root."""
    run = setting.runs[0]
    about = records.without_paths(run.about, setting.experiment)
    words = about["command"]
    script = re.search(r"(experiments/.+)/configs/([^/]+)\.yaml$", str(about["settings"].get("config")))
    if not script or "--resume" not in words:
        return shlex.join(["python", *words])
    seeds = sorted({run.settings["seed"] for run in setting.runs})
    # What the launcher says by itself, or has no effect.
    own = records.NEUTRAL - SHOWN - (frozenset() if setting.joined else PART)
    flags = by_flag(words[words.index("--resume") + 1 :])
    kept = [word for flag, of in flags if flag.replace("-", "_") not in own for word in of]
    first = seeds == list(range(len(seeds)))
    which = str(len(seeds)) if first else ",".join(map(str, seeds)) + "," * (len(seeds) == 1)
    words = ["python", f"{script[1]}/{script[2]}.py", "--data", "DIR", *(["--seeds", which] if seeds != [0] else [])]
    return shlex.join([*words, *kept])


def run_time(setting: Setting) -> float | None:
    """Seconds for a seed, on average."""
    by_seed = setting.ended.values()
    seconds = [[run.seconds for run in runs if run.seconds is not None] for runs in by_seed]
    if sum(map(len, seconds)) < sum(map(len, by_seed)):
        return None
    return fmean(sum(of) if setting.in_parts else fmean(of) for of in seconds)


def time_a_task(setting: Setting) -> str:
    """Seconds of a run, with its tests, for each of its tasks."""
    seconds = run_time(setting)
    return "–" if seconds is None else f"{seconds / setting.final['Tasks Learned'].iloc[0]:,.3g} s"


def machine(run: Run) -> str:
    """What a run computed on, without the name of the system."""
    threads = run.settings.get("threads")
    where = run.about["machine"].partition(", ")[2]
    return ", ".join(filter(None, [where, f"{threads} thread{'s' * (threads != 1)}" if threads else ""])) or "–"


def told(run: Run) -> dict[str, object]:
    """The settings that the configuration file or the command line named."""
    names = {
        word[2:].partition("=")[0].replace("-", "_") for word in map(str, run.about["command"]) if word[:2] == "--"
    }
    inside = re.search(r"experiments/.+", str(run.settings.get("config")))
    if inside and (ROOT / inside[0]).is_file():
        names |= named_in(ROOT / inside[0])
    wanted = (names - records.NEUTRAL) | {"eval_ckpts"}
    return {name: value for name, value in run.settings.items() if name in wanted}


def measures(setting: Setting, column: str) -> list[dict[str, float]]:
    """The field's measures of the accuracies ``given`` or ``adapted``, for each seed."""
    if setting.in_parts:  # no network has learned two tasks
        means = setting.final["Accuracy Given" if column == "given" else "Accuracy Adapted"]
        return [{"average accuracy": mean} for mean in means]
    by_seed = [[_measures_of(run, column) for run in runs] for runs in setting.ended.values()]
    return [pandas.DataFrame(runs).mean().to_dict() for runs in by_seed]


def _measures_of(run: Run, column: str) -> dict[str, float]:
    """The field's measures of one run."""
    names = {"Tasks Learned": "tasks_learned", "Task": "task", "Accuracy Given": "accuracy"}
    learned = run.learned.rename(columns=names)[list(names.values())] if column == "given" else None
    matrix = metrics.accuracy_matrix(run.scores(column), learned)
    values = {"average accuracy": metrics.average_accuracy(matrix)}
    if not run.settings.get("score_when_learned"):  # or else no task is measured again
        values["forgetting"] = metrics.forgetting(matrix)
        values["backward transfer"] = metrics.backward_transfer(matrix)
    known = column == "given" and matrix.shape[1] > 1 and apart(run)
    return values | {"forward transfer": 0.0 if known else metrics.forward_transfer(matrix)}


def apart(run: Run) -> bool:
    """Whether each task starts as if it were the first: then the earlier ones cannot have transferred anything."""
    s = run.settings
    return (
        s["trainer"] == "default"
        and not s["train_weight_tasks"]
        and s["bn_type"] not in ("StandardBN", "NonAffineBN")
        and s.get("conv_type") not in SIBLINGS  # which older runs do not tell
    )
