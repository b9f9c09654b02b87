"""Checkpoints of the original code: read without running anything that they hold."""

import re
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from utils.errors import UserError
from utils.files import open_file

STARTS = (b"P", b"\x80")  # of the two forms that torch.save has had, a zip archive and a pickle
LONGEST = 4096  # of a text among the settings, characters


@dataclass(frozen=True)
class Original:
    """What a checkpoint of the original code holds, none of it checked but for its type.

    Attributes:
        settings: its ``args``, and as ``model`` what it calls ``arch``; only what is set.
        tensors: its ``state_dict``, without the prefix ``module.``.
        accuracies: of each task when it was just learned, in [0, 1]; 0 for one that was not.
    """

    settings: dict[str, object]
    tensors: dict[str, Tensor]
    accuracies: list[float]


def is_original(path: Path) -> bool:
    """Whether a file may be one of the original code: whether torch wrote it."""
    with suppress(OSError), open_file(path) as file:
        return file.read(1) in STARTS
    return False


def read_original(path: Path) -> Original:
    """Read a checkpoint of the original code.

    Tensors, numbers, texts, lists and ``argparse.Namespace`` are all that is made of what it holds.

    Raises:
        UserError: it cannot be read, is damaged, or holds something else.
    """

    def refuse(reason: str) -> NoReturn:
        raise UserError(f"{path}: {reason}")

    loaded = _load(path)
    content = loaded if isinstance(loaded, dict) else {}
    state, args = content.get("state_dict"), content.get("args")
    if not isinstance(state, Mapping) or not isinstance(args, Namespace):
        refuse("is no SupSup checkpoint, nor one of the original code, which holds a state_dict and args")
    tensors = {}
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or not _is_whole(value):
            refuse(f"its state_dict holds {_short(name)}, which is no tensor with a name")
        tensors[name.removeprefix("module.")] = value.detach()
    if len(tensors) < len(state):
        refuse("its state_dict has the same names with and without module.")
    for name, value in vars(args).items():
        if isinstance(value, str) and len(value) > LONGEST:
            refuse(f"its args have {_short(name)} of {len(value):,} characters")
    settings = {name: value for name, value in vars(args).items() if isinstance(name, str) and value is not None}
    if content.get("arch") is not None:
        settings.setdefault("model", content["arch"])
    accuracies = content.get("curr_acc1") or []
    if not isinstance(accuracies, list) or not all(
        type(value) in (int, float) and 0 <= value <= 1 for value in accuracies
    ):
        refuse("its curr_acc1 is no list of numbers from 0 to 1")
    return Original(settings, tensors, accuracies)


def _load(path: Path) -> object:
    try:
        with open_file(path) as file:
            zipped = zipfile.is_zipfile(file)
            if zipped and sum(part.file_size for part in zipfile.ZipFile(file).infolist()) > path.stat().st_size:
                raise UserError(f"{path}: is a compressed archive, which torch.save does not write")
        with torch.serialization.safe_globals([Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # What is larger than memory, as the scores of many tasks may be, stays in the file until it is looked at.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or 'cannot be read'}") from None
    except Exception as error:  # there is no end of what a damaged file makes torch's reader say
        code = re.search(r"GLOBAL (\S+)", str(error))
        what = "is no SupSup checkpoint, and as one of the original code it is damaged"
        if code:
            what = f"holds {_short(code[1])}, which is neither a tensor, a number nor text"
        raise UserError(f"{path}: {what}; nothing of it was run") from None


def _is_whole(value: Tensor) -> bool:
    """Whether each of a tensor's numbers is in the file: one number can be shown as a million."""
    return value.layout == torch.strided and value.untyped_storage().nbytes() >= value.nbytes


def _short(value: object) -> str:
    text = str(value) if isinstance(value, (str, int)) else type(value).__name__
    return text if len(text) <= 80 else f"{text[:80]}..."
