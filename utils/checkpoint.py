"""A checkpoint that grows by what is new: a journal of records, each whole or not there.

A run of 2,500 tasks saves after every task. Writing the whole state again each time would write a thousand times its
size, so the file is only ever appended to: one record a learned task, one an evaluation. A record is its length, its
SHA-256 and a safetensors block, which holds tensors and JSON and can run no code. What a crash leaves half written
at the end fails its checksum and is cut off when the journal is opened again.
"""

import hashlib
import json
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from utils.errors import UserError

MAGIC = b"SupSup checkpoint 1\n"
_FRAME = struct.Struct("<Q32s")  # length and SHA-256 of the block that follows
_VALUES = "values"  # the name under which a block keeps its JSON


@dataclass
class Record:
    """One entry of a checkpoint.

    Attributes:
        kind: what it is, such as ``task``.
        values: anything JSON can say.
        tensors: tensors by name.
    """

    kind: str
    values: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        text = json.dumps({"kind": self.kind, **self.values}).encode()
        blocks = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in self.tensors.items()}
        block = save({**blocks, _VALUES: torch.frombuffer(bytearray(text), dtype=torch.uint8)})
        return _FRAME.pack(len(block), hashlib.sha256(block).digest()) + block

    @classmethod
    def from_block(cls, block: bytes) -> "Record":
        tensors = load(block)
        values = json.loads(bytes(tensors.pop(_VALUES).numpy()))
        return cls(values.pop("kind"), values, tensors)


class Checkpoint:
    """The checkpoint file of one run.

    Opening reads nothing; ``read`` gives the records, ``append`` adds one.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)

    def read(self) -> tuple[list[Record], int]:
        """Every whole record from the start, and how many bytes of the file after them are damaged (0: none).

        Raises:
            UserError: the file is missing, cannot be read, or is no checkpoint of this project.
        """
        try:
            data = self.path.read_bytes()
        except OSError as error:
            raise UserError(f"checkpoint {self.path}: {error.strerror}") from None
        if not data.startswith(MAGIC):
            raise UserError(f"{self.path} is not a SupSup checkpoint, or its first bytes are damaged")
        records, at = [], len(MAGIC)
        while at < len(data):
            frame = data[at : at + _FRAME.size]
            if len(frame) < _FRAME.size:
                break
            length, digest = _FRAME.unpack(frame)
            block = data[at + _FRAME.size : at + _FRAME.size + length]
            if len(block) < length or hashlib.sha256(block).digest() != digest:
                break
            try:
                records.append(Record.from_block(block))
            except (SafetensorError, ValueError, KeyError, TypeError, AttributeError):
                break  # written by something else: as good as damaged
            at += _FRAME.size + length
        return records, len(data) - at

    def has_records(self) -> bool:
        """Whether the file is there and holds more than its first line."""
        return self.path.exists() and self.path.stat().st_size > len(MAGIC)

    def cut(self, damaged: int) -> None:
        """Cut ``damaged`` bytes off the end, as ``read`` counted them."""
        with open(self.path, "r+b") as file:
            file.truncate(self.path.stat().st_size - damaged)

    def append(self, record: Record) -> None:
        """Add a record; when this returns it is on the disk.

        Raises:
            OSError: the disk is full or gone; what was written of the record fails its checksum later.
        """
        with open(self.path, "ab") as file:
            if file.tell() == 0:
                file.write(MAGIC)
            file.write(record.to_bytes())
            file.flush()
            os.fsync(file.fileno())
