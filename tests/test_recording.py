"""Steps of training that are recorded once and played back: to the same bits, on a recorder for the processor."""

import pytest
import torch
from tiny import RUNS, Tiny, TinyBN, call_main, outcome

from models import MODELS
from tests.recorder import TapeRecorder
from utils import recording
from utils.recording import WARM_UP, Recorded


@pytest.fixture
def recorder(monkeypatch):
    monkeypatch.setattr(recording, "Recorder", TapeRecorder)
    monkeypatch.setattr(TapeRecorder, "replays", 0)
    return TapeRecorder


def test_calls_are_played_back_with_new_tensors_and_the_same_others(recorder):
    total, seen = torch.zeros(3), []

    def add(x):
        seen.append(x.shape)
        total.add_(x)
        return total.sum(), total

    call, right = Recorded(add, torch.device("cpu")), torch.zeros(3)
    results = []
    for number in range(10):
        x = torch.full((3 if number != 7 else 1,), float(number))
        right = right + x
        result, kept = call(x)
        results.append((result, right.sum()))
        assert kept is total and torch.equal(total, right)
    assert all(mine == true for mine, true in results)  # each caller has its own copy
    assert len(seen) == WARM_UP + 2 and recorder.replays == 10 - WARM_UP - 1  # once recorded, once as it is
    call.forget()
    call(x)
    assert len(seen) == WARM_UP + 3


def test_numbers_of_the_host_stay_those_of_the_recording_until_it_is_forgotten(recorder):
    rate = 1.0
    call = Recorded(lambda x: (x * rate, None), torch.device("cpu"))
    for _ in range(WARM_UP + 2):
        call(torch.ones(()))
    rate = 2.0
    assert call(torch.ones(()))[0] == 1
    call.forget()
    assert all(call(torch.ones(()))[0] == 2 for _ in range(WARM_UP + 3))


def test_what_cannot_be_recorded_is_called_as_it_is(recorder):
    call = Recorded(lambda x: (x * float(x), None), torch.device("cpu"))
    for number in range(WARM_UP):
        call(torch.tensor(float(number)))
    with pytest.warns(UserWarning, match="cannot be recorded, .*waits for the device"):
        assert call(torch.tensor(5.0))[0] == 25
    assert call(torch.tensor(6.0))[0] == 36 and not recorder.replays


def test_a_device_that_cannot_record_is_not_asked_to():
    calls = []
    call = Recorded(lambda x: (x, calls.append(x)), torch.device("cpu"))
    for _ in range(10):
        call(torch.zeros(()))
    assert len(calls) == 10


MORE = {
    "adam": "--optimizer adam --adaptor gt",
    "cosine": "--lr-policy cosine_lr --warmup-length 1 --adaptor gt",
    "halves": "--conv-type PackNetConv --trainer halves --sparsity 0.3 --adaptor gt",
    "surprise": "--trainer nns --nns-every 7 --lr 1e-3 --nns-surprise 2",
}


@pytest.mark.parametrize("name, words", (RUNS | MORE).items())
def test_runs_come_out_the_same_to_the_bit(name, words, tmp_path, monkeypatch, recorder):
    """In batches of 110, so that the last one of an epoch is short."""
    monkeypatch.setitem(MODELS, "Tiny", Tiny)
    monkeypatch.setitem(MODELS, "TinyBN", TinyBN)
    words = ["--num-tasks", "2", "--batch-size", "110", *words.split()]
    with monkeypatch.context() as plain:
        plain.setattr(TapeRecorder, "works_on", staticmethod(lambda device: False))
        assert call_main(tmp_path / "plain", *words) == 0
    assert recorder.replays == 0
    assert call_main(tmp_path / "recorded", *words) == 0
    assert recorder.replays >= 10
    (tensors, *others), (theirs, *more) = (outcome(tmp_path / run) for run in ("recorded", "plain"))
    assert others == more and tensors.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in tensors.items())
