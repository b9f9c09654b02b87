"""Base sets on disk: the project's own ``.npz`` or Keras's, the files as they are distributed, or else a download."""

from __future__ import annotations

import contextlib
import gzip
import io
import math
import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from utils.errors import UserError

KEYS = ("train_images", "train_labels", "test_images", "test_labels")
KERAS = ("x_train", "y_train", "x_test", "y_test")  # the same in Keras's mnist.npz
IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
BLACK_ROW = 4  # so many black images in a row are a page of zeros; no set that is read here has a single one
ZERO_ROW, OTHER_ROW = 1024, 64  # so many labels 0 in a row are, too, where no other label has a row of its own

Arrays = dict[str, np.ndarray]  # one array a key


def read_arrays(root: str | Path | None, source: str, *, image_shape: tuple[int, ...], num_classes: int) -> Arrays:
    """The images and labels of a set.

    If ``<root>/<set>/<set>.npz`` is there, nothing else is read. Otherwise the files of its distribution, packed or
    not, are looked for where torchvision or a user may have put them, or else downloaded, and what was decoded is kept
    as that file if the folder can be written.

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
        raise UserError(f"`data` is needed for {source}: the parent folder of {name}/")
    root = Path(root).expanduser()
    if os.path.exists(root) and not os.path.isdir(root):
        raise UserError(f"`data` {root}: is a file, should be the parent folder of {name}/")
    folder = root / name
    cache = folder / f"{name}.npz"

    _see_inside(root)
    _see_inside(folder)

    for path in (cache, root / cache.name):
        if os.path.lexists(path):
            return _checked(_read_npz(path), path, image_shape, num_classes)
    arrays = _checked(_read_distributed(root, folder, source), folder, image_shape, num_classes)
    _keep(arrays, cache)
    return arrays


def read_npz(path: Path) -> Arrays:
    """The images and labels in a file of the user's own: images of any size, labels of any number of classes.

    Returns:
        ``train_images`` uint8 [N, H, W] or [N, H, W, C], ``train_labels`` int64 [N], and the same for ``test``.

    Raises:
        UserError: the file is missing, damaged, or has no such arrays.
    """
    return _checked(_read_npz(path), path)


def as_bytes(images: np.ndarray) -> np.ndarray:
    """Images of another type as uint8: floats from 0 to 1 are shares of 255, whole numbers from 0 to 255 stay.

    Raises:
        ValueError: they are neither; the message says what they should be.
    """
    if images.dtype == np.uint8:
        return images
    low, high = (images.min(), images.max()) if images.size and images.dtype.kind in "biuf" else (-1, -1)
    if low >= 0 and high <= 1 and images.dtype.kind in "bf":
        return np.rint(images * np.float32(255)).astype(np.uint8)
    if low >= 0 and 1 < high <= 255 and images.dtype.kind in "iu":  # up to 1 it could mean shares as well
        return images.astype(np.uint8)
    raise ValueError("should be uint8, or floats from 0 to 1")


def _see_inside(folder: Path) -> None:
    """A folder that may not be read is not one without files."""
    try:
        os.listdir(folder)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:  # a null character is the latter
        raise UserError(f"`data`: {folder}: {getattr(error, 'strerror', None) or error}") from None


def _read_npz(path: Path) -> Arrays:
    try:
        _check_file(path)
        with np.load(path, allow_pickle=False) as file:
            both = zip(KEYS, KERAS, strict=True)
            return {key: file[name] for key, keras in both for name in (key, keras) if name in file}
    except Exception as error:  # a damaged file can raise nearly anything
        raise UserError(f"{path}: cannot be read ({_reason(error)}); delete or replace it") from error


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The bytes of an idx file, packed by gzip or not."""
    try:
        _check_file(path)
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
        start = 4 + 4 * dimensions
        if content[:4] != bytes((0, 0, 8, dimensions)) or len(content) < start:
            raise ValueError(f"is no idx file of {dimensions} dimensions")
        shape = tuple(np.frombuffer(content[4:start], ">i4").tolist())
        if len(content) - start != math.prod(shape):
            raise ValueError(f"has {len(content) - start:,} bytes of {shape}")
        return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()
    except Exception as error:  # as above
        raise UserError(f"{path}: cannot be read ({_reason(error)}); delete or replace it") from error


def _check_file(path: Path) -> None:
    if not os.path.isfile(path):  # a pipe would be waited for without end
        raise ValueError("is no file")


def _read_distributed(root: Path, folder: Path, source: str) -> Arrays:
    """The set from the files of its distribution, which torchvision or a user has put there, or else downloaded."""
    from torchvision import datasets  # takes a second to import, and the .npz does without it

    kind = getattr(datasets, source)
    if source.endswith("MNIST"):
        inside = Path(source, "raw")
        places = [folder / inside, folder / "raw", folder, root / inside]
        found = [_find(places, name, name.replace("-idx", ".idx"), f"{name}.gz", f"{name}/{name}") for name in IDX]
        if None not in found:
            return {key: _read_idx(path, 1 if "labels" in key else 3) for key, path in zip(KEYS, found, strict=True)}
        found, sums, archives = (
            [],
            [],
            [(f"{name}.gz", md5) for name, (_, md5) in zip(IDX, kind.resources, strict=True)],
        )
    else:
        inside, places = Path(), [folder / kind.base_folder, folder, root / kind.base_folder, root]
        archives = [(kind.filename, kind.tgz_md5)]
        sums = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
        found = [_find(places, name) for name, _ in sums]
        whole = [path and _has_sum(path, md5) for path, (_, md5) in zip(found, sums, strict=True)]
        if all(whole) and len({path.parent for path in found}) == 1:
            return _decode(found[0].parent, type(source, (kind,), {"base_folder": ""}))
    packed = [_find(places, name) for name, _ in archives]
    damaged = [
        path
        for path, (_, md5) in zip(found + packed, sums + archives, strict=True)
        if path is not None and not _has_sum(path, md5)
    ]

    # A download that is cut short must leave nothing that looks whole, and runs that start together must not
    # read each other's half-written files. So each downloads on its own, and only the .npz is ever shared.
    with _folder_for(source) as temporary, _quiet_network():
        staging = Path(temporary)
        try:
            (staging / inside).mkdir(parents=True, exist_ok=True)
            for path in filter(None, packed):  # what is there already needs no download
                shutil.copy(path, staging / inside)
            return _decode(staging, kind, download=True)
        except Exception as error:  # no network, a proxy's answer instead of the file, no space, ...
            if damaged:
                raise UserError(
                    f"{damaged[0]}: is damaged (it is not the file that {source} is distributed as), and cannot be "
                    f"downloaded ({_reason(error)}); replace it, or delete it and run once with a network"
                ) from error
            raise UserError(
                f"{source} is missing: {folder} has neither {folder.name}.npz nor, in {inside}, the files that "
                f"torchvision reads, and it cannot be downloaded ({_reason(error)}); "
                "put one of them there, or run once with a network"
            ) from error


def _folder_for(source: str) -> tempfile.TemporaryDirectory[str]:
    """A folder to unpack a set in, which goes when it is left."""
    try:
        return tempfile.TemporaryDirectory(prefix=f"{source}-")
    except OSError as error:
        said = f"no folder for temporary files can be used ({error.strerror}); TMPDIR names one"
        raise UserError(f"{source} must be unpacked or downloaded, and {said}") from None


def _find(places: Sequence[Path], *names: str) -> Path | None:
    """The first of the names that is in one of the places, and no folder there."""
    paths = (place / name for name in names for place in places)
    return next((path for path in paths if os.path.lexists(path) and not path.is_dir()), None)


def _has_sum(path: Path, md5: str) -> bool:
    from torchvision.datasets.utils import check_integrity

    return check_integrity(path, md5)


def _decode(folder: str | Path, kind: type, download: bool = False) -> Arrays:
    arrays = {}
    for split in ("train", "test"):
        part = kind(str(folder), train=split == "train", download=download)
        arrays[f"{split}_images"] = np.ascontiguousarray(part.data)
        arrays[f"{split}_labels"] = np.asarray(part.targets, dtype=np.int64)
    return arrays


def _checked(
    arrays: Arrays, path: Path, image_shape: tuple[int, ...] | None = None, num_classes: int | None = None
) -> Arrays:
    """The arrays in the types of their contract, if they are what a set is made of.

    Args:
        image_shape, num_classes: those of a set that is known; None for any.
    """

    def require(good: bool, what: str) -> None:
        if not good:
            raise UserError(f"{path}: {what}")

    for key in KEYS:
        require(key in arrays, f"has no {key}")
    arrays = dict(arrays)
    for split in ("train", "test"):
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        about = f"{split}_images is {images.dtype} {images.shape}, "
        if image_shape is None:
            alike = images.shape[1:] == arrays["train_images"].shape[1:]
            require(
                images.ndim in (3, 4) and alike and images[:1].size > 0,
                f"{about}should be uint8 ('N', H, W) or ('N', H, W, C), alike for train and test",
            )
        else:
            shape = ("N", *image_shape)
            require(images.ndim > 0 and images.shape[1:] == image_shape, f"{about}should be uint8 {shape}")
        try:
            arrays[f"{split}_images"] = images = as_bytes(images)
        except ValueError as error:
            raise UserError(f"{path}: {about}{error}") from None
        if num_classes is None:
            labels = _whole(labels)
        require(
            labels.dtype.kind in "iu" and labels.ndim == 1,
            f"{split}_labels is {labels.dtype} {labels.shape}, should be int64 ('N',)",
        )
        require(
            len(images) == len(labels) > 0,
            f"{split} has {len(images)} images and {len(labels)} labels, should be as many and not 0",
        )
        require(int(labels.max()) < 2**63, f"{split}_labels go up to {labels.max()}, more than int64 can be")
        arrays[f"{split}_labels"] = labels.astype(np.int64)
        if num_classes is None:
            continue
        require(
            labels.min() >= 0 and labels.max() < num_classes,
            f"{split}_labels go from {labels.min()} to {labels.max()}, should lie in 0 to {num_classes - 1}",
        )
        # A crash can leave zeros where a part of a file should be.
        black, _ = _longest_row(images.reshape(len(images), -1).any(1), among=[False])
        require(black < BLACK_ROW, f"{split}_images has {black:,} black images in a row, as after a crash; replace it")
        zeros, others = _longest_row(labels, among=[0])
        require(
            zeros < ZERO_ROW or others >= OTHER_ROW,
            f"{split}_labels has {zeros:,} labels 0 in a row, others at most {others}, as after a crash; replace it",
        )
    return arrays


def _whole(labels: np.ndarray) -> np.ndarray:
    """Labels of a column as (N,), and floats that are whole numbers as such; others as they are."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    exact = labels.dtype.kind == "f" and (np.abs(labels) < 2**53).all() and (labels == np.rint(labels)).all()
    return labels.astype(np.int64) if exact else labels


def _longest_row(values: np.ndarray, among: Sequence[object]) -> tuple[int, int]:
    """How many equal values stand one after the other at most: of those in ``among``, and of others."""
    starts = np.concatenate(([0], np.flatnonzero(values[1:] != values[:-1]) + 1))
    lengths, asked = np.diff(starts, append=len(values)), np.isin(values[starts], among)
    return lengths[asked].max(initial=0), lengths[~asked].max(initial=0)


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
