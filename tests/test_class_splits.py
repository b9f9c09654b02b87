"""CIFAR and ImageNet, split by class, held against the slow and obvious way to make each batch. No network."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from data import DATASETS
from data.cifar import crop_and_flip
from utils.errors import UserError
from utils.seeding import generator

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
        (dict(num_tasks=21), "--num-tasks 21: SplitCIFAR100 can have 1 to 20"),
        (dict(num_tasks=7, classes_per_task=15), "1 to 6 of 15 classes"),
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
    with pytest.raises(UserError, match="not split by class"):
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
    return DATASETS["SplitImageNet"](root, num_tasks=2, batch_size=8, test_batch_size=7, **more)


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


def test_imagenet_that_is_missing_is_refused_with_where_it_was_looked_for(tmp_path):
    with pytest.raises(UserError) as error:
        open_imagenet(tmp_path)
    assert str(tmp_path / "imagenet" / "train") in message(error) and "not downloaded" in message(error)
    with pytest.raises(UserError, match="--data is needed"):
        open_imagenet(None)


def test_imagenet_with_a_class_too_few_or_without_images_is_refused(tmp_path, imagenet):
    with pytest.raises(UserError) as error:
        DATASETS["SplitImageNet"](imagenet, num_tasks=3)
    assert "n" in message(error) and message(error).endswith("has no images")
    for split in ("train", "val"):
        (tmp_path / "imagenet" / split / "n1").mkdir(parents=True)
    with pytest.raises(UserError, match="has 1 class folders, should have 1000"):
        open_imagenet(tmp_path)


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
