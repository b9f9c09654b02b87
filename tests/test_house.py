"""How the code is cut: what one reads at once stays short."""

import ast

from tests.conftest import PROJECT

FOLDERS = ("data", "experiments", "models", "trainers", "utils")
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
