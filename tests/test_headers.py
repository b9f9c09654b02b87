"""What the header of each experiment script promises is what was measured, or what the paper and its code gave."""

import ast
import re

import pytest

from experiments import collected, plan, published
from experiments.cells import duration, run_time
from experiments.tables import MEASURED

SCRIPTS = {plan.experiment_name(path): path for path in sorted((plan.ROOT / "experiments").glob("[GN]*/**/*.py"))}
PAPER = published.load()
KEPT = {experiment.name: experiment for experiment in collected.read()}


def header(name: str) -> str:
    return ast.get_docstring(ast.parse(SCRIPTS[name].read_text()))


def expected(name: str) -> str:
    """What stands behind ``Expected:``, in one line."""
    return " ".join(re.search(r"Expected: (.*?)(?=\nRun time:|$(?![\s\S]))", header(name), re.S)[1].split())


def measured(name: str) -> set[float]:
    """What is kept of an experiment: the mean over seeds of each evaluation."""
    settings = KEPT[name].settings if name in KEPT else []
    means = [of.evaluations.groupby("Tasks Learned")[list(MEASURED)].mean() for of in settings]
    return {value for table in means for value in table.to_numpy().flat}


def test_every_experiment_of_the_paper_has_a_script():
    assert set(SCRIPTS) == set(PAPER["experiments"]) and set(KEPT) <= set(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_number_is_one_that_was_measured_or_published(name):
    figure = PAPER["experiments"][name]["figure"]
    known = measured(name) | {number["accuracy"] for number in PAPER["numbers"] if number["figure"] == figure}
    for number in re.findall(r"\b0\.\d+", expected(name)):
        assert any(f"{value:.{len(number) - 2}f}" == number for value in known), f"{number} is kept nowhere"
    assert "%" not in expected(name), "accuracies are fractions, as everywhere"


@pytest.mark.parametrize("name", KEPT)
def test_what_was_measured_last_stands_there(name):
    for setting in KEPT[name].settings:
        final = setting.final
        assert re.search(rf"\b{final['Tasks Learned'].iloc[0]}\b", expected(name))
        for column in ("Accuracy Given", "Accuracy Adapted"):
            mean = final[column].mean()
            assert mean != mean or f"{mean:.4f}" in expected(name), f"{setting.label}: {column} {mean:.4f}"


@pytest.mark.parametrize("name", SCRIPTS)
def test_what_the_paper_or_its_code_gave_stands_there(name):
    for number in PAPER["numbers"]:
        if number.get("experiment") == name:
            assert str(number["accuracy"]) in expected(name)
            assert ("published" if number["source"].startswith("paper") else "authors' code") in expected(name)


TIME = re.compile(r"\d+ min \d+ s")


@pytest.mark.parametrize("name", [name for name in SCRIPTS if TIME.search(header(name))])
def test_a_run_time_is_one_that_was_measured(name):
    assert {*TIME.findall(header(name))} <= {duration(run_time(setting)) for setting in KEPT[name].settings}


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_command_is_that_of_the_script(name):
    (command,) = re.findall(r"^Command: +python (\S+)", header(name), re.M)
    assert plan.ROOT / command == SCRIPTS[name]
