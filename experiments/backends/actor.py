"""What stands beside a run on another machine: starts it there, sees it end, and ends it when it is told to."""

import asyncio
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.backends.local import Child
from utils.cores import RUNS_AT_ONCE, available_cores


class Runner:
    """Starts a run as ``Local`` would: as a process of its own group, which ends with this one.

    It serves one call while it waits for another's end, since they are coroutines of one thread.
    """

    child: Child | None = None

    async def run(
        self, command: Sequence[str], log: Path, folder: str, sent: Mapping[str, str], cores: int
    ) -> int | str | None:
        """Run a command to its end. Gives its exit status; None if the run is under way; why it cannot be started.

        Its environment is this machine's and what was sent, without what Ray has added but for the GPUs.
        """
        own = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "OMP_NUM_THREADS"))}
        share = {RUNS_AT_ONCE: str(max(1, available_cores(own) // cores)), "PYTHONUNBUFFERED": "1"}
        try:
            self.child = Child(command, log, {**own, **sent, **share}, folder)
        except BlockingIOError:
            return None
        except OSError as error:
            return f"{error.strerror} on machine {platform.node()}: {error.filename}"
        while (status := self.child.status()) is None:
            await asyncio.sleep(0.1)
        self.child.kill()  # what it has left behind
        return status

    async def end(self, at_once: bool) -> None:
        if self.child:
            self.child.kill() if at_once else self.child.ask_to_end()
