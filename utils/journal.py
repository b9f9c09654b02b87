"""The frame of a checkpoint: how records follow each other, and what each says, read without torch."""

import hashlib
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MAGIC = b"SupSup checkpoint 1\n"
FRAME = struct.Struct("<Q32s")  # length and SHA-256 of the block that follows, which is in the form of safetensors
VALUES = "values"  # the name under which a block keeps its JSON

# Kinds of records: what a run's checkpoint begins with, and what follows as the run goes on;
RUN, MORE_TASKS, TASK, LEFT_OUT, EVALUATION = "run", "more tasks", "task", "left out", "evaluation"
TRAINING = "training"  # the tasks in training, in a file of their own;
EXPORT, EXPORTED_TASK = "export", "exported task"  # what an export begins with, and each of its tasks.


def values(path: Path, proved: bool = True) -> Iterator[dict[str, Any]]:
    """What each record of a checkpoint says beside its tensors, up to the first that is not whole.

    Args:
        proved: whether to hold each against its checksum, which reads the whole file.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if file.read(len(MAGIC)) != MAGIC:
            return
        while len(frame := file.read(FRAME.size)) == FRAME.size:
            length, digest = FRAME.unpack(frame)
            begin = file.tell()
            if length > size - begin or (proved and hashlib.sha256(file.read(length)).digest() != digest):
                return
            file.seek(begin)
            try:
                header = int.from_bytes(file.read(8), "little")
                tensors = json.loads(file.read(min(header, length)))
                start, end = tensors[VALUES]["data_offsets"]
                file.seek(begin + 8 + header + start)
                said = json.loads(file.read(min(end - start, length)))
            except (ValueError, KeyError, TypeError, RecursionError, OverflowError, OSError):
                return
            if not isinstance(said, dict):
                return
            yield said
            file.seek(begin + length)
