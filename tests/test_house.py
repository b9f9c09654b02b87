"""How the code is cut: what one reads at once stays short."""

import ast
import re

import pytest

from args import make_parser, with_flags
from tests.conftest import PROJECT

BELOW = ("data", "models", "trainers", "utils")
FOLDERS = (*BELOW, "experiments")
PARSERS = {"make_parser", "parser_of"}  # a long list of flags is no long thought


def test_no_function_is_longer_than_a_screen_and_no_class_has_more_than_twenty_public_methods():
    files = [*PROJECT.glob("*.py"), *(path for folder in FOLDERS for path in (PROJECT / folder).rglob("*.py"))]
    nodes = [(path.name, node) for path in files for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    assert len(files) > 80
    for name, node in nodes:
        if isinstance(node, ast.FunctionDef) and node.name not in PARSERS:
            assert node.end_lineno - node.lineno < 60, (name, node.name)
        if isinstance(node, ast.ClassDef):
            public = [part for part in node.body if isinstance(part, ast.FunctionDef) and part.name[0] != "_"]
            assert len(public) <= 20, (name, node.name)


def test_flags_are_known_to_the_command_line_alone():
    """Below ``main.py`` and ``args.py`` settings go by their names, which Python's face has too."""
    flags = [flag for action in make_parser()._actions for flag in action.option_strings if flag.startswith("--")]
    below = [PROJECT / "supsup.py", *(path for folder in BELOW for path in (PROJECT / folder).rglob("*.py"))]
    named = re.compile(rf"(?<![\w-])(?:{'|'.join(flags)})(?![\w-])|--\{{")
    assert len(below) > 60
    for path in below:
        assert not (found := named.findall(path.read_text(encoding="utf-8"))), (path.name, found)


@pytest.mark.parametrize(
    "said, printed",
    [
        ("`task_eval` 5: tasks are 0 ... 4 (`num_tasks`)", "--task-eval 5: tasks are 0 ... 4 (--num-tasks)"),
        ("`import_file` a.sup: was not written by `export`", "--import a.sup: was not written by --export"),
        ("say `unshared_labels=False`; `tf32=True`, `fast`.", "say --no-unshared-labels; --tf32, --fast."),
        ("likely `lr` 0.1 is too large\n`set`: none", "likely --lr 0.1 is too large\n--set: none"),
        ("`--lr`, `learning rate`, a`lr`, x/`lr`/y, ``lr``", "`--lr`, `learning rate`, a`lr`, x/`lr`/y, ``lr``"),
    ],
)
def test_settings_that_a_message_names_are_flags_on_the_command_line(said, printed):
    assert with_flags(said) == printed


# Whom each folder may import, of the project; README says so too, but of experiments.
IMPORTS = {
    "utils": {"utils"},
    "models": {"models", "utils.registry", "utils.memory"},
    "data": {"data", "utils"},
    "trainers": {"trainers", "models", "utils", "data"},
    "experiments": {"experiments", "args", "trainers", "models", "data", "utils"},
}


@pytest.mark.parametrize("folder", IMPORTS)
def test_no_import_runs_upwards(folder):
    ours = {path.stem for path in PROJECT.glob("*.py")} | set(FOLDERS)
    for path in (PROJECT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                if name.partition(".")[0] in ours:
                    assert {name, name.partition(".")[0]} & IMPORTS[folder], (str(path), name)
