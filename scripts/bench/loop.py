#!/usr/bin/env python3
"""A bare loop that shows how steadily a processor runs without any server.

    loop.py SECONDS         prints one line of JSON: iterations per second in the slowest, the median and the fastest
                            tenth of a second, and the longest stop in milliseconds
"""

import json
import statistics
import sys
import time

TENTH = 0.1


def main():
    clock = time.perf_counter
    last = begin = clock()
    edge, end = begin + TENTH, begin + float(sys.argv[1])
    tenths, turns, stop = [], 0, 0.0
    while last < end:
        now = clock()
        stop = max(stop, now - last)
        last = now
        turns += 1
        if edge <= now:
            # A stop longer than a tenth of a second belongs to the tenth in which it began.
            tenths.append(turns / (now - edge + TENTH))
            turns, edge = 0, now + TENTH
    speeds = {"slowest": min(tenths), "middle": statistics.median(tenths), "fastest": max(tenths)}
    print(json.dumps({**speeds, "longest_stop_ms": 1000 * stop}))


if __name__ == "__main__":
    main()
