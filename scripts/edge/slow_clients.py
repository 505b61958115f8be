"""The latency of GET and SET while slowhttptest holds 1,000 connections, and without it."""

import collections
import json
import os
import re
import resource
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from server import RINGKEEP, Child, Ringkeep, needs

SLOW = 1_000
ELSEWHERE = ("taskset", "-c", "1")  # the server has processor 0
# A 99th percentile without slow clients counts as at least this, in ms. At a rate this low it says how soon the load gets
# its processor, and, for a SET, how long a disk that others use takes for a sync.
LEAST_MS = {"GET": 1, "SET": 5}

Mode = collections.namedtuple("Mode", "name flags target reason limit every_round")
# `limit` is how many seconds the server lets them go on. Each KiB of a body gives a second more.
MODES = (
    Mode("slow heads", ["-H"], "/get?key=big", "head", 10, True),
    Mode("slow bodies", ["-B", "-s", "65536", "-x", "512"], "/set?key=slow", "body", 20, True),
    Mode("slow readers", ["-X", "-w", "1", "-y", "64", "-n", "1", "-z", "32"], "/get?key=big", "reply", 60, False),
)


def connections(server):
    """How many connections the server has, as the kernel sees it."""
    lines = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return sum(int(local.rpartition(":")[2], 16) == server.port and state == "01" for _, local, _, state, *_ in lines)


def wait_until(condition, seconds, what):
    """Waits for what nothing announces."""
    begin = time.monotonic()
    while not condition():
        if begin + seconds < time.monotonic():
            raise RuntimeError(f"after {seconds} s: {what}")
        time.sleep(0.1)


def ask(server, target, body=None):
    """The status of a reply."""
    try:
        return urllib.request.urlopen(server.url + target, body, timeout=20).status
    except urllib.error.HTTPError as error:
        return error.code


def bench(server, *flags):
    report = server.folder / "bench.json"
    command = [*ELSEWHERE, RINGKEEP, "bench", "--server", f"127.0.0.1:{server.port}", "--connections", "8", "--key-count", "10000",
               "--json", report, *flags]
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)
    found = json.loads(report.read_text())["workloads"]
    for workload in found:
        assert workload["refused"] == workload["lost"] == workload["wrong"] == workload["unanswered"] == 0, "requests have failed"
    return found


def measure(server):
    """The 99th percentiles of GET and SET at 500 requests per second, in ms. It takes less time than slow clients have."""
    found = bench(server, "--filled", "--rate", "500", "--duration", "1500ms", "read", "overwrite")
    return dict(zip(LEAST_MS, (p99(workload["latency_us"]["histogram"]) / 1000 for workload in found), strict=True))


def p99(histogram):
    """The latency that a hundredth of the requests exceeds."""
    rest = sum(count for _, count in histogram) / 100
    for latency, count in reversed(histogram):
        rest -= count
        if rest < 0:
            return latency
    raise ValueError("there are no latencies")


def slow_clients(server, mode, number):
    command = [*ELSEWHERE, "slowhttptest", *mode.flags, "-u", server.url + mode.target, "-c", SLOW, "-r", SLOW,
               "-i", "1", "-l", mode.limit + 30]
    return Child(command, server.folder / f"slowhttptest-{number}", stdout=subprocess.DEVNULL)


def one_round(server, mode, number, rounds):
    """What `measure` finds without and with slow clients. Then the server ends those clients, or they go."""
    alone = measure(server)
    ends = mode.every_round or number == rounds
    with slow_clients(server, mode, number) as child:
        wait_until(lambda: SLOW * 99 // 100 <= connections(server), 10, "slowhttptest has not opened its connections")
        begin = time.monotonic()
        crowded = measure(server)
        held = connections(server)
        assert SLOW * 3 // 4 <= held, f"only {held} slow connections were left at the end of the measurement"
        if ends:
            wait_until(lambda: connections(server) == 0, mode.limit + 10, "the server has not ended all slow connections")
            print(f"{mode.name}: the server has ended all {SLOW:,} after {time.monotonic() - begin:.0f} s", flush=True)
        child.stop()
    wait_until(lambda: connections(server) == 0, 10, "connections are open, although slowhttptest has ended")
    found = "; ".join(f"{kind} {alone[kind]:.2f} ms alone, {crowded[kind]:.2f} ms with slow clients" for kind in LEAST_MS)
    print(f"{mode.name}, round {number}: p99 of {found}; load average {os.getloadavg()[0]:.1f}", flush=True)
    return alone, crowded


def counted(server, reason):
    """How many connections were ended for this reason, as the log says."""
    return sum(int(count) for count in re.findall(rf'connections were refused, or ended.*"{reason}": (\d+)', server.log.read_text()))


def compare(server, mode, rounds):
    """One row for each kind of request: the least of all rounds, because what else runs on the machine only adds."""
    pairs = [one_round(server, mode, number, rounds) for number in range(1, rounds + 1)]
    expected = SLOW * (rounds if mode.every_round else 1)
    wait_until(lambda: expected <= counted(server, mode.reason), 15, f"the log does not say {expected} times that a {mode.reason} was too slow")
    for kind, least in LEAST_MS.items():
        alone, crowded = (min(found[kind] for found in state) for state in zip(*pairs, strict=True))
        yield mode.name, kind, alone, crowded, crowded / max(alone, least)


def main():
    needs("slowhttptest", "taskset")
    rounds = int(sys.argv[1]) if 1 < len(sys.argv) else 5
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if len(os.sched_getaffinity(0)) < 2 or -1 < files < 2 * SLOW:  # -1: as many as wanted
        print(f"skipped: two processors are needed, and {2 * SLOW:,} open files")
        return 0
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    with Ringkeep("--threads", "1", prefix=("taskset", "-c", "0")) as server:
        assert ask(server, "/set?key=big", os.urandom(1 << 20)) == 200
        bench(server, "fill-seq")
        rows = [row for mode in MODES for row in compare(server, mode, rounds)]
        assert ask(server, "/get?key=slow") == 404, "a body that was cut off is stored"
        assert "panic" not in server.log.read_text(), "the server has panicked"
    print(f"\n{'least p99 of':14} {'':4} {'alone':>12} {f'with {SLOW:,}':>16} {'ratio':>6}")
    for name, kind, alone, crowded, ratio in rows:
        print(f"{name:14} {kind:4} {alone:9.2f} ms {crowded:13.2f} ms {ratio:6.2f}{'  more than doubled' if 2 < ratio else ''}")
    worst = max(ratio for *_, ratio in rows)
    print(f"slow_clients: {len(MODES)} modes, worst p99 ratio {worst:.2f}")
    return 1 if 2 < worst else 0


if __name__ == "__main__":
    sys.exit(main())
