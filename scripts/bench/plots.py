"""The plots of BENCHMARKS.md: which figures each plot shows."""

import svg
from answers import ROOT, Lines
from svg import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, Bars, Scale, Series, figure

PLOTS = ROOT / "benches" / "plots"
COLOURS = {"ringkeep": BLUE, "redis": VERMILION, "nginx": GREEN, "webdis": PURPLE, "rocksdb": ORANGE, "fio": GREY, "device": GREY}
NAMES = {"redis": "Redis", "webdis": "Webdis", "rocksdb": "RocksDB"}
WHISKERS = "Bars are medians; whiskers go from the least to the greatest sample."
BANDS = "Lines are medians; bands go from the least to the greatest sample."


def servers(title, lines, group, unit):
    """Bars of ringkeep and its peers; the lines of a group are named `group/server`, or `server` alone."""
    prefix = f"{group}/" if group else ""
    names = [name.removeprefix(prefix) for name in lines.lines if name.startswith(prefix)]
    names.sort(key=list(COLOURS).index)
    return Bars(title, unit, [(NAMES.get(name, name), lines.samples(prefix + name), COLOURS[name]) for name in names])


def writes(reports):
    sets, unit = reports["sets"], "writes per second"
    rows = [[servers("64 connections", sets, "64", unit), servers("256 connections", sets, "256", unit)],
            [servers("64 connections, 16 requests pipelined", sets, "64x16", unit),
             servers("64 clients, RocksDB without a network", reports["rocksdb_sync"], "", unit)]]
    figure(PLOTS / "writes.svg", "Writes that are on disk before they are acknowledged", rows, WHISKERS)


def reads(reports):
    gets, unit = reports["gets"], "reads per second"
    rows = [[servers("64 connections", gets, "64", unit), servers("64 connections, 16 requests pipelined", gets, "64x16", unit)]]
    figure(PLOTS / "reads.svg", "Reads from memory", rows, WHISKERS)


def beyond_memory(reports):
    fill = Bars("Fill: 20 million random keys, RocksDB never syncs", "keys per second, until compaction is quiet", [
        (label, reports["fill"].samples(f"fill/{name}"), COLOURS[name]) for name, label in (("ringkeep", "ringkeep"), ("rocksdb", "RocksDB"))])
    cold = Bars("Random reads, data 8 × the cache", "reads per second", [
        (name, reports["cold_reads"].samples(name), COLOURS[name]) for name in ("ringkeep", "fio")])
    figure(PLOTS / "beyond_memory.svg", "More data than memory", [[fill, cold]], WHISKERS)


def lone(reports):
    rows = [("device, write and fdatasync", "device", GREY), ("ringkeep GET, from memory", "get", SKY),
            ("ringkeep SET", "ringkeep", BLUE), ("Redis SET", "redis", VERMILION)]
    bars = Bars("One client that waits for each answer", "p50 in µs", [
        (label, reports["lone_set"].samples(name), colour) for label, name, colour in rows], label=204)
    figure(PLOTS / "lone.svg", "p50 of one client that waits for each answer", [[bars]], WHISKERS)


def latency(reports):
    """The percentile axis of HdrHistogram: the steps from 90 % to 99 % and from 99 % to 99.9 % have the same length."""
    lines = reports["latencies"]
    shares = (("min", 0), ("p50", 50), ("p90", 90), ("p99", 99), ("p99.9", 99.9), ("p99.99", 99.99))
    x = Scale("percentile", 0.75, 14_000, [(1 / (1 - share / 100), label) for share, label in (
        (0, "0"), (90, "90 %"), (99, "99 %"), (99.9, "99.9 %"), (99.99, "99.99 %"))], log=True)
    y = Scale("latency", 10, 100_000, [(10, "10 µs"), (100, "100 µs"), (1000, "1 ms"), (10_000, "10 ms"), (100_000, "100 ms")], log=True)

    def series(name, label, colour):
        found = [(1 / (1 - share / 100), lines.details(name, key)) for key, share in shares]
        return Series(label, [(at, samples) for at, samples in found if None not in samples], colour)

    def panel(title, workload, *more):
        colours = {25: SKY, 50: BLUE, 75: VERMILION}
        rated = [series(f"{workload}/{share}", f"{lines.details(f'{workload}/{share}', 'rate')[0]:,} per second, {share} % of the top rate", colour)
                 for share, colour in colours.items()]
        return svg.Lines(title, x, y, [*rated, *more], "whiskers", 300, legend_rows=4)

    device = series("device", "1,000 per second, the device alone (fio)", GREY)
    figure(PLOTS / "latency.svg", "Latency against percentile, open loop, 64 connections", [[panel("GET", "read"), panel("SET", "overwrite", device)]],
           "Markers are medians, a few pixels apart; lines up and down go from the least to the greatest sample. At 0: the least latency.")


def connections(reports):
    lines = reports["connections"]
    counts = lines.counts()
    x = Scale("connections", 1, 1024, [(count, "" if index % 2 else str(count)) for index, count in enumerate(counts)], log=True)
    series = [Series(label, [(count, lines.samples(f"{verb}/{count}")) for count in counts], colour)
              for verb, label, colour in (("get", "GET, from memory", BLUE), ("set", "SET, on disk", VERMILION))]
    most = max(max(samples) for each in series for _, samples in each.points)
    rates = svg.Lines("Throughput", x, Scale.from_zero("requests per second", most, 5), series)
    groups = [(count, [size for size in lines.details(f"set/{count}", "writes_per_flush") if size]) for count in counts]
    sizes = svg.Lines("Writes in one flush of the device", x, Scale("writes", 0.8, 500, [(1, "1"), (10, "10"), (100, "100")], log=True),
                      [Series("writes", [(count, found) for count, found in groups if found], BLUE)], legend_rows=2)
    figure(PLOTS / "connections.svg", "Throughput and group size against connections", [[rates, sizes]], BANDS)


def sizes(reports):
    lines = reports["sizes"]
    counts = lines.counts()
    def label(count):
        return f"{count // 1_000_000} million" if 1_000_000 <= count else f"{count:,}"
    x = Scale("keys of 16 bytes with values of 100 bytes", counts[0], counts[-1], [(count, label(count)) for count in counts], log=True)
    series = [Series(label, [(count, lines.samples(f"{workload}/{count}")) for count in counts], colour)
              for workload, label, colour in (("read", "GET", BLUE), ("overwrite", "SET, --sync 100ms", VERMILION))]
    most = max(max(samples) for each in series for _, samples in each.points)
    y = Scale.from_zero("requests per second", most, 5)
    figure(PLOTS / "sizes.svg", "Throughput against the amount of data, cache of 256 MiB", [[svg.Lines("Cache of 256 MiB", x, y, series)]], BANDS)


def fill(reports):
    runs = []
    for index, series in enumerate(reports["fill"].details("fill/ringkeep", "series")):
        each = 1000 // series["interval_ms"]
        answered = series["answered"]
        rates = [sum(answered[at:at + each]) for at in range(0, len(answered) - each + 1, each)]
        runs.append(Series(f"run {index + 1}", [(second, [rate]) for second, rate in enumerate(rates)], (BLUE, VERMILION)[index % 2]))
    x = Scale.from_zero("seconds", max(run.points[-1][0] for run in runs), 8)
    y = Scale.from_zero("keys per second", max(samples[0] for run in runs for _, samples in run.points), 5)
    lines = svg.Lines("Fill with 20 million random keys, 64 connections × 16 requests, --sync 100ms", x, y, runs, None)
    figure(PLOTS / "fill.svg", "Throughput of a fill over time", [[lines]], "The line of a run ends with its last answer; compaction goes on after that.")


DRAWN_FROM = {writes: ("sets", "rocksdb_sync"), reads: ("gets",), beyond_memory: ("fill", "cold_reads"), lone: ("lone_set",), latency: ("latencies",),
              connections: ("connections",), sizes: ("sizes",), fill: ("fill",)}


def draw(reports):
    """Draws every picture whose questions have all been answered."""
    PLOTS.mkdir(parents=True, exist_ok=True)
    lines = {question: Lines(report) for question, report in reports.items()}
    for picture, questions in DRAWN_FROM.items():
        if all(question in lines for question in questions):
            picture(lines)
