"""The program answers for images of which nobody says the task."""

import csv
import io
import os
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

import main
from data import DATASETS
from models import Builder, get_model, multitask
from trainers.options import InferenceOptions
from trainers.predict import predict
from utils.errors import UserError
from utils.seeding import generator


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A run on a tree of four classes, two a task, each of noise around a pattern of its own."""
    root, rng = tmp_path_factory.mktemp("predict"), np.random.RandomState(0)
    patterns = rng.randint(0, 256, (4, 8, 8))
    for label, pattern in enumerate(patterns):
        for number in range(20):
            path = root / "tree" / ("train" if number < 15 else "val") / f"kind{label}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noisy = np.clip(pattern * 0.8 + rng.randint(0, 50, (8, 8)), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(path)
    argv = ["--threads", "1", "--multigpu", "cpu", "--set", f"folder:{root / 'tree'}", "--num-tasks", "2"]
    argv += ["--epochs", "15", "--batch-size", "10", "--log-dir", str(root / "runs"), "--name", "run"]
    assert main.main(argv) == 0
    return root


def answers(capsys, root, *words, run="run") -> list[dict[str, str]]:
    capsys.readouterr()
    assert main.main(["--predict", *map(str, words), "--resume", str(root / "runs" / run)]) == 0
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def test_each_image_gets_the_label_that_its_task_gives_it(learned, capsys):
    data = DATASETS["folder:tree"](learned, num_tasks=2)
    for task in (0, 1):
        for name in data.labels_of(task).values():
            folder = learned / "tree" / "val" / name
            rows = answers(capsys, learned, folder, "--task-eval", task)
            assert [row["file"] for row in rows] == sorted(map(str, folder.iterdir()))
            assert {row["label"] for row in rows} == {name} and {row["task"] for row in rows} == {str(task)}
    inferred = answers(capsys, learned, learned / "tree" / "val")
    right = [row["label"] == row["file"].split("/")[-2] for row in inferred]
    assert len(right) == 20 and np.mean(right) >= 0.5
    assert all(0 < float(row["probability"]) <= 1 for row in inferred)


def test_a_run_that_may_only_be_read_answers_and_stays_as_it_is(learned, tmp_path, monkeypatch, capsys):
    run, before = learned / "runs" / "run", answers(capsys, learned, learned / "tree" / "val")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for name, other in (("checkpoint.pt", "backup.pt"), ("settings.yaml", "settings.yaml")):
        (theirs / other).write_bytes((run / name).read_bytes())
        (theirs / other).chmod(0o444)
    theirs.chmod(0o555)
    if os.geteuid() == 0:  # who may write everything
        access = os.access
        monkeypatch.setattr(os, "access", lambda path, mode, **more: not mode & os.W_OK and access(path, mode, **more))
    words = ["--predict", learned / "tree" / "val", "--resume", theirs / "backup.pt"]
    assert main.main([*map(str, words)]) == 0
    assert list(csv.DictReader(io.StringIO(capsys.readouterr().out))) == before
    assert {path.name for path in theirs.iterdir()} == {"backup.pt", "settings.yaml"}


def test_files_of_any_kind_and_a_broken_one(learned, tmp_path, capsys):
    source = Image.open(learned / "tree" / "val" / "kind1" / "16.png")
    source.save(tmp_path / "a.png")
    source.convert("CMYK").save(tmp_path / "b.tif")
    source.resize((32, 32), Image.NEAREST).save(tmp_path / "c.png")
    (tmp_path / "d.png").write_bytes(b"no image")
    data = DATASETS["folder:tree"](learned, num_tasks=2)
    (task,) = (task for task in (0, 1) if "kind1" in data.labels_of(task).values())
    rows = answers(capsys, learned, tmp_path, "--task-eval", task)
    assert [row["file"] for row in rows] == [str(tmp_path / name) for name in ("a.png", "b.tif", "c.png")]
    assert {row["label"] for row in rows} == {"kind1"}
    out = tmp_path / "out.csv"
    assert answers(capsys, learned, tmp_path, "--task-eval", task, "--out", out) == []
    assert list(csv.DictReader(out.open())) == rows
    (tmp_path / "link").symlink_to(out)
    out.write_text("old")
    assert answers(capsys, learned, tmp_path, "--task-eval", task, "--out", tmp_path / "link") == []
    assert (tmp_path / "link").is_symlink() and list(csv.DictReader(out.open())) == rows
    assert answers(capsys, learned, tmp_path, "--task-eval", task, "--out", "/dev/stdout") == rows


def test_what_cannot_be_answered_is_said_in_one_line(learned, tmp_path, capsys):
    run = learned / "runs" / "run"
    for words, said in (
        (["absent.png", "--resume", run], "absent.png: no such file"),
        ([tmp_path, "--resume", run], "no image"),
        ([tmp_path, "--resume", tmp_path], "has no settings.yaml of a run: No such file or directory"),
        ([tmp_path, "--resume", tmp_path / "nope"], f"--resume {tmp_path / 'nope'}: no such run folder"),
        ([tmp_path], "--resume RUN"),
        ([tmp_path, "--resume", run, "--task-eval", "5"], "--task-eval 5"),
        ([tmp_path, "--resume", run, "--adaptor", "gt"], "--adaptor gt"),
        (
            ["absent.png", "--resume", run, "--out", tmp_path / "absent" / "out.csv"],
            "out.csv: its folder does not exist",
        ),
    ):
        capsys.readouterr()
        assert main.main(["--predict", *map(str, words)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line


def test_a_batch_whose_statistics_count_is_not_cut():
    builder = Builder(partial(generator, 0), 2, "FastMultitaskMaskConv", "NonAffineNoStatsBN")
    model = get_model("BNNet", builder, (1, 4, 4), 5)
    for task in (0, 1):
        multitask.begin_task(model, task, partial(generator, 0))
        multitask.end_task(model)
    images = torch.randn(200, 1, 4, 4, generator=generator(0, "images"))
    answers = predict(model, images, [1], "gt", InferenceOptions(), {1: range(5)})
    multitask.select_task(model.eval(), 1)
    shares, best = model(images).softmax(1).max(1)
    assert [label for _, label, _ in answers] == best.tolist()
    torch.testing.assert_close(torch.tensor([share for *_, share in answers]), shares)


def test_what_the_network_cannot_infer_by_is_refused(learned, capsys):
    words = ["--threads", "1", "--multigpu", "cpu", "--set", f"folder:{learned / 'tree'}", "--num-tasks", "2"]
    words += ["--conv-type", "PSPRotation", "--adaptor", "gt", "--train-weight-tasks", "-1"]
    words += ["--iter-lim", "1", "--log-dir", str(learned / "runs")]
    assert main.main([*words, "--name", "psp"]) == 0
    capsys.readouterr()
    words = ["--predict", str(learned / "tree"), "--resume", str(learned / "runs" / "psp")]
    assert main.main([*words, "--adaptor", "se_oneshot_entropy_minimization"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--adaptor se_oneshot_entropy_minimization: needs a --conv-type that can be superposed" in line
    assert main.main([*words, "--task-eval", "0"]) == 0


def test_one_image_that_batch_norm_makes_like_any_other_is_of_no_task():
    model = get_model(
        "BNNet", Builder(partial(generator, 0), 2, bn_type="MultitaskNonAffineBN", width_mult=0.1), (1, 28, 28), 10
    )
    for task in (0, 1):
        multitask.begin_task(model, task, partial(generator, task))
        multitask.end_task(model)
    labels = dict.fromkeys((0, 1), range(10))
    with pytest.raises(UserError, match="with batch norm one image of this size"):
        predict(model, torch.rand(1, 1, 28, 28), [0, 1], "se_oneshot_entropy_minimization", InferenceOptions(), labels)
    assert predict(model, torch.rand(1, 1, 28, 28), [1], "gt", InferenceOptions(), labels)[0][0] == 1


def test_a_run_of_hidden_tasks_names_only_what_all_tasks_share(learned, capsys, tmp_path):
    tree, words = (
        learned / "tree",
        "--threads 1 --multigpu cpu --trainer nns --nns-every 2 --epochs 1 --iter-lim 4".split(),
    )
    words += ["--batch-size", "4", "--no-unshared-labels", "--adaptor", "se_oneshot_entropy_minimization"]
    for name, tasks_by in (("classes", "classes"), ("moved", "permutation")):
        argv = ["--set", f"folder:{tree}", "--num-tasks", "2", "--tasks-by", tasks_by, "--name", name]
        assert main.main([*words, *argv, "--log-dir", str(tmp_path / "runs")]) == 0
        (row, *_) = answers(capsys, tmp_path, tree / "val", run=name)
        assert row["task"].isdigit()
        assert row["label"].isdigit() if name == "classes" else row["label"].startswith("kind")


def test_images_that_batch_norm_takes_for_one_batch_are_told_of(learned, tmp_path, capsys):
    argv = ["--threads", "1", "--multigpu", "cpu", "--set", f"folder:{learned / 'tree'}", "--num-tasks", "2"]
    argv += ["--model", "BNNet", "--epochs", "1", "--log-dir", str(tmp_path), "--name", "run"]
    assert main.main(argv) == 0
    words = ["--predict", str(learned / "tree" / "val"), "--resume", str(tmp_path / "run")]
    for more, told in (([], True), (["--task-eval", "1"], False)):
        capsys.readouterr()
        assert main.main([*words, *more]) == 0
        printed = capsys.readouterr()
        assert ("note: with batch norm all 20 images are taken for one batch of one task" in printed.err) == told
        assert len(printed.out.splitlines()) == 21
