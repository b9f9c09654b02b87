"""A checkpoint that grows by what is new: a journal of records, each whole or not there.

A run of 2,500 tasks saves after every task. Writing the whole state again each time would write a thousand times its
size, so the file is appended to: one record a learned task, one an evaluation. A record is its length, its SHA-256
and a safetensors block, which holds tensors and JSON and can run no code. What a crash leaves half written at the end
fails its checksum and is cut off when the journal is opened again.

Of some tensors only the latest counts, as of weights that every task trains. Earlier ones lie dead in the file; when
they outweigh the rest, the file is written again without them.
"""

import hashlib
import json
import os
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from utils.errors import UserError

MAGIC = b"SupSup checkpoint 1\n"
DEAD_BYTES = 64 * 2**20  # that a file may hold before it is written again, however little else is in it
_FRAME = struct.Struct("<Q32s")  # length and SHA-256 of the block that follows
_VALUES = "values"  # the name under which a block keeps its JSON


@dataclass
class Record:
    """One entry of a checkpoint.

    Attributes:
        kind: what it is, such as ``task``.
        values: anything JSON can say.
        tensors: tensors by name.
        latest: names of those that take the place of the tensors that earlier records have under these names.
    """

    kind: str
    values: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    latest: Collection[str] = ()

    def to_bytes(self) -> bytes:
        text = json.dumps({"kind": self.kind, "latest": sorted(self.latest), **self.values}).encode()
        blocks = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in self.tensors.items()}
        block = save({**blocks, _VALUES: torch.frombuffer(bytearray(text), dtype=torch.uint8)})
        return _FRAME.pack(len(block), hashlib.sha256(block).digest()) + block

    @classmethod
    def from_block(cls, block: bytes) -> "Record":
        tensors = load(block)
        values = json.loads(bytes(tensors.pop(_VALUES).numpy()))
        record = cls(values.pop("kind"), values, tensors, values.pop("latest", ()))
        if not set(record.latest) <= set(tensors):
            raise ValueError("the latest of tensors that are not there")
        return record


class Checkpoint:
    """The checkpoint file of one run.

    Opening reads nothing; ``read`` gives the records, ``append`` adds one. What is appended follows what was read, so
    a file that is there is read first.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self._latest: dict[str, int] = {}  # bytes of the tensors of which only the latest counts
        self._dead = 0  # bytes of those before them

    def read(self) -> tuple[list[Record], int]:
        """Every whole record from the start, and how many bytes of the file after them are damaged (0: none).

        Earlier records may lack tensors of which a later one has the latest.

        Raises:
            UserError: the file is missing, cannot be read, or is no checkpoint of this project.
        """
        try:
            with open(self.path, "rb") as file:
                head = file.read(len(MAGIC))
                if MAGIC.startswith(head) and head != MAGIC:  # killed before its first line was whole
                    return [], len(head)
                if head != MAGIC:
                    raise UserError(f"{self.path} is not a SupSup checkpoint, or its first bytes are damaged")
                self._latest, self._dead = {}, 0
                records = []
                for record in _records(file):
                    self._count(record)
                    records.append(record)
                return records, os.fstat(file.fileno()).st_size - file.tell()
        except OSError as error:
            raise UserError(f"checkpoint {self.path}: {error.strerror}") from None

    def size(self) -> int:
        """The bytes of the file; 0 if it is not there."""
        return os.path.getsize(self.path) if os.path.exists(self.path) else 0

    def has_records(self) -> bool:
        """Whether the file is there and holds more than its first line."""
        return self.size() > len(MAGIC)

    def cut(self, damaged: int) -> None:
        """Cut ``damaged`` bytes off the end, as ``read`` counted them."""
        with open(self.path, "r+b") as file:
            file.truncate(self.path.stat().st_size - damaged)

    def append(self, record: Record) -> None:
        """Add a record; when this returns it is on the disk.

        Raises:
            OSError: the disk is full or gone; what was written of the record fails its checksum later.
        """
        data = record.to_bytes()
        with open(self.path, "ab") as file:
            file.write(data if file.tell() else MAGIC + data)
            file.flush()
            os.fsync(file.fileno())
        self._count(record)
        if self._dead > DEAD_BYTES and self._dead > self.path.stat().st_size / 2:
            self._compact()

    def _count(self, record: Record) -> None:
        for name in record.latest:
            self._dead += self._latest.get(name, 0)
            self._latest[name] = record.tensors[name].nbytes

    def _compact(self) -> None:
        """Write the file again without what is dead: all of it, or the file stays as it was."""
        part = self.path.with_name(f".{self.path.name}.part")
        with open(self.path, "rb") as old, open(part, "wb") as new:
            old.seek(len(MAGIC))
            # One record in memory at a time: the first pass finds where the latest are.
            last = {name: index for index, record in enumerate(_records(old)) for name in record.latest}
            old.seek(len(MAGIC))
            new.write(MAGIC)
            for index, record in enumerate(_records(old)):
                record.latest = [name for name in record.latest if last[name] == index]
                record.tensors = {name: t for name, t in record.tensors.items() if last.get(name, index) == index}
                new.write(record.to_bytes())
            new.flush()
            os.fsync(new.fileno())
        os.replace(part, self.path)
        self._dead = 0


def _records(file: BinaryIO) -> Iterator[Record]:
    """The whole records from where ``file`` stands; afterwards it stands behind the last of them."""
    while True:
        begin = file.tell()
        frame = file.read(_FRAME.size)
        if len(frame) < _FRAME.size:
            break
        length, digest = _FRAME.unpack(frame)
        if length > os.fstat(file.fileno()).st_size - file.tell():
            break  # before so much is read: a damaged length may be more than memory holds
        block = file.read(length)
        if hashlib.sha256(block).digest() != digest:
            break
        try:
            record = Record.from_block(block)
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError):
            break  # written by something else: as good as damaged
        yield record
    file.seek(begin)
