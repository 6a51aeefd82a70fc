"""A real Slurm cluster of one node, within one folder: its own configuration, key, ports and daemons.

It reads and writes nothing of a Slurm that the machine may have, and runs all as the user who starts it.
"""

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"  # daemons are often in sbin only

CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={slurmctld_port}
SlurmdPort={slurmd_port}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# cred_expire is also how long a requeued job waits before it starts again: 120 seconds unless told, 5 the least
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
JobRequeue=1
MinJobAge=86400
KillWait=2
ReturnToService=2
# four tasks side by side, whatever the machine has
SlurmdParameters=config_overrides
NodeName=one NodeHostname={host} NodeAddr=127.0.0.1 CPUs=4
PartitionName=all Nodes=one Default=YES State=UP
"""


def installed() -> bool:
    """Return True if Slurm and munge are installed."""
    return all(shutil.which(program, path=PATH) for program in ("munged", "slurmctld", "slurmd", "srun", "sbatch"))


class SlurmCluster:
    """`with SlurmCluster(folder) as slurm:` runs it; with `slurm.env` any Slurm command finds it.

    The folder's path has to be short: a Unix socket in it may have 107 characters.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.conf = self.folder / "slurm.conf"
        self.env = {"PATH": PATH, "HOME": str(self.folder), "LANG": "C.UTF-8", "SLURM_CONF": str(self.conf)}
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        for name in ("state", "spool"):
            (self.folder / name).mkdir(parents=True)
        user = pwd.getpwuid(os.getuid()).pw_name
        with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
            ports = {"slurmctld_port": one.getsockname()[1], "slurmd_port": two.getsockname()[1]}
        self.conf.write_text(CONF.format(host=socket.gethostname(), user=user, folder=self.folder, **ports))
        key = self.folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(128))
        files = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munge.pid", "seed-file": "munge.seed"}
        try:
            # --force: the folders above may be writable by others
            self._start("munged", "--foreground", "--force", *(f"--{k}={self.folder / v}" for k, v in files.items()))
            self._await("munged", lambda: (self.folder / "munge.socket").exists())
            self._start("slurmctld", "-D")
            self._start("slurmd", "-D")
            self._await("the node", lambda: self._call("sinfo", "-h", "-o", "%T", check=False) == "idle")
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def sbatch(self, *arguments: object) -> str:
        """Submit a job and return its id."""
        return self._call("sbatch", "--parsable", *arguments)

    def state(self, job: str) -> str:
        """Return the state of a job, or of a task of an array ("7_2"): PENDING, RUNNING, COMPLETED…"""
        states = self._call("squeue", "--array", "--noheader", "--states=all", "--format=%T", "--jobs", job)
        return " ".join(sorted(set(states.split())))

    def wait(self, job: str, timeout: float = 60) -> str:
        """Wait until a job has ended, and return its state. A requeued job changes its state: it must stay the same."""
        over = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}
        seen = 0

        def ended() -> bool:
            nonlocal seen
            states = set(self.state(job).split())
            seen = seen + 1 if states and states <= over else 0
            return seen > 3

        self._await(f"job {job}", ended, timeout)
        return self.state(job)

    def waiting(self) -> list[str]:
        """Return the jobs that have not begun."""
        return self._call("squeue", "--noheader", "--states=pending", "--format=%i").split()

    def kill(self, **variables: str) -> None:
        """Kill the processes of this cluster that have these environment variables."""
        for pid in self._left(**variables):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)

    def _call(self, *command: object, check: bool = True) -> str:
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=self.env, timeout=60)
        if check and done.returncode:
            raise RuntimeError(f"{command[0]}: {done.stderr.strip()}")
        return done.stdout.strip()

    def _start(self, program: str, *options: str) -> None:
        with (self.folder / f"{program}.log").open("wb") as log:
            daemon = subprocess.Popen(
                [program, *options], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.env, cwd=self.folder
            )
        self._daemons.append(daemon)

    def _await(self, what: str, ready: Callable[[], bool], timeout: float = 30) -> None:
        deadline = time.monotonic() + timeout
        while not ready():
            if time.monotonic() > deadline or any(daemon.poll() is not None for daemon in self._daemons):
                tails = [f"{log.name}:\n{log.read_text()[-2000:]}" for log in sorted(self.folder.glob("*.log"))]
                raise RuntimeError("\n".join([f"waited in vain for {what}", *tails]))
            time.sleep(0.1)

    def _stop(self) -> None:
        """Kill the daemons and the processes that they started."""
        for daemon in self._daemons:
            daemon.kill()
            daemon.wait()
        while any(self._left()):
            self.kill()
            time.sleep(0.05)

    def _left(self, **variables: str) -> Iterator[int]:
        marks = {os.fsencode(f"{name}={value}") for name, value in {"SLURM_CONF": self.conf, **variables}.items()}
        for environ in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if marks <= set(environ.read_bytes().split(b"\0")):
                    yield int(environ.parent.name)
