"""Base sets on disk: the project's own ``.npz``, or else what torchvision reads or downloads."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from utils.errors import UserError

KEYS = ("train_images", "train_labels", "test_images", "test_labels")
Arrays = dict[str, np.ndarray]  # one array a key


def read_arrays(root: str | Path | None, source: str, *, image_shape: tuple[int, ...], num_classes: int) -> Arrays:
    """The images and labels of a set.

    If ``<root>/<set>/<set>.npz`` is there, nothing else is read. Otherwise torchvision reads, or else
    downloads, the set, and what it decoded is kept as that file if the folder can be written.

    Args:
        root: the parent folder of the data.
        source: name of the class in ``torchvision.datasets``; the folder's name is the same in small letters.
        image_shape: (H, W) or (H, W, 3).
        num_classes: labels lie in [0, num_classes).

    Returns:
        ``train_images`` uint8 [N, *image_shape], ``train_labels`` int64 [N], and the same for ``test``.

    Raises:
        UserError: no root, no data and no way to download it, or damaged files.
    """
    name = source.lower()
    if root is None:
        raise UserError(f"--data is needed for {source}: the parent folder of {name}/")
    root = Path(root).expanduser()
    if os.path.exists(root) and not os.path.isdir(root):
        raise UserError(f"--data {root}: is a file, should be the parent folder of {name}/")
    folder = root / name
    cache = folder / f"{name}.npz"

    if os.path.exists(cache):
        arrays = _read_npz(cache)
        _check(arrays, cache, image_shape, num_classes)
    else:
        arrays = _read_torchvision(folder, source)
        _check(arrays, folder, image_shape, num_classes)
        _keep(arrays, cache)
    return arrays


def _read_npz(path: Path) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in KEYS if key in file}
    except Exception as error:  # a damaged file can raise nearly anything
        raise UserError(f"{path}: cannot be read ({_reason(error)}); delete or replace it") from error


def _read_torchvision(folder: Path, source: str) -> Arrays:
    try:
        return _decode(folder, source)
    except Exception as error:  # as above
        if not str(error).startswith("Dataset not found"):
            raise UserError(
                f"{folder}: {source} files there cannot be read ({_reason(error)}); delete or replace them"
            ) from error
    # A download that is cut short must leave nothing that looks whole, and runs that start together must not
    # read each other's half-written files. So each downloads on its own, and only the .npz is ever shared.
    with tempfile.TemporaryDirectory(prefix=f"{source}-") as staging, _quiet_network():
        try:
            if folder.is_dir():  # archives already there need no download
                shutil.copytree(folder, staging, dirs_exist_ok=True, ignore=_all_but_archives)
            return _decode(staging, source, download=True)
        except Exception as error:  # no network, a proxy's answer instead of the file, no space, ...
            raise UserError(
                f"{source} is missing: {folder} has neither {source.lower()}.npz nor the files that "
                f"torchvision reads, and it cannot be downloaded ({_reason(error)}); "
                "put one of them there, or run once with a network"
            ) from error


def _decode(folder: str | Path, source: str, download: bool = False) -> Arrays:
    from torchvision import datasets  # takes a second to import, and the .npz does without it

    arrays = {}
    for split in ("train", "test"):
        part = getattr(datasets, source)(str(folder), train=split == "train", download=download)
        arrays[f"{split}_images"] = np.ascontiguousarray(part.data)
        arrays[f"{split}_labels"] = np.asarray(part.targets, dtype=np.int64)
    return arrays


def _check(arrays: Arrays, path: Path, image_shape: tuple[int, ...], num_classes: int) -> None:
    def require(good: bool, what: str) -> None:
        if not good:
            raise UserError(f"{path}: {what}")

    for key in KEYS:
        require(key in arrays, f"has no {key}")
    for split in ("train", "test"):
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        require(
            images.dtype == np.uint8 and images.ndim > 0 and images.shape[1:] == image_shape,
            f"{split}_images is {images.dtype} {images.shape}, should be uint8 {('N', *image_shape)}",
        )
        require(
            labels.dtype == np.int64 and labels.ndim == 1,
            f"{split}_labels is {labels.dtype} {labels.shape}, should be int64 ('N',)",
        )
        require(
            len(images) == len(labels) > 0,
            f"{split} has {len(images)} images and {len(labels)} labels, should be as many and not 0",
        )
        require(
            labels.min() >= 0 and labels.max() < num_classes,
            f"{split}_labels go from {labels.min()} to {labels.max()}, should lie in 0 to {num_classes - 1}",
        )


def _keep(arrays: Arrays, path: Path) -> None:
    """Write the .npz whole or not at all; a folder that cannot be written is no error."""
    part = path.with_name(f".{path.stem}-{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(part, "wb") as file:
                np.savez(file, **arrays)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError:
        pass


def _all_but_archives(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if not (name.endswith(".gz") or os.path.isdir(os.path.join(folder, name)))]


@contextlib.contextmanager
def _quiet_network(timeout: float = 30) -> Iterator[None]:
    """No progress bars, and no waiting for minutes behind a firewall that drops packets (seconds)."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(timeout)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        socket.setdefaulttimeout(before)


def _reason(error: Exception) -> str:
    """The last line of an error's message, which is where torchvision puts the cause."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
