"""The raw answers: where they are, how to read them, and how to write a figure with its spread."""

import json
import pathlib
import statistics

ROOT = pathlib.Path(__file__).resolve().parents[2]
RAW = ROOT / "target" / "bench"
KEPT = ROOT / "benches" / "raw"


def load(folder):
    found = {}
    for path in sorted(folder.glob("*.json")):
        report = json.loads(path.read_text())
        if "question" in report:
            found[report["question"]] = report
    return found


class Lines:
    """The lines of one question."""

    def __init__(self, report):
        self.report = report
        self.lines = report["lines"]

    def samples(self, name):
        return self.lines[name]["samples"]

    def median(self, name):
        return statistics.median(self.samples(name))

    def details(self, name, key):
        return [detail.get(key) for detail in self.lines[name]["details"]]

    def ratios(self, name, peer, less_is_better=False):
        """The ratio of each sample to the sample of the peer that was taken next to it."""
        pairs = zip(self.samples(name), self.samples(peer), strict=True)
        return [b / a if less_is_better else a / b for a, b in pairs]

    def has(self, *names):
        return all(name in self.lines for name in names)

    def counts(self):
        """The numbers in names such as `get/64`, in ascending order."""
        return sorted({int(name.split("/")[1]) for name in self.lines})


def number(value):
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def spread(samples):
    """The median, then the least and the greatest sample."""
    return f"{number(statistics.median(samples))} ({number(min(samples))} to {number(max(samples))})"
