#!/usr/bin/env python3
"""Turns raw answers into the tables and plots of BENCHMARKS.md, and the figures of the README.

    report.py           copies new answers from target/bench to benches/raw. Then writes, from benches/raw alone, the
                        parts of both pages between their markers, and benches/plots/*.svg.
    report.py --print   prints median and spread of every line under target/bench

Needs only Python. A second run changes nothing.
"""

import json
import re
import statistics
import sys

import plots
from answers import KEPT, RAW, ROOT, Lines, load, number, spread

# If the hypervisor takes a larger share of the processors than this, the run shows the load of its other machines.
STOLEN_MAX = 0.05


def stolen(report):
    """The share of the processors that the hypervisor gave to others, for each sample."""
    return [detail["stolen"] for line in report["lines"].values() for detail in line["details"] if "stolen" in detail]


def keep(reports):
    """Keeps the newest answer to each question in benches/raw, except quick runs and runs on a busy host."""
    KEPT.mkdir(parents=True, exist_ok=True)
    kept = load(KEPT)
    for question, report in reports.items():
        older = question in kept and report["date"] < kept[question]["date"]  # another checkout has a newer answer
        if report["quick"] or older:
            continue
        taken = statistics.median(stolen(report) or [0])
        if STOLEN_MAX < taken:
            print(f"{question}: not kept, the hypervisor gave {percent(taken)} of the processors to others")
        else:
            (KEPT / f"{question}.json").write_text(json.dumps(report, indent=1) + "\n")


def percent(share):
    return f"{share:.0%}".replace("%", " %")


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def origin(report):
    shares = stolen(report)
    taken = f" Steal time: {percent(statistics.median(shares))} of the processors, {percent(max(shares))} at most." if shares else ""
    counts = [len(line["samples"]) for line in report["lines"].values()]
    least, most = min(counts), max(counts)
    samples = f"{least} to {most}" if least < most else f"{most}"
    repeat = f"--repeat {report['repeat']} " if "repeat" in report else ""
    return (f"Commit `{report['commit']}`, {report['date']}, {samples} samples of each line: "
            f"`scripts/bench.sh {repeat}{report['question']}`.{taken}")


def picture(name, alternative):
    return f"![{alternative}](benches/plots/{name}.svg)\n\n"


def commands(lines, names):
    shown = []
    for name in names:
        command = lines.lines[name]["command"] if name in lines.lines else None
        if command:
            shown.append(f"{name}: {command}")
    return "<details><summary>commands</summary>\n\n```\n" + "\n".join(shown) + "\n```\n</details>"


def busy(lines, name):
    """The shares of their processors that the server and its load used."""
    shares = (statistics.median(lines.details(name, key)) for key in ("server_busy", "load_busy"))
    return ", ".join(percent(share) for share in shares)


def compared(lines, groups, peers, unit):
    """A table of ringkeep and its peers, with the ratios of neighbouring samples."""
    rows, names = [], []
    for group, label in groups:
        own = f"{group}/ringkeep"
        if not lines.has(own):
            continue
        rows.append([label, "ringkeep", spread(lines.samples(own)), busy(lines, own), ""])
        names.append(own)
        for peer in peers:
            name = f"{group}/{peer}"
            if lines.has(name):
                rows.append(["", plots.NAMES.get(peer, peer), spread(lines.samples(name)), busy(lines, name), spread(lines.ratios(own, name)) + " ×"])
                names.append(name)
    head = ["work", "server", f"{unit}, median (least to most)", "busy: server, load", "ringkeep ÷ server"]
    return table(head, rows) + "\n\n" + commands(lines, names)


def gets(lines):
    groups = (("64", "GET, 64 connections"), ("64x16", "GET, 64 connections, 16 requests pipelined"))
    return compared(lines, groups, ("nginx", "redis", "webdis"), "requests per second")


def tls(lines):
    return compared(lines, (("64", "GET over TLS 1.3, 64 connections"),), ("nginx",), "requests per second")


def sets(lines):
    groups = (("64", "SET, 64 connections"), ("256", "SET, 256 connections"), ("64x16", "SET, 64 connections, 16 requests pipelined"))
    text = compared(lines, groups, ("redis", "webdis"), "writes per second")
    if lines.has("get_256/ringkeep"):
        ratio = lines.ratios("256/ringkeep", "get_256/ringkeep")
        text += f"\n\nSET against GET of ringkeep itself, 256 connections: {spread(ratio)} ×."
    return text


def rocksdb_sync(lines):
    rows = [[label, spread(lines.samples(name))] for name, label in (("ringkeep", "ringkeep"), ("rocksdb", "RocksDB"))]
    text = table(["64 clients", "writes per second"], rows)
    return text + f"\n\nringkeep is {spread(lines.ratios('ringkeep', 'rocksdb'))} × RocksDB.\n\n" + commands(lines, ("ringkeep", "rocksdb"))


def lone_set(lines):
    names = {"device": "the device alone: write 4 KiB in place, then fdatasync", "ringkeep": "ringkeep, SET",
             "get": "ringkeep, GET from memory: no access to the device", "redis": "Redis, SET"}
    rows = [[label, spread(lines.samples(name))] for name, label in names.items() if name in lines.lines]
    text = table(["one request after the other", "p50, µs"], rows)
    return (text + f"\n\nA SET takes {spread(lines.ratios('device', 'ringkeep', True))} × as long as the device.\n\n"
            + commands(lines, ("ringkeep", "get", "redis")))


def connections(lines):
    counts = lines.counts()
    def group_size(count):
        found = [size for size in lines.details(f"set/{count}", "writes_per_flush") if size]
        return number(statistics.median(found)) if found else ""
    rows = [[str(count), spread(lines.samples(f"get/{count}")), spread(lines.samples(f"set/{count}")), group_size(count)]
            for count in counts]
    return (picture("connections", "throughput and group size against connections")
            + table(["connections", "GET per second", "SET per second", "writes in one device flush"], rows)
            + "\n\n" + commands(lines, ("get/64", "set/64")))


def latency_label(name):
    if name == "device":
        return "the device alone: fdatasync after 4 KiB in place, from the start of the sync"
    workload, share = name.split("/")
    return f"{'GET' if workload == 'read' else 'SET'} at {share} % of the top rate"


def sent_late(details):
    """The share of requests that the load tool itself sent over a millisecond late; empty if this was not counted."""
    shares = [each["sent_late"] / each["count"] for each in details if "sent_late" in each]
    return f"{100 * statistics.median(shares):.2g} %" if shares else ""


def bare_loops(lines):
    """How steady the processors were without any server, just before the samples; empty if this was not measured."""
    found = [detail["bare_loops"]["server"] for line in lines.lines.values() for detail in line["details"] if "bare_loops" in detail]
    if not found:
        return ""
    uneven, stops = [loop["fastest"] / loop["slowest"] for loop in found], [loop["longest_stop_ms"] for loop in found]
    return ("\n\nBefore each sample a bare loop ran on each processor for four seconds. On the server's processor it ran "
            f"{spread(uneven)} × as many iterations in its fastest tenth of a second as in its slowest. It stood still for up to {spread(stops)} ms.")


def latencies(lines):
    rows = []
    for name in sorted(lines.lines, key=lambda name: name == "device"):
        cells = [number(statistics.median(lines.details(name, key))) for key in ("p50", "p99", "p99.9", "p99.99", "max")]
        rows.append([latency_label(name), number(lines.details(name, "rate")[0]), *cells, sent_late(lines.lines[name]["details"])])
    return (table(["open loop, 64 connections", "requests per second", "p50, µs", "p99, µs", "p99.9, µs", "p99.99, µs", "max, µs", "sent late"], rows)
            + bare_loops(lines) + "\n\n" + commands(lines, ("read/25", "overwrite/25", "device")))


def mixes(lines):
    rows = []
    for name in lines.lines:
        p99 = [latency["p99"] for latency in lines.details(name, "latency_us")]
        rows.append([name, spread(lines.samples(name)), number(statistics.median(p99))])
    return table(["mix", "operations per second", "p99, µs"], rows) + "\n\n" + commands(lines, ("ycsb-a",))


def sizes(lines):
    rows = [[number(count), spread(lines.samples(f"read/{count}")), spread(lines.samples(f"overwrite/{count}"))] for count in lines.counts()]
    return (picture("sizes", "throughput against the amount of data")
            + table(["keys", "GET per second", "SET per second (`--sync 100ms`)"], rows)
            + "\n\n" + commands(lines, list(lines.lines)[:2]))


def shapes(lines):
    def cells(line):
        p99 = statistics.median(latency["p99"] for latency in lines.details(line, "latency_us"))
        return [spread(lines.samples(line)), number(p99)]
    rows = []
    for name in lines.lines:
        workload, key, value = name.split("/")
        if workload == "overwrite":
            rows.append([key, value, *cells(name), *cells(f"read/{key}/{value}")])
    return table(["key bytes", "value bytes", "SET per second", "p99, µs", "GET per second", "p99, µs"], rows) + "\n\n" + commands(lines, list(lines.lines)[:2])


def shards(lines):
    rows = [[verb.upper(), spread(lines.samples(f"{verb}/own")), spread(lines.samples(f"{verb}/any")),
             spread(lines.ratios(f"{verb}/any", f"{verb}/own")) + " ×"] for verb in ("get", "set")]
    head = ["2 shards on 2 threads, 32 connections", "own keys, requests per second of CPU time", "any keys", "any against own"]
    return table(head, rows) + "\n\n" + commands(lines, ("get/own",))


def cold_reads(lines):
    rows = [["fio, random 4 KiB, O_DIRECT, depth 64", spread(lines.samples("fio"))],
            ["GET, 64 connections, data 8 × the cache", spread(lines.samples("ringkeep"))]]
    text = table(["reads", "per second"], rows)
    return text + f"\n\nringkeep is {spread(lines.ratios('ringkeep', 'fio'))} × fio.\n\n" + commands(lines, ("fio", "ringkeep"))


def fill(lines):
    def middle(name, key):
        found = [value for value in lines.details(name, key) if value is not None]
        return number(statistics.median(found)) if found else ""
    rows = []
    for name, label in (("fill/ringkeep", "ringkeep, `--sync 100ms`, over HTTP"), ("fill/rocksdb", "RocksDB db_bench, 2 writers, never synced, in process")):
        if lines.has(name):
            figures = (middle(name, key) for key in ("fill_seconds", "write_amplification", "space_amplification"))
            rows.append([label, spread(lines.samples(name)), *figures])
    text = table(["20 million random keys", "keys per second, until compaction is quiet", "seconds to the last answer", "write amplification", "space amplification"], rows)
    if lines.has("fill/ringkeep", "fill/rocksdb"):
        text += f"\n\nringkeep is {spread(lines.ratios('fill/ringkeep', 'fill/rocksdb'))} × RocksDB."
    gap = lines.details("fill/ringkeep", "longest_gap_ms")
    memory = [bytes_ / 2**20 for bytes_ in lines.details("fill/ringkeep", "resident_bytes")]
    text += f"\n\nLongest time without an answer: {spread(gap)} ms. Resident memory once the cache of 256 MiB is full: {spread(memory)} MiB.\n\n"
    text += picture("fill", "throughput of the fill over time")
    rows = [[label, spread(lines.samples(name))] for name, label in (("start/clean", "after a clean stop"), ("start/replay_100", "after `kill -9`, with 300,000 sets of 100 bytes to replay"),
             ("start/replay_1000", "after `kill -9`, with 50,000 sets of 1,000 bytes to replay"))
            if lines.has(name)]
    text += table(["start with this data", "seconds until the server listens"], rows)
    speeds = " and ".join(spread(replay_speeds(lines, size)) for size in (100, 1000) if lines.has(f"start/replay_{size}"))
    return text + f"\n\nThe WAL was replayed at {speeds} MB/s.\n\n" + commands(lines, ("fill/ringkeep", "fill/rocksdb"))


def steady(lines):
    gap, rate = lines.details("open_loop", "longest_gap_ms"), lines.details("open_loop", "rate")[0]
    late = sent_late([{**each, "count": each["latency_us"]["count"]} for each in lines.lines["open_loop"]["details"]])
    return (f"{number(rate)} sets per second with `--sync 100ms`, half of the top rate: p99.9 {spread([us / 1000 for us in lines.samples('open_loop')])} ms, "
            f"longest time without an answer {spread(gap)} ms. The load itself sent {late} of the requests late." + bare_loops(lines) + "\n\n" + commands(lines, ("open_loop",)))


def replay_speeds(lines, value_bytes=100):
    """Megabytes of WAL replayed per second, from the log of each start."""
    return [each["wal_bytes"] / 1000 / each["milliseconds"] for each in lines.lines[f"start/replay_{value_bytes}"]["details"]]


def ratio(name, peer, less_is_better=False):
    return lambda lines: lines.ratios(name, peer, less_is_better)


# The goals: work, question, bound ("at least" or "at most"), goal, samples, unit.
TARGETS = (
    ("GET from memory, 64 connections, against nginx `return 200`", "gets", "at least", 1.0, ratio("64/ringkeep", "64/nginx"), "×"),
    ("GET from memory over TLS, 64 connections, against nginx `return 200`", "tls", "at least", 0.9, ratio("64/ringkeep", "64/nginx"), "×"),
    ("GET from memory, 64 connections, against Redis", "gets", "at least", 1.5, ratio("64/ringkeep", "64/redis"), "×"),
    ("GET from memory, 64 connections, against Webdis", "gets", "at least", 3.3, ratio("64/ringkeep", "64/webdis"), "×"),
    ("GET from memory, 64 × 16 pipelined, against Redis", "gets", "at least", 1.2, ratio("64x16/ringkeep", "64x16/redis"), "×"),
    ("GET from memory, 64 × 16 pipelined, against nginx `return 200`", "gets", "at least", 8, ratio("64x16/ringkeep", "64x16/nginx"), "×"),
    ("SET, 64 connections, against Redis", "sets", "at least", 1.6, ratio("64/ringkeep", "64/redis"), "×"),
    ("SET, 256 connections, against Redis", "sets", "at least", 1.4, ratio("256/ringkeep", "256/redis"), "×"),
    ("SET, 64 × 16 pipelined, against Redis", "sets", "at least", 2.0, ratio("64x16/ringkeep", "64x16/redis"), "×"),
    ("SET, 64 connections, against Webdis", "sets", "at least", 3.8, ratio("64/ringkeep", "64/webdis"), "×"),
    ("SET against GET of ringkeep, 256 connections", "sets", "at least", 0.8, ratio("256/ringkeep", "get_256/ringkeep"), "×"),
    ("SET, 1 connection, p50 against that of the device", "lone_set", "at most", 1.6, ratio("device", "ringkeep", True), "×"),
    ("SET, 64 connections, against db_bench with a sync for each write group", "rocksdb_sync", "at least", 2.2, ratio("ringkeep", "rocksdb"), "×"),
    ("GET, any keys against own keys, per second of CPU time", "shards", "at least", 0.8, ratio("get/any", "get/own"), "×"),
    ("SET, any keys against own keys, per second of CPU time", "shards", "at least", 0.8, ratio("set/any", "set/own"), "×"),
    ("GET, data 8 × the cache, against fio", "cold_reads", "at least", 0.6, ratio("ringkeep", "fio"), "×"),
    ("Fill with 20 million random keys, `--sync 100ms`, against db_bench", "fill", "at least", 1.0, ratio("fill/ringkeep", "fill/rocksdb"), "×"),
    ("The same fill: longest time without an answer", "fill", "at most", 200, lambda lines: lines.details("fill/ringkeep", "longest_gap_ms"), "ms"),
    ("Open loop of sets at half the top rate, that data, `--sync 100ms`: p99.9", "steady", "at most", 20,
     lambda lines: [us / 1000 for us in lines.samples("open_loop")], "ms"),
    ("Resident memory with that data and a full cache, beyond 256 MiB of cache and 64 MiB of memtable", "fill", "at most", 64,
     lambda lines: [bytes_ / 2**20 - 320 for bytes_ in lines.details("fill/ringkeep", "resident_bytes")], "MiB"),
    ("Start after a clean stop with that data", "fill", "at most", 1, lambda lines: lines.samples("start/clean"), "s"),
    ("Replay of a WAL", "fill", "at least", 400, replay_speeds, "MB/s"),
)


def targets(reports):
    rows = []
    for work, question, bound, asked, samples, unit in TARGETS:
        if question not in reports:
            continue
        found = samples(Lines(reports[question]))
        middle = statistics.median(found)
        met = middle >= asked if bound == "at least" else middle <= asked
        rows.append([work, f"{bound} {asked:g} {unit}", f"{spread(found)} {unit}", "yes" if met else "**no**"])
    return table(["work", "goal", "median (least to most)", "met"], rows)


# The lines of the README: work, question, line, line of the peer, what the peer is.
HEADLINES = (
    ("SET, on disk before its 200", "sets", "64/ringkeep", "64/redis", "Redis, `appendfsync always`"),
    ("GET from memory", "gets", "64/ringkeep", "64/redis", "Redis"),
    ("fill with 20 million random keys, `--sync 100ms`", "fill", "fill/ringkeep", "fill/rocksdb", "RocksDB, never synced"),
)


def headlines(reports):
    rows = []
    for work, question, own, peer, what in HEADLINES:
        lines = Lines(reports[question]) if question in reports else None
        if lines and lines.has(own, peer):
            rows.append([work, number(lines.median(own)), f"{spread(lines.ratios(own, peer))} × {what}", f"`{lines.report['commit']}`"])
    return table(["64 connections", "per second", "ratio in the same run", "commit"], rows)


def answers(reports):
    """The first section: each question with its plot, then the figures in sentences."""
    sets, rocksdb, gets, lone, open_loop, fill, cold = (Lines(reports[question]) for question in (
        "sets", "rocksdb_sync", "gets", "lone_set", "latencies", "fill", "cold_reads"))

    def against(lines, group, peer, what):
        return f"{spread(lines.ratios(f'{group}/ringkeep', f'{group}/{peer}'))} × {what}"

    def rate(lines, name):
        return f"{number(lines.median(name))} per second"

    def milliseconds(name, key):
        return f"{spread([each / 1000 for each in open_loop.details(name, key)])} ms"

    met = sum(1 for row in targets(reports).splitlines()[2:] if row.endswith("yes |"))
    return "\n".join((
        "### How many writes per second, each on disk before its answer?", "",
        picture("writes", "writes per second of ringkeep, Redis, Webdis and RocksDB") +
        f"- 64 connections: {rate(sets, '64/ringkeep')}. That is {against(sets, '64', 'redis', 'Redis with `appendfsync always`')}, and "
        f"{against(sets, '64', 'webdis', 'Webdis, which serves that Redis over HTTP')}.",
        f"- 256 connections: {rate(sets, '256/ringkeep')}, {against(sets, '256', 'redis', 'Redis')}.",
        f"- 64 connections with 16 requests pipelined: {rate(sets, '64x16/ringkeep')}, {against(sets, '64x16', 'redis', 'Redis')}.",
        (f"- 64 clients, compared with RocksDB in the process of its load: {rate(rocksdb, 'ringkeep')}, {spread(rocksdb.ratios('ringkeep', 'rocksdb'))} × RocksDB "
         "with a sync for each write group."),
        "", "### How many reads per second from memory?", "",
        picture("reads", "reads per second of ringkeep, Redis, nginx and Webdis") +
        f"- 64 connections: {rate(gets, '64/ringkeep')}. That is {against(gets, '64', 'redis', 'Redis')}, "
        f"{against(gets, '64', 'nginx', 'nginx `return 200`')}, and {against(gets, '64', 'webdis', 'Webdis')}.",
        (f"- 64 connections with 16 requests pipelined: {rate(gets, '64x16/ringkeep')}. That is {against(gets, '64x16', 'redis', 'Redis')}, and "
         f"{against(gets, '64x16', 'nginx', 'nginx')}."),
        "- nginx looks nothing up: it shows what HTTP alone costs.",
        "", "### How long does a request take?", "",
        picture("lone", "median latency of one client that waits for each answer") + picture("latency", "latency against percentile") +
        f"- One client that waits for each answer, p50: a SET takes {spread(lone.samples('ringkeep'))} µs. "
        f"The device alone takes {spread(lone.samples('device'))} µs for a write and its sync, and Redis {spread(lone.samples('redis'))} µs for a SET.",
        (f"- 64 connections at half the top rate: p99 is {milliseconds('read/50', 'p99')} for GET and {milliseconds('overwrite/50', 'p99')} for SET. "
         f"p99.9 is {milliseconds('read/50', 'p99.9')} and {milliseconds('overwrite/50', 'p99.9')}."),
        "- The processors themselves are unsteady: see [Latency](#latency) and [Limits](#limits).",
        "", "### What if the data is larger than memory?", "",
        picture("beyond_memory", "fill and random reads with more data than memory") +
        f"- Fill with 20 million random keys and `--sync 100ms`: {rate(fill, 'fill/ringkeep')} until compaction is quiet. "
        f"That is {spread(fill.ratios('fill/ringkeep', 'fill/rocksdb'))} × RocksDB, which never syncs.",
        f"- Reads that miss the cache: {rate(cold, 'ringkeep')}, {spread(cold.ratios('ringkeep', 'fio'))} × fio, which reads the device directly.",
        f"- A start with that data takes {spread(fill.samples('start/clean'))} s after a clean stop.",
        "", f"ringkeep meets {met} of its {len(TARGETS)} [goals](#goals). [Limits](#limits) says what stands in the way of the others.",
    ))


MACHINE = {"cpu": "processor", "processors": "processors", "server_on": "the server runs on processor", "load_on": "the load runs on processor", "kernel": "kernel",
           "file_system": "file system", "mount_options": "mount options", "write_cache": "write cache of the device",
           "fua": "forced unit access (FUA) of the device", "congestion_control": "TCP congestion control"}


def machine(reports):
    facts = {fact for report in reports.values() for fact in report["machine"].items()}
    return table(["", ""], [[MACHINE[key], str(value)] for key, value in sorted(facts, key=lambda fact: (list(MACHINE).index(fact[0]), str(fact[1])))])


BLOCKS = {function.__name__: function for function in (
    gets, tls, sets, rocksdb_sync, lone_set, connections, latencies, mixes, sizes, shapes, shards, cold_reads, fill, steady)}


def main():
    if "--print" in sys.argv:
        for report in load(RAW).values():
            print(f"\n{report['question']}: {report['about']} ({report['commit']}{', quick' if report['quick'] else ''})")
            for name, line in report["lines"].items():
                print(f"  {name:<28}{spread(line['samples'])}, {len(line['samples'])} times")
        return
    keep(load(RAW))
    reports = load(KEPT)
    plots.draw(reports)
    blocks = {name: BLOCKS[name](Lines(report)) + "\n\n" + origin(report) for name, report in reports.items() if name in BLOCKS}
    blocks["answers"] = answers(reports)
    blocks["machine"] = machine(reports)
    blocks["targets"] = targets(reports)
    fill_in(ROOT / "BENCHMARKS.md", blocks)
    fill_in(ROOT / "README.md", {"figures": headlines(reports)})


def fill_in(path, blocks):
    """Replaces the text between the markers of each block."""
    text = path.read_text()
    for name, block in blocks.items():
        pattern = re.compile(rf"(<!-- {name}: begin -->\n).*?(<!-- {name}: end -->)", re.DOTALL)
        text, count = pattern.subn(lambda found, block=block: f"{found[1]}{block}\n{found[2]}", text)
        if count != 1:
            raise SystemExit(f"{path.name} has no markers for {name}")
    path.write_text(text)


if __name__ == "__main__":
    main()
