"""CIFAR and ImageNet, split by class, held against the slow and obvious way to make each batch. No network."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import resize

import main
from data import DATASETS
from data.base import digest
from data.cifar import crop_and_flip
from data.images import read_image, to_tensor
from data.kept import crop, draw_crops
from models import MODELS
from models.small import FullyConnected
from utils import memory
from utils.checkpoint import Checkpoint
from utils.errors import Stopped, UserError
from utils.seeding import generator

PROJECT = Path(__file__).resolve().parents[1]
MEAN, STD = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)


def cifar_arrays(classes: int, per_class: int = 2):
    random = np.random.RandomState(0)
    arrays = {}
    for split in ("train", "test"):
        arrays[f"{split}_images"] = random.randint(0, 256, (classes * per_class, 32, 32, 3)).astype(np.uint8)
        arrays[f"{split}_labels"] = random.permutation(np.arange(classes * per_class) % classes).astype(np.int64)
    return arrays


def write_cifar(root: Path, arrays, name: str) -> Path:
    path = root / name / f"{name}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)
    return path


@pytest.fixture
def root(tmp_path):
    write_cifar(tmp_path, cifar_arrays(100), "cifar100")
    write_cifar(tmp_path, cifar_arrays(10), "cifar10")
    return tmp_path


def everything(loader):
    x, y = zip(*loader, strict=True)
    return torch.cat(x), torch.cat(y)


def message(error) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# CIFAR


@pytest.mark.parametrize("name, classes, seed, task", [("SplitCIFAR100", 100, 0, 0), ("RandSplitCIFAR100", 100, 7, 19)])
def test_tasks_are_the_originals_classes_under_labels_of_their_own(root, name, classes, seed, task):
    data = DATASETS[name](root, seed=seed)
    assert (data.num_tasks, data.num_classes, data.input_shape) == (20, 5, (3, 32, 32))
    data.update_task(task)
    order = np.random.RandomState(seed).permutation(classes)[5 * task : 5 * task + 5].tolist()
    arrays = cifar_arrays(classes)
    pipeline = transforms.Compose([Image.fromarray, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    rows = [row for row, label in enumerate(arrays["test_labels"]) if label in order]
    x, y = everything(data.val_loader)
    assert torch.equal(x, torch.stack([pipeline(arrays["test_images"][row]) for row in rows]))
    assert y.tolist() == [order.index(arrays["test_labels"][row]) for row in rows]
    assert sorted(everything(data.train_loader)[1].tolist()) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_cifar_10_whole_and_split(root):
    whole, split = DATASETS["CIFAR10"](root), DATASETS["SplitCIFAR10"](root)
    assert (whole.num_tasks, whole.num_classes, whole.val_loader.num_images) == (1, 10, 20)
    assert (split.num_tasks, split.num_classes, split.val_loader.num_images) == (5, 2, 4)


def test_a_batch_is_cropped_and_flipped_as_each_image_by_itself():
    x = torch.randint(0, 256, (40, 3, 32, 32), generator=generator("x"), dtype=torch.uint8)
    changed = crop_and_flip(x, generator("augment"))
    assert changed.dtype == torch.uint8 and changed.shape == x.shape and changed.is_contiguous()
    assert torch.equal(changed, crop_and_flip(x, generator("augment")))
    seen = set()
    for image, result in zip(x, changed, strict=True):
        padded = torch.nn.functional.pad(image, (4, 4, 4, 4))
        crops = {
            (top, left, flip): padded[:, top : top + 32, left : left + 32].flip(2) if flip else
            padded[:, top : top + 32, left : left + 32]
            for top in range(9) for left in range(9) for flip in (False, True)
        }  # fmt: skip
        seen |= {key for key, crop in crops.items() if torch.equal(crop, result)}
    assert len(seen) > 30, "each image has a crop and a flip of its own"
    assert {top for top, _, _ in seen} == set(range(9)) == {left for _, left, _ in seen}
    assert {flip for _, _, flip in seen} == {False, True}


def test_training_images_differ_by_epoch_and_test_images_do_not(root):
    loader = DATASETS["SplitCIFAR100"](root).train_loader
    first = everything(loader)[0]
    loader.set_epoch(1)
    second = everything(loader)[0]
    loader.set_epoch(0)
    assert torch.equal(everything(loader)[0], first) and not torch.equal(first, second)


def test_shares_of_two_processes_are_the_batch_of_one(root):
    whole, *shares = (DATASETS["SplitCIFAR100"](root, batch_size=5, share=s) for s in ((0, 1), (0, 2), (1, 2)))
    for (x, y), (x0, y0), (x1, y1) in zip(whole.train_loader, *(s.train_loader for s in shares), strict=True):
        assert torch.equal(x[0::2], x0) and torch.equal(x[1::2], x1) and torch.equal(y[0::2], y0)
        assert torch.equal(y[1::2], y1)


@pytest.mark.parametrize(
    "flags, said",
    [
        (dict(num_tasks=21), "`num_tasks` 21: SplitCIFAR100 can have 1 to 20 tasks"),
        (dict(num_tasks=7, classes_per_task=15), "1 to 6 tasks of 15 classes"),
        (dict(classes_per_task=101), "there are 100 classes"),
    ],
)
def test_more_classes_than_there_are_are_refused(root, flags, said):
    with pytest.raises(UserError) as error:
        DATASETS["SplitCIFAR100"](root, **flags)
    assert said in message(error)


def test_tasks_can_have_another_number_of_classes(root):
    data = DATASETS["SplitCIFAR100"](root, classes_per_task=15)
    assert (data.num_tasks, data.num_classes) == (6, 15)
    with pytest.raises(UserError, match="cannot be chosen for"):
        DATASETS["CIFAR10"](root, classes_per_task=2)


def test_a_truncated_cifar_file_is_refused_by_name(tmp_path):
    path = write_cifar(tmp_path, cifar_arrays(100), "cifar100")
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError) as error:
        DATASETS["SplitCIFAR100"](tmp_path)
    assert str(path) in message(error)


def test_a_class_that_the_file_lacks_is_named(tmp_path):
    arrays = cifar_arrays(100)
    arrays["test_labels"][arrays["test_labels"] == 42] = 41
    write_cifar(tmp_path, arrays, "cifar100")
    with pytest.raises(UserError, match="no test images of class 42"):
        DATASETS["SplitCIFAR100"](tmp_path)


# ImageNet

ORDER = np.random.RandomState(1).permutation(1000)


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """A thousand class folders, with images in those of the first two tasks only."""
    root = tmp_path_factory.mktemp("data")
    random = np.random.RandomState(0)
    for split in ("train", "val"):
        for label in range(1000):
            (root / "imagenet" / split / f"n{label:08d}").mkdir(parents=True)
        for label in ORDER[:20]:
            for number in range(2):
                pixels = random.randint(0, 256, (40, 50, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(root / "imagenet" / split / f"n{label:08d}" / f"{number}.png")
    return root


def open_imagenet(root, **more):
    flags = dict(num_tasks=2, classes_per_task=10, batch_size=8, test_batch_size=7)
    return DATASETS["SplitImageNet"](root, **(flags | more))


def test_imagenet_tasks_are_the_originals_whatever_the_seed(imagenet):
    data = open_imagenet(imagenet, seed=3)
    assert (data.num_classes, data.input_shape, data.max_tasks) == (10, (3, 224, 224), 100)
    data.update_task(1)
    names = [Path(path).parent.name for path, _ in data.val_loader.images]
    assert set(names) == {f"n{label:08d}" for label in ORDER[10:20]}
    assert all(ORDER[10 + y] == int(name[1:]) for name, (_, y) in zip(names, data.val_loader.images, strict=True))


def test_imagenet_test_images_are_those_of_the_usual_pipeline(imagenet):
    data = open_imagenet(imagenet)
    pipeline = transforms.Compose([
        *(transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])  # fmt: skip
    batches = list(data.val_loader)
    assert [len(y) for _, y in batches] == [7, 7, 6] and len(data.val_loader) == 3
    for x, (path, _) in zip(torch.cat([x for x, _ in batches]), data.val_loader.images, strict=True):
        assert torch.equal(x, pipeline(Image.open(path).convert("RGB")))


def test_an_image_to_predict_is_read_as_a_test_image_of_imagenet(imagenet):
    data = open_imagenet(imagenet)
    path, _ = data.val_loader.images[0]
    x, _ = next(iter(data.val_loader))
    assert torch.equal(data.val_loader.prepare(to_tensor(data.read(path))[None])[0], x[0])


def test_imagenet_test_images_can_be_shuffled_by_the_seed(imagenet):
    orders = []
    for seed in (1, 1, 2):
        data = open_imagenet(imagenet, seed=seed)
        plain, drawn = (everything(loader)[0] for loader in (data.val_loader, data.val_loader.shuffled()))
        assert not torch.equal(plain, drawn)
        orders.append([[torch.equal(a, b) for b in plain].index(True) for a in drawn])
        assert sorted(orders[-1]) == list(range(len(plain)))
    assert orders[0] == orders[1] != orders[2]


def test_imagenet_batches_depend_on_seed_task_and_epoch_and_not_on_the_workers(imagenet):
    alone, workers = open_imagenet(imagenet, seed=1), open_imagenet(imagenet, seed=1, workers=2)
    other = open_imagenet(imagenet, seed=2)
    seen = []
    state = torch.get_rng_state()
    for task, epoch in ((0, 0), (0, 1), (1, 0)):
        for data in (alone, workers, other):
            data.update_task(task)
            data.train_loader.set_epoch(epoch)
        seen.append(everything(alone.train_loader))
        assert all(torch.equal(a, b) for a, b in zip(seen[-1], everything(workers.train_loader), strict=True))
        assert not torch.equal(seen[-1][0], everything(other.train_loader)[0])
    assert not torch.equal(seen[0][0], seen[1][0]) and not torch.equal(seen[0][1], seen[1][1])
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"
    alone.update_task(0)
    alone.train_loader.set_epoch(0, start=2)
    assert torch.equal(everything(alone.train_loader)[0], seen[0][0][16:])


def test_imagenet_shares_of_two_processes_are_the_batch_of_one(imagenet):
    whole, *shares = (open_imagenet(imagenet, share=s) for s in ((0, 1), (0, 2), (1, 2)))
    for (x, _), (x0, _), (x1, _) in zip(whole.train_loader, *(s.train_loader for s in shares), strict=True):
        assert torch.equal(x[0::2], x0) and torch.equal(x[1::2], x1)


KEPT = dict(seed=1, keep_images=True)


def test_kept_images_are_decoded_once_and_cropped_by_seed_task_and_epoch(imagenet, monkeypatch, capsys):
    """On any number of workers, with and without room for them, from the middle of an epoch, and in shares."""
    alone, workers = open_imagenet(imagenet, **KEPT), open_imagenet(imagenet, **KEPT, workers=2)
    epochs, read = [], []
    monkeypatch.setattr(alone.train_loader._decoded.dataset, "read", lambda path: read.append(path) or read_image(path))
    for epoch in (0, 1):
        for data in (alone, workers):
            data.train_loader.set_epoch(epoch)
        epochs.append(everything(alone.train_loader))
        assert all(torch.equal(a, b) for a, b in zip(epochs[-1], everything(workers.train_loader), strict=True))
    assert epochs[0][0].shape == (20, 3, 224, 224) and not torch.equal(epochs[0][0], epochs[1][0])
    assert sorted(read) == sorted(path for path, _ in alone.train_loader.images)
    said = "task 0: 20 training images are decoded once, 0.00 GB in memory"
    assert capsys.readouterr().out.splitlines() == [said] * 2
    shares = [open_imagenet(imagenet, **KEPT, share=share).train_loader for share in ((0, 2), (1, 2))]
    monkeypatch.setattr(memory, "FOR_ONE_THING", 0)
    in_file = open_imagenet(imagenet, **KEPT).train_loader
    in_file.set_epoch(1, start=1)
    assert torch.equal(everything(in_file)[0], epochs[1][0][8:])
    assert torch.equal(everything(shares[1])[0][:4], epochs[0][0][1:8:2])
    monkeypatch.setattr(os, "posix_fallocate", refuse_room, raising=False)
    nowhere = open_imagenet(imagenet, **KEPT).train_loader
    assert torch.equal(everything(nowhere)[0], epochs[0][0]) and torch.equal(everything(nowhere)[0], epochs[0][0])
    assert "has no room for it (TMPDIR names another folder): they are decoded in every" in capsys.readouterr().out


def refuse_room(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_kept_test_images_are_those_of_the_usual_pipeline(imagenet):
    plain, once = open_imagenet(imagenet).val_loader, open_imagenet(imagenet, **KEPT).val_loader
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(everything(once), everything(plain), strict=True))


def test_crops_of_kept_images_are_drawn_as_torchvision_draws_them():
    """Their shares of the area, shapes and places, and those of an image none of whose tries fits."""
    sizes = torch.tensor([[256, 341]]).expand(4000, 2)
    boxes, flips = draw_crops(sizes, torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    theirs = torch.tensor([
        transforms.RandomResizedCrop.get_params(torch.empty(3, 256, 341), (0.08, 1.0), (3 / 4, 4 / 3))
        for _ in range(4000)
    ])  # fmt: skip
    for measure in (lambda b: b[:, 2] * b[:, 3] / (256 * 341), lambda b: b[:, 3] / b[:, 2], lambda b: b[:, 0] / 256):
        ours, other = (measure(part.float()).sort().values for part in (boxes, theirs))
        assert (ours - other).abs().mean() < 0.02
    assert (boxes >= 0).all() and (boxes[:, :2] + boxes[:, 2:] <= sizes).all() and 0.45 < flips.float().mean() < 0.55
    thin, _ = draw_crops(torch.tensor([[256, 4000]]), torch.Generator().manual_seed(0))
    assert thin[0, 2] <= 256 and thin[0, 3] <= 4 / 3 * 256 + 1


def test_crops_are_those_parts_scaled_and_flipped():
    image = torch.randint(0, 256, (40, 50, 3), dtype=torch.uint8).permute(2, 0, 1)
    boxes, flips = torch.tensor([[3, 5, 20, 30]]).expand(2, 4), torch.tensor([False, True])
    plain, flipped = crop([image, image], boxes, flips, (16, 16), torch.device("cpu"))
    wanted = resize(Image.fromarray(image.permute(1, 2, 0).numpy()).crop((5, 3, 35, 23)), (16, 16))
    assert (plain.int() - to_tensor(wanted).int()).abs().max() <= 1
    assert torch.equal(flipped, plain.flip(-1))


def test_imagenet_that_is_missing_is_refused_with_where_it_was_looked_for(tmp_path):
    with pytest.raises(UserError) as error:
        open_imagenet(tmp_path)
    assert str(tmp_path / "imagenet" / "train") in message(error) and "not downloaded" in message(error)
    with pytest.raises(UserError, match="`data` is needed"):
        open_imagenet(None)


def test_imagenet_with_a_class_too_few_or_without_images_is_refused(tmp_path, imagenet):
    with pytest.raises(UserError) as error:
        open_imagenet(imagenet, num_tasks=3)
    folder = imagenet / "imagenet" / "train" / f"n{ORDER[20]:08d}"
    assert message(error) == f"{folder}: has no images, and task 2 is made of this class"
    for split in ("train", "val"):
        (tmp_path / "imagenet" / split / "n1").mkdir(parents=True)
    with pytest.raises(UserError, match="has 1 class folders, should have 1000"):
        open_imagenet(tmp_path)


@pytest.mark.parametrize("num_tasks, classes", [(None, 10), (1, 10), (2, 500), (8, 125), (1000, 1)])
def test_imagenet_tasks_share_all_classes_as_the_originals(num_tasks, classes, monkeypatch):
    monkeypatch.setattr(DATASETS["SplitImageNet"], "open", lambda self, root: None)
    monkeypatch.setattr(DATASETS["SplitImageNet"], "serve", lambda self, task: None)
    data = DATASETS["SplitImageNet"](None, num_tasks=num_tasks)
    assert data.num_classes == classes and data.classes_of(0) == ORDER[:classes].tolist()
    assert DATASETS["SplitImageNet"](None, num_tasks=num_tasks, classes_per_task=1).num_classes == 1
    with pytest.raises(UserError, match="`num_tasks` 3: .* evenly .* `classes_per_task`"):
        DATASETS["SplitImageNet"](None, num_tasks=3)


@pytest.fixture
def copy(imagenet, tmp_path):
    """A copy of the images of ``imagenet`` to spoil: ``copy(split, place in ORDER) -> that class's folder``."""

    def folder(split: str, place: int) -> Path:
        return tmp_path / "imagenet" / split / f"n{ORDER[place]:08d}"

    shutil.copytree(imagenet / "imagenet", tmp_path / "imagenet")
    folder.root = tmp_path
    return folder


def save_all(folder: Path, name: str, values: np.ndarray, *modes: str, **more) -> None:
    image = Image.fromarray(values)
    for mode in modes:
        image = image.convert(mode)
    image.save(folder / name, **more)


def test_copies_and_what_other_programs_leave_are_no_images_and_no_classes(copy):
    before = [open_imagenet(copy.root).val_loader.images, open_imagenet(copy.root).train_loader.images]
    kept = open_imagenet(copy.root).fingerprint().kept
    for split in ("train", "val"):
        for name in (".ipynb_checkpoints", "@eaDir", "__MACOSX", "lost+found", "#recycle", "$RECYCLE.BIN"):
            for above in (copy(split, 0), copy(split, 0).parent):
                (above / name / "deep").mkdir(parents=True)
                shutil.copy(copy(split, 0) / "0.png", above / name / "deep" / "0-checkpoint.png")
        (copy(split, 0) / "@eaDir" / "0.png").mkdir()
        for name in ("._0.png", ".0.png", "Thumbs.db", ".DS_Store", "desktop.ini"):
            (copy(split, 0) / name).write_bytes(b"\0\5\26\7")
            (copy.root / "imagenet" / split / "n00000000" / name).write_bytes(b"\0\5\26\7")  # which is looked at
            (copy(split, 0).parent / name).write_bytes(b"\0\5\26\7")
        (copy(split, 0) / "again").symlink_to(".")
        (copy(split, 0) / "itself").symlink_to("itself")
    data = open_imagenet(copy.root)
    assert [data.val_loader.images, data.train_loader.images] == before
    assert data.fingerprint().kept == kept
    (copy.root / "imagenet" / "val" / "n00000000" / "1.png").write_bytes(b"another")
    assert not data.fingerprint().same(kept)


def test_a_run_of_before_that_took_every_file_for_an_image_goes_on(copy):
    names = sorted(path.name for path in (copy.root / "imagenet" / "train").iterdir())
    for split in ("train", "val"):
        (copy.root / "imagenet" / split / names[0] / ".DS_Store").write_bytes(b"left")
        shutil.copy(copy(split, 0) / "0.png", copy.root / "imagenet" / split / names[0] / "0.png")
    parts = [*names]
    for split in ("train", "val"):
        for name in names[::32]:
            files = sorted((copy.root / "imagenet" / split / name).iterdir())
            parts += [split, name, *(file.name for file in files)]
            parts += [np.fromfile(files[len(files) // 2], dtype=np.uint8)] if files else []
    fingerprint = open_imagenet(copy.root).fingerprint()
    assert fingerprint.same(digest(*parts)) and fingerprint.kept != digest(*parts)


def test_images_in_folders_of_a_class_come_in_torchvisions_order(copy):
    for name in ("a", "a-b", "a/c"):
        (copy("train", 1) / name).mkdir()
        for image in ("2.PNG", "1.png"):
            shutil.copy(copy("train", 1) / "0.png", copy("train", 1) / name / image)
    data = open_imagenet(copy.root)
    classes = {f"n{ORDER[place]:08d}": place for place in range(10)}
    expected = ImageFolder.make_dataset(str(copy.root / "imagenet" / "train"), classes, (".png",))
    assert data.train_loader.images == expected and len(expected) == 26


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_class_folder_too_many_is_named(split, copy):
    (copy.root / "imagenet" / split / "extra").mkdir()
    with pytest.raises(UserError, match=f"train has 100. class folders and val 100.; only {split} has extra"):
        open_imagenet(copy.root)
    other = {"train": "val", "val": "train"}[split]
    (copy.root / "imagenet" / other / "extra").mkdir()
    with pytest.raises(UserError, match="1001 class folders, should have 1000; .* extra"):
        open_imagenet(copy.root)


def test_a_class_with_nothing_but_copies_has_no_images(copy):
    for path in copy("val", 13).iterdir():
        path.rename(path.with_name(f"._{path.name}"))
    with pytest.raises(UserError, match=f"{copy('val', 13)}: has no images, and task 1 is made of this class"):
        open_imagenet(copy.root)


def test_what_is_called_an_image_and_is_no_file_is_named_and_not_waited_for(copy):
    path = copy("val", 3) / "2.png"
    for make in (os.mkfifo, lambda path: path.symlink_to(path.name), lambda path: path.symlink_to("gone.png")):
        make(path)
        with pytest.raises(UserError, match=f"{path}: "):
            open_imagenet(copy.root)
        path.unlink()


def test_a_class_folder_without_permission_is_named(copy, monkeypatch):
    scandir = os.scandir

    def refuse(path):  # what permissions do to anyone but root
        if Path(path).name == copy("train", 4).name:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=f"{copy('train', 4)}: Permission denied"):
        open_imagenet(copy.root)


RAMP = (np.add.outer(np.arange(300), np.arange(300)) % 256).astype(np.uint8)


@pytest.mark.parametrize(
    "name, values, modes",
    [
        ("16-bit.png", RAMP.astype(np.uint16) * 257, []),
        ("16-bit.tiff", RAMP.astype(np.uint16) * 257, []),
        ("big-endian.tiff", RAMP.astype(">u2") * 257, []),
        ("32-bit.tiff", RAMP.astype(np.int32) * 257, []),
        ("float.tiff", RAMP.astype(np.float32) / 255, []),
        ("grey.png", RAMP, []),
        ("alpha.png", RAMP, ["RGBA"]),
        ("grey alpha.png", RAMP, ["LA"]),
        ("palette.png", RAMP, ["P"]),
        ("cmyk.tiff", RAMP, ["RGB", "CMYK"]),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_every_type_of_image_keeps_its_brightness(name, values, modes, tmp_path):
    save_all(tmp_path, name, values, *modes)
    image = read_image(str(tmp_path / name))
    assert image.mode == "RGB" and np.array_equal(np.asarray(image), np.repeat(RAMP[..., None], 3, 2))


def test_of_several_pictures_in_a_file_the_first_is_taken(tmp_path):
    for name in ("a.webp", "a.png", "a.tiff"):
        more = dict(save_all=True, append_images=[Image.fromarray(255 - RAMP)])
        save_all(tmp_path, name, RAMP, **more, **(dict(lossless=True) if name == "a.webp" else {}))
        assert np.array_equal(np.asarray(read_image(str(tmp_path / name)))[..., 0], RAMP)


def spoiled(path: Path, kind: str) -> None:
    """Write an image that cannot be read."""
    if kind == "zero bytes":
        path.write_bytes(b"")
    elif kind == "junk":
        path.write_bytes(b"junk" * 99)
    elif kind == "too large":
        path.write_bytes(b"")
        Image.new("1", (13500, 13500)).save(path, "png")
    elif kind == "beyond 16 bits":
        Image.fromarray(RAMP.astype(np.int32) * 99999).save(path, "tiff")
    elif kind == "floats beyond 1":
        Image.fromarray(RAMP.astype(np.float32)).save(path, "tiff")
    else:  # cut, a hole
        noise = np.random.RandomState(0).randint(0, 256, (90, 90, 3)).astype(np.uint8)
        Image.fromarray(noise).save(path, "jpeg")
        whole = path.read_bytes()
        half = len(whole) // 2
        path.write_bytes(whole[:half] + (bytes(len(whole) - half) if kind == "hole" else b""))


@pytest.mark.parametrize(
    "kind", ["zero bytes", "junk", "too large", "beyond 16 bits", "floats beyond 1", "cut", "hole"]
)
def test_an_image_that_cannot_be_read_is_named(kind, tmp_path):
    path = tmp_path / "image.png"
    spoiled(path, kind)
    with pytest.raises(UserError) as error:
        read_image(str(path))
    assert message(error).startswith(f"{path}: cannot be read (") and len(message(error)) < len(str(path)) + 300


def test_zeros_behind_the_end_of_a_jpeg_are_no_hole(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes() + bytes(99))
    assert read_image(str(tmp_path / "a.jpg")).size == RAMP.shape


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_named_in_one_line(imagenet, workers):
    path = imagenet / "imagenet" / "train" / f"n{ORDER[3]:08d}" / "1.png"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    try:
        with pytest.raises(UserError) as error:
            everything(open_imagenet(imagenet, workers=workers).train_loader)
    finally:
        path.write_bytes(whole)
    assert message(error).startswith(f"{path}: cannot be read")


# Workers that fail

# Sends the signal that it is told to the workers, while the second batch is trained.
RUN = """
import multiprocessing, os, sys
import main
from models import MODELS
from trainers.default import DefaultTrainer
from tests.test_class_splits import Tiny


def step(trainer, x, y, before=DefaultTrainer.step):
    global batches
    batches += 1
    if batches == 2 and number:
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, number)
    return before(trainer, x, y)


MODELS["Tiny"], DefaultTrainer.step = Tiny, step
number, batches = int(sys.argv.pop(1)), 0
sys.exit(main.main(sys.argv[1:]))
"""
FLAGS = (
    "--set SplitImageNet --model Tiny --num-tasks 1 --batch-size 2 --epochs 1 --threads 1 --multigpu cpu --workers 1"
)
FLAGS += " --adaptor gt --output-size 10 --name run --data"


class Tiny(FullyConnected):
    """A network of four units a layer."""

    def __init__(self, builder, input_shape, output_size):
        super().__init__(builder, (4, 4), input_shape, output_size)


@pytest.mark.parametrize("how", ["SIGKILL", "training image", "test image"])
def test_a_run_whose_worker_fails_ends_with_one_line_and_goes_on_where_it_was(how, copy, tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "Tiny", Tiny)
    argv, whole, cut = [*FLAGS.split(), str(copy.root), "--log-dir"], str(tmp_path / "whole"), str(tmp_path / "cut")
    assert main.main([*argv, whole]) == 0

    image = copy("val" if how == "test image" else "train", 3) / "1.png"
    content, number, said = image.read_bytes(), 0, f"{image}: cannot be read"
    if how == "SIGKILL":
        number, said = signal.SIGKILL, "ended by SIGKILL: memory, or shared memory (/dev/shm), may be short"
    else:
        image.write_bytes(b"junk")
    called = [sys.executable, "-c", RUN, str(int(number)), *argv, cut]
    ended = subprocess.run(called, cwd=PROJECT, capture_output=True, text=True, timeout=100)
    image.write_bytes(content)
    assert ended.returncode == 1 and said in ended.stderr, ended.stderr
    assert len(ended.stderr.splitlines()) == 1 and "batches of task 0" in ended.stderr, ended.stderr

    assert (tmp_path / "cut" / "run" / "training.pt").exists()
    assert main.main([*argv, cut, "--resume"]) == 0
    records = [Checkpoint(tmp_path / name / "run" / "checkpoint.pt").read()[0] for name in ("whole", "cut")]
    a, b = ({name: value for record in each for name, value in record.tensors.items()} for each in records)
    assert a and all(torch.equal(value, b[name]) for name, value in a.items())


# Starts so many processes of Python's, and then no more.
SHORT_OF_PROCESSES = """
import errno, os, sys
from multiprocessing.process import BaseProcess
import main
from models import MODELS
from tests.test_class_splits import Tiny


def limited(process, start=BaseProcess.start):
    global left
    left -= 1
    if left < 0:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    start(process)


MODELS["Tiny"], BaseProcess.start, left = Tiny, limited, int(sys.argv.pop(1))
sys.exit(main.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("words, flag", [("--workers 2", "--workers 2"), ("--multigpu cpu,cpu,cpu", "--multigpu")])
def test_a_run_that_gets_too_few_processes_ends_with_one_line(words, flag, copy, tmp_path):
    words = [*FLAGS.split(), str(copy.root), "--log-dir", str(tmp_path), *words.split()]
    called = [sys.executable, "-W", "ignore", "-c", SHORT_OF_PROCESSES, "1", *words]
    ended = subprocess.run(called, cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1 and len(ended.stderr.splitlines()) == 1, ended.stderr
    assert f" {flag}: not all of its processes can be started: Resource temp" in ended.stderr, ended.stderr


def test_a_program_that_ends_by_an_error_does_not_wait_for_its_workers(copy):
    (copy("train", 3) / "1.png").write_bytes(b"junk")
    program = "import sys; from data import DATASETS; "
    program += "data = DATASETS['SplitImageNet'](sys.argv[1], num_tasks=1, workers=2, batch_size=4)\n"
    program += "batches = [x for x, y in data.train_loader]"
    ended = subprocess.run(
        [sys.executable, "-c", program, copy.root], cwd=PROJECT, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 1 and "UserError" in ended.stderr


def test_shared_memory_without_room_is_said_and_not_waited_for(imagenet, monkeypatch):
    def refuse(tensor):
        raise RuntimeError("unable to allocate shared memory(shm) for file: No space left on device (28)\nfurther")

    monkeypatch.setattr(torch.Tensor, "share_memory_", refuse)
    with pytest.raises(UserError) as error:
        everything(open_imagenet(imagenet, workers=1).train_loader)
    assert message(error).startswith("shared memory (/dev/shm) has no room") and "`workers` 0" in message(error)
    everything(open_imagenet(imagenet).train_loader)


def test_a_batch_that_cannot_be_sent_is_not_waited_for(imagenet, monkeypatch):
    monkeypatch.setattr("data.images.default_collate", lambda items: (torch.zeros(1).share_memory_(), lambda: 0))
    monkeypatch.setattr("data.images.get_worker_info", lambda: None)
    with pytest.raises(Stopped, match="a process that decodes images has ended by status 1"):
        everything(open_imagenet(imagenet, workers=1).train_loader)


# Real data


@pytest.mark.realdata
def test_real_cifar_100(real_data):
    data = DATASETS["SplitCIFAR100"](real_data)
    for task in (0, 19):
        data.update_task(task)
        assert (data.train_loader.num_images, data.val_loader.num_images) == (2500, 500)
    pixels = data.base.train_images.double() / 255
    # Those of the whole training set, which the paper's settings round.
    assert torch.allclose(pixels.mean(dim=(0, 2, 3)), torch.tensor([0.5071, 0.4865, 0.4409]).double(), atol=1e-3)


@pytest.mark.realdata
def test_real_imagenet_folders(real_data):
    data = DATASETS["SplitImageNet"](real_data, num_tasks=100)
    data.update_task(99)
    x, y = next(iter(data.train_loader))
    assert x.shape == (10, 3, 224, 224) and sorted(y.tolist()) == list(range(10))
