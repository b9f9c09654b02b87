"""The data sets, held against the slow and obvious way to make each batch. No network."""

import errno
import gzip
import hashlib
import io
import os
import pickle
import shutil
import struct
import tarfile
import tempfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.datasets import CIFAR100
from torchvision.transforms.functional import rotate

from data import DATASETS
from data.base import BaseSet
from data.files import as_bytes
from data.loader import BatchLoader, View
from utils.errors import UserError

TRAIN, TEST = 300, 70  # images in the synthetic MNIST


def make_arrays():
    random = np.random.RandomState(0)
    arrays = {}
    for split, count in (("train", TRAIN), ("test", TEST)):
        arrays[f"{split}_images"] = random.randint(0, 256, (count, 28, 28)).astype(np.uint8)
        arrays[f"{split}_labels"] = random.permutation(np.arange(count) % 10).astype(np.int64)
    return arrays


def write_npz(root, arrays, name="mnist"):
    path = root / name / f"{name}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)
    return path


def write_idx(raw, arrays):
    """The four files of the MNIST distribution, unpacked."""
    raw.mkdir(parents=True, exist_ok=True)
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"].astype(np.uint8)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 0x0803, *images.shape) + images.tobytes())
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x0801, len(labels)) + labels.tobytes())


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(url, *args, **kwargs):
        raise URLError("no network in tests")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", refuse)


@pytest.fixture
def root(tmp_path):
    write_npz(tmp_path, make_arrays())
    return tmp_path


def everything(loader):
    x, y = zip(*loader, strict=True)
    return torch.cat(x), torch.cat(y)


def slow(images, *first):
    """Per image, as the usual pipeline: PIL, what acts on PIL images ``first``, ToTensor, Normalize."""
    pipeline = transforms.Compose(
        [Image.fromarray, *first, transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))]
    )
    return torch.stack([pipeline(image) for image in images])


def message(error):
    text = str(error.value)
    assert "\n" not in text
    return text


# Batches


def test_mnist_batches_are_those_of_the_per_image_pipeline(root):
    arrays = make_arrays()
    data = DATASETS["MNIST"](root, batch_size=128, test_batch_size=32)
    x, y = everything(data.val_loader)
    assert torch.equal(x, slow(arrays["test_images"]))
    assert y.tolist() == arrays["test_labels"].tolist()
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert [len(y) for _, y in data.val_loader] == [32, 32, 6] and len(data.val_loader) == 3
    assert [len(y) for _, y in data.train_loader] == [128, 128, 44] and len(data.train_loader) == 3
    assert (data.num_tasks, data.num_classes, data.input_shape) == (1, 10, (1, 28, 28))
    assert data.train_loader.num_images == TRAIN

    x, y = everything(data.train_loader)
    images = slow(arrays["train_images"])
    order = [int((images == image).flatten(1).all(1).nonzero()) for image in x]
    assert sorted(order) == list(range(TRAIN)) and order != sorted(order)
    assert y.tolist() == arrays["train_labels"][order].tolist()


@pytest.mark.parametrize("seed, task", [(0, 0), (0, 3), (7, 4)])
def test_permutations_are_the_originals(root, seed, task):
    data = DATASETS["MNISTPerm"](root, seed=seed)
    assert data.num_tasks == 5
    data.update_task(task)
    permutation = np.random.RandomState(seed + task).permutation(784)
    expected = slow(make_arrays()["test_images"]).flatten(1)[:, permutation].view(-1, 1, 28, 28)
    assert torch.equal(everything(data.val_loader)[0], expected)


def test_permutations_have_no_limit(root):
    data = DATASETS["MNISTPerm"](root, num_tasks=2500)
    data.update_task(2499)
    assert len(data.val_loader) == 1


@pytest.mark.parametrize(
    "num_tasks, task", [(36, 0), (36, 1), (36, 9), (36, 18), (36, 27), (36, 35), (7, 3), (360, 359)]
)
def test_rotations_are_those_of_torchvision(root, num_tasks, task):
    data = DATASETS["RotatingMNIST"](root, num_tasks=num_tasks)
    data.update_task(task)
    angle = task * (360 // num_tasks)
    expected = slow(make_arrays()["test_images"], lambda image: rotate(image, angle))
    assert torch.equal(everything(data.val_loader)[0], expected)


def test_split_keeps_two_digits_and_their_labels(root):
    arrays = make_arrays()
    data = DATASETS["SplitMNIST"](root)
    assert (data.num_tasks, data.num_classes) == (5, 10)
    for task in range(5):
        data.update_task(task)
        rows = np.isin(arrays["test_labels"], (2 * task, 2 * task + 1))
        x, y = everything(data.val_loader)
        assert torch.equal(x, slow(arrays["test_images"][rows]))
        assert y.tolist() == arrays["test_labels"][rows].tolist()
        assert set(everything(data.train_loader)[1].tolist()) == {2 * task, 2 * task + 1}
        assert data.train_loader.num_images == TRAIN // 5


def test_original_name_of_split_mnist():
    assert DATASETS["PartitionMNISTV2"] is DATASETS["SplitMNIST"]


def test_view_gives_classes_new_labels():
    images, labels = torch.zeros(6, 3, 4, 4, dtype=torch.uint8), torch.tensor([4, 0, 2, 4, 1, 2])
    view = View(classes=(4, 2), new_labels=torch.tensor([-1, -1, 1, -1, 0]))
    loader = BatchLoader(images, labels, mean=(0.5,) * 3, std=(0.25,) * 3, view=view)
    x, y = everything(loader)
    assert y.tolist() == [0, 1, 0, 1]
    assert torch.equal(x, torch.full((4, 3, 4, 4), -2.0))


def test_pixels_move_alike_in_every_channel():
    images = torch.arange(2 * 3 * 4, dtype=torch.uint8).view(2, 3, 2, 2)
    view = View(pixels=torch.tensor([3, -1, 0, 0]))
    x, _ = everything(BatchLoader(images, torch.zeros(2).long(), view=view))
    expected = images.flatten(2)[:, :, [3, 0, 0, 0]].float() / 255
    expected[:, :, 1] = 0
    assert torch.equal(x, expected.view(2, 3, 2, 2))


def test_a_class_without_images_is_an_empty_loader():
    loader = BatchLoader(torch.zeros(3, 1, 2, 2).byte(), torch.zeros(3).long(), view=View(classes=(1,)))
    assert len(loader) == 0 and list(loader) == []


# Order


def labels_of(data, task=0, epoch=0, start=0):
    """Stand-in for the order: one label a row, with as many classes as rows."""
    data.update_task(task)
    data.train_loader.labels = torch.arange(TRAIN)
    data.train_loader.set_epoch(epoch, start)
    return [y.tolist() for _, y in data.train_loader]


def test_order_depends_on_seed_task_and_epoch_alone(root):
    def make(seed=0):
        return DATASETS["MNISTPerm"](root, seed=seed, batch_size=64)

    data = make()
    reference = labels_of(data, task=2, epoch=1)
    labels_of(data, task=4, epoch=3)
    torch.manual_seed(99)
    assert labels_of(data, task=2, epoch=1) == reference == labels_of(make(), task=2, epoch=1)
    assert sorted(sum(reference, [])) == list(range(TRAIN))
    others = [labels_of(data, task=2, epoch=2), labels_of(data, task=1, epoch=1), labels_of(make(1), 2, 1)]
    assert all(other != reference for other in others)


@pytest.mark.parametrize("start", [0, 1, 4, 5])
def test_start_serves_the_tail_of_the_epoch(root, start):
    data = DATASETS["MNISTPerm"](root, batch_size=64)
    whole = labels_of(data, task=1, epoch=2)
    assert labels_of(data, task=1, epoch=2, start=start) == whole[start:]
    assert len(data.train_loader) == 5


def test_validation_never_shuffles(root):
    loader = DATASETS["MNIST"](root, test_batch_size=32).val_loader
    loader.set_epoch(3)
    assert everything(loader)[1].tolist() == make_arrays()["test_labels"].tolist()


def test_shuffled_images_are_the_same_in_an_order_of_the_seed_and_the_task(root):
    def order(seed, task):
        data = DATASETS["MNISTPerm"](root, seed=seed)
        data.update_task(task)
        data.val_loader.labels = torch.arange(TEST)
        drawn = everything(data.val_loader.shuffled())[1].tolist()
        assert everything(data.val_loader)[1].tolist() == list(range(TEST)) == sorted(drawn)
        return drawn

    drawn = order(0, 1)
    assert drawn == order(0, 1) and drawn not in (list(range(TEST)), order(1, 1), order(0, 2))


def test_augmentation_is_keyed_batched_and_exact_from_the_middle():
    calls = []

    def shift(batch, generator):
        calls.append((batch.shape, batch.dtype))
        return batch + torch.randint(0, 99, (len(batch), 1, 1, 1), generator=generator).byte()

    def batches(task=0, epoch=0, start=0):
        loader = BatchLoader(
            torch.zeros(10, 3, 2, 2).byte(),
            torch.zeros(10).long(),
            batch_size=4,
            shuffle=True,
            task=task,
            augment=shift,
        )
        loader.set_epoch(epoch, start)
        return [x for x, _ in loader]

    whole = batches()
    assert calls == [((4, 3, 2, 2), torch.uint8)] * 2 + [((2, 3, 2, 2), torch.uint8)]
    assert not torch.equal(whole[0], whole[1])
    assert all(map(torch.equal, batches(start=1), whole[1:]))
    assert not torch.equal(batches(epoch=1)[0], whole[0])
    assert not torch.equal(batches(task=1)[0], whole[0])


def test_only_training_images_are_augmented(root, monkeypatch):
    monkeypatch.setattr(DATASETS["MNIST"], "augment", staticmethod(lambda batch, generator: batch * 0))
    data = DATASETS["MNIST"](root)
    assert everything(data.train_loader)[0].unique().numel() == 1
    assert torch.equal(everything(data.val_loader)[0], slow(make_arrays()["test_images"]))


# Digits


@pytest.mark.parametrize("name, num_tasks", [("DigitsPerm", 5), ("RotatingDigits", 36), ("SplitDigits", 5)])
def test_digits_need_no_files(name, num_tasks):
    data = DATASETS[name]()
    assert (data.num_tasks, data.num_classes, data.input_shape) == (num_tasks, 10, (1, 28, 28))
    data.update_task(num_tasks - 1)
    x, y = next(iter(data.train_loader))
    assert x.shape == (128, 1, 28, 28) and y.min() >= 0 and y.max() < 10


def test_digits_are_split_once_for_all_seeds():
    data, other = DATASETS["DigitsPerm"](seed=0), DATASETS["DigitsPerm"](seed=1)
    assert torch.equal(data.base.test_images, other.base.test_images)
    assert data.base.test_labels.bincount().tolist() == [36] * 10
    assert (len(data.base.train_labels), len(data.base.test_labels)) == (1437, 360)
    x, _ = everything(data.train_loader)
    assert abs(x.mean()) < 1e-4 and abs(x.std() - 1) < 1e-4  # sums of a million floats


# Bad tasks


@pytest.mark.parametrize(
    "name, num_tasks, right",
    [
        ("SplitDigits", 6, "can have 1 to 5 tasks"),
        ("RotatingDigits", 361, "can have 1 to 360 tasks"),
        ("DigitsPerm", 0, "can have any number of tasks from 1 up"),
        ("MNIST", 2, "can have 1 task"),
        ("SplitMNIST", -1, "can have 1 to 5 tasks"),
    ],
)
def test_impossible_number_of_tasks(name, num_tasks, right):
    with pytest.raises(UserError) as error:
        DATASETS[name](None, num_tasks=num_tasks)
    assert f"`num_tasks` {num_tasks}" in message(error) and right in message(error)


@pytest.mark.parametrize("task", [-1, 3])
def test_tasks_are_range_checked(task):
    data = DATASETS["SplitDigits"](num_tasks=3)
    with pytest.raises(IndexError, match=f"task {task}: SplitDigits has tasks 0 to 2"):
        data.update_task(task)


# Files


@pytest.mark.parametrize("name, folder", [("MNIST", "mnist"), ("FashionMNIST", "fashionmnist")])
def test_idx_files_are_read_kept_and_then_not_needed(tmp_path, name, folder):
    arrays, raw = make_arrays(), tmp_path / folder / name / "raw"
    write_idx(raw, arrays)
    first = everything(DATASETS[name](tmp_path).val_loader)
    assert torch.equal(first[0], slow(arrays["test_images"]))

    assert sorted(path.name for path in (tmp_path / folder).iterdir()) == sorted([name, f"{folder}.npz"])
    with np.load(tmp_path / folder / f"{folder}.npz", allow_pickle=False) as kept:
        assert set(kept.files) == set(arrays)
        assert all(np.array_equal(kept[key], arrays[key]) and kept[key].dtype == arrays[key].dtype for key in arrays)
    for path in raw.iterdir():
        path.write_bytes(b"")
    assert all(map(torch.equal, everything(DATASETS[name](tmp_path).val_loader), first))


def test_folder_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    write_idx(tmp_path / "mnist" / "MNIST" / "raw", make_arrays())

    def refuse(file, **arrays):
        file.write(b"some of it")
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez", refuse)
    assert len(DATASETS["MNIST"](tmp_path).val_loader) == 1
    assert [path.name for path in (tmp_path / "mnist").iterdir()] == ["MNIST"]


def test_no_root():
    with pytest.raises(UserError) as error:
        DATASETS["MNISTPerm"](None)
    assert "`data`" in message(error) and "mnist/" in message(error)


def test_root_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError) as error:
        DATASETS["MNIST"](tmp_path / "file")
    assert f"`data` {tmp_path / 'file'}" in message(error)


def test_no_data_and_no_network(tmp_path, capfd):
    with pytest.raises(UserError) as error:
        DATASETS["MNIST"](tmp_path / "data")
    for part in ("MNIST is missing", str(tmp_path / "data" / "mnist"), "mnist.npz", "no network in tests"):
        assert part in message(error)
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_download_cut_short_leaves_nothing_and_a_later_one_serves(tmp_path, monkeypatch):
    staging = []

    def cut_short(url, download_root, filename, md5):
        print("a progress bar")
        staging.append(download_root)
        write_idx(tmp_path / "server", make_arrays())
        with open(f"{download_root}/train-images-idx3-ubyte", "wb") as file:
            file.write((tmp_path / "server" / "train-images-idx3-ubyte").read_bytes()[:999])
        raise ConnectionResetError("cut short")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", cut_short)
    with pytest.raises(UserError, match="cut short"):
        DATASETS["MNIST"](tmp_path)
    assert not (tmp_path / "mnist").exists()

    def serve(url, download_root, filename, md5):
        write_idx(Path(download_root), make_arrays())

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", serve)
    x, _ = everything(DATASETS["MNIST"](tmp_path).val_loader)
    assert torch.equal(x, slow(make_arrays()["test_images"]))
    assert [path.name for path in (tmp_path / "mnist").iterdir()] == ["mnist.npz"]
    assert not any(Path(path).exists() for path in staging)


def test_archives_at_hand_reach_the_download(tmp_path, monkeypatch):
    raw = tmp_path / "mnist" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte.gz").write_bytes(b"packed")
    (raw / "train-images-idx3-ubyte").write_bytes(b"half of it")
    seen = []

    def look(url, download_root, filename, md5):
        seen.extend(path.name for path in Path(download_root).iterdir())
        raise URLError("enough")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", look)
    with pytest.raises(UserError):
        DATASETS["MNIST"](tmp_path)
    assert set(seen) == {"train-images-idx3-ubyte.gz"}


@pytest.fixture
def cifar_100_server(tmp_path, monkeypatch):
    """CIFAR-100 in the layout of its distribution, of few images, where torchvision will download it from."""
    random, arrays, folder, files = np.random.RandomState(0), {}, tmp_path / "server" / "cifar-100-python", {}
    folder.mkdir(parents=True)
    for split, count in (("train", 300), ("test", 100)):
        images, labels = random.randint(0, 256, (count, 3, 32, 32)).astype(np.uint8), random.permutation(count) % 100
        arrays |= {f"{split}_images": images.transpose(0, 2, 3, 1), f"{split}_labels": labels}
        files[split] = {"data": images.reshape(count, 3072), "fine_labels": labels.tolist()}
    files["meta"] = {"fine_label_names": [f"class {label}" for label in range(100)]}
    for name, content in files.items():
        (folder / name).write_bytes(pickle.dumps(content))
    archive = tmp_path / "server" / "cifar-100-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    md5 = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in (*folder.iterdir(), archive)}

    class Files(SimpleHTTPRequestHandler):
        def log_message(self, *words):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Files, directory=archive.parent))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(CIFAR100, "url", f"http://127.0.0.1:{server.server_port}/{archive.name}")
    monkeypatch.setattr(CIFAR100, "tgz_md5", md5[archive.name])
    monkeypatch.setattr(CIFAR100, "train_list", [["train", md5["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", md5["test"]]])
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": md5["meta"]})
    yield archive, arrays
    server.shutdown()
    server.server_close()


def test_cifar_is_downloaded_decoded_and_kept(cifar_100_server, tmp_path, capfd):
    archive, arrays = cifar_100_server
    first = DATASETS["SplitCIFAR100"](tmp_path / "data")
    assert capfd.readouterr() == ("", "")
    assert [path.name for path in (tmp_path / "data" / "cifar100").iterdir()] == ["cifar100.npz"]
    with np.load(tmp_path / "data" / "cifar100" / "cifar100.npz", allow_pickle=False) as kept:
        assert all(np.array_equal(kept[key], arrays[key]) and kept[key].dtype == arrays[key].dtype for key in arrays)
    archive.unlink()
    x, y = everything(DATASETS["SplitCIFAR100"](tmp_path / "data").val_loader)
    assert torch.equal(x, everything(first.val_loader)[0])
    rows = [arrays["test_labels"].tolist().index(label) for label in first.classes_of(0)]
    images = torch.from_numpy(arrays["test_images"][rows]).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(values)[:, None, None] for values in (first.mean, first.std))
    assert torch.equal(x[y.argsort()], (images / 255 - mean) / std)


@pytest.mark.parametrize("damage", ["cut short", "missing"])
def test_cifar_whose_download_fails_is_one_line_and_leaves_nothing(cifar_100_server, tmp_path, damage):
    archive, _ = cifar_100_server
    archive.write_bytes(archive.read_bytes()[:9999]) if damage == "cut short" else archive.unlink()
    with pytest.raises(UserError) as error:
        DATASETS["SplitCIFAR100"](tmp_path / "data")
    assert "CIFAR100 is missing" in message(error) and str(tmp_path / "data" / "cifar100") in message(error)
    assert not (tmp_path / "data").exists()


def test_without_a_folder_to_unpack_in_there_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(UserError) as error:
        DATASETS["SplitCIFAR100"](tmp_path / "data")
    assert "no folder for temporary files can be used" in message(error) and "TMPDIR" in message(error)


def test_thousands_of_tasks_are_seen_through_at_once(tmp_path):
    """The order of the classes is drawn once, not for each task."""
    draw, drawn = np.random.RandomState, []
    images, labels = np.zeros((6000, 2, 2), np.uint8), np.arange(6000)
    arrays = dict(train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    np.savez(tmp_path / "many.npz", **arrays)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np.random, "RandomState", lambda seed: drawn.append(seed) or draw(seed))
        made = DATASETS[f"npz:{tmp_path / 'many.npz'}"](None, classes_per_task=2)
    assert made.num_tasks == 3000 and len(drawn) <= 3
    assert sorted(sum((made.classes_of(task) for task in range(3000)), [])) == list(range(6000))


@pytest.mark.parametrize("size", [0, 3, 500, -1])
@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_truncated_idx_file(tmp_path, file, size):
    raw = tmp_path / "mnist" / "MNIST" / "raw"
    write_idx(raw, make_arrays())
    content = (raw / file).read_bytes()
    (raw / file).write_bytes(content[: min(size, len(content) - 1)])
    with pytest.raises(UserError) as error:
        DATASETS["MNIST"](tmp_path)
    assert str(tmp_path / "mnist") in message(error) and "cannot be read" in message(error)
    assert not (tmp_path / "mnist" / "mnist.npz").exists()


def packed(arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def flipped(content):
    return content[:5000] + bytes([content[5000] ^ 255]) + content[5001:]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"junk",
        packed(make_arrays())[:-100],
        packed(make_arrays())[:2000],
        flipped(packed(make_arrays())),
        packed({"train_images": np.array([None])}),
    ],
    ids=["empty", "junk", "truncated", "short", "flipped", "pickled"],
)
def test_damaged_npz(root, content):
    path = root / "mnist" / "mnist.npz"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        DATASETS["MNIST"](root)
    assert str(path) in message(error) and "cannot be read" in message(error)


@pytest.mark.parametrize(
    "key, change, right",
    [
        ("test_labels", None, "has no test_labels"),
        ("train_images", lambda a: a.astype(np.float32), "should be uint8"),
        ("train_images", lambda a: a[:, :27], "28, 28"),
        ("train_images", lambda a: a[0, 0, 0], "28, 28"),
        ("train_labels", lambda a: a.astype(np.float64), "should be int64"),
        ("train_images", lambda a: a.astype(np.float32) / 255 - 0.1, "floats from 0 to 1"),
        ("train_images", lambda a: (a > 99).astype(np.int64), "should be uint8"),
        ("train_images", lambda a: np.where(a > 99, np.nan, 0), "should be uint8"),
        ("train_images", lambda a: a.astype(np.complex64), "should be uint8"),
        ("test_images", lambda a: a * (np.arange(len(a)) < 40)[:, None, None], "30 black images in a row"),
        ("test_labels", lambda a: a[:, None], "should be int64"),
        ("test_labels", lambda a: a[:-1], "70 images and 69 labels"),
        ("test_labels", lambda a: a + 1, "0 to 9"),
        ("test_labels", lambda a: a - 1, "0 to 9"),
    ],
)
def test_npz_with_other_content(tmp_path, key, change, right):
    arrays = make_arrays()
    value = arrays.pop(key)
    if change is not None:
        arrays[key] = change(value)
    path = write_npz(tmp_path, arrays)
    with pytest.raises(UserError) as error:
        DATASETS["MNIST"](tmp_path)
    assert str(path) in message(error) and right in message(error)


@pytest.mark.parametrize("change", [lambda a: a.astype(np.int64), lambda a: a.astype(np.float32) / 255])
def test_images_whose_meaning_is_clear_are_made_bytes(change, tmp_path):
    arrays = make_arrays()
    changed = {key: change(value) if "images" in key else value.astype(np.uint8) for key, value in arrays.items()}
    write_npz(tmp_path, changed)
    data = DATASETS["MNIST"](tmp_path).base
    for key, value in arrays.items():
        kept = getattr(data, key)
        assert np.array_equal(kept.numpy().reshape(value.shape), value)
        assert kept.dtype == (torch.uint8 if "images" in key else torch.int64)


def test_black_and_white_is_made_bytes():
    assert as_bytes(np.array([[True, False]])).tolist() == [[255, 0]]


def test_labels_that_a_crash_has_made_zeros_are_noticed_and_sorted_ones_are_not(tmp_path):
    labels = np.random.RandomState(0).randint(0, 10, 5000).astype(np.int64)
    images = np.ones((5000, 28, 28), np.uint8)
    write_npz(tmp_path, make_arrays() | {"train_images": images, "train_labels": np.sort(labels)})
    DATASETS["MNIST"](tmp_path)
    write_npz(tmp_path, make_arrays() | {"train_images": images, "train_labels": labels * (np.arange(5000) < 3000)})
    with pytest.raises(UserError) as error:
        DATASETS["MNIST"](tmp_path)
    assert "train_labels has 2,00" in message(error) and "labels 0 in a row" in message(error)


@pytest.mark.parametrize("place", ["mnist", "."])
def test_the_npz_of_keras_is_read(place, tmp_path):
    arrays = make_arrays()
    (tmp_path / "mnist").mkdir()
    keys = zip(("x_train", "y_train", "x_test", "y_test"), arrays.values(), strict=True)
    np.savez_compressed(tmp_path / place / "mnist.npz", **{key: value.astype(np.uint8) for key, value in keys})
    x, y = everything(DATASETS["MNIST"](tmp_path).val_loader)
    assert torch.equal(x, slow(arrays["test_images"])) and y.tolist() == arrays["test_labels"].tolist()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("place", ["mnist/MNIST/raw", "mnist/raw", "mnist", "MNIST/raw"])
def test_idx_files_are_read_where_users_put_them(place, packed, tmp_path):
    write_idx(tmp_path / place, make_arrays())
    if packed:
        for path in (tmp_path / place).iterdir():
            Path(f"{path}.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    else:
        for path in (tmp_path / place).glob("t10k*"):  # as some spell them
            path.rename(path.with_name(path.name.replace("-idx", ".idx")))
    x, _ = everything(DATASETS["MNIST"](tmp_path).val_loader)
    assert torch.equal(x, slow(make_arrays()["test_images"]))


def test_idx_files_may_lie_in_folders_of_their_names(tmp_path):
    """As Kaggle's mirrors pack them."""
    write_idx(tmp_path / "plain" / "mnist", arrays := make_arrays())
    for file in list((tmp_path / "plain" / "mnist").iterdir()):
        inside = tmp_path / "packed" / "mnist" / file.name
        inside.mkdir(parents=True)
        file.rename(inside / file.name)
    read = DATASETS["MNIST"](tmp_path / "packed")
    assert torch.equal(read.base.train_labels, torch.from_numpy(arrays["train_labels"]).long())


def test_a_packed_idx_file_that_is_damaged_is_named(tmp_path):
    write_idx(tmp_path / "mnist", make_arrays())
    path = tmp_path / "mnist" / "t10k-images-idx3-ubyte"
    for content in (gzip.compress(path.read_bytes())[:-99], path.read_bytes().replace(b"\0\0\x08\3", b"\0\0\x0d\3")):
        path.write_bytes(content)
        with pytest.raises(UserError) as error:
            DATASETS["MNIST"](tmp_path)
        assert message(error).startswith(f"{path}: cannot be read")


@pytest.mark.parametrize("path", ["mnist/mnist.npz", "mnist.npz", "mnist/MNIST/raw/train-labels-idx1-ubyte"])
def test_a_pipe_or_a_broken_link_is_refused_and_not_waited_for(path, tmp_path):
    if path.endswith("ubyte"):
        write_idx(tmp_path / "mnist" / "MNIST" / "raw", make_arrays())
    path = tmp_path / path
    path.parent.mkdir(exist_ok=True)
    for make in (os.mkfifo, lambda path: path.symlink_to(path.name)):
        path.unlink(missing_ok=True)
        make(path)
        with pytest.raises(UserError) as error:
            DATASETS["MNIST"](tmp_path)
        assert message(error).startswith(f"{path}: cannot be read (is no file)")


def test_a_folder_that_may_not_be_read_is_not_called_missing(root, monkeypatch):
    listdir = os.listdir

    def refuse(path):  # what permissions do to anyone but root
        if Path(path).name == "mnist":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(UserError, match=f"{root / 'mnist'}: Permission denied"):
        DATASETS["MNIST"](root)


def test_cifar_is_read_where_users_put_it_and_called_damaged_if_it_is(cifar_100_server, tmp_path):
    archive, arrays = cifar_100_server
    batches = archive.with_name("cifar-100-python")
    kept = archive.rename(tmp_path / "kept.tar.gz")
    for number, place in enumerate(["cifar100/cifar-100-python", "cifar100", "cifar-100-python"]):
        shutil.copytree(batches, tmp_path / str(number) / place)
        assert np.array_equal(DATASETS["SplitCIFAR100"](tmp_path / str(number)).base.test_labels, arrays["test_labels"])
    for name in ("train", "test", "meta"):
        folder = shutil.copytree(batches, tmp_path / f"damaged {name}" / "cifar100" / "cifar-100-python")
        (folder / name).write_bytes((folder / name).read_bytes()[:-9] + bytes(9))
        with pytest.raises(UserError) as error:
            DATASETS["SplitCIFAR100"](tmp_path / f"damaged {name}")
        assert message(error).startswith(f"{folder / name}: is damaged")
    for place in ("archive/cifar100", "archive"):
        (tmp_path / "archive" / "cifar100").mkdir(parents=True)
        shutil.copy(kept, tmp_path / place / archive.name)
        DATASETS["SplitCIFAR100"](tmp_path / "archive")
        shutil.rmtree(tmp_path / "archive")


# What a base set must be, and what a task needs


def base_set(**changes):
    arrays = {key: torch.from_numpy(value) for key, value in make_arrays().items()}
    images = {key: value.unsqueeze(1) for key, value in arrays.items() if "images" in key}
    return BaseSet(**(arrays | images | dict(mean=(0.0,), std=(1.0,)) | changes))


def test_floats_of_a_base_set_are_not_divided_by_255_again():
    bytes_ = base_set()
    floats = base_set(train_images=bytes_.train_images / 255, test_labels=bytes_.test_labels.int())
    for name, value in vars(bytes_).items():
        assert torch.equal(getattr(floats, name), value) if isinstance(value, torch.Tensor) else True
    assert floats.train_images.dtype == torch.uint8 and floats.test_labels.dtype == torch.int64


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"train_images": torch.randn(300, 1, 28, 28)}, "train_images are torch.float32"),
        ({"train_images": torch.ones(300, 1, 28, 28, dtype=torch.bfloat16)}, "train_images are torch.bfloat16"),
        ({"test_images": torch.zeros(70, 28, 28).byte()}, "[N, C, H, W]"),
        ({"test_images": torch.zeros(70, 1, 32, 32).byte()}, "alike for training and test"),
        ({"test_labels": torch.zeros(70)}, "test_labels are torch.float32"),
        ({"train_labels": torch.zeros(299).long()}, "should be int64 (300,)"),
        ({"mean": (0.0, 0.0, 0.0)}, "1 channels, and the mean has 3"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_a_base_set_of_another_type_or_shape_is_refused(changes, said):
    with pytest.raises(UserError) as error:
        base_set(**changes)
    assert said in message(error)


@pytest.mark.parametrize("split, said", [("train", "training"), ("test", "test")])
@pytest.mark.parametrize("name, digits", [("SplitMNIST", [6, 7]), ("SplitMNIST", [7]), ("SplitDigits", [6, 7])])
def test_a_task_without_images_is_named_with_its_classes(name, digits, split, said, root, monkeypatch):
    monkeypatch.setattr(DATASETS[name], "load", lambda self, root: lacking(digits, split))
    with pytest.raises(UserError) as error:
        DATASETS[name](root)
    classes = "classes 6, 7" if len(digits) > 1 else "class 7"
    assert message(error) == f"`data` {root}: {name} has no {said} images of {classes}, which task 3 is made of"
    DATASETS[name](root, num_tasks=3)  # of tasks that have all of theirs


def lacking(digits, split):
    whole = base_set()
    images, labels = getattr(whole, f"{split}_images"), getattr(whole, f"{split}_labels")
    rows = ~torch.isin(labels, torch.tensor(digits))
    return base_set(**{f"{split}_images": images[rows], f"{split}_labels": labels[rows]})


@pytest.mark.parametrize("label", [-1, 10])
def test_labels_beyond_the_classes_are_refused(label, monkeypatch):
    labels = make_arrays()["test_labels"]
    labels[3] = label
    monkeypatch.setattr(DATASETS["DigitsPerm"], "load", lambda *_: base_set(test_labels=torch.from_numpy(labels)))
    with pytest.raises(UserError, match=r"DigitsPerm has test labels from .* to .*, should be 0 to 9"):
        DATASETS["DigitsPerm"]()


# Real data


@pytest.mark.realdata
def test_real_mnist(real_data):
    data = DATASETS["RotatingMNIST"](real_data, test_batch_size=1000)
    assert (data.train_loader.num_images, data.val_loader.num_images) == (60000, 10000)
    raw = data.base.test_images[:1000, 0].numpy()
    for task in (0, 1, 9, 35):
        data.update_task(task)
        x, _ = next(iter(data.val_loader))
        assert torch.equal(x, slow(raw, lambda image, task=task: rotate(image, task * 10)))
    pixels = data.base.train_images.double() / 255
    assert abs(pixels.mean() - 0.1307) < 1e-4 and abs(pixels.std() - 0.3081) < 1e-4
