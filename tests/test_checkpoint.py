"""The checkpoint: what is written comes back, what is damaged never does, and nothing is written twice."""

import errno
import hashlib
import io
import json
import os
import pickle
import random
import struct
from functools import partial

import pytest
import torch
from safetensors.torch import save

from models import Builder, get_model, multitask
from utils.checkpoint import MAGIC, Checkpoint, Record, write_records
from utils.errors import UserError
from utils.seeding import generator

DTYPES = [
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.bool,
]
LENET_BYTES = (784 * 300 + 300 * 100 + 100 * 100) // 8  # of 275,200 weights, one bit each


def same(a: Record, b: Record) -> bool:
    return (
        (a.kind, a.values) == (b.kind, b.values)
        and a.tensors.keys() == b.tensors.keys()
        and all(
            a.tensors[name].dtype == b.tensors[name].dtype
            and a.tensors[name].shape == b.tensors[name].shape
            and torch.equal(a.tensors[name], b.tensors[name])
            for name in a.tensors
        )
    )


def small_records() -> list[Record]:
    numbers = torch.Generator().manual_seed(0)
    return [
        Record("run", {"settings": {"seed": 0, "lr": 1e-4, "name": None, "counts": [1, 2]}}),
        Record("task", {"task": 0}, {"mask": torch.randint(0, 256, (40,), generator=numbers).byte()}),
        Record("task", {"task": 1}, {"mask": torch.randint(0, 256, (40,), generator=numbers).byte()}),
        Record("evaluation", {"scores": [{"task": 0, "given": 0.5}, {"task": 1, "given": 0.25}]}),
    ]


def written(path, records) -> tuple[bytes, list[int]]:
    """The bytes of a checkpoint with ``records``, and where each of them ends."""
    checkpoint, ends = Checkpoint(path), []
    for record in records:
        checkpoint.append(record)
        ends.append(path.stat().st_size)
    return path.read_bytes(), ends


@pytest.fixture(scope="module")
def lenet():
    builder = Builder(partial(generator, 0), num_tasks=250)
    model = get_model("LeNet", builder, (1, 28, 28), 100)
    numbers = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for buffer in (value for name, value in model.named_buffers() if name.endswith("packed")):
            buffer.random_(0, 256, generator=numbers)
    return model


# What is written comes back


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_of_every_type_and_shape_come_back_bit_for_bit(dtype, tmp_path):
    numbers = torch.Generator().manual_seed(3)
    raw = torch.randint(-100, 100, (4, 6), generator=numbers)
    tensors = {
        "matrix": raw.to(dtype),
        "layers.0.scalar": torch.tensor(1).to(dtype),
        "empty": torch.zeros(0, 3).to(dtype),
        "not contiguous": raw.to(dtype).clone().T,
        "a row of more": raw.to(dtype).clone()[2],
    }
    path = tmp_path / "checkpoint.pt"
    Checkpoint(path).append(Record("task", {}, tensors))
    (record,), damaged = Checkpoint(path).read()
    assert damaged == 0 and same(record, Record("task", {}, tensors))


def test_not_a_number_and_infinity_come_back_in_tensors(tmp_path):
    path, special = tmp_path / "checkpoint.pt", torch.tensor([float("nan"), float("inf"), -0.0])
    Checkpoint(path).append(Record("task", {}, {"special": special}))
    (record,), _ = Checkpoint(path).read()
    assert torch.equal(record.tensors["special"].view(torch.int32), special.view(torch.int32))


def test_tensors_that_share_their_memory_come_back_each_by_value(tmp_path):
    path, weight = tmp_path / "checkpoint.pt", torch.arange(6.0).view(2, 3)
    tensors = {"tied": weight, "twice": weight, "a row": weight[1]}
    Checkpoint(path).append(Record("task", {}, tensors))
    (record,), _ = Checkpoint(path).read()
    assert same(record, Record("task", {}, tensors))


def test_whatever_json_can_say_comes_back(tmp_path):
    values = {
        "none": None,
        "true": True,
        "large": 2**60,
        "small": 5e-324,
        "third": 1 / 3,
        "text": 'é ✓ "quoted", \\ and\nlines\x00',
        "nested": {"list": [1, [2.5, {}], []], "": 0},
    }
    path = tmp_path / "checkpoint.pt"
    Checkpoint(path).append(Record("run", values))
    (record,), _ = Checkpoint(path).read()
    assert record.values == values
    assert type(record.values["true"]) is bool and type(record.values["large"]) is int


def test_a_tensor_that_needs_a_gradient_is_kept_by_value(tmp_path):
    path, weight = tmp_path / "checkpoint.pt", torch.nn.Parameter(torch.ones(2, 2))
    Checkpoint(path).append(Record("task", {}, {"weight": weight}))
    with torch.no_grad():
        weight.zero_()
    (record,), _ = Checkpoint(path).read()
    assert torch.equal(record.tensors["weight"], torch.ones(2, 2))
    assert not record.tensors["weight"].requires_grad


def test_records_come_back_in_their_order_and_from_another_object(tmp_path):
    path, records = tmp_path / "checkpoint.pt", small_records()
    written(path, records)
    back, damaged = Checkpoint(str(path)).read()
    assert damaged == 0 and len(back) == len(records)
    assert all(map(same, back, records))


def test_has_records_is_true_from_the_first_record_on(tmp_path):
    checkpoint = Checkpoint(tmp_path / "checkpoint.pt")
    assert not checkpoint.has_records()
    checkpoint.path.write_bytes(MAGIC)
    assert not checkpoint.has_records() and checkpoint.read() == ([], 0)
    checkpoint.append(small_records()[0])
    assert checkpoint.has_records()


def test_making_and_asking_a_checkpoint_writes_nothing(tmp_path):
    checkpoint = Checkpoint(tmp_path / "checkpoint.pt")
    checkpoint.has_records()
    with pytest.raises(UserError):
        checkpoint.read()
    assert list(tmp_path.iterdir()) == []


# Nothing is written twice


def test_an_append_changes_no_byte_that_was_there(tmp_path):
    path, before = tmp_path / "checkpoint.pt", b""
    for record in small_records():
        Checkpoint(path).append(record)
        after = path.read_bytes()
        assert after.startswith(before) and len(after) > len(before)
        before = after


def test_equal_records_have_equal_bytes():
    assert [r.to_bytes() for r in small_records()] == [r.to_bytes() for r in small_records()]


# What is damaged is found


def test_a_file_cut_off_anywhere_in_its_last_record_keeps_the_records_before(tmp_path):
    path, records = tmp_path / "checkpoint.pt", small_records()
    data, ends = written(path, records)
    for length in range(ends[-2], ends[-1]):
        path.write_bytes(data[:length])
        back, damaged = Checkpoint(path).read()
        assert len(back) == len(records) - 1 and all(map(same, back, records[:-1]))
        assert damaged == length - ends[-2]
        assert path.read_bytes() == data[:length], "reading must not write"


def test_after_a_cut_the_next_append_gives_a_whole_file(tmp_path):
    path, records = tmp_path / "checkpoint.pt", small_records()
    data, ends = written(path, records)
    for length in (ends[-2], ends[-2] + 1, ends[-2] + 39, ends[-2] + 40, ends[-1] - 1):
        path.write_bytes(data[:length])
        checkpoint = Checkpoint(path)
        checkpoint.cut(checkpoint.read()[1])
        assert path.read_bytes() == data[: ends[-2]]
        checkpoint.append(records[-1])
        assert path.read_bytes() == data


def test_one_wrong_byte_never_gives_a_wrong_record(tmp_path):
    path, records = tmp_path / "checkpoint.pt", small_records()
    data, ends = written(path, records)
    rng = random.Random(0)
    # Every byte of the head and of the frame of the second record, and 200 anywhere.
    places = [*range(len(MAGIC)), *range(ends[0], ends[0] + 40)]
    places += [rng.randrange(len(data)) for _ in range(200)]
    for place in places:
        wrong = bytearray(data)
        wrong[place] ^= rng.randrange(1, 256)
        path.write_bytes(wrong)
        if place < len(MAGIC):
            with pytest.raises(UserError, match="checkpoint.pt"):
                Checkpoint(path).read()
            continue
        whole = sum(end <= place for end in ends)  # the records before the one that was hit
        back, damaged = Checkpoint(path).read()
        assert len(back) == whole and all(map(same, back, records[:whole])), place
        assert damaged == len(data) - (ends[whole - 1] if whole else len(MAGIC)), place


def test_bytes_that_somebody_put_behind_the_last_record_are_damage(tmp_path):
    path, records = tmp_path / "checkpoint.pt", small_records()
    data, _ = written(path, records)
    for rubbish in (b"\n", b"\0" * 4096, b"\xff" * 64, MAGIC):
        path.write_bytes(data + rubbish)
        back, damaged = Checkpoint(path).read()
        assert len(back) == len(records) and damaged == len(rubbish)


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"no safetensors",
        save({"mask": torch.zeros(3)}),
        *(
            save({"values": torch.tensor(list(text.encode()), dtype=torch.uint8)})
            for text in ("{}", "[]", "[1, 2]", "1", '"text"', "null", "{", '{"kind"')
        ),
        save({"values": torch.zeros(3)}),
        save({"values": torch.zeros(3, dtype=torch.bfloat16)}),
    ],
    ids=["nothing", "text", "no values", "no kind", "empty list", "list", "number", "string", "null", "torn"]
    + ["torn in key", "floats", "bfloat16"],
)
def test_a_block_with_a_right_checksum_and_wrong_content_is_damage(block, tmp_path):
    path, records = tmp_path / "checkpoint.pt", small_records()
    data, _ = written(path, records)
    frame = struct.pack("<Q32s", len(block), hashlib.sha256(block).digest())
    path.write_bytes(data + frame + block)
    back, damaged = Checkpoint(path).read()
    assert len(back) == len(records) and damaged == len(frame) + len(block)


# What is no checkpoint is refused


def pickled() -> bytes:
    file = io.BytesIO()
    torch.save({"state_dict": {"weight": torch.ones(3)}}, file)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        pickled(),
        pickle.dumps({"epoch": 3}),
        b"just some text\n",
        json.dumps({"kind": "run"}).encode(),
        save({"weight": torch.ones(3)}),
        MAGIC.replace(b"1", b"2"),
        b" " + MAGIC,
        b"\0" * 1000,
    ],
    ids=["torch", "pickle", "text", "json", "safetensors", "other version", "shifted", "zeros"],
)
def test_a_file_that_is_no_checkpoint_is_refused_by_name_and_left_alone(content, tmp_path):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        Checkpoint(path).read()
    assert str(path) in str(caught.value) and "not a SupSup checkpoint" in str(caught.value)
    assert path.read_bytes() == content


def test_a_missing_checkpoint_and_a_folder_are_refused_by_name(tmp_path):
    for path, reason in ((tmp_path / "none.pt", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(UserError) as caught:
            Checkpoint(path).read()
        assert str(path) in str(caught.value) and reason in str(caught.value)


# What it costs


def test_a_record_of_a_mask_costs_less_than_five_percent_more_than_its_bits(lenet):
    state = multitask.task_state(lenet, 7)
    assert sum(value.nbytes for value in state.values()) == LENET_BYTES
    record = Record("task", {"task": 7}, {f"own.{name}": value for name, value in state.items()})
    assert LENET_BYTES < len(record.to_bytes()) < 1.05 * LENET_BYTES


def test_250_tasks_of_lenet_are_under_10_megabytes_and_come_back(lenet, tmp_path):
    path = tmp_path / "checkpoint.pt"
    row = {"Name": "MNISTPerm-LeNet-250-tasks-supsup_h seed=0: task 0 when just learned", "Seed": 0}
    blocks = []
    for task in range(250):
        own = {f"own.{name}": value for name, value in multitask.task_state(lenet, task).items()}
        blocks.append(Record("task", {"task": task, "row": row}, own).to_bytes())
    Checkpoint(path).append(Record("run", {"settings": {"set": "MNISTPerm", "num_tasks": 250}}))
    with open(path, "ab") as file:  # 250 appends, without their 250 waits for the disk
        file.write(b"".join(blocks))
    assert 250 * LENET_BYTES < path.stat().st_size < 10e6

    records, damaged = Checkpoint(path).read()
    other = get_model("LeNet", Builder(partial(generator, 0), num_tasks=250), (1, 28, 28), 100)
    for record in records[1:]:
        own = {name.removeprefix("own."): value for name, value in record.tensors.items()}
        multitask.load_task_state(other, record.values["task"], own)
    assert damaged == 0 and len(records) == 251
    theirs, ours = dict(lenet.named_buffers()), dict(other.named_buffers())
    packed = [name for name in theirs if name.endswith("packed")]
    assert len(packed) == 3 and all(torch.equal(theirs[name], ours[name]) for name in packed)


# What is whole behind damage is found, and what fails leaves what was there


def test_the_records_behind_damage_are_found_wherever_it_is(tmp_path):
    path, records = tmp_path / "checkpoint.pt", small_records() * 3
    data, ends = written(path, records)
    rng = random.Random(1)
    assert list(Checkpoint(path).behind_damage()) == [] == list(Checkpoint(tmp_path / "none").behind_damage())
    for _ in range(200):
        places = sorted(rng.randrange(len(MAGIC), len(data)) for _ in range(rng.randint(1, 2)))
        wrong = bytearray(data)
        for place in places:
            wrong[place] ^= rng.randrange(1, 256)
        path.write_bytes(wrong)
        hit = {sum(end <= place for end in ends) for place in places}  # the records that were hit
        whole = [record for index, record in enumerate(records) if index not in hit and index > min(hit)]
        found = list(Checkpoint(path).behind_damage())
        assert len(found) == len(whole) and all(map(same, found, whole)), places


def test_a_damaged_file_is_kept_aside_and_one_that_a_crash_cut_short_is_not(tmp_path):
    path, records = tmp_path / "checkpoint.pt", small_records()
    data, ends = written(path, records)
    path.write_bytes(data[:-7])
    Checkpoint(path).cut(Checkpoint(path).read()[1])
    assert path.read_bytes() == data[: ends[-2]] and not Checkpoint(path).aside.exists()
    wrong = bytearray(data)
    wrong[ends[1] + 50] ^= 1
    path.write_bytes(wrong)
    Checkpoint(path).cut(Checkpoint(path).read()[1])
    assert path.read_bytes() == data[: ends[1]] and Checkpoint(path).aside.read_bytes() == wrong
    assert len(list(tmp_path.iterdir())) == 2


def test_an_append_that_finds_no_room_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path, records = tmp_path / "checkpoint.pt", small_records()
    data, ends = written(path, records)
    journal = Checkpoint(path)
    journal.read()

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        journal.append(records[1])
    assert caught.value.filename == str(path) and path.read_bytes() == data
    monkeypatch.undo()
    journal.append(records[1])
    assert len(Checkpoint(path).read()[0]) == len(records) + 1


def test_a_file_that_another_process_changed_is_not_written(tmp_path):
    path, records = tmp_path / "checkpoint.pt", small_records()
    written(path, records[:2])
    journal = Checkpoint(path)
    journal.read()
    Checkpoint(path).append(records[2])
    before = path.read_bytes()
    with pytest.raises(OSError, match="changed or removed"):
        journal.append(records[3])
    assert path.read_bytes() == before


def test_a_record_that_does_not_read_back_leaves_the_one_before(tmp_path, monkeypatch):
    path, (first, second, *_) = tmp_path / "training.pt", small_records()
    write_records(path, [first])
    before = path.read_bytes()
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: os.ftruncate(descriptor, 30)
    )  # a disk that loses what it is given
    with pytest.raises(OSError, match="does not read back"):
        write_records(path, [second])
    monkeypatch.undo()
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    write_records(path, [second])
    (record,), damaged = Checkpoint(path).read()
    assert damaged == 0 and same(record, second)
