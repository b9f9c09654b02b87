"""A disk that is full: the run says so and stops, and goes on when there is room."""

import os
import shutil
import subprocess
import sys

import pytest

import main
from tests.stress.outcome import left_by, same_tensors

# In a mount namespace of its own, which needs no rights: the same command on a full disk, and on one with room.
SCRIPT = """
mount -t tmpfs -o size=5m tmpfs "$DISK" || exit
head -c 5050000 /dev/zero > "$DISK/ballast"
"$@" 2> "$OUT/first.err"; echo $? > "$OUT/first"
rm "$DISK/ballast"
"$@" 2> "$OUT/second.err"; echo $? > "$OUT/second"
cp -r "$DISK/log" "$OUT"
"""
FLAGS = "--num-tasks 8 --epochs 1 --eval-ckpts 3 --threads 1 --multigpu cpu --name run --resume".split()


def test_a_run_stops_at_a_full_disk_and_goes_on_when_there_is_room(tmp_path):
    if shutil.which("unshare") is None:
        pytest.skip("no unshare, so no small disk that needs no rights")
    disk, out = tmp_path / "disk", tmp_path / "out"
    disk.mkdir(), out.mkdir()
    command = [sys.executable, main.__file__, *FLAGS, "--log-dir", str(disk / "log")]
    environment = {**os.environ, "DISK": str(disk), "OUT": str(out), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", SCRIPT, "sh", *command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    if not (out / "first").exists():
        pytest.skip(f"this machine lets nobody mount a small disk: {done.stdout.strip()}")
    said = (out / "first.err").read_text()
    assert (out / "first").read_text().strip() not in ("0", "2") and len(said.splitlines()) == 1, said
    assert "No space left" in said and "checkpoint.pt" in said
    assert ((out / "second").read_text().strip(), (out / "second.err").read_text()) == ("0", "")
    learned = [done.stdout.count(f"task {task}: accuracy") for task in range(8)]
    assert learned == [1] * 8 and "going on after" in done.stdout, "what was kept is not learned again"

    assert main.main([*FLAGS, "--log-dir", str(tmp_path / "whole" / "log")]) == 0
    left, tensors = left_by(tmp_path / "whole")
    again, its_tensors = left_by(out)
    assert again["rows"] == left["rows"] and again["tables"] == left["tables"]
    assert same_tensors(its_tensors, tensors)
