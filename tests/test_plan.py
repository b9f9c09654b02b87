"""What an experiment script runs: the runs, their names, and the folders in which they are found again."""

import runpy

import pytest
import yaml

from experiments import plan


@pytest.mark.parametrize(
    "script, name",
    [
        ("GG/splitcifar100/rn18-supsup.py", "rn18-supsup"),
        ("GNu/MNISTPerm/LeNet-250-tasks/supsup_h.py", "MNISTPerm-LeNet-250-tasks-supsup_h"),
        ("GNu/MNISTRotate/supsup.py", "MNISTRotate-supsup"),
        ("NNs/supsup.py", "NNs-supsup"),
    ],
)
def test_experiment_names(script, name):
    assert plan.experiment_name(plan.ROOT / "experiments" / script) == name


@pytest.mark.parametrize(
    "words, name",
    [
        ("", "seed=0"),
        ("--num-tasks 10 --eval-ckpts 5,10", "seed=0,eval-ckpts=5,10,num-tasks=10"),
        ("--eval_ckpts=5,10 --num_tasks=10", "seed=0,eval-ckpts=5,10,num-tasks=10"),
        ("--eval-ckpts 5 10", "seed=0,eval-ckpts=5,10"),
        ("--num-tasks 5 --num-tasks 10", "seed=0,num-tasks=10"),
        ("--threads 1 --workers=0 --checkpoint-minutes 5 --on-nan skip", "seed=0"),
        ("--tasks-in-parallel 8", "seed=0,tasks-in-parallel=8"),
        ("--lr -1", "seed=0,lr=-1"),
        ("--er-sparsity --lr 1", "seed=0,er-sparsity=true,lr=1"),
        ("--pretrained ../a/b=c", "seed=0,pretrained=..%2Fa%2Fb%3Dc"),
    ],
)
def test_run_names(words, name):
    assert [run.name for run in plan.runs_of([0], [{}], words.split())] == [name]


def test_long_names_fit_a_file_system_and_stay_apart():
    first, second = (plan.runs_of([0], [{}], ["--a", "x" * 300 + end])[0].name for end in "12")
    assert first != second and len(first) <= 200


def test_variants_are_named_and_can_be_picked_by_a_flag():
    variants = [{"sparsity": 4}, {"sparsity": 8}]
    runs = plan.runs_of([0, 1], variants, [])
    assert [run.name for run in runs] == [f"sparsity={s},seed={seed}" for seed in (0, 1) for s in (4, 8)]
    assert runs[1].flags == ("--sparsity=8",)
    picked = plan.runs_of([0], variants, ["--sparsity", "8"])
    assert [(run.name, run.flags) for run in picked] == [("sparsity=8,seed=0", ("--sparsity", "8"))]


def test_several_values_of_a_variants_flag_pick_several():
    variants = [{"sparsity": 4}, {"sparsity": 8}, {"sparsity": 16}]
    for words in (["--sparsity", "4,16", "--lr", "1"], ["--lr", "1", "--sparsity=4,16"]):
        runs = plan.runs_of([0], variants, words)
        assert [run.name for run in runs] == ["sparsity=4,seed=0,lr=1", "sparsity=16,seed=0,lr=1"]
        assert [run.flags for run in runs] == [("--sparsity=4", "--lr", "1"), ("--sparsity=16", "--lr", "1")]


@pytest.mark.parametrize("script", ["GNu/MNISTPerm/siblings.py", "GG/splitcifar100/rn18-siblings.py"])
def test_a_setting_is_picked_with_all_that_it_says(script):
    variants = runpy.run_path(str(plan.ROOT / "experiments" / script))["VARIANTS"]
    every = {run.name.partition(",")[0]: run for run in plan.runs_of([0], variants, [])}
    for kinds in (["PackNetConv"], ["WSNConv"], ["ExSSNeTConv", "WSNConv"]):
        words = ["--conv-type", ",".join(kinds)]
        runs = plan.runs_of([0], variants, words)
        assert [run.name for run in runs] == [every[f"conv-type={kind}"].name for kind in kinds]
        told = [plan.parse_passed_on(run.flags) for run in runs]
        assert told == [plan.parse_passed_on(every[f"conv-type={kind}"].flags) for kind in kinds]
    assert len(plan.runs_of([0], variants, ["--sparsity", "0.25"])) == len(variants), "which one alone has"


def test_a_value_that_no_variant_has_is_that_of_all():
    variants = [{"a": a, "b": b} for a in (1, 2) for b in (3, 4)]
    for words, names in (
        ("--a 2 --b 3,4", ["a=2,b=3", "a=2,b=4"]),
        ("--a 2,1 --b 5", ["a=2,b=5", "a=1,b=5"]),
        ("--a 1,6 --b 4", ["a=1,b=4", "a=6,b=4"]),
        ("--a 1,2 --b 3,4", ["a=1,b=3", "a=1,b=4", "a=2,b=3", "a=2,b=4"]),
    ):
        assert [run.name for run in plan.runs_of([0], variants, words.split())] == [f"{name},seed=0" for name in names]


def test_a_run_is_found_under_the_name_that_it_once_had(tmp_path):
    def found(words):
        return [run.name for run in plan.found_in(tmp_path, plan.runs_of([0], [{}], words.split()))]

    old = "seed=0,amp=bf16,checkpoint-minutes=5,eval-ckpts=5,10,num-tasks=10"
    (tmp_path / old).mkdir()
    words = "--num-tasks 10 --amp bf16 --eval-ckpts 5,10"
    assert found(words) == found(words + " --checkpoint-minutes 1") == [old]
    assert found("--num-tasks 10 --amp bf16") == ["seed=0,amp=bf16,num-tasks=10"]
    new = "seed=0,amp=bf16,eval-ckpts=5,10,num-tasks=10"
    (tmp_path / new).mkdir()
    assert found(words) == [new]
    (tmp_path / old / "finished").touch()
    assert found(words) == [old], "what is finished is not run again"


def test_what_is_kept_is_found_by_the_calls_that_made_it():
    files = (plan.ROOT / "experiments" / "results").glob("*/*/settings.yaml")
    commands = {path.parent: yaml.safe_load(path.read_text())["command"] for path in files}
    launched = {folder: command for folder, command in commands.items() if "--resume" in command}
    assert len(launched) > 20
    for folder, command in launched.items():
        words = command[command.index("--resume") + 1 :]
        seed = int(command[command.index("--seed") + 1])
        of_variant = folder.name.partition("seed=")[0].split(",")[:-1]
        variant = {part.partition("=")[0]: "" for part in of_variant}
        (run,) = plan.found_in(folder.parent, plan.runs_of([seed], [variant], words))
        assert run.name == folder.name


def test_switches_in_variants():
    runs = plan.runs_of([0], [{"er-sparsity": True}, {"er-sparsity": False}], [])
    assert [run.flags for run in runs] == [("--er-sparsity",), ("--no-er-sparsity",)]
    assert runs[0].name != runs[1].name
