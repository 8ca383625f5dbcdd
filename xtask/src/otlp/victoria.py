"""A real store with an OTLP receiver of its own, VictoriaMetrics, and what its query
language (Prometheus') tells of what was pushed.

Debian's Prometheus is built without its OTLP receiver, and the OpenTelemetry collector is
not in Debian; VictoriaMetrics decodes the protocol with code of its own.
"""

import json
import pathlib
import platform
import re
import socket
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
# The store keeps the bounds of buckets with four digits.
ROUNDED = 0.0005
METRIC = {"wait": "lockwatch_lock_wait_seconds", "hold": "lockwatch_lock_hold_seconds"}


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class Victoria:
    """The store on loopback, its files in a folder of its own; ended in each way out."""

    def __init__(self, server):
        self.port = free_port()
        self.folder = tempfile.TemporaryDirectory(prefix="lockwatch-victoria-")
        folder = pathlib.Path(self.folder.name)
        self.log = open(folder / "log", "w+")
        self.process = subprocess.Popen(
            [
                server,
                f"-storageDataPath={folder}/data",
                f"-httpListenAddr=127.0.0.1:{self.port}",
                # Names as Prometheus makes them.
                "-opentelemetry.usePrometheusNaming",
                # What was pushed now is to be found now.
                "-search.latencyOffset=0s",
                "-memory.allowedBytes=256MiB",
            ],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )

    def __enter__(self):
        try:
            eventually("VictoriaMetrics to be ready", self._is_ready, limit_s=60)
        except BaseException:
            self.__exit__()
            raise
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

    def _is_ready(self):
        assert self.process.poll() is None, self.text()
        try:
            return self.get("/health") == b"OK"
        except OSError:
            return False

    def text(self):
        return pathlib.Path(self.log.name).read_text()

    def get(self, path, **parameters):
        query = urllib.parse.urlencode(parameters)
        url = f"http://127.0.0.1:{self.port}{path}?{query}"
        with urllib.request.urlopen(url, timeout=20) as answer:
            return answer.read()

    def query(self, expression):
        """Series as pairs of labels and value, of what has come in by now."""
        self.get("/internal/force_flush")
        answer = self.get(
            "/prometheus/api/v1/query", query=expression, time=time.time(), nocache=1
        )
        found = json.loads(answer)
        assert found["status"] == "success", found
        return [
            (series["metric"], float(series["value"][1]))
            for series in found["data"]["result"]
        ]

    def number(self, expression):
        found = self.query(expression)
        assert len(found) == 1, f"{expression}: {found}"
        return found[0][1]

    def names(self):
        answer = self.get("/prometheus/api/v1/label/__name__/values")
        return json.loads(answer)["data"]


def selector(name, suffix):
    measure, lock_class, kind, mode, caller = name
    quoted = json.dumps(lock_class, ensure_ascii=False)
    return (
        f'{METRIC[measure]}_{suffix}{{class={quoted}, kind="{kind}", mode="{mode}",'
        f' caller="{caller}", service_name="lockwatch"}}'
    )


def check(program, server, docs):
    with Victoria(server) as victoria:
        endpoint = f"http://127.0.0.1:{victoria.port}/opentelemetry/v1/metrics"
        load = Load(seed=7).grow(2000)
        roots = [root("filebeat", 9), root("ps", 2)]
        with Pusher(program, endpoint) as pusher:
            pusher.offer(load.line(roots=roots))
            worst = check_whole(victoria, load)
            check_names(victoria, pathlib.Path(docs).read_text())
            assert sorted(blocked(victoria)) == [("filebeat", 9), ("ps", 2)]
            check_growth(victoria, pusher, load, roots[1:])
            assert blocked(victoria) == [("ps", 2)], "a root that is gone stands"
            end = pusher.finish()
            assert end["failed"] == 0 and not pusher.said(), pusher.said()
        # What is about now ends with the run; what was counted stays.
        assert blocked(victoria) == []
        assert victoria.query("lockwatch_stalls_standing") == []
        assert victoria.number("lockwatch_stalls_total") == 6
    return f"every quantile within {worst:.2%}"


def blocked(victoria):
    found = victoria.query("lockwatch_root_blocked_tasks")
    return [(labels["comm"], value) for labels, value in found]


def check_whole(victoria, load):
    """Counts and sums are exact, no bucket is lost, and quantiles are near."""
    worst = 0
    for name in load.times:
        times = load.expected(name)
        buckets = selector(name, "bucket")
        eventually(name, lambda: victoria.query(selector(name, "count")))
        assert victoria.number(selector(name, "count")) == len(times)
        assert victoria.number(f"sum({buckets})") == len(times)
        total = victoria.number(selector(name, "sum"))
        assert abs(total - sum(times) / 1e9) <= 1e-9 * total, total
        for share in (0.01, 0.5, 0.9, 0.99, 0.999):
            rank = int(-(-len(times) * share // 1))
            found = victoria.number(f"histogram_quantile({share}, {buckets})")
            off = error(found, times[rank - 1])
            assert off <= BOUND + ROUNDED, f"quantile {share} of {name} is {found}"
            worst = max(worst, off)
    return worst


def check_growth(victoria, pusher, load, roots):
    """What is new between two pushes, as a dashboard asks for it."""
    before = {name: len(times) for name, times in load.times.items()}
    for times in load.times.values():
        # All of one length, and more than there were.
        times += [123_456_789] * 5000
    time.sleep(1.1)
    pusher.offer(load.line(stalls=6, roots=roots))
    for name in load.times:
        count = before[name] + 5000
        counted = selector(name, "count")
        eventually(name, lambda: victoria.number(counted) == count)
        growth = f"increase_pure({selector(name, 'bucket')}[5m])"
        growth = f"histogram_quantile(0.5, sum by (class, mode, vmrange) ({growth}))"
        assert error(victoria.number(growth), 123_456_789) <= BOUND + ROUNDED, growth


def check_names(victoria, docs):
    """The table of the docs has what a store makes of each name and unit."""
    rows = re.findall(r"^\| `(lockwatch\.[\w.]+)` \| `(\w+)` \|", docs, re.MULTILINE)
    documented = {name for _, name in rows}
    ours = [name for name in victoria.names() if name.startswith("lockwatch_")]
    histograms = tuple(METRIC.values())
    parts = {
        name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count")
        if name.startswith(histograms)
        else name
        for name in ours
    }
    assert documented == parts, documented ^ parts
    ((labels, _),) = victoria.query("lockwatch_stalls_total")
    expected = {"host_name": platform.node(), "os_version": platform.release()}
    for name, value in expected.items():
        assert labels[name] == value, labels
