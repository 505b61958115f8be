"""The loads. Each returns its figures and the command that produced them."""

import csv
import json
import pathlib
import re
import shlex

from host import BOTH, LOAD, RINGKEEP, WORK, fresh, run

HERE = pathlib.Path(__file__).resolve().parent
KEYS = 1_000_000
# wrk prepares this many requests and sends them in turn; redis-benchmark draws from this many keys.
PREPARED = 200_000


def shown(command, env=None):
    words = [f"{name}={shlex.quote(str(value))}" for name, value in (env or {}).items()]
    root = str(HERE.parents[1]) + "/"
    return " ".join(words + [shlex.quote(str(word)) for word in command]).replace(root, "")


GET = {"METHOD": "GET", "TARGET": "/get?key=%s"}
FEW_KEYS = 10_000
GET_FEW = {**GET, "KEYS": str(FEW_KEYS)}
SET = {"METHOD": "POST", "TARGET": "/set?key=%s"}
# The keys of redis-benchmark, so that Webdis finds the keys that redis-benchmark has written.
WEBDIS_GET = {"METHOD": "GET", "TARGET": "/GET/key:%s", "DIGITS": "12", "KEYS": str(PREPARED)}
WEBDIS_SET = {"METHOD": "PUT", "TARGET": "/SET/key:%s", "DIGITS": "12", "KEYS": str(PREPARED)}


def wrk(url, requests, connections, seconds, depth=1, seed=1):
    env = {"KEYS": str(KEYS), "PREPARED": str(PREPARED), **requests, "DEPTH": str(depth), "SEED": str(seed)}
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", HERE / "requests.lua", url]
    output = run(LOAD, command, env)
    if "Non-2xx" in output or "Socket errors" in output:
        raise RuntimeError(f"wrk had errors:\n{output}")
    per_second = float(re.search(r"Requests/sec:\s+([\d.]+)", output)[1])
    return {"per_second": per_second, "seconds": int(re.search(r"(\d+) requests in", output)[1]) / per_second, "command": shown(command, env)}


def redis_benchmark(port, verb, connections, requests, depth=1):
    command = ["redis-benchmark", "-p", port, "-t", verb, "-c", connections, "-n", requests, "-P", depth,
               "-d", 100, "-r", PREPARED, "--csv"]
    output = run(LOAD, command)
    row = next(row for row in csv.DictReader(output.splitlines()) if row["test"].lower() == verb)
    return {"per_second": float(row["rps"]), "seconds": requests / float(row["rps"]), "p50": 1000 * float(row["p50_latency_ms"]),
            "command": shown(command)}


def bench(server, *flags, cpus=LOAD):
    """Runs `ringkeep bench`. Returns the figures of the last workload, and those of all workloads under "workloads"."""
    WORK.mkdir(parents=True, exist_ok=True)
    report = WORK / "bench.json"
    command = [RINGKEEP, "bench", "--server", server.address, "--json", report, *flags]
    run(cpus, command)
    found = json.loads(report.read_text())
    for workload in found["workloads"]:
        assert workload["lost"] == workload["wrong"] == 0 and workload["failure"] is None
        # A refused request has no latency; a fill sends it again.
        assert workload["refused"] == 0 or workload["workload"].startswith("fill"), "requests were refused"
    return {**found["workloads"][-1], "workloads": found["workloads"], "storage": found["storage"],
            "command": shown(command)}


def db_bench(benchmarks, *flags, cpus=BOTH, timeout=3600):
    """Runs RocksDB in the same process as its load: without a network, and both may use both processors."""
    folder = fresh("rocksdb")
    command = ["db_bench", f"--benchmarks={benchmarks}", f"--db={folder}", "--key_size=16", "--value_size=100",
               "--compression_type=lz4", "--compression_ratio=0.5", "--bloom_bits=10", *flags]
    output = run(cpus, command, timeout=timeout)
    found = {}
    for line in output.splitlines():
        rate = re.match(r"(\w+)\s*:\s+[\d.]+ micros/op (\d+) ops/sec ([\d.]+) seconds", line)
        if rate:
            found[rate[1]] = {"per_second": float(rate[2]), "seconds": float(rate[3])}
    name = benchmarks.split(",")[0]
    return {**found[name], "output": output, "folder": folder, "command": shown(command)}


def fio(path, seconds):
    command = ["fio", "--name=read", f"--filename={path}", "--direct=1", "--rw=randread", "--bs=4k", "--ioengine=io_uring",
               "--iodepth=64", "--time_based", f"--runtime={seconds}", "--readonly", "--output-format=json"]
    read = json.loads(run(LOAD, command))["jobs"][0]["read"]
    return {"per_second": read["iops"], "command": shown(command)}


def fio_sync(path, seconds):
    """The cost of a sync on the device alone: fdatasync after each 4 KiB in place, a thousand times per second."""
    percentiles = {"p50": 50, "p99": 99, "p99.9": 99.9, "p99.99": 99.99}
    command = ["fio", "--name=sync", f"--filename={path}", "--size=16m", "--direct=1", "--rw=write", "--overwrite=1", "--bs=4k", "--ioengine=psync",
               "--fdatasync=1", "--rate_iops=1000", "--time_based", f"--runtime={seconds}", "--output-format=json",
               "--percentile_list=" + ":".join(str(each) for each in percentiles.values())]
    latency = json.loads(run(LOAD, command))["jobs"][0]["sync"]["lat_ns"]
    found = {name: latency["percentile"][f"{each:.6f}"] / 1000 for name, each in percentiles.items()}
    return {**found, "max": latency["max"] / 1000, "rate": 1000, "command": shown(command)}
