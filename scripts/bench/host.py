"""Starts processes on chosen processors, and asks the kernel about them."""

import atexit
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
RAW = ROOT / "target" / "bench"
WORK = pathlib.Path(os.environ.get("RINGKEEP_BENCH_DIR", RAW / "data"))
RINGKEEP = ROOT / "target" / "release" / "ringkeep"
# One processor for the server, another for the load.
SERVER, LOAD = os.environ.get("SERVER_CPUS", "0"), os.environ.get("LOAD_CPUS", "1")
BOTH = f"{SERVER},{LOAD}"
TICKS = os.sysconf("SC_CLK_TCK")


def pinned(cpus, command):
    return ["taskset", "-c", cpus, *map(str, command)]


def run(cpus, command, env=None, timeout=3600, check=True):
    """Runs a command to its end and returns its standard output and standard error together."""
    child = subprocess.Popen(
        pinned(cpus, command),
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = child.communicate(timeout=timeout)
    except BaseException:
        os.killpg(child.pid, signal.SIGKILL)  # the whole group: cargo starts the bench as a child
        child.wait()
        raise
    if check and child.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))} ended with {child.returncode}:\n{output}")
    return output


def load_cpu_seconds():
    """Processor time of all children that have ended: the loads, and servers that were stopped."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def stolen():
    """Seconds that the hypervisor took from busy processors since the boot, and all seconds of the processors."""
    fields = [int(field) / TICKS for field in pathlib.Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    return fields[7], sum(fields)


def bare_loops(seconds=4):
    """Runs a bare loop on both processors at once and returns how steady they were: no server can be steadier."""
    command = [sys.executable, "-B", ROOT / "scripts" / "bench" / "loop.py", seconds]
    loops = {name: subprocess.Popen(pinned(cpus, command), stdout=subprocess.PIPE) for name, cpus in (("server", SERVER), ("load", LOAD))}
    return {name: json.loads(loop.communicate(timeout=60)[0]) for name, loop in loops.items()}


class Process:
    """A server that this script started, and ends by its id."""

    def __init__(self, cpus, command, log):
        self.log = log
        with open(log, "w") as errors:
            self.child = subprocess.Popen(
                pinned(cpus, command), stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
            )
        self.pid = self.child.pid
        # Ends the server, whatever ends the measurement.
        atexit.register(Process.stop, self)

    def cpu_seconds(self):
        """Processor time of the process and of its children that still run: nginx has a worker."""
        children = pathlib.Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        stats = (pathlib.Path(f"/proc/{pid}/stat").read_text() for pid in (self.pid, *children))
        fields = (stat.rsplit(")", 1)[1].split() for stat in stats)
        return sum(int(each[11]) + int(each[12]) for each in fields) / TICKS

    def resident_bytes(self):
        status = pathlib.Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) * 1024

    def written_bytes(self):
        """Bytes that the process caused to be written to the device."""
        io = pathlib.Path(f"/proc/{self.pid}/io").read_text()
        return int(io.split("\nwrite_bytes:")[1].split()[0])

    def settle(self, patience=900):
        """Waits until the process has done nearly nothing for two seconds: then compaction is over."""
        deadline = time.monotonic() + patience
        quiet = 0
        while quiet < 4:
            if deadline < time.monotonic():
                raise RuntimeError(f"process {self.pid} is still busy after {patience} s; see {self.log}")
            before = self.cpu_seconds()
            time.sleep(0.5)
            quiet = quiet + 1 if self.cpu_seconds() - before < 0.03 else 0

    def stop(self, how=signal.SIGTERM):
        if self.child.poll() is None:
            os.kill(self.pid, how)
        self.child.wait(timeout=300)
        return self.child.returncode


def fresh(name):
    """An empty folder on the measured device."""
    folder = WORK / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def device_flushes(folder):
    """Flush requests that the block device under `folder` has completed, or None if the kernel does not count them."""
    number = os.stat(folder).st_dev
    stat = pathlib.Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/stat")
    fields = stat.read_text().split() if stat.exists() else []
    return int(fields[15]) if 15 < len(fields) else None


def disk_bytes(folder):
    return sum(path.stat().st_blocks * 512 for path in pathlib.Path(folder).rglob("*") if path.is_file())


def installed(program):
    return shutil.which(program) is not None


def missing(*programs):
    """The first program that is not installed, if there is one."""
    return next((program for program in programs if not installed(program)), None)
