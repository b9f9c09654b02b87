"""Damaged files: whatever byte is wrong and wherever they are cut, it is noticed, and nothing of it is believed."""

import random
import shutil

import pytest

import main
from tests.stress.outcome import left_by, same_tensors
from utils.checkpoint import Checkpoint

FLAGS = "--set DigitsPerm --num-tasks 3 --epochs 1 --iter-lim 1 --adaptor gt --threads 1 --multigpu cpu".split()


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A folder with a finished run and its exported form, ``model.sup``."""
    folder = tmp_path_factory.mktemp("learned")
    words = [*FLAGS, "--log-dir", str(folder / "log"), "--name", "run", "--export", str(folder / "model.sup")]
    assert main.main(words) == 0
    return folder


def damaged(content, full):
    """Copies with one wrong byte, and copies that are cut short."""
    rng = random.Random(0)
    for _ in range(200 if full else 20):
        wrong = bytearray(content)
        wrong[rng.randrange(len(wrong))] ^= rng.randrange(1, 256)
        yield bytes(wrong)
    for _ in range(50 if full else 5):
        yield content[: rng.randrange(1, len(content))]


def is_one_line_about(path, error):
    return error.startswith("main.py: error: ") and error.count("\n") == 1 and str(path) in error


def test_a_damaged_checkpoint_is_refused_or_learned_again_from_what_is_whole(learned, full, tmp_path, capsys):
    left, tensors = left_by(learned)
    log, checkpoint = learned / "log", learned / "log" / "run" / "checkpoint.pt"
    words = [*FLAGS, "--log-dir", str(log), "--name", "run", "--resume"]
    shutil.copytree(log, tmp_path / "whole")
    for content in damaged(checkpoint.read_bytes(), full):
        shutil.rmtree(log)
        shutil.copytree(tmp_path / "whole", log)
        checkpoint.write_bytes(content)
        capsys.readouterr()
        status = main.main(words)
        out, error = capsys.readouterr()
        if status == 2:
            assert is_one_line_about(checkpoint, error) and checkpoint.read_bytes() == content
            continue
        assert status == 0 and error == "" and "damaged" in out
        again, its_tensors = left_by(learned)
        assert again | {"files": None} == left | {"files": None} and same_tensors(its_tensors, tensors)


def test_a_damaged_export_is_refused(learned, full, tmp_path, capsys):
    content, path = (learned / "model.sup").read_bytes(), tmp_path / "model.sup"
    # Cut after a whole record nothing in it is damaged, and yet it is not what was written.
    ends = [
        len(content) - sum(len(r.to_bytes()) for r in Checkpoint(learned / "model.sup").read()[0][n:])
        for n in (1, 2, 3)
    ]
    for wrong in [*damaged(content, full), *(content[:end] for end in ends)]:
        path.write_bytes(wrong)
        assert main.main(["--import", str(path), "--threads", "1", "--log-dir", str(tmp_path / "log")]) == 2
        assert is_one_line_about(path, capsys.readouterr().err) and not (tmp_path / "log").exists()
