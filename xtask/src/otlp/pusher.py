"""Runs lockwatch's pusher and tells it what to push."""

import json
import math
import os
import random
import subprocess
import threading
import time

# Nothing here lasts longer, whatever hangs.
LIMIT_S = 60
# Longer times are counted as this long.
HIGHEST_NS = 3_600_000_000_000


def key(measure, lock_class, kind, mode, caller):
    return {
        "measure": measure,
        "class": lock_class,
        "kind": kind,
        "mode": mode,
        "caller": caller,
    }


class Load:
    """Times of some series, which only become more."""

    # What lockwatch calls a series, and the attributes that it is to have.
    SERIES = [
        (
            key("wait", "mmap-lock", "rwsem", "read", {"function": "do_mmap"}),
            ("wait", "mmap_lock", "rwsem", "read", "do_mmap"),
        ),
        (
            key("wait", "super-writers", "percpu_rwsem", "write", "other"),
            ("wait", "s_writers", "percpu_rwsem", "write", "other"),
        ),
        (
            key("wait", {"symbol": 'odd"\\name ü'}, "mutex", "write", "short"),
            ("wait", 'odd"\\name ü', "mutex", "write", "short"),
        ),
        (
            key("hold", "inode-rwsem", "rwsem", "write", {"function": "do_mmap"}),
            ("hold", "i_rwsem", "rwsem", "write", "do_mmap"),
        ),
    ]

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.times = {name: [] for _, name in self.SERIES}

    def grow(self, count):
        """Adds times of all lengths, 0 and more than an hour included."""
        for name, times in self.times.items():
            new = [
                int(2 ** self.random.uniform(0, math.log2(2 * HIGHEST_NS)))
                for _ in range(count)
            ]
            times += new + [0] * self.random.randrange(3)
        return self

    def expected(self, name):
        """What was counted for a series, sorted; sums are not cut off at an hour."""
        return sorted(self.times[name])

    def line(self, **figures):
        state = {
            "series": [
                {"key": key, "times_ns": self.times[name]} for key, name in self.SERIES
            ],
            "stalls": 5,
            "standing": 1,
            "roots": [],
            "lost": 3,
            "cpu_ns": 1_250_000_000,
        }
        return state | figures


def root(comm, blocked):
    return {
        "class": "mmap-lock",
        "comm": comm,
        "stuck": "fuse",
        "blocked_tasks": blocked,
    }


class Pusher:
    """The program, fed line by line; ended in each way out of a `with`."""

    def __init__(self, program, endpoint=None, headers=(), **variables):
        mine = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
        arguments = [endpoint, *headers] if endpoint else []
        self.process = subprocess.Popen(
            [program, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=mine | variables,
        )
        self.lines = []
        self.watchdog = threading.Timer(LIMIT_S, self.process.kill)
        self.watchdog.start()
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(json.loads(line))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.watchdog.cancel()
        self.process.kill()
        self.process.wait()
        self.reader.join()

    def offer(self, state):
        self.process.stdin.write(json.dumps(state) + "\n")
        self.process.stdin.flush()

    def said(self):
        return [line["said"] for line in self.lines if "said" in line]

    def peak_memory(self):
        """Of the program so far, in bytes."""
        with open(f"/proc/{self.process.pid}/status") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        raise AssertionError("no VmHWM")

    def finish(self):
        """Ends its input; what it says last."""
        self.process.stdin.close()
        code = self.process.wait(LIMIT_S)
        self.reader.join()
        assert code == 0, f"exit code {code}: {self.process.stderr.read()}"
        return self.lines[-1]


def eventually(what, condition, limit_s=20):
    """Waits until a condition holds; what it gave then."""
    end = time.monotonic() + limit_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"not within {limit_s} s: {what}"
        time.sleep(0.02)
