"""A SLURM cluster of one node on this machine, in a folder of its own, started and stopped by the ids of its processes.

    python tests/slurm_cluster.py COMMAND...    runs a command on it

It needs Debian's packages slurm-wlm and munge, and root; no user, service or file of the system is touched. Nodes do
without control groups, so that it also runs in a container. Jobs that are requeued wait seconds instead of minutes.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "srun", "scontrol", "scancel")
SECONDS = 30  # that each part may take until it answers
CONFIG = """
ClusterName=here
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


class Unavailable(Exception):
    """The cluster cannot be started here; says why."""


@contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Start the cluster, and stop it in the end; gives the environment in which commands reach it.

    Raises:
        Unavailable: it cannot be started.
    """
    path = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
    missing = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if missing:
        raise Unavailable(f"{', '.join(missing)}: not installed; apt-get install slurm-wlm munge")
    if os.geteuid() != 0:
        raise Unavailable("a node starts jobs as root alone")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    folder.chmod(0o755)  # munged trusts no folder that others may write to
    names = {"host": socket.gethostname(), "folder": folder, "cpus": os.cpu_count()}
    (folder / "slurm.conf").write_text(CONFIG.format(**names, controller=_free_port(), node=_free_port()))
    env = {**os.environ, "PATH": path, "SLURM_CONF": str(folder / "slurm.conf")}
    files = [f"--{name}={folder}/munge.{name.partition('-')[0]}" for name in ("key-file", "socket", "pid-file")]
    files += [f"--{name}={folder}/munge.{name.partition('-')[0]}" for name in ("log-file", "seed-file")]
    with ExitStack() as stack:
        for command, answers in (
            (["munged", "--foreground", "--force", *files], ["munge", "--no-input", f"--socket={folder}/munge.socket"]),
            (["slurmctld", "-D"], ["scontrol", "ping"]),
            (["slurmd", "-D", "-N", socket.gethostname()], ["srun", "--immediate=5", "true"]),
        ):
            stack.enter_context(_daemon(command, answers, env, folder))
        yield env


@contextmanager
def _daemon(command: list[str], answers: list[str], env: dict[str, str], folder: Path) -> Iterator[None]:
    """A process that goes on until the end; ``answers`` is a command that succeeds once it does its work."""
    with open(folder / f"{command[0]}.out", "w+") as out:
        process = subprocess.Popen(command, env=env, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + SECONDS
            while subprocess.run(answers, env=env, capture_output=True, stdin=subprocess.DEVNULL).returncode:
                if process.poll() is not None or time.monotonic() > deadline:
                    out.seek(0)
                    raise Unavailable(f"{command[0]} does not start here: {out.read().strip()[-500:]}")
                time.sleep(0.2)
            yield
        finally:
            with suppress(ProcessLookupError):
                process.terminate()
            try:
                process.wait(timeout=SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _free_port() -> int:
    with closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        try:
            with cluster(Path(made)) as environment:
                status = subprocess.run(sys.argv[1:], env=environment).returncode
        except Unavailable as error:
            sys.exit(f"no SLURM cluster: {error}")
    sys.exit(status)
