"""Reads lockwatch's histograms with readers that are not lockwatch's.

usage: histograms.py LOCKWATCH INTERVAL_LOG SCHEMA NODE_MODULES

INTERVAL_LOG is lockwatch's example that writes a log and says what is in it. The log is read
by the hdrhistogram package of Python, by hdr-histogram-js, and by lockwatch; all must find
what was put in: counts, percentiles, maxima, times.
"""

import copy
import csv
import io
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as xml

import jsonschema
from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader

HOUR_NS = 3_600_000_000_000
SHARES = {"p50": 0.5, "p99": 0.99, "p999": 0.999, "max": 1.0}
# Two significant digits.
BOUNDS = (1, HOUR_NS, 2)


def run(*command, env=None):
    done = subprocess.run(command, capture_output=True, env=env)
    assert done.returncode == 0, f"{command}: {done.stderr.decode()}"
    return done.stdout.decode()


def expected(times):
    """What a reader must say of these times: the end of the bucket of each percentile."""
    ordered = sorted(times)
    bounds = HdrHistogram(*BOUNDS)
    found = {"count": len(ordered)}
    for name, share in SHARES.items():
        place = max(math.ceil(share * len(ordered)), 1)
        found[name] = bounds.get_highest_equivalent_value(ordered[place - 1])
    return found


def sums(intervals):
    summed = {}
    for interval in intervals:
        for tag, times in interval["times_ns"].items():
            summed.setdefault(tag, []).extend(times)
    return summed


def lines(intervals):
    """The lines of a log in no order: tag, begin, end, figures."""
    return sorted(
        (tag, interval["start_ms"], interval["end_ms"], expected(times))
        for interval in intervals
        for tag, times in interval["times_ns"].items()
    )


def figures(histogram):
    found = {"count": histogram.get_total_count()}
    for name, share in SHARES.items():
        found[name] = histogram.get_value_at_percentile(100 * share)
    assert found["max"] == histogram.get_max_value()
    return found


def read_with_python(log):
    reader = HistogramLogReader(log, HdrHistogram(*BOUNDS))
    found, summed = [], {}
    while (read := reader.get_next_interval_histogram()) is not None:
        start, end = read.get_start_time_stamp(), read.get_end_time_stamp()
        found.append((read.get_tag(), round(start), round(end), figures(read)))
        summed.setdefault(read.get_tag(), HdrHistogram(*BOUNDS)).add(read)
    reader.close()
    return sorted(found), {tag: figures(sum) for tag, sum in summed.items()}


def javascript_says(log, modules):
    script = pathlib.Path(__file__).with_name("read_hlog.js")
    env = dict(os.environ, NODE_PATH=modules)
    return json.loads(run("node", script, log, env=env))


def read_with_javascript(log, modules):
    said = javascript_says(log, modules)
    found = [
        (
            read["tag"],
            round(read["start_ms"]),
            round(read["end_ms"]),
            {name: read[name] for name in ("count", *SHARES)},
        )
        for read in said["intervals"]
    ]
    return sorted(found), said["sums"]


def check_readers(log, intervals, modules):
    wanted = lines(intervals)
    wanted_sums = {tag: expected(times) for tag, times in sums(intervals).items()}
    for name, (found, found_sums) in {
        "python": read_with_python(log),
        "javascript": read_with_javascript(log, modules),
    }.items():
        assert found == wanted, f"{name}: {differences(found, wanted)}"
        assert found_sums == wanted_sums, f"{name}: {found_sums} {wanted_sums}"
    return wanted_sums


def differences(found, wanted):
    return [pair for pair in zip(found, wanted) if pair[0] != pair[1]][:3] or (
        len(found),
        len(wanted),
    )


def check_maxima(log):
    """The third column is ms, and close to what the histogram itself says."""
    count = 0
    with open(log, encoding="utf-8") as file:
        for line in file:
            if not line.startswith("Tag="):
                continue
            column, packed = line.strip().split(",")[3:]
            max_ns = HdrHistogram.decode(packed).get_max_value()
            assert abs(float(column) * 1e6 - max_ns) <= 1_000, line
            count += 1
    assert count > 0


def tag_of(series):
    """As docs/histograms.md has it, of the words of the JSON."""
    parts = (series[part] for part in ("measure", "class", "kind", "mode", "caller"))
    return "/".join(parts)


def check_json(lockwatch, log, truth, schema, wanted):
    text = run(lockwatch, "histogram", log, "--by", "caller", "--format", "json")
    found = json.loads(text)
    validator = jsonschema.Draft202012Validator(
        schema, format_checker=jsonschema.FormatChecker()
    )
    validator.validate(found)
    assert not validator.is_valid(dict(found, series="none")), "the schema sees nothing"
    assert found["hosts"] == [truth["host"]]
    assert found["lost"] == {
        "waits": truth["lost_waits"],
        "holds": truth["lost_holds"],
    }
    # Tags are escaped and say more than the words; sums of counts and maxima do not.
    assert len(found["series"]) == len(wanted)
    by_tag = {tag_of(series): series for series in found["series"]}
    plain = [tag for tag in wanted if tag in by_tag]
    assert len(plain) >= 3, f"{list(by_tag)} {list(wanted)}"
    for tag in plain:
        series = by_tag[tag]
        said = {name: series[f"{name}_ns"] for name in SHARES} | {
            "count": series["count"]
        }
        assert said == wanted[tag], f"{tag}: {said} {wanted[tag]}"
    total = sum(series["count"] for series in found["series"])
    assert total == sum(figures["count"] for figures in wanted.values())
    for series in found["series"]:
        assert series["count"] == sum(bucket["count"] for bucket in series["buckets"])
    return found


def check_csv(lockwatch, log, found):
    text = run(lockwatch, "histogram", log, "--by", "caller", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(text)))
    buckets = sum(len(series["buckets"]) for series in found["series"])
    assert len(rows) == buckets and buckets > 0
    assert {row["class"] for row in rows} == {s["class"] for s in found["series"]}
    total = sum(int(row["count"]) for row in rows)
    assert total == sum(series["count"] for series in found["series"])


def check_hgrm(lockwatch, log, modules):
    """The table of the waits, line by line as hdr-histogram-js makes it.

    The Python package makes one, too, but its steps are not those of the others.
    """
    text = run(lockwatch, "histogram", log, "--format", "hgrm")
    wanted = javascript_says(log, modules)["table"]
    rows = [row.split() for row in text.splitlines()]
    wanted = [row.split() for row in wanted.splitlines()]
    assert rows[0] == wanted[0], "the heading"
    table = lambda rows: [row for row in rows[2:] if row and not row[0].startswith("#")]
    rows, wanted = table(rows), table(wanted)
    assert len(rows) == len(wanted), f"{len(rows)} lines, not {len(wanted)}"
    for ours, theirs in zip(rows, wanted):
        # Of the last line, 100 %, there is no fourth column, or it is "inf".
        assert ours[1:] == theirs[1 : len(ours)], f"{ours} {theirs}"
        assert abs(float(ours[0]) - float(theirs[0])) <= 0.005, f"{ours} {theirs}"


def check_svg(lockwatch, log):
    root = xml.fromstring(run(lockwatch, "histogram", log, "--format", "svg"))
    words = " ".join(node.text for node in root.iter() if node.text)
    assert root.tag.endswith("}svg") and "wait mmap_lock read" in words, words
    assert "slab:<dentry>, odd" in words, words


def without_last_line(log, intervals):
    """Cuts the log as a kill in the middle of a write does."""
    content = pathlib.Path(log).read_bytes()
    last = content.splitlines()[-1].decode()
    pathlib.Path(log).write_bytes(content[:-30])
    tag = last.removeprefix("Tag=").split(",")[0]
    times = dict(intervals[-1]["times_ns"])
    del times[tag]
    return intervals[:-1] + [dict(intervals[-1], times_ns=times)]


def main():
    lockwatch, interval_log, schema, modules = sys.argv[1:]
    with open(schema, encoding="utf-8") as file:
        schema = json.load(file)
    with tempfile.TemporaryDirectory() as folder:
        log, merged = f"{folder}/waits.hlog", f"{folder}/merged.hlog"
        truth = json.loads(run(interval_log, log))
        intervals = truth["intervals"]
        wanted = check_readers(log, intervals, modules)
        check_maxima(log)
        found = check_json(lockwatch, log, truth, schema, wanted)
        check_csv(lockwatch, log, found)
        check_hgrm(lockwatch, log, modules)
        check_svg(lockwatch, log)

        # A reader that finds whatever it is asked for would pass, too.
        wrong = copy.deepcopy(intervals)
        next(iter(wrong[0]["times_ns"].values())).append(5)
        try:
            check_readers(log, wrong, modules)
        except AssertionError:
            pass
        else:
            raise SystemExit("a wait too many was not noticed")

        continued = without_last_line(log, intervals)
        intervals = continued + json.loads(run(interval_log, log))["intervals"]
        check_readers(log, intervals, modules)

        again = json.loads(run(interval_log, f"{folder}/again.hlog"))["intervals"]
        run(lockwatch, "histogram", "merge", log, f"{folder}/again.hlog", "-o", merged)
        first, last = intervals[0], intervals[-1]
        whole = sums(intervals + again)
        as_one = {
            "start_ms": first["start_ms"],
            "end_ms": last["end_ms"],
            "times_ns": whole,
        }
        check_readers(merged, [as_one], modules)
    print("histograms: hlog, merged hlog, json, csv, hgrm and svg are what they should be")


main()
