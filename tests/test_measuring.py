"""What measures says at once, in a line, that it cannot: before hours of work, and before anything is written."""

import re
import sys

import pytest

from experiments import benchmark, inferred


@pytest.fixture(autouse=True)
def without_network(monkeypatch):
    def refuse(*args, **more):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", refuse)


@pytest.mark.parametrize(
    "main, words, said",
    [
        (inferred.main, ["--only", "rout"], ["MNIST is missing"]),
        (inferred.main, ["--only", "rotations"], ["MNIST is missing"]),
        (inferred.main, ["--only", "foo"], ["--only foo", "SplitMNIST; ", "; routers"]),
        (benchmark.main, ["--only", "train"], ["MNIST is missing"]),
        (benchmark.main, ["--only", "foo"], ["--only", "train"]),
        (benchmark.main, ["--device", "nowhere"], ["--device", "'nowhere' is no device here"]),
        (benchmark.main, ["--threads", "0"], ["--threads", "'0'"]),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else part.__module__,
)
def test_what_cannot_be_measured_is_one_line(main, words, said, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--data", str(tmp_path / "none"), "--out", str(tmp_path / "out"), *words])
    (line,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and all(part in line for part in said)
    assert not list(tmp_path.iterdir())


def test_a_run_that_fails_is_one_line_with_its_status(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "a_run", lambda *words: [sys.executable, "-c", "raise SystemExit(2)"])
    with pytest.raises(SystemExit) as stopped:
        benchmark.main(["--data", str(tmp_path), "--out", str(tmp_path / "out"), "--only", "slices", "--quick"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "benchmark.py: error: a run has ended with status 2\n"


@pytest.mark.parametrize("main", [inferred.main, benchmark.main], ids=lambda main: main.__module__)
def test_the_help_says_what_out_is(main, capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert re.search(r"--out DIR +folder of ", capsys.readouterr().out)
