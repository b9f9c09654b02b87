"""Images of the user's own: trees of folders and arrays, as tasks of any kind."""

import csv
import os
import shutil
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import data.folder
import main
from data import DATASETS
from data.base import digest
from data.files import read_npz
from data.images import EXTENSIONS, images_in, upright
from utils.errors import UserError
from utils.fingerprint import Fingerprint
from utils.journal import MAGIC

FAST = ["--threads", "1", "--multigpu", "cpu", "--epochs", "1", "--iter-lim", "2", "--adaptor", "gt"]


def picture(path: Path, level: int, size=(8, 10), mode="L"):
    """An image (width, height) of one grey level."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, level).convert(mode).save(path)


def levels(loader) -> dict[int, set[int]]:
    """The grey levels 0 ... 255 that a loader of one-coloured images serves, by label."""
    found = {}
    for x, y in loader:
        x = ((x * loader.prepare.std + loader.prepare.mean) * 255).round().int()
        for image, label in zip(x, y.tolist(), strict=True):
            (level,) = image.unique().tolist()
            found.setdefault(label, set()).add(level)
    return found


@pytest.fixture
def tree(tmp_path):
    """Five classes, each of ten images of its own grey levels: class k has 10k ... 10k + 9."""
    for label in range(5):
        for number in range(10):
            picture(tmp_path / "tree" / f"class{label}" / f"{number}.png", 10 * label + number)
    return tmp_path / "tree"


@pytest.fixture
def split(tree, tmp_path):
    """The same with the last two images of each class as test images."""
    for path in tree.rglob("*.png"):
        part = "val" if int(path.stem) >= 8 else "train"
        (tmp_path / "split" / part / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "split" / part / path.parent.name)
    return tmp_path / "split"


def own(path, **more):
    return DATASETS[f"folder:{path}"](None, **more)


@pytest.mark.parametrize("memory", [2**30, 0], ids=["in memory", "decoded by the loader"])
def test_tasks_have_the_classes_as_evenly_as_can_be(split, memory, monkeypatch):
    monkeypatch.setattr(data.folder, "MEMORY", memory)
    three = own(split, num_tasks=3)
    assert [len(three.classes_of(task)) for task in range(3)] == [2, 2, 1] and three.num_classes == 2
    assert sorted(sum((three.classes_of(task) for task in range(3)), [])) == list(range(5))
    for task in range(3):
        three.update_task(task)
        for loader, numbers in ((three.train_loader, range(8)), (three.val_loader, (8, 9))):
            expected = {
                place: {10 * label + number for number in numbers} for place, label in enumerate(three.classes_of(task))
            }
            assert levels(loader) == expected
    assert three.input_shape == (3, 10, 8)
    assert [len(each) for each in map(own(split, classes_per_task=2).classes_of, range(3))] == [2, 2, 1]
    assert own(split).num_tasks == 1 and own(split).num_classes == 5


def test_in_memory_or_not_the_images_are_the_same(split, monkeypatch):
    for size in (None, (6, 6)):
        served = []
        for memory in (2**30, 0):
            monkeypatch.setattr(data.folder, "MEMORY", memory)
            served.append(list(own(split, image_size=size, seed=3).train_loader))
        for (x, y), (other, labels) in zip(*served, strict=True):
            assert torch.equal(x, other) and torch.equal(y, labels)


def test_the_seed_chooses_test_images_where_no_folder_does(tree):
    first, again, other = (own(tree, seed=seed) for seed in (0, 0, 1))
    for label, seen in levels(first.val_loader).items():
        trained = levels(first.train_loader)[label]
        assert len(seen) == 2 and len(trained) == 8 and not seen & trained
    assert levels(first.val_loader) == levels(again.val_loader) != levels(other.val_loader)


@pytest.mark.parametrize("flat", [True, False])
def test_each_folder_may_be_a_task(tree, split, tmp_path, flat):
    for name in ("b", "a"):
        shutil.copytree(tree if flat else split, tmp_path / "tasks" / name)
    shutil.rmtree(next((tmp_path / "tasks" / "b").rglob("class4")))
    if not flat:
        shutil.rmtree(tmp_path / "tasks" / "b" / "train" / "class4", ignore_errors=True)
        shutil.rmtree(tmp_path / "tasks" / "b" / "val" / "class4", ignore_errors=True)
    found = own(tmp_path / "tasks", **({"tasks_by": "folders"} if flat else {}))
    assert found.num_tasks == 2 and found.num_classes == 5
    assert set(levels(found.val_loader)) == {0, 1, 2, 3, 4}
    found.update_task(1)
    assert set(levels(found.val_loader)) == {0, 1, 2, 3}
    assert all(level // 10 == label for label, seen in levels(found.train_loader).items() for level in seen)


@pytest.mark.parametrize("memory", [2**30, 0])
def test_pixels_are_moved_as_in_every_other_set(split, memory, monkeypatch):
    picture(split / "val" / "class0" / "9.png", 0)
    Image.fromarray(np.arange(80, dtype=np.uint8).reshape(10, 8)).save(split / "val" / "class0" / "9.png")
    monkeypatch.setattr(data.folder, "MEMORY", memory)
    plain = own(split).val_loader
    permuted = own(split, tasks_by="permutation", num_tasks=3, seed=4)
    assert permuted.num_classes == 5
    permuted.update_task(2)
    pixels = torch.from_numpy(np.random.RandomState(6).permutation(80))
    for (x, _), (moved, _) in zip(plain, permuted.val_loader, strict=True):
        assert torch.equal(x.flatten(2)[..., pixels], moved.flatten(2))
    turned = own(split, tasks_by="rotation", num_tasks=2, mean=[0], std=[1])
    turned.update_task(1)
    x, moved = next(iter(own(split, mean=[0], std=[1]).val_loader))[0], next(iter(turned.val_loader))[0]
    assert torch.equal(x.flip(2, 3), moved)


def test_odd_files_are_converted_or_left_out_with_a_note(tree, capsys, tmp_path):
    picture(tree / "class0" / "cmyk.jpg", 128, mode="CMYK")
    sixteen = np.full((10, 8), 128 * 257, dtype=np.uint16)
    Image.fromarray(sixteen).save(tree / "class0" / "sixteen.png")
    (tree / "class1" / "broken.png").write_bytes(b"no image")
    (tree / "class1" / ".hidden.png").write_bytes(b"no image")
    (tree / "class1" / "notes.txt").write_text("no image")
    (tree / ".cache").mkdir()
    (tree / "empty").mkdir()
    read = own(tree)
    everything = [levels(read.train_loader), levels(read.val_loader)]
    places = dict(enumerate(read.classes_of(0)))
    seen = {places[label]: set().union(*(part[label] for part in everything)) for label in range(5)}
    assert seen[1] == set(range(10, 20)) and seen[0] - set(range(10)) <= {127, 128, 129}
    assert read.class_names == [f"class{label}" for label in range(5)]
    assert [note for note in read.notes if "empty" in note] and [note for note in read.notes if "broken.png" in note]
    assert [note for note in read.notes if "left out: 1 .txt" in note] and len(read.notes) == 3
    assert main.main([*FAST, "--set", f"folder:{tree}", "--log-dir", str(tmp_path / "runs")]) == 0
    assert capsys.readouterr().out.count("broken.png") == 1


def test_a_photograph_that_lies_on_its_side_is_turned(tmp_path):
    image = Image.fromarray(np.repeat(np.array([[0], [255]], dtype=np.uint8), 4, axis=0).repeat(4, axis=1))  # (8, 4)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    for label, number in ((0, 0), (0, 1), (1, 0), (1, 1)):
        (tmp_path / "t" / str(label)).mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "t" / str(label) / f"{number}.png", exif=exif)
    read = own(tmp_path / "t", mean=[0], std=[1])
    assert read.input_shape == (3, 4, 8)
    assert next(iter(read.val_loader))[0][0, 0, 0].tolist() == [1.0] * 4 + [0.0] * 4


def test_sizes_that_differ_become_one_and_what_is_measured_is_kept(tree, tmp_path):
    for number, size in enumerate([(20, 30), (40, 20), (12, 12)]):
        picture(tree / "class0" / f"more{number}.png", 9, size)
    assert own(tree).input_shape == (3, 8, 8)  # most are 8 wide
    assert own(tree, image_size=(12, 6)).input_shape == (3, 12, 6)
    argv = [
        *FAST,
        "--set",
        "folder:tree",
        "--data",
        str(tmp_path),
        "--log-dir",
        str(tmp_path / "runs"),
        "--name",
        "run",
    ]
    assert main.main(argv) == 0
    settings = yaml.safe_load((tmp_path / "runs" / "run" / "settings.yaml").read_text())["settings"]
    assert settings["image_size"] == [8, 8] and settings["set"] == "folder:tree"
    images = torch.cat([x for x, _ in own(tree, mean=[0], std=[1]).train_loader])
    assert settings["mean"] == pytest.approx(images.mean((0, 2, 3)).tolist(), rel=1e-5)
    assert settings["std"] == pytest.approx(images.std((0, 2, 3), correction=0).tolist(), rel=1e-5)
    assert main.main([*argv, "--resume"]) == 0
    for number in range(8):
        picture(tree / "class1" / f"{number}.png", 250)
    assert main.main([*argv, "--resume"]) == 2


@pytest.mark.parametrize("channels", [(), (1,), (3,)])
def test_an_npz_of_any_images(tmp_path, channels):
    rng, labels = np.random.RandomState(0), np.array([7, 3, 100] * 4)
    images = rng.randint(0, 256, (12, 5, 6, *channels)).astype(np.uint8)
    images[:9] = 0  # black images are no damage here
    arrays = dict(train_images=images, train_labels=labels, test_images=images[9:], test_labels=labels[9:])
    np.savez(tmp_path / "set.npz", **arrays)
    read = DATASETS["npz:set.npz"](tmp_path, num_tasks=2)
    assert read.input_shape == (channels[0] if channels else 1, 5, 6)
    assert [len(read.classes_of(task)) for task in (0, 1)] == [2, 1] and read.class_names == ["3", "7", "100"]
    (name,) = (read.class_names[label] for label in read.classes_of(1))
    read.update_task(1)
    ((x, y),) = read.val_loader
    x = (x * read.val_loader.prepare.std + read.val_loader.prepare.mean) * 255
    expected = images[9:][labels[9:] == int(name)].reshape(1, 5, 6, -1).transpose(0, 3, 1, 2)
    assert np.array_equal(x.round().numpy(), expected) and y.tolist() == [0]
    assert main.main([*FAST, "--set", f"npz:{tmp_path / 'set.npz'}", "--log-dir", str(tmp_path / "runs")]) == 0


def refused(capsys, *argv) -> str:
    assert main.main([*FAST, *map(str, argv)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_what_is_no_set_is_named_in_one_line(tree, split, tmp_path, capsys):
    assert "nowhere: No such file" in refused(capsys, "--set", f"folder:{tmp_path / 'nowhere'}")
    (tmp_path / "none").mkdir()
    assert "one a class" in refused(capsys, "--set", f"folder:{tmp_path / 'none'}")
    assert "has 5 classes" in refused(capsys, "--set", f"folder:{tree}", "--classes-per-task", 6)
    assert "--num-tasks 6" in refused(capsys, "--set", f"folder:{tree}", "--num-tasks", 6)
    assert "1 or 3" in refused(capsys, "--set", f"folder:{tree}", "--mean", "0.5,0.5")
    assert "--image-size 0" in refused(capsys, "--set", f"folder:{tree}", "--image-size", 0).replace(": '0'", " 0")
    assert "folder:PATH" in refused(capsys, "--set", "MNISTPerm", "--tasks-by", "permutation")
    assert "choose from" in refused(capsys, "--set", "folder:")
    shutil.rmtree(split / "val" / "class3")
    assert "class3: has no images" in refused(capsys, "--set", f"folder:{split}")
    picture(split / "val" / "other" / "1.png", 1)
    assert "other" in refused(capsys, "--set", f"folder:{split}")
    picture(tmp_path / "few" / "one" / "1.png", 1)
    assert "has one image" in refused(capsys, "--set", f"folder:{tmp_path / 'few'}")
    for path in (tree / "class2").iterdir():
        path.write_bytes(b"no image")
    line = refused(capsys, "--set", f"folder:{tree}")
    assert "class2, which task 0 is made of; cannot be read: " in line and f"{tree / 'class2' / '0.png'}, " in line
    np.savez(tmp_path / "x.npz", train_images=np.zeros((3, 4, 4), np.uint8), train_labels=np.arange(3))
    assert "has no test_images" in refused(capsys, "--set", f"npz:{tmp_path / 'x.npz'}")
    assert "folders" in refused(capsys, "--set", f"npz:{tmp_path / 'x.npz'}", "--tasks-by", "folders")


@pytest.mark.parametrize("name", ["Test", "TEST", "testing", "valid", "validation"])
def test_test_images_may_lie_in_a_folder_of_any_of_these_names(split, name):
    (split / "val").rename(split / name)
    data = own(split, num_tasks=1)
    data.update_task(0)
    assert data.val_loader.num_images == 10 and not data.notes
    shutil.copytree(split / name, split / "val")
    (note,) = own(split, num_tasks=1).notes
    assert f"tests are those of val, not of {name}" in note


def test_a_set_without_an_image_that_is_read_says_which_are(tree, capsys, recwarn):
    for path in tree.rglob("*.png"):
        path.write_bytes(b"no image")
    assert "none of its train images can be read" in refused(capsys, "--set", f"folder:{tree}")
    for path in tree.rglob("*.png"):
        path.rename(path.with_suffix(".heic"))
    assert ", ".join(EXTENSIONS) in refused(capsys, "--set", f"folder:{tree}")
    assert not [warning for warning in recwarn if warning.category is RuntimeWarning]


def test_labels_of_an_npz_may_be_a_column_or_floats(tmp_path):
    images, labels, path = np.zeros((4, 4, 4), np.uint8), np.array([0, 1, 7, 1]), tmp_path / "x.npz"
    for given in (labels[:, None], labels.astype(np.float32), labels[:, None].astype(np.float64)):
        np.savez(path, train_images=images, train_labels=given, test_images=images, test_labels=given)
        assert read_npz(path)["train_labels"].tolist() == labels.tolist()
    for given in (labels + 0.5, labels * np.nan, np.stack([labels, labels], 1)):
        np.savez(path, train_images=images, train_labels=given, test_images=images, test_labels=labels)
        with pytest.raises(UserError, match="should be int64"):
            read_npz(path)


def test_an_image_that_a_worker_cannot_read_is_named(split, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(data.folder, "MEMORY", 0)
    (split / "train" / "class1" / "broken.png").write_bytes(b"no image")
    argv = [*FAST, "--set", f"folder:{split}", "--workers", "0", "--log-dir", str(tmp_path / "runs")]
    assert main.main(argv) in (1, 2)
    assert "broken.png: cannot be read" in capsys.readouterr().err


def test_own_training_images_are_augmented_if_asked(split, monkeypatch):
    for memory in (2**30, 0):
        monkeypatch.setattr(data.folder, "MEMORY", memory)
        Image.fromarray(np.arange(80, dtype=np.uint8).reshape(10, 8)).save(split / "train" / "class0" / "1.png")
        plain, augmented = own(split), own(split, augment=True)
        (x, y), (moved, labels) = next(iter(plain.train_loader)), next(iter(augmented.train_loader))
        assert torch.equal(y, labels) and not torch.equal(x, moved)
        assert torch.equal(next(iter(plain.val_loader))[0], next(iter(augmented.val_loader))[0])


@pytest.mark.parametrize("train, test", [("Train", "Test"), ("training", "testing"), ("Training", "Validation")])
def test_folders_of_a_split_may_be_called_so_in_any_case(split, train, test):
    expected = levels(own(split).val_loader)
    (split / "train").rename(split / train)
    (split / "val").rename(split / test)
    assert levels(own(split).val_loader) == expected


def test_a_class_may_be_called_training_or_by_a_sign(tree):
    for label, name in enumerate(("Train", "test", "$5", "#1", "@home")):
        (tree / f"class{label}").rename(tree / name)
    found = own(tree)
    assert set(found.class_names) == {"Train", "test", "$5", "#1", "@home"}
    for name in ("Train", "test"):
        assert any(f"{name} is taken as a class" in note for note in found.notes)
    assert len(found.notes) == 2
    (tree / "Train").rename(tree / "birds")
    shutil.rmtree(tree / "test")
    (tree / "test").mkdir()
    (note,) = own(tree).notes
    assert "without images" in note and "test" in note


@pytest.mark.parametrize("test", ["test1", "Test"])
def test_images_without_classes_are_no_classes_of_train_and_test(tmp_path, test):
    for name in ("train", test):
        picture(tmp_path / "set" / name / "1.png", 1)
    (tmp_path / "set" / "annotations").mkdir()
    with pytest.raises(UserError, match="train: has no folder with images"):
        own(tmp_path / "set")


def test_what_lies_beside_is_told_of(split):
    shutil.copytree(split / "train", split / "dev")
    picture(split / "train" / "loose.png", 1)
    picture(split / "train" / "class0" / "more.gif", 1)
    notes = own(split).notes
    assert any("beside train, so no classes: dev" in note for note in notes)
    assert any("1 images that lie in no folder" in note for note in notes)
    assert len(own(split).source.train) == 41


def test_a_task_without_a_train_beside_some_with_one_is_named(split, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(split, tmp_path / "tasks" / name)
    picture(tmp_path / "tasks" / "thumbs" / "1.png", 1)
    with pytest.raises(UserError, match="a, b: with a train, as tasks have; thumbs: without"):
        own(tmp_path / "tasks")


def test_one_class_is_no_set(tree, tmp_path):
    (tmp_path / "outer").mkdir()
    tree.rename(tmp_path / "outer" / "photos")
    with pytest.raises(UserError, match="has one class, photos; are the classes in .*outer/photos"):
        own(tmp_path / "outer")


def test_a_transparent_image_that_lies_on_its_side_is_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for suffix, image in ((".png", Image.new("RGBA", (8, 10))), (".tif", Image.new("RGB", (8, 10)))):
        image.save(tmp_path / f"side{suffix}", exif=exif)
        assert upright(str(tmp_path / f"side{suffix}")).size == (10, 8)
        assert data.folder._size(str(tmp_path / f"side{suffix}")) == (8, 10)


def test_what_is_transparent_lies_over_white(tmp_path):
    alpha = np.zeros((10, 8), dtype=np.uint8)
    alpha[2:5] = 255
    shape = Image.fromarray(np.dstack([np.zeros((10, 8, 3), dtype=np.uint8), alpha]))
    expected = np.where(alpha, 0, 255)
    shape.save(tmp_path / "rgba.png")
    shape.convert("LA").save(tmp_path / "la.png")
    palette = Image.fromarray(alpha // 255, mode="P")
    palette.putpalette([0, 0, 0] * 2)
    palette.save(tmp_path / "p.png", transparency=0)
    for path in tmp_path.glob("*.png"):
        assert (np.asarray(upright(str(path))) == expected[..., None]).all(), path


def test_a_grey_value_of_16_bits_may_be_transparent(tmp_path):
    values = np.array([[0, 257, 30000, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "x.png", transparency=257)
    assert np.asarray(upright(str(tmp_path / "x.png")))[0, :, 0].tolist() == [0, 255, 117, 255]
    Image.fromarray(values).save(tmp_path / "y.png")
    assert np.asarray(upright(str(tmp_path / "y.png")))[0, :, 0].tolist() == [0, 1, 117, 255]


def test_a_photograph_of_several_images_that_ends_in_zeros_cannot_be_read(tmp_path):
    """As after a crash: Pillow takes them for grey."""
    image = Image.fromarray(np.random.RandomState(0).randint(0, 256, (64, 64, 3), dtype=np.uint8))
    path = tmp_path / "x.jpg"
    image.save(path, "MPO", save_all=True, append_images=[image])
    assert Image.open(path).format == "MPO" and upright(str(path)).size == (64, 64)
    content = path.read_bytes()
    path.write_bytes(content[:1500] + bytes(len(content) - 1500))
    with pytest.raises(UserError, match="its end is zeros"):
        upright(str(path))


def test_labels_that_int64_cannot_hold_are_refused(tmp_path):
    images, labels = np.zeros((4, 4, 4), np.uint8), np.array([0, 1, 0, 2**63], dtype=np.uint64)
    np.savez(tmp_path / "x.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    with pytest.raises(UserError, match="train_labels go up to 9223372036854775808, more than int64"):
        read_npz(tmp_path / "x.npz")
    labels[3] -= 1
    np.savez(tmp_path / "x.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    assert read_npz(tmp_path / "x.npz")["train_labels"].max() == 2**63 - 1


@pytest.mark.parametrize("shape", [(12, 1, 9, 9), (12, 3, 9, 9)])
def test_channels_of_an_npz_are_at_its_end(tmp_path, shape):
    images, labels = np.zeros(shape, dtype=np.uint8), np.arange(12) % 2
    arrays = {"train_images": images, "train_labels": labels, "test_images": images, "test_labels": labels}
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(UserError, match="should be the last axis"):
        DATASETS["npz:set.npz"](tmp_path)


@pytest.mark.parametrize("memory", [2**30, 0], ids=["in memory", "decoded by the loader"])
def test_batches_of_test_images_are_of_all_classes(split, memory, monkeypatch):
    """Files lie class by class; batches of one class would be other data than those of training."""
    monkeypatch.setattr(data.folder, "MEMORY", memory)
    apart = own(split, test_batch_size=10)
    assert all(len(y.unique()) > 2 for _, y in apart.val_loader)
    expected = {place: {10 * label + 8, 10 * label + 9} for place, label in enumerate(apart.classes_of(0))}
    assert levels(apart.val_loader) == expected


def test_test_images_of_an_npz_are_mixed_alike_for_every_seed(tmp_path):
    labels = np.repeat(np.arange(4), 8)
    images = np.arange(32, dtype=np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2)
    arrays = {"train_images": images, "train_labels": labels, "test_images": images, "test_labels": labels}
    np.savez(tmp_path / "sorted.npz", **arrays)
    mixed = [DATASETS[f"npz:{tmp_path}/sorted.npz"](None, seed=seed) for seed in (0, 1)]
    assert all(len(each.base.test_labels[:8].unique()) > 2 for each in mixed)
    assert torch.equal(mixed[0].base.test_images, mixed[1].base.test_images)
    assert (mixed[0].base.test_images[:, 0, 0, 0] // 8).tolist() == mixed[0].base.test_labels.tolist()
    assert mixed[0].fingerprint() == mixed[1].fingerprint()


@pytest.mark.parametrize(
    "link, leads", [("cats/up", ".."), ("cats/up", "../.."), ("current", "."), ("back", "../tree")]
)
def test_a_link_upwards_adds_no_images(tmp_path, link, leads):
    for name, first in (("cats", 0), ("dogs", 100)):
        for number in range(5):
            picture(tmp_path / "tree" / name / f"{number}.png", first + number)
    (tmp_path / "tree" / link).symlink_to(leads)
    read = own(tmp_path / "tree")
    assert read.class_names == ["cats", "dogs"]
    cats = read.classes_of(0).index(0)
    seen = levels(read.train_loader)[cats] | levels(read.val_loader)[cats]
    assert seen == set(range(5))
    assert len(read.base.train_labels) + len(read.base.test_labels) == 10


@pytest.mark.parametrize("backwards", [False, True])
def test_images_of_a_folder_with_links_to_it_are_those_of_its_own_name(tmp_path, monkeypatch, backwards):
    """Whatever is listed first, which is another on each disk: the split goes by names."""
    top, listed = tmp_path / "tree" / "cats", os.scandir
    for number, name in enumerate(("cats/m", "cats/z", "cats/m/deep", "elsewhere")):
        picture(tmp_path / "tree" / name / "1.png", number)
    (tmp_path / "tree" / "elsewhere").rename(tmp_path / "elsewhere")
    for link, leads in (("a", "z"), ("zz", "z"), ("b", "m/deep"), ("n/c", tmp_path / "elsewhere"), ("o", "../x")):
        (top / link).parent.mkdir(exist_ok=True)
        (top / link).symlink_to(leads)
    (tmp_path / "tree" / "x").symlink_to(tmp_path / "elsewhere")

    @contextmanager
    def in_order(path):
        with listed(path) as entries:
            yield iter(sorted(entries, key=lambda entry: entry.name, reverse=backwards))

    monkeypatch.setattr(os, "scandir", in_order)
    expected = [top / each / "1.png" for each in ("m", "m/deep", "n/c", "z")]
    assert sorted(images_in(top)) == sorted(map(str, expected))


@pytest.mark.parametrize("link", ["train/birds", "val/birds", "train/class0/more", "train/class0/9.png", "LICENSE"])
def test_a_link_that_leads_nowhere_is_told_of(split, link):
    """A drive that is not mounted: without a word the run would learn without what lies on it."""
    (split / link).unlink(missing_ok=True)
    (split / link).symlink_to("/not/mounted")
    (note,) = own(split).notes
    assert (f"{(split / link).parent}: links that lead nowhere" in note and Path(link).name in note) or (
        "left out: 1 links that lead nowhere" in note
    )


def test_a_split_or_a_task_that_leads_nowhere_is_named(split, tmp_path, capsys):
    for task in ("one", "three"):
        shutil.copytree(split, tmp_path / "tasks" / task)
    (tmp_path / "tasks" / "two").symlink_to("/not/mounted")
    assert own(tmp_path / "tasks").notes == [f"{tmp_path / 'tasks'}: links that lead nowhere, so no tasks: two"]
    for part in ("train", "val"):
        shutil.copytree(split, tmp_path / part)
        shutil.rmtree(tmp_path / part / part)
        (tmp_path / part / part).symlink_to("/not/mounted")
        assert f"{part}/{part}: is a link that leads nowhere" in refused(capsys, "--set", f"folder:{tmp_path / part}")


def test_train_and_test_of_each_class_may_lie_in_its_folder_if_classes_are_asked_for(tmp_path):
    for name, first in (("cats", 0), ("dogs", 100)):
        for number in range(6):
            picture(tmp_path / "tree" / name / ("train" if number < 4 else "test") / f"{number}.png", first + number)
    read = own(tmp_path / "tree", tasks_by="classes")
    assert read.class_names == ["cats", "dogs"] and "lie in folders of these" in read.notes[0]


@pytest.mark.parametrize("memory", [2**30, 0])
def test_the_fingerprint_is_that_of_files_in_their_order(split, memory, monkeypatch):
    """Runs of before the order of tests was mixed go on."""
    monkeypatch.setattr(data.folder, "MEMORY", memory)
    read = own(split)
    files = [*sorted((split / "train").rglob("*.png")), *sorted((split / "val").rglob("*.png"))]
    if memory:
        images = torch.stack([torch.from_numpy(np.array(upright(str(file)))).permute(2, 0, 1) for file in files])
        labels = torch.tensor([int(file.parent.name.removeprefix("class")) for file in files])
        parts = [digest(images[:40], labels[:40], images[40:], labels[40:])]
    else:
        parts = [
            *(f"{file.parent.name}/{file.name}" for file in files),
            np.array([file.stat().st_size for file in files]),
        ]
    assert read.fingerprint().same(digest(*read.class_names, *parts))
    assert not read.fingerprint().same(digest(*read.class_names[::-1], *parts))


def test_a_run_of_before_goes_on_with_its_labels_shared(tree, tmp_path):
    """Whatever is usual since: what a run began with is not asked of again."""
    words = ["--threads", "1", "--multigpu", "cpu", "--epochs", "1", "--iter-lim", "2", "--set", f"folder:{tree}"]
    words += ["--log-dir", str(tmp_path / "runs"), "--name", "run", "--num-tasks", "2"]
    assert main.main([*words, "--no-unshared-labels", "--tasks", "0"]) == 0
    assert main.main([*words, "--tasks", "0", "--resume"]) == 0
    settings = yaml.safe_load((tmp_path / "runs" / "run" / "settings.yaml").read_text())["settings"]
    assert settings["unshared_labels"] is False


def test_the_mean_is_the_same_on_every_processor(tmp_path):
    """Sums of floats end otherwise where vectors have another length; whole numbers do not."""
    images, labels = np.random.RandomState(1).randint(0, 256, (200, 9, 7), dtype=np.uint8), np.arange(200) % 6
    np.savez(tmp_path / "x.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    settled = DATASETS["npz:x.npz"](tmp_path).settled()
    assert settled["mean"] == [float(Fraction(int(images.sum(dtype=np.int64)), 255 * images.size))]
    assert settled["std"] == pytest.approx([images.std() / 255], rel=1e-14)


def test_a_run_goes_on_with_the_mean_that_it_began_with(tree, tmp_path, monkeypatch, capsys):
    """Versions before measured another last digit on some processors."""
    words, measure = in_a_run(tree, tmp_path), data.folder._measure
    with monkeypatch.context() as context:
        context.setattr(data.folder, "_measure", lambda x: [tuple(v * (1 + 1e-15) for v in of) for of in measure(x)])
        assert main.main(words) == 0
    settings = yaml.safe_load((tmp_path / "runs" / "run" / "settings.yaml").read_text())["settings"]
    assert settings["mean"] != own(tree).settled()["mean"]
    assert main.main([*words, "--resume"]) == 0
    again = yaml.safe_load((tmp_path / "runs" / "run" / "settings.yaml").read_text())["settings"]
    assert (again["mean"], again["std"]) == (settings["mean"], settings["std"])
    assert "--mean" in refused(capsys, *words, "--mean", "0.5", "--resume")


def test_slices_of_before_are_joined_whose_mean_another_processor_measured(tree, tmp_path, monkeypatch, capsys):
    words, measure = ["--set", f"folder:{tree}", "--num-tasks", "2", "--log-dir", str(tmp_path)], data.folder._measure
    for task, by in (("0", 1), ("1", 1 + 1e-15), ("1", 1 + 1e-7)):
        monkeypatch.setattr(data.folder, "_measure", lambda x, by=by: [tuple(v * by for v in of) for of in measure(x)])
        assert main.main([*FAST, *words, "--tasks", task, "--name", f"{task}{by}"]) == 0
    parts = [tmp_path / name for name in ("01", f"1{1 + 1e-15}", f"1{1 + 1e-7}")]
    assert "--mean" in refused(capsys, *words, "--name", "apart", "--merge", parts[0], parts[2])
    assert main.main([*FAST, *words, "--name", "joined", "--merge", *map(str, parts[:2])]) == 0


def test_a_run_that_was_merged_goes_on_by_the_same_call(tree, tmp_path):
    words = ["--set", f"folder:{tree}", "--log-dir", str(tmp_path)]
    parts = [str(tmp_path / task) for task in "01"]
    for task, part in zip("01", parts, strict=True):
        flags = ["--num-tasks", "2", "--output-size", "30", "--tasks", task, "--name", Path(part).name]
        assert main.main([*FAST, *words, *flags]) == 0
    merge = [*FAST[:4], *words, "--name", "joined", "--merge", *parts]
    assert main.main(merge) == 0 and main.main([*merge, "--resume"]) == 0


def test_a_checkpoint_of_before_is_known_behind_a_damaged_beginning(tree, tmp_path, monkeypatch, capsys):
    words, fingerprint = in_a_run(tree, tmp_path), data.folder.Own.fingerprint
    with monkeypatch.context() as context:
        context.setattr(data.folder.Own, "fingerprint", lambda self: Fingerprint(fingerprint(self).before[0]))
        assert main.main(words) == 0
    path = tmp_path / "runs" / "run" / "checkpoint.pt"
    content = bytearray(path.read_bytes())
    content[len(MAGIC) + 60] ^= 1
    path.write_bytes(content)
    capsys.readouterr()
    assert main.main([*words, "--resume"]) == 0
    assert "of what is whole behind damage: " in capsys.readouterr().out


def test_a_run_says_which_classes_are_in_which_task_and_that_tasks_are_found_by_chance(tree, tmp_path, capsys):
    words = ["--set", f"folder:{tree}", "--num-tasks", "2", "--log-dir", str(tmp_path), "--output-size", "30"]
    assert main.main([*FAST[:-1], "se_oneshot_entropy_minimization", *words, "--name", "run"]) == 0
    log, kept = (tmp_path / "run" / "log.txt").read_text(), own(tree, num_tasks=2)
    told = "; ".join(f"{task}: {', '.join(kept.labels_of(task).values())}" for task in range(2))
    assert f"classes by task: {told}\n" in log
    last = list(csv.DictReader((tmp_path / "results.csv").open()))[-1]
    assert ("found no more often than by chance" in log) == (float(last["Share Inferred Right"]) <= 0.6)


def test_a_tree_one_level_too_deep_is_told_of(tree, tmp_path, capsys):
    for part in ("seg_train", "seg_test"):
        shutil.copytree(tree, tmp_path / "kaggle" / part / part)
    (note,) = own(tmp_path / "kaggle").notes
    assert "lie in folders of these" in note and "seg_test, seg_train" in note
    for task in ("amazon", "dslr"):
        shutil.copytree(tree, tmp_path / "office" / task / "images")
    words = ["--set", f"folder:{tmp_path / 'office'}", "--tasks-by", "folders"]
    assert "has one class, images; are the classes in" in refused(capsys, *words)
    for task in ("amazon", "dslr"):  # a task of one class is one, if that is what it is
        shutil.copytree(tree / "class0", tmp_path / "single" / task / "bike")
    assert own(tmp_path / "single", tasks_by="folders").num_tasks == 2


def test_tasks_and_splits_are_not_taken_for_each_other(split, tmp_path, capsys):
    said = refused(capsys, "--set", f"folder:{split}", "--tasks-by", "folders")
    assert "is one task, with its images to learn from in train" in said
    for task in ("one", "two"):
        shutil.copytree(split, tmp_path / "tasks" / task)
    for kind in ("classes", "permutation"):
        said = refused(capsys, "--set", f"folder:{tmp_path / 'tasks'}", "--tasks-by", kind)
        assert "each of its folders has a train" in said


def test_files_that_are_not_called_as_images_are_counted_in_a_note(split):
    for number in range(3):
        (split / "train" / "class0" / f"{number}.HEIC").write_bytes(b"a photograph")
    (split / "val" / "class1" / "x.avif").write_bytes(b"another")
    (split / "val" / "class1" / ".hidden").write_bytes(b"nothing")
    Image.new("L", (8, 10), 250).save(split / "train" / "class0" / "y.jpe", "JPEG")
    read = own(split)
    assert [note for note in read.notes if note.endswith("left out: 3 .heic, 1 .avif")] == read.notes
    assert len(read.base.train_labels) == 41


def test_labels_that_changed_are_other_data(tmp_path, monkeypatch):
    """Also of images that are not in memory, of which names and sizes stay the same."""
    monkeypatch.setattr(data.folder, "MEMORY", 0)
    for name, inside in (("cats", "am"), ("dogs", "xz")):
        for part in inside:
            for number in range(4):
                picture(tmp_path / "tree" / "train" / name / part / f"{number}.png", 9)
        picture(tmp_path / "tree" / "val" / name / "0.png", 9)
    before = own(tmp_path / "tree").fingerprint()
    shutil.move(tmp_path / "tree" / "train" / "cats" / "m", tmp_path / "tree" / "train" / "dogs" / "m")
    assert not own(tmp_path / "tree").fingerprint().same(before.kept)


@pytest.fixture
def two_tasks(tree, tmp_path):
    """Folders of two tasks, the classes a, b, c and d, e."""
    for label, (task, name) in enumerate([*zip("AAA", "abc", strict=True), *zip("BB", "de", strict=True)]):
        for path in (tree / f"class{label}").iterdir():
            picture(tmp_path / "tasks" / task / ("val" if int(path.stem) >= 8 else "train") / name / path.name, label)
    return tmp_path / "tasks"


def in_a_run(path, tmp_path):
    return [*FAST, "--workers", "0", "--set", f"folder:{path}", "--log-dir", str(tmp_path / "runs"), "--name", "run"]


@pytest.mark.parametrize("memory", [2**30, 0], ids=["in memory", "decoded by the loader"])
def test_a_class_that_moves_to_another_task_is_other_data(two_tasks, memory, monkeypatch, tmp_path, capsys):
    """All images and classes stay in their order, but not what a label of a task means."""
    monkeypatch.setattr(data.folder, "MEMORY", memory)
    words = in_a_run(two_tasks, tmp_path)
    assert main.main(words) == 0
    for part in ("train", "val"):
        shutil.move(two_tasks / "A" / part / "c", two_tasks / "B" / part / "c")
    for more in (["--resume"], ["--predict", str(two_tasks / "B" / "val" / "c"), "--resume", f"{tmp_path}/runs/run"]):
        capsys.readouterr()
        assert main.main([*words, *more] if len(more) == 1 else more) == 2
        assert "was made with other data" in capsys.readouterr().err


def test_images_that_move_to_a_class_of_that_name_in_the_next_task_are_other_data(tmp_path, monkeypatch):
    monkeypatch.setattr(data.folder, "MEMORY", 0)
    for task, names in (("A", "ab"), ("B", "bc")):
        for name in names:
            for number in (0, 1, 2):
                file = f"{number + 3 * (task == 'B')}.png"
                picture(tmp_path / "tasks" / task / "train" / name / file, 9)
            picture(tmp_path / "tasks" / task / "val" / name / "0.png", 9)
    before = own(tmp_path / "tasks").fingerprint()
    (tmp_path / "tasks" / "A" / "train" / "b" / "2.png").rename(tmp_path / "tasks" / "B" / "train" / "b" / "2.png")
    assert not own(tmp_path / "tasks").fingerprint().same(before.kept)


def test_a_file_that_was_replaced_is_told_of_and_the_run_goes_on(split, monkeypatch, capsys, tmp_path):
    """As what is said of one that cannot be read asks for; one more is other data."""
    monkeypatch.setattr(data.folder, "MEMORY", 0)
    words = in_a_run(split, tmp_path)
    assert main.main(words) == 0
    picture(split / "train" / "class1" / "3.png", 13, mode="RGBA")
    assert main.main([*words, "--resume"]) == 0
    assert "checkpoint.pt was made when some images' files had other sizes" in capsys.readouterr().out
    picture(split / "train" / "class1" / "more.png", 13)
    assert main.main([*words, "--resume"]) == 2
    assert "was made with other data" in capsys.readouterr().err


@pytest.mark.parametrize("memory", [2**30, 0], ids=["in memory", "decoded by the loader"])
def test_a_run_of_before_is_known_by_what_it_kept_of_its_data(two_tasks, memory, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(data.folder, "MEMORY", memory)
    words, now = in_a_run(two_tasks, tmp_path), data.folder.Own.fingerprint
    with monkeypatch.context() as context:
        context.setattr(data.folder.Own, "fingerprint", lambda self: Fingerprint(*now(self).before))
        assert main.main([*words, "--tasks", "0"]) == 0
    assert main.main([*words, "--tasks", "0", "--resume"]) == 0
    assert "warning" not in capsys.readouterr().out


def test_labels_are_shared_only_where_they_mean_the_same(tree, tmp_path):
    assert own(tree, num_tasks=2).unshared_labels and not own(tree).unshared_labels
    assert not own(tree, tasks_by="permutation").unshared_labels
    for task, names in (("a", ("bird", "cat", "dog")), ("b", ("cat", "dog"))):
        for name in names:
            shutil.copytree(tree / "class0", tmp_path / "apart" / task / name)
            shutil.copytree(tree / "class1", tmp_path / "alike" / task / "cat", dirs_exist_ok=True)
            shutil.copytree(tree / "class2", tmp_path / "alike" / task / "dog", dirs_exist_ok=True)
    assert own(tmp_path / "apart", tasks_by="folders").unshared_labels
    assert not own(tmp_path / "alike", tasks_by="folders").unshared_labels
    assert own(tree, num_tasks=1, classes_per_task=2).unshared_labels  # for it may go on with more


def test_a_run_that_grows_is_as_one_that_began_whole(two_tasks, tmp_path):
    words = [*FAST[:8], "--set", f"folder:{two_tasks}", "--test-batch-size", "1", "--log-dir", str(tmp_path / "runs")]
    words += ["--adaptor", "se_oneshot_entropy_minimization"]
    assert main.main([*words, "--name", "whole"]) == 0
    for more in (["--num-tasks", "1"], ["--num-tasks", "2", "--resume"]):
        assert main.main([*words, "--name", "grown", *more]) == 0
    whole, grown = ((tmp_path / "runs" / name / "adapt_results.csv").read_text() for name in ("whole", "grown"))
    assert whole.splitlines()[-2:] == grown.splitlines()[-2:]
    settings = yaml.safe_load((tmp_path / "runs" / "grown" / "settings.yaml").read_text())["settings"]
    assert settings["unshared_labels"] is True


def test_an_answer_of_another_class_is_not_right(tree, tmp_path):
    """Label 0 of one task and label 0 of another are two classes: a task inferred wrong has no right answers."""
    words = [*FAST[:8], "--set", f"folder:{tree}", "--num-tasks", "2", "--test-batch-size", "1"]
    words += ["--log-dir", str(tmp_path), "--adaptor", "se_oneshot_entropy_minimization"]
    for more, told, scenario in (([], True, "GNu"), (["--no-unshared-labels"], False, "GNs")):
        assert main.main([*words, *more, "--name", scenario]) == 0
        settings = yaml.safe_load((tmp_path / scenario / "settings.yaml").read_text())["settings"]
        assert settings["unshared_labels"] is told
        assert f",{scenario}," in (tmp_path / "results.csv").read_text()
    assert main.main([*words, "--trainer", "nns", "--nns-every", "1", "--name", "hidden"]) == 0


def test_images_that_changed_are_what_is_named_and_not_what_was_measured_on_them(tree, tmp_path, capsys):
    words = ["--set", f"folder:{tree}", "--log-dir", str(tmp_path / "runs"), "--name", "run"]
    assert main.main([*FAST, *words]) == 0
    assert "--image-size [10, 8] there, [6, 6] here" in refused(capsys, *words, "--image-size", "6,6", "--resume")
    (tree / "class0" / "0.png").unlink()
    assert "was made with other data" in refused(capsys, *words, "--resume")


def test_tasks_of_one_class_are_told_of(tree):
    (note,) = own(tree, num_tasks=5).notes
    assert "of a task of one class every answer with the task given is right" in note
