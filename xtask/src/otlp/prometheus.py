"""A real Prometheus with its OTLP receiver, and what its API tells of what was pushed."""

import json
import pathlib
import platform
import re
import subprocess
import tempfile
import time
import urllib.parse
import urllib.request

from points import error
from pusher import Load, Pusher, eventually, root

# How far both bounds of a bucket may be from a time in it, docs/opentelemetry.md: what a
# query tells lies between them.
BOUND = 0.015
METRIC = {"wait": "lockwatch_lock_wait_seconds", "hold": "lockwatch_lock_hold_seconds"}


def flags(server):
    """The receiver was an experiment up to 2.55, and is an option since 3.0."""
    version = subprocess.run(
        [server, "--version"], capture_output=True, text=True, check=True
    ).stdout
    version = re.search(r"version (\d+)\.(\d+)", version)
    if int(version[1]) >= 3:
        flags = ["--web.enable-otlp-receiver", "--enable-feature=native-histograms"]
    else:
        flags = ["--enable-feature=otlp-write-receiver,native-histograms"]
    return f"{version[1]}.{version[2]}", flags


class Prometheus:
    """A server on loopback with its data in a folder of its own; ended in each way out."""

    def __init__(self, server):
        self.version, options = flags(server)
        self.folder = tempfile.TemporaryDirectory(prefix="lockwatch-prometheus-")
        folder = pathlib.Path(self.folder.name)
        (folder / "prometheus.yml").write_text("global: {}\n")
        self.log = open(folder / "log", "w+")
        self.process = subprocess.Popen(
            [
                server,
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/tsdb",
                # It says in its log which port it got.
                "--web.listen-address=127.0.0.1:0",
                *options,
            ],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )

    def __enter__(self):
        self.port = eventually("Prometheus to listen", self._port, limit_s=60)
        eventually("Prometheus to be ready", self._is_ready, limit_s=60)
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()
        self.folder.cleanup()

    def _port(self):
        assert self.process.poll() is None, self.text()
        found = re.search(r"Listening on.*address=127\.0\.0\.1:(\d+)", self.text())
        return found and int(found[1])

    def _is_ready(self):
        assert self.process.poll() is None, self.text()
        try:
            with urllib.request.urlopen(self.url("/-/ready"), timeout=5):
                return True
        except OSError:
            return False

    def text(self):
        return pathlib.Path(self.log.name).read_text()

    def url(self, path):
        return f"http://127.0.0.1:{self.port}{path}"

    def get(self, path, **parameters):
        url = self.url(f"/api/v1/{path}?{urllib.parse.urlencode(parameters)}")
        with urllib.request.urlopen(url, timeout=20) as answer:
            found = json.load(answer)
        assert found["status"] == "success" and not found.get("warnings"), found
        return found["data"]

    def query(self, expression):
        """Series as pairs of labels and value; that of a histogram is a dictionary."""
        data = self.get("query", query=expression)
        return [
            (series["metric"], series.get("histogram", series.get("value"))[1])
            for series in data["result"]
        ]

    def number(self, expression):
        ((_, value),) = self.query(expression)
        return float(value)


def selector(name):
    measure, lock_class, kind, mode, caller = name
    quoted = json.dumps(lock_class, ensure_ascii=False)
    return (
        f'{METRIC[measure]}{{class={quoted}, kind="{kind}", mode="{mode}",'
        f' caller="{caller}", job="lockwatch", instance="{platform.node()}"}}'
    )


def check(program, server, docs):
    with Prometheus(server) as prometheus:
        endpoint = prometheus.url("/api/v1/otlp/v1/metrics")
        load = Load(seed=7).grow(2000)
        roots = [root("filebeat", 9), root("ps", 2)]
        with Pusher(program, endpoint) as pusher:
            push(pusher, load.line(roots=roots), 1)
            worst = check_whole(prometheus, load)
            check_names(prometheus, pathlib.Path(docs).read_text())
            assert sorted(blocked(prometheus)) == [("filebeat", "9"), ("ps", "2")]
            check_growth(prometheus, pusher, load, roots[1:])
            assert blocked(prometheus) == [("ps", "2")], "a root stands for ever"
            end = pusher.finish()
            assert end["failed"] == 0 and not pusher.said(), pusher.said()
        eventually("the end of the run", lambda: not blocked(prometheus))
        assert prometheus.query("lockwatch_stalls_standing") == []
        assert prometheus.number("lockwatch_stalls_total") == 6
        problems = [line for line in prometheus.text().splitlines() if "level=E" in line.upper()]
        assert not [line for line in problems if "otlp" in line.lower()], problems
    return f"Prometheus {prometheus.version}: every quantile within {worst:.2%}"


def push(pusher, state, number):
    pusher.offer(state)
    # The figure is that before the push, so it is asked for with the next state.
    time.sleep(1.1)
    return number


def blocked(prometheus):
    found = prometheus.query("lockwatch_root_blocked_tasks")
    return [(labels["comm"], value) for labels, value in found]


def check_whole(prometheus, load):
    """Counts and sums are exact, buckets whole, quantiles near."""
    worst = 0
    for name in load.times:
        series, times = selector(name), load.expected(name)
        ((_, histogram),) = eventually(name, lambda: prometheus.query(series))
        assert int(histogram["count"]) == len(times), histogram["count"]
        buckets = [(float(low), float(high), int(n)) for _, low, high, n in histogram["buckets"]]
        assert sum(count for _, _, count in buckets) == len(times)
        # That of 0 ns is as wide as nothing.
        (zeros,) = [count for low, high, count in buckets if low <= 0 <= high]
        assert zeros == times.count(0)
        total = prometheus.number(f"histogram_sum({series})")
        assert abs(total - sum(times) / 1e9) <= 1e-9 * total, total
        for share in (0.01, 0.5, 0.9, 0.99, 0.999, 1):
            rank = max(1, -(-len(times) * share // 1))
            found = prometheus.number(f"histogram_quantile({share}, {series})")
            off = error(found, times[int(rank) - 1])
            assert off <= BOUND, f"quantile {share} of {name} is {found}"
            worst = max(worst, off)
    return worst


def check_growth(prometheus, pusher, load, roots):
    """What is new between two pushes, as a dashboard asks for it."""
    before = {name: load.expected(name) for name in load.times}
    for times in load.times.values():
        # All of one length, and more than there were.
        times += [123_456_789] * 5000
    push(pusher, load.line(stalls=6, roots=roots), 2)
    for name in load.times:
        growth = f"increase({selector(name)}[1m])"
        median = eventually(name, lambda: prometheus.query(f"histogram_quantile(0.5, {growth})"))
        assert error(float(median[0][1]), 123_456_789) <= BOUND, median
        count = prometheus.number(f"histogram_count({selector(name)})")
        assert count == len(before[name]) + 5000


def check_names(prometheus, docs):
    """The table of the docs has what Prometheus makes of each name, and the units."""
    rows = re.findall(r"^\| `(lockwatch\.[\w.]+)` \| `(\w+)` \|", docs, re.MULTILINE)
    stored = prometheus.get("label/__name__/values")
    documented = [name for _, name in rows]
    ours = [name for name in stored if name.startswith("lockwatch_")]
    assert sorted(documented) == sorted(ours), set(documented) ^ set(ours)
    ((labels, _),) = prometheus.query("target_info")
    assert labels["os_version"] == platform.release(), labels
    assert labels["host_name"] == platform.node(), labels
