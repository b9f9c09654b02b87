"""A checkpoint that grows by what is new: a journal of records, each whole or not there.

A run of 2,500 tasks saves after every task. Writing the whole state again each time would write a thousand times its
size, so the file is appended to: one record a learned task, one an evaluation. A record is its length, its SHA-256
and a safetensors block, which holds tensors and JSON and can run no code. What a crash leaves half written at the end
fails its checksum and is cut off when the journal is opened again. Where bytes in the middle were damaged the records
behind them are still found, for each tells by itself whether it is whole.

Of some tensors only the latest counts, as of weights that every task trains. Earlier ones lie dead in the file; when
they are more than a third of it, the file is written again without them.
"""

import errno
import hashlib
import json
import mmap
import os
import reprlib
import shutil
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from utils.errors import UserError
from utils.files import open_file, replace_with, sync_folder
from utils.journal import FRAME, MAGIC, VALUES

DEAD_BYTES = 64 * 2**20  # that a file may hold before it is written again, however little else is in it
# How torch.save's files began before they were zip files.
_TORCH_BEFORE_ZIP = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_KEYS_WITHIN = 2**24  # bytes from the start in which the names of what torch.save wrote are looked for


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

    def drop(self, name: str) -> None:
        """Leave out a tensor of which a later record has the latest."""
        self.tensors.pop(name, None)
        self.latest = [other for other in self.latest if other != name]

    def to_bytes(self) -> bytes:
        text = json.dumps({"kind": self.kind, "latest": sorted(self.latest), **self.values}).encode()
        blocks = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in self.tensors.items()}
        block = save({**blocks, VALUES: torch.frombuffer(bytearray(text), dtype=torch.uint8)})
        return FRAME.pack(len(block), hashlib.sha256(block).digest()) + block

    @classmethod
    def from_block(cls, block: bytes) -> "Record":
        tensors = load(block)
        values = json.loads(bytes(tensors.pop(VALUES).numpy()))
        record = cls(values.pop("kind"), values, tensors, values.pop("latest", ()))
        if not isinstance(record.kind, str) or not set(record.latest) <= set(tensors):
            raise ValueError("a kind that is no word, or the latest of tensors that are not there")
        return record


def fraction(value: object) -> float:
    """``value`` out of a file, which must be a fraction such as an accuracy.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= 1:
        raise ValueError(f"{reprlib.repr(value)} is no number from 0 to 1")
    return value


def index(value: object, size: int) -> int:
    """``value`` out of a file, which must be a whole number below ``size``, such as that of a task.

    Raises:
        ValueError: it is something else.
    """
    if type(value) is not int or not 0 <= value < size:
        raise ValueError(f"{reprlib.repr(value)} is no whole number from 0 to {size - 1}")
    return value


def joined(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of several parts of a record under one roof: each as ``part.name``."""
    return {f"{part}.{name}": tensor for part, named in parts.items() for name, tensor in named.items()}


def named_part(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """Those of one part of what ``joined`` gave, under their own names."""
    prefix = f"{part}."
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


class Checkpoint:
    """The checkpoint file of one run.

    Opening reads nothing; ``read`` gives the records, ``append`` adds one. What is appended follows what was read, so
    a file that is there is read first.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self._latest: dict[str, int] = {}  # bytes of the tensors of which only the latest counts
        self._dead = 0  # bytes of those before them
        self._bearable = DEAD_BYTES  # of these: so many do not have the file written again
        self._end: int | None = None  # bytes of the file when this object last read or wrote it

    def read(self) -> tuple[list[Record], int]:
        """Every whole record from the start, and how many bytes of the file after them are damaged (0: none).

        Earlier records may lack tensors of which a later one has the latest.

        Raises:
            UserError: the file is missing, cannot be read, or is no checkpoint of this project.
        """
        with self._opened() as file:
            if file is None:
                return [], self._end or 0
            self._latest, self._dead = {}, 0
            records: list[Record] = []
            latest: dict[str, Record] = {}
            for record in _records(file):
                self._count(record)
                records.append(record)
                for name in set(record.latest):
                    if name in latest:  # so that no more is in memory than counts
                        latest[name].drop(name)
                    latest[name] = record
            self._end = os.fstat(file.fileno()).st_size
            return records, self._end - file.tell()

    def first(self) -> Record | None:
        """The first record, or None if that is damaged or not there.

        Raises:
            UserError: as ``read`` does.
        """
        with self._opened() as file:
            return next(_records(file), None) if file else None

    @contextmanager
    def _opened(self) -> Iterator[IO[bytes] | None]:
        """The file, behind its first line; None if that is not whole, for its writer was killed."""
        try:
            with open_file(self.path) as file:
                head = file.read(len(MAGIC))
                if head == MAGIC:
                    yield file
                elif MAGIC.startswith(head):
                    self._end = len(head)
                    yield None
                else:
                    file.seek(0)
                    raise UserError(f"{self.path} is not a SupSup checkpoint{_what_else(file)}")
        except OSError as error:
            raise UserError(f"checkpoint {self.path}: {error.strerror}") from None

    @property
    def aside(self) -> Path:
        """Where ``cut`` keeps a damaged file."""
        return self.path.with_name(f"{self.path.name}.damaged")

    def size(self) -> int:
        """The bytes of the file; 0 if it is not there."""
        return os.path.getsize(self.path) if os.path.exists(self.path) else 0

    def has_records(self) -> bool:
        """Whether the file is there and holds more than its first line."""
        return self.size() > len(MAGIC)

    def behind_damage(self) -> Iterator[Record]:
        """The whole records that stand behind the first damaged byte; none if the file is missing or whole."""
        with suppress(OSError), open_file(self.path) as file:
            file.seek(len(MAGIC))
            for _ in _records(file):
                pass
            damage, size = file.tell(), os.fstat(file.fileno()).st_size
            if damage >= size:
                return
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                # A block is 8 bytes and a JSON object: wherever one might begin, see whether the rest is a record.
                place = damage
                while (place := content.find(b'{"', place + 1)) >= 0:
                    begin = place - 8 - FRAME.size
                    if begin > damage:
                        file.seek(begin)
                        yield from _records(file)
                        if file.tell() > begin:
                            place = damage = file.tell()

    def cut(self, damaged: int) -> None:
        """Cut ``damaged`` bytes off the end, as ``read`` counted them.

        The whole file is kept aside as ``<name>.damaged``, unless a crash just left its last record unfinished.
        """
        end = self.path.stat().st_size - damaged
        if not self._unfinished(end):
            with open(self.path, "rb") as old:
                replace_with(self.aside, partial(shutil.copyfileobj, old))
        with open(self.path, "r+b") as file:
            file.truncate(end)
            os.fsync(file.fileno())
        self._end = end

    def _unfinished(self, begin: int) -> bool:
        """Whether the file ends in the middle of what begins there, so far as it can tell."""
        with open(self.path, "rb") as file:
            file.seek(begin)
            frame = file.read(FRAME.size)
            short = len(frame) < FRAME.size or FRAME.unpack(frame)[0] > self.path.stat().st_size - file.tell()
        return short and next(self.behind_damage(), None) is None

    def append(self, *records: Record) -> None:
        """Add records; when this returns they are on the disk.

        Where the file should then be written again and has no room for that, it goes on to grow; that is tried again
        when as many more of its bytes are dead.

        Raises:
            OSError: the disk is full or gone, or the file is not what it was; the records before these stay.
        """
        data = b"".join(record.to_bytes() for record in records)
        if self._end not in (None, self.size()):
            raise OSError(errno.ESTALE, "was changed or removed by another process", str(self.path))
        with open(self.path, "ab") as file:
            begin = file.tell()
            try:
                file.write(data if begin else MAGIC + data)
                file.flush()
                os.fsync(file.fileno())
            except OSError as error:
                with suppress(OSError):
                    file.close()  # what it still holds goes the same way
                with suppress(OSError):
                    os.truncate(self.path, begin)
                raise OSError(error.errno, error.strerror, str(self.path)) from None
            self._end = file.tell()
        if not begin:
            sync_folder(self.path.parent)
        for record in records:
            self._count(record)
        if self._dead > self._bearable and self._dead > self._end / 3:
            self._bearable = 2 * self._dead
            with suppress(OSError):  # the records are safe
                self._compact()
                self._bearable = DEAD_BYTES

    def _count(self, record: Record) -> None:
        for name in record.latest:
            self._dead += self._latest.get(name, 0)
            self._latest[name] = record.tensors[name].nbytes

    def _compact(self) -> None:
        """Write the file again without what is dead: all of it, or the file stays as it was."""

        count = 0

        def write(new: IO[bytes]) -> None:
            nonlocal count
            old.seek(len(MAGIC))
            # One record in memory at a time: the first pass finds where the latest are.
            last = {name: index for index, record in enumerate(_records(old)) for name in record.latest}
            old.seek(len(MAGIC))
            new.write(MAGIC)
            for count, record in enumerate(_records(old), start=1):
                index = count - 1
                record.latest = [name for name in record.latest if last[name] == index]
                record.tensors = {name: t for name, t in record.tensors.items() if last.get(name, index) == index}
                new.write(record.to_bytes())

        def whole(new: IO[bytes]) -> bool:
            new.seek(len(MAGIC))
            return sum(1 for _ in _records(new)) == count and not new.read(1)

        with open(self.path, "rb") as old:
            replace_with(self.path, write, whole)
        self._dead, self._end = 0, self.size()


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write a checkpoint that holds these records in the place of the one there, which stays until it is proved.

    One of them is in memory at a time.

    Raises:
        OSError: there is no room, or what was written does not read back.
    """
    written = hashlib.sha256()

    def write(new: IO[bytes]) -> None:
        for data in chain([MAGIC], (record.to_bytes() for record in records)):
            new.write(data)
            written.update(data)

    def whole(new: IO[bytes]) -> bool:
        read = hashlib.sha256()
        while data := new.read(2**20):
            read.update(data)
        return read.digest() == written.digest()

    replace_with(path, write, whole)


def _what_else(file: IO[bytes]) -> str:
    """What a file is that is none of this project's, as far as can be told without running what it holds."""
    head = file.read(len(_TORCH_BEFORE_ZIP))
    with suppress(OSError, ValueError, RuntimeError, EOFError, StopIteration, zipfile.BadZipFile, zlib.error):
        if head.startswith(b"PK"):
            with zipfile.ZipFile(file) as parts:
                name = next(name for name in parts.namelist() if name.endswith("data.pkl"))
                with parts.open(name) as part:
                    head = _TORCH_BEFORE_ZIP + part.read(_KEYS_WITHIN)
        else:
            head += file.read(_KEYS_WITHIN)
    if not head.startswith(_TORCH_BEFORE_ZIP):
        return ", or its first bytes are damaged"
    if all(key in head for key in (b"arch", b"state_dict", b"best_acc1")):
        return " but a checkpoint of the original code"
    return " but a file of torch.save"


def _records(file: IO[bytes]) -> Iterator[Record]:
    """The whole records from where ``file`` stands; afterwards it stands behind the last of them."""
    while True:
        begin = file.tell()
        frame = file.read(FRAME.size)
        if len(frame) < FRAME.size:
            break
        length, digest = FRAME.unpack(frame)
        if length > os.fstat(file.fileno()).st_size - file.tell():
            break  # before so much is read: a damaged length may be more than memory holds
        block = file.read(length)
        if hashlib.sha256(block).digest() != digest:
            break
        try:
            record = Record.from_block(block)
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            break  # written by something else: as good as damaged
        yield record
    file.seek(begin)
