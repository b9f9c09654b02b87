"""Runs on a cluster of Ray, which places an actor beside each; all its machines see the same files, named the same."""

import logging
import os
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from experiments import gpus
from experiments.attempts import is_under_way
from experiments.backends import Job
from experiments.backends.actor import Runner
from experiments.plan import ROOT, Plan, Run, parse_passed_on
from utils.cores import available_cores
from utils.errors import UserError
from utils.output import one_line

LOOK_SECONDS = 5  # between two looks at which machines the cluster has
SENT = ("SUPSUP_", "OMP_", "GOMP_", "KMP_", "MKL_", "TORCH", "PYTORCH_", "CUBLAS_")  # of the launcher's environment
# No word to Ray's makers; and more time than 15 s to start in, on a busy machine.
SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_agent_register_timeout_ms": "100000"}
# A cluster of one machine listens to it alone; its store of objects, here exit statuses, would take 30 % of the memory.
ALONE_SETTINGS = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
ALONE: dict[str, Any] = {"include_dashboard": False, "object_store_memory": 100 * 2**20}


class RayJob(Job):
    """A run that an actor is at, or will be once the cluster has room for it."""

    def __init__(self, run: Run, place: str, log: Path, ray: Any, actor: Any, ended: Any):
        super().__init__(run, place, log, log.stat().st_size if log.exists() else 0)
        self._ray, self._actor, self._ended = ray, actor, ended
        self._result: Any = None  # of ``Runner.run``
        self._over, self._lost = False, ""

    def status(self) -> int | None:
        if not self._over and self._ray.wait([self._ended], timeout=0)[0]:
            self._over = True
            try:
                self._result = self._ray.get(self._ended)
            except self._ray.exceptions.RayError as error:
                self._result = -signal.SIGTERM
                self._lost = "" if self.deadline else f"lost with its machine or its worker: {_line(error)}"
        return (self._result if isinstance(self._result, int) else 1) if self._over else None

    def is_lost(self) -> bool:
        return bool(self._lost)

    def found_it_held(self) -> bool:
        return self._result is None or super().found_it_held()

    def why(self) -> str:
        return self._lost or (f"not started: {self._result}" if isinstance(self._result, str) else super().why())

    def may_be_silent(self) -> bool:
        return not self._has_begun()

    def ask_to_end(self) -> None:
        self._actor.end.remote(at_once=False) if self._has_begun() else self._ray.kill(self._actor)

    def kill(self) -> None:
        self._ray.kill(self._actor) if self._over else self._actor.end.remote(at_once=True)

    def _has_begun(self) -> bool:
        with suppress(OSError):
            return self.log.stat().st_size > self.begins
        return False


class Ray:
    """The backend of a cluster.

    Args:
        sets: as ``--gpu-sets`` says, each naming what a run asks for; None: a GPU if the cluster has any, or a core.
        address: of the cluster; ``local`` starts one of this machine, which ends with ``close``.

    Raises:
        UserError: Ray is not installed, the cluster cannot be reached, or no machine of it has what a run asks for.
    """

    def __init__(self, plan: Plan, sets: Sequence[str] | None, address: str):
        self._plan, self._looked, self._room = plan, float("-inf"), 0
        self._before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        self._ray = _connected(address)
        sets = sets or ["0" if any(machine.get("GPU") for machine in self._machines()) else "cpu"]
        self._devices, self._gpus = gpus.renumbered(sets)[0], gpus.asked_for(sets)
        threads = parse_passed_on(plan.runs[0].flags).get("threads", "") if plan.runs else ""
        self._cores = max(1, int(threads)) if threads.isascii() and threads.isdigit() else 1
        self._place = f"{self._gpus:g} GPU, {self._cores} CPU of the cluster"
        if plan.runs and not self.places:
            self.close()
            raise UserError(f"--ray: a run asks for {self._place}, and no machine of it has that")

    @property
    def places(self) -> Sequence[str]:
        if time.monotonic() - self._looked > LOOK_SECONDS:
            self._looked, self._room = time.monotonic(), sum(map(self._fit, self._machines()))
        return [self._place] * min(self._room, len(self._plan.runs))

    def _machines(self) -> list[dict[str, float]]:
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def _fit(self, machine: Mapping[str, float]) -> int:  # how many runs
        fit = machine.get("CPU", 0) / self._cores
        return int(min(fit, machine.get("GPU", 0) / self._gpus + 1e-6) if self._gpus else fit)

    def start(self, run: Run, place: str) -> RayJob:
        log, sent = self._plan.log(run), {name: of for name, of in os.environ.items() if name.startswith(SENT)}
        if is_under_way(log):
            raise BlockingIOError
        asks = {"num_cpus": self._cores, "num_gpus": self._gpus, "scheduling_strategy": "SPREAD"}
        actor = self._ray.remote(Runner).options(**asks).remote()
        ended = actor.run.remote(self._plan.command(run, self._devices), log, os.getcwd(), sent, self._cores)
        return RayJob(run, place, log, self._ray, actor, ended)

    def close(self) -> None:
        self._ray.shutdown()
        for number, handler in self._before.items():  # Ray has put its own in their place
            signal.signal(number, handler)


def _connected(address: str) -> Any:
    """Ray, connected to a cluster. Raises ``UserError`` as ``Ray``."""
    alone = address == "local"
    os.environ.update(SETTINGS | (ALONE_SETTINGS if alone else {}))
    try:
        host, _, port = address.split("/")[-1].rpartition(":")
        if host:  # Ray itself would try for minutes
            socket.create_connection((host, port), timeout=10).close()
        import ray

        more = ALONE | {"num_cpus": available_cores()} if alone else {}
        search = ray.job_config.JobConfig(code_search_path=[str(ROOT)])  # instead of an upload
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, job_config=search, **more)
    except ImportError:
        raise UserError("--ray: Ray is not installed; pip install -r requirements-ray.txt") from None
    except Exception as error:  # of many kinds
        hint = "say HOST:PORT of its head, and RAY_AUTH_MODE=token in the environment if it asks for a token"
        raise UserError(f"--ray {address}: no cluster of Ray ({_line(error)}); {hint}") from None
    return ray


def _line(error: Exception) -> str:
    """The last line of what an error says, which mostly says what it is."""
    return one_line((str(error).strip() or repr(error)).splitlines()[-1])
