#!/usr/bin/env python3
"""Answers the questions of BENCHMARKS.md and writes the raw answers, one JSON file per question, to target/bench.

    questions.py [--quick] [--repeat N] [QUESTION...]        default: all questions

ringkeep and its peer, if there is one, take turns (A B B A) in one run. These machines are noisy, and a ratio of
neighbouring samples says more than two figures that were measured hours apart.
"""

import argparse
import collections
import datetime
import json
import math
import os
import pathlib
import platform
import re
import signal
import statistics
import subprocess
import sys
import time

import host
import loads
from host import BOTH, LOAD, RAW, SERVER, missing
from servers import Certificate, Nginx, Redis, Ringkeep, Webdis


class Run:
    """How long and how often to measure, and the lines measured so far."""

    def __init__(self, quick, repeat):
        self.quick = quick
        self.repeat = 1 if quick else repeat
        self.seconds = 2 if quick else 8
        self.lines = collections.OrderedDict()
        self.stolen = host.stolen()

    def add(self, name, figures, figure="per_second"):
        """Adds one sample to a line. All other figures of the sample are kept as its details."""
        line = self.lines.setdefault(name, {"command": figures.get("command"), "samples": []})
        line["samples"].append(figures[figure])
        rest = {key: value for key, value in figures.items() if key not in ("command", "output", "folder")}
        if "stolen" not in rest:
            rest["stolen"] = self.taken()
        line.setdefault("details", []).append(rest)
        print(f"  {name}: {figures[figure]:,.1f}, stolen {rest['stolen']:.0%}", flush=True)

    def taken(self):
        """The share of the processors that the host gave to others since the last call."""
        before, self.stolen = self.stolen, host.stolen()
        return (self.stolen[0] - before[0]) / max(self.stolen[1] - before[1], 0.01)

    def watch(self, name, server, load, *flags):
        """Adds one sample to a line, with the shares of their processors that the server and the load used."""
        begin, server_before, load_before = time.monotonic(), server.cpu_seconds(), host.load_cpu_seconds()
        figures = load(*flags)
        used = host.load_cpu_seconds() - load_before
        # Before it sends requests, a load prepares them, and uses its whole processor for that.
        preparation = time.monotonic() - begin - figures["seconds"]
        figures["server_busy"] = (server.cpu_seconds() - server_before) / figures["seconds"]
        figures["load_busy"] = (used - preparation) / figures["seconds"]
        self.add(name, figures)

    def in_turn(self, *samples, most=None):
        """Takes each sample `repeat` times (`most` times at most), every other time in the opposite order."""
        for turn in range(min(self.repeat, most or self.repeat)):
            for sample in samples if turn % 2 == 0 else samples[::-1]:
                sample(turn)

    def scaled(self, number):
        return number // 20 if self.quick else number


def stop(*servers):
    """Stops the servers in this order. A peer that is not installed is None."""
    for server in servers:
        if server:
            server.stop()


def filled(server, keys=loads.KEYS):
    """Fills all keys. Then all are in sorted files, compaction is over, and the cache holds all blocks that fit."""
    loads.bench(server, "fill-unique", "--key-count", keys, "--pipeline", 16)
    server.stop()
    server = Ringkeep(*server.flags, folder=server.folder)
    server.settle()
    loads.bench(server, "read", "--filled", "--key-count", keys, "--pipeline", 16, "--duration", "3s")
    return server


def gets(run):
    """GET of cached keys, 64 connections, without pipelining and with 16 requests pipelined."""
    ringkeep, nginx = filled(Ringkeep("--cache-size", "1GiB")), Nginx()
    redis = Redis()
    loads.redis_benchmark(redis.port, "set", 64, 10 * loads.PREPARED, 16)
    webdis = Webdis(redis) if not missing("webdis") else None

    def at_depth(depth, name):
        reads = run.seconds * (60_000 if depth == 1 else 600_000)
        yield lambda turn: run.watch(f"{name}/ringkeep", ringkeep, loads.wrk, ringkeep.url, loads.GET, 64, run.seconds, depth, turn)
        yield lambda turn: run.watch(f"{name}/nginx", nginx, loads.wrk, nginx.url, loads.GET, 64, run.seconds, depth, turn)
        yield lambda turn: run.watch(f"{name}/redis", redis, loads.redis_benchmark, redis.port, "get", 64, reads, depth)
        if webdis and depth == 1:
            yield lambda turn: run.watch(f"{name}/webdis", webdis, loads.wrk, webdis.url, loads.WEBDIS_GET, 64, run.seconds, 1, turn)

    run.in_turn(*at_depth(1, "64"), *at_depth(16, "64x16"))
    stop(webdis, redis, nginx, ringkeep)


def tls(run):
    """GET of cached keys over TLS, 64 connections."""
    plain = Ringkeep()
    loads.bench(plain, "fill-unique", "--key-count", loads.FEW_KEYS, "--pipeline", 16)
    plain.stop()
    certificate = Certificate()
    ringkeep = Ringkeep("--tls-cert", certificate.chain, "--tls-key", certificate.key, folder=plain.folder)
    nginx = Nginx(certificate=certificate)
    loads.wrk(ringkeep.url, loads.GET_FEW, 64, 3)  # afterwards the cache holds all keys
    run.in_turn(
        lambda turn: run.watch("64/ringkeep", ringkeep, loads.wrk, ringkeep.url, loads.GET_FEW, 64, run.seconds, 1, turn),
        lambda turn: run.watch("64/nginx", nginx, loads.wrk, nginx.url, loads.GET_FEW, 64, run.seconds, 1, turn))
    stop(nginx, ringkeep)


def sets(run):
    """SET, each on disk before its answer."""
    ringkeep, redis = filled(Ringkeep("--cache-size", "1GiB")), Redis()
    loads.redis_benchmark(redis.port, "set", 64, 10 * loads.PREPARED, 16)
    webdis = Webdis(redis) if not missing("webdis") else None

    def own(verb, name, connections, depth=1):
        def sample(turn):
            run.watch(f"{name}/ringkeep", ringkeep, loads.wrk, ringkeep.url, verb, connections, run.seconds, depth, turn)
            ringkeep.settle()
        return sample

    def peer(name, connections, depth=1):
        writes = run.seconds * (40_000 if depth == 1 else 250_000)
        return lambda turn: run.watch(f"{name}/redis", redis, loads.redis_benchmark, redis.port, "set", connections, writes, depth)

    samples = [own(loads.SET, "64", 64), peer("64", 64), own(loads.SET, "256", 256), peer("256", 256),
               own(loads.GET, "get_256", 256), own(loads.SET, "64x16", 64, 16), peer("64x16", 64, 16)]
    if webdis:
        samples.insert(0, lambda turn: run.watch("64/webdis", webdis, loads.wrk, webdis.url, loads.WEBDIS_SET, 64, run.seconds, 1, turn))
    run.in_turn(*samples)
    stop(webdis, redis, ringkeep)


def rocksdb_sync(run):
    """SET, 64 connections, compared with 64 threads of db_bench that sync each write."""
    ringkeep = Ringkeep()

    def own(turn):
        run.add("ringkeep", loads.wrk(ringkeep.url, loads.SET, 64, run.seconds, 1, turn))
        ringkeep.settle()

    def rocksdb(_):
        writes = run.seconds * 500
        run.add("rocksdb", loads.db_bench("fillrandom", "--sync=1", "--threads=64", f"--num={loads.KEYS}", f"--writes={writes}"))

    run.in_turn(own, rocksdb)
    ringkeep.stop()


def lone_set(run):
    """One client that waits for each answer: SET compared with the device's own write and fdatasync, p50."""
    ringkeep, redis = filled(Ringkeep()), None if missing("redis-server") else Redis()
    common = ["--filled", "--key-count", loads.KEYS, "--connections", 1, "--duration", f"{run.seconds}s"]

    def own(name, workload, turn, *flags):
        figures = loads.bench(ringkeep, workload, *common, "--seed", turn, *flags)
        figures["stolen"] = run.taken()
        run.add(name, {"p50": figures["latency_us"]["p50"], "stolen": figures["stolen"], "command": figures["command"]}, "p50")
        return figures

    def own_set(turn):
        figures = own("ringkeep", "overwrite", turn, "--data-dir", ringkeep.folder)
        run.add("device", {"p50": figures["storage"]["commit_4k_us"]["p50"], "stolen": figures["stolen"], "command": figures["command"]}, "p50")
        ringkeep.settle()

    def redis_set(_):
        run.add("redis", loads.redis_benchmark(redis.port, "set", 1, run.seconds * 3000), "p50")

    run.in_turn(own_set, lambda turn: own("get", "read", turn), *([redis_set] if redis else []))
    stop(redis, ringkeep)


def connections(run):
    """Throughput and writes per group, by number of connections."""
    ringkeep = filled(Ringkeep("--cache-size", "1GiB"))
    for turn in range(run.repeat):
        for count in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024):
            seconds = max(run.seconds // 2, 1)
            run.add(f"get/{count}", loads.wrk(ringkeep.url, loads.GET, count, seconds, 1, turn))
            before, cpu = host.device_flushes(ringkeep.folder), ringkeep.cpu_seconds()
            figures = loads.wrk(ringkeep.url, loads.SET, count, seconds, 1, turn)
            after = host.device_flushes(ringkeep.folder)
            if before is not None and before < after:
                figures["writes_per_flush"] = figures["per_second"] * seconds / (after - before)
            figures["server_cpu"] = (ringkeep.cpu_seconds() - cpu) / seconds
            run.add(f"set/{count}", figures)
            ringkeep.settle()
    ringkeep.stop()


def latencies(run):
    """Latency in an open loop: GET and SET, at shares of the top rate, which is that of a closed loop."""
    ringkeep = filled(Ringkeep("--cache-size", "1GiB"))
    common = ["--filled", "--key-count", loads.KEYS, "--connections", 64]
    for workload in ("read", "overwrite"):
        tops = []
        for _ in range(run.repeat):
            tops.append(loads.bench(ringkeep, workload, *common, "--duration", f"{run.seconds}s")["per_second"])
            ringkeep.settle()
        top = statistics.median(tops)
        for share in (25, 50, 75):
            for _ in range(run.repeat):
                flags = ["--rate", int(top * share / 100), "--duration", f"{2 * run.seconds}s", "--warm-up", "1s"]
                loops = host.bare_loops()
                figures = loads.bench(ringkeep, workload, *common, *flags)
                latency = figures["latency_us"]
                latency.pop("histogram")
                run.add(f"{workload}/{share}", {**latency, "rate": int(top * share / 100), "sent_late": figures["sent_late"], "bare_loops": loops, "command": figures["command"]}, "p99.9")
                ringkeep.settle()
                if workload == "overwrite":
                    run.add("device", loads.fio_sync(host.fresh("device") / "file", 2 * run.seconds), "p99.9")
    ringkeep.stop()


def mixes(run):
    """The YCSB mixes, 64 connections, with every answer checked."""
    ringkeep = filled(Ringkeep("--cache-size", "1GiB"))
    for turn in range(run.repeat):
        for mix in "abcfd":
            if mix == "d" and 0 < turn:
                continue  # the keys that it inserts stay in the store, so it can run only once
            flags = ["--filled", "--key-count", loads.KEYS, "--duration", f"{run.seconds}s", "--seed", turn]
            run.add(f"ycsb-{mix}", without_series(loads.bench(ringkeep, f"ycsb-{mix}", *flags)))
            ringkeep.settle()
    ringkeep.stop()


def without_series(figures):
    """The figures without the series and histograms, which make files large."""
    kept = {key: value for key, value in figures.items() if key not in ("series", "workloads", "verbs", "storage")}
    kept["latency_us"] = {key: value for key, value in figures["latency_us"].items() if key != "histogram"}
    return kept


def shards(run):
    """Requests per second of processor time: keys of the own thread, and any keys, 2 shards on 2 threads."""
    command = ["cargo", "bench", "--quiet", "--locked", "--bench", "shards"]
    lines = host.run(BOTH, command).splitlines()
    taken = run.taken()  # of all turns together: the bench prints its results at its end
    for line in lines:
        if line.startswith("{"):
            turn = json.loads(line)
            for kind in ("own", "any"):
                run.add(f"{turn['verb']}/{kind}", {"per_second": turn[kind], "stolen": taken, "command": " ".join(command)})


def cold_reads(run):
    """GET with 8 times as much data as cache, compared with random reads of the device alone."""
    keys = run.scaled(20_000_000)
    cache = keys * 116 // 8
    ringkeep = Ringkeep("--cache-size", f"{cache}B", "--sync", "100ms")
    loads.bench(ringkeep, "fill-unique", "--key-count", keys, "--pipeline", 16)
    ringkeep.settle()
    ringkeep.stop()
    ringkeep = Ringkeep("--cache-size", f"{cache}B", folder=ringkeep.folder)
    ringkeep.settle()
    largest = max(pathlib.Path(ringkeep.folder).rglob("*.sst"), key=lambda path: path.stat().st_size)
    flags = ["read", "--filled", "--key-count", keys, "--warm-up", f"{run.seconds}s", "--duration", f"{run.seconds}s"]
    run.in_turn(
        lambda _: run.add("fio", loads.fio(largest, run.seconds)),
        lambda turn: run.add("ringkeep", without_series(loads.bench(ringkeep, *flags, "--seed", turn))))
    ringkeep.stop()


def fill(run):
    """Random fill beyond memory until compaction is quiet, against db_bench; then memory, stalls, and the start."""
    keys = run.scaled(20_000_000)
    user_bytes = keys * 116
    flags = ["--sync", "100ms", "--cache-size", "256MiB"]
    distinct = user_bytes * (1 - 1 / math.e)  # `keys` random draws from `keys` keys leave 1/e of them unwritten

    def own(_):
        ringkeep = Ringkeep(*flags)
        begin = time.monotonic()
        figures = loads.bench(ringkeep, "fill-random", "--key-count", keys, "--pipeline", 16)
        filled_in = time.monotonic() - begin
        ringkeep.settle()
        seconds = time.monotonic() - begin - 2  # settle returns after two quiet seconds
        report = {
            "per_second": keys / seconds, "fill_seconds": filled_in, "seconds": seconds,
            "write_amplification": ringkeep.written_bytes() / user_bytes,
            "space_amplification": host.disk_bytes(ringkeep.folder) / distinct,
            "longest_gap_ms": figures["longest_gap_ms"], "series": figures["series"], "command": figures["command"],
        }
        # Read until the cache is full. The fill has not written every key, but each connection has written some, and
        # with the same seed it reads those again.
        loads.bench(ringkeep, "read", "--filled", "--key-count", keys, "--operations", keys // 10)
        report["resident_bytes"] = ringkeep.resident_bytes()
        run.add("fill/ringkeep", report)
        restart(run, ringkeep, flags)

    def rocksdb(_):
        begin = time.monotonic()
        writers = 2  # the fastest on two processors: a fill takes a fifth longer with 1 writer, and half longer with 4
        # Keys are drawn from `num` keys; each thread makes `writes` writes.
        flags = [f"--num={keys}", f"--writes={keys // writers}", f"--threads={writers}"]
        figures = loads.db_bench("fillrandom,waitforcompaction,stats", *flags)
        seconds = time.monotonic() - begin - 5  # waitforcompaction begins with a sleep of 5 s
        written = rocksdb_written_bytes(figures["output"])
        run.add("fill/rocksdb", {
            "per_second": keys / seconds, "fill_seconds": figures["seconds"], "seconds": seconds,
            "write_amplification": written / user_bytes if written else None,
            "space_amplification": host.disk_bytes(figures["folder"]) / distinct,
            "command": figures["command"],
        })

    run.in_turn(own, rocksdb, most=2)


def rocksdb_written_bytes(output):
    """Bytes of WAL and SSTs in the last statistics that db_bench printed."""
    wal = re.findall(r"Cumulative WAL: .*written: ([\d.]+) GB", output)
    compaction = re.findall(r"Cumulative compaction: ([\d.]+) GB write", output)
    return (float(wal[-1]) + float(compaction[-1])) * 2**30 if wal and compaction else None


def restart(run, ringkeep, flags):
    """How long a start with this data takes: after a clean stop, and after kill -9 with a memtable to replay."""
    ringkeep.stop()
    for _ in range(run.repeat):
        begin = time.monotonic()
        ringkeep = Ringkeep(*flags, folder=ringkeep.folder)
        run.add("start/clean", {"seconds": time.monotonic() - begin}, "seconds")
        ringkeep.stop()
    for value_bytes, keys in ((100, 300_000), (1000, 50_000)):
        for _ in range(run.repeat):
            ringkeep = Ringkeep(*flags, folder=ringkeep.folder)
            loads.bench(ringkeep, "fill-seq", "--key-count", run.scaled(keys), "--value-size", value_bytes, "--pipeline", 16)
            ringkeep.stop(signal.SIGKILL)
            begin = time.monotonic()
            ringkeep = Ringkeep(*flags, folder=ringkeep.folder)
            seconds, log = time.monotonic() - begin, pathlib.Path(ringkeep.log).read_text()
            replayed = re.search(r"wal_bytes=(\d+) .*milliseconds=(\d+)", log)
            figures = {"seconds": seconds, "wal_bytes": int(replayed[1]), "milliseconds": int(replayed[2])}
            run.add(f"start/replay_{value_bytes}", figures, "seconds")
            ringkeep.stop()


def steady(run):
    """An open loop of sets beyond memory, at half the top rate of a fill: p99.9 and the longest gap."""
    keys = run.scaled(20_000_000)
    ringkeep = Ringkeep("--sync", "100ms", "--cache-size", "256MiB")
    top = loads.bench(ringkeep, "fill-random", "--key-count", keys, "--connections", 64)["per_second"]
    ringkeep.settle()
    flags = ["--key-count", keys, "--connections", 64, "--rate", int(top / 2), "--duration", f"{15 * run.seconds}s", "--warm-up", "2s", "--filled"]
    for _ in range(run.repeat):
        loops = host.bare_loops()
        figures = loads.bench(ringkeep, "overwrite", *flags)
        run.add("open_loop", {**without_series(figures), "p99.9": figures["latency_us"]["p99.9"], "rate": int(top / 2), "bare_loops": loops}, "p99.9")
    ringkeep.stop()


def sizes(run):
    """Throughput by amount of data: GET and SET, always with the same size of cache."""
    for keys in map(run.scaled, (100_000, 1_000_000, 4_000_000, 16_000_000)):
        ringkeep = Ringkeep("--cache-size", "256MiB", "--sync", "100ms")
        loads.bench(ringkeep, "fill-unique", "--key-count", keys, "--pipeline", 16)
        ringkeep.settle()
        for turn in range(run.repeat):
            for workload in ("read", "overwrite"):
                flags = [workload, "--filled", "--key-count", keys, "--duration", f"{run.seconds}s", "--warm-up", "2s", "--seed", turn]
                run.add(f"{workload}/{keys}", without_series(loads.bench(ringkeep, *flags)))
                ringkeep.settle()
        ringkeep.stop()


def shapes(run):
    """Keys of 16 to 1,000 bytes and values of 0 bytes to 1 MiB: none of them may behave badly."""
    for key_size, value_size, count in (
        ("16", "0", 500_000), ("16", "10", 500_000), ("16", "100", 500_000), ("16", "1KB", 200_000),
        ("16", "10KB", 20_000), ("16", "100KB", 2_000), ("16", "1MiB", 300), ("100", "100", 500_000), ("1000", "100", 200_000),
        ("16..1000", "log:1..1MiB", 2_000),
    ):
        ringkeep = Ringkeep()
        common = ["--key-size", key_size, "--value-size", value_size, "--key-count", count]
        loads.bench(ringkeep, "fill-unique", *common)
        ringkeep.settle()
        for turn in range(run.repeat):
            for order, workload in enumerate(("overwrite", "read")):  # each with another seed, so in another order
                flags = ["--filled", *common, "--duration", f"{run.seconds}s", "--seed", 2 * turn + order]
                figures = loads.bench(ringkeep, workload, *flags)
                run.add(f"{workload}/{key_size}/{value_size}", without_series(figures))
                ringkeep.settle()
        ringkeep.stop()


PEERS = {"gets": ("wrk", "nginx", "redis-server"), "tls": ("wrk", "nginx", "openssl"), "sets": ("wrk", "redis-server"), "rocksdb_sync": ("wrk", "db_bench"),
         "cold_reads": ("fio",), "fill": ("db_bench",), "connections": ("wrk",)}
QUESTIONS = {question.__name__: question for question in (
    gets, tls, sets, rocksdb_sync, lone_set, connections, latencies, mixes, sizes, shapes, shards, cold_reads, fill, steady)}


def machine():
    cpu = pathlib.Path("/proc/cpuinfo").read_text()
    number = os.stat(host.WORK).st_dev
    queue = pathlib.Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/queue")
    find = ["findmnt", "--noheadings", "--output=FSTYPE,OPTIONS", "--target", host.WORK]
    mount = subprocess.run(find, capture_output=True, text=True, check=False).stdout.split()
    return {
        "kernel": platform.release(),
        "cpu": next((line.split(": ")[1] for line in cpu.splitlines() if line.startswith("model name")), None),
        "processors": os.cpu_count(),
        "server_on": SERVER, "load_on": LOAD,
        "file_system": mount[0],
        "mount_options": mount[1],
        "write_cache": (queue / "write_cache").read_text().strip() if queue.exists() else None,
        "congestion_control": pathlib.Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip(),
        "fua": (queue / "fua").read_text().strip() if queue.exists() else None,
    }


def measured_commit():
    """The commit of the measured program, even if the checkout has moved on."""
    version = subprocess.run([host.RINGKEEP, "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"\((.+)\)", version)[1]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="one short run per line, to try the scripts")
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="samples of each line (default: 5)")
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help=f"{', '.join(QUESTIONS)} (default: all)")
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))  # an exit through atexit ends the servers, too
    unknown = [name for name in arguments.questions if name not in QUESTIONS]
    if unknown:
        parser.error(f"no such question: {', '.join(unknown)}")
    host.WORK.mkdir(parents=True, exist_ok=True)
    commit = measured_commit()
    for name in arguments.questions or QUESTIONS:
        absent = missing(*PEERS.get(name, ()))
        if absent:
            print(f"== {name}: skipped, {absent} is not installed")
            continue
        print(f"== {name}: {QUESTIONS[name].__doc__.splitlines()[0]} ({datetime.datetime.now():%H:%M:%S})", flush=True)
        run = Run(arguments.quick, arguments.repeat)
        QUESTIONS[name](run)
        if measured_commit() != commit:
            raise RuntimeError(f"{host.RINGKEEP} was rebuilt during the measurement: it is now of commit {measured_commit()}, no longer of {commit}")
        report = {"question": name, "about": QUESTIONS[name].__doc__.splitlines()[0], "date": f"{datetime.datetime.now():%Y-%m-%d %H:%M}",
                  "commit": commit, "quick": arguments.quick, "repeat": run.repeat, "machine": machine(), "lines": run.lines}
        (RAW / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
