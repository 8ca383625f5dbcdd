"""What becomes of pushes to a receiver that does not do well."""

import socket
import time

import receiver as answers
from points import metrics, points
from pusher import Load, Pusher, eventually
from receiver import Receiver

LOAD = Load(seed=5).grow(20)


def stalls(request):
    """The figure by which a state is known."""
    (point,) = points(metrics(request.message)["lockwatch.stalls"])
    return point.as_int


def is_said(pusher, *words):
    """Waits for a line with these words."""
    fits = lambda line: all(word in line for word in words)
    return eventually(words, lambda: [line for line in pusher.said() if fits(line)])


def the_time_it_asks_for_is_given(program):
    busy = answers.refused(503, "compacting", Retry_After="2")
    with Receiver([busy]) as receiver, Pusher(program, receiver.url()) as pusher:
        pusher.offer(LOAD.line(stalls=1))
        eventually("a push", lambda: receiver.requests)
        # What is offered meanwhile takes the place of what was not taken.
        pusher.offer(LOAD.line(stalls=2))
        pusher.offer(LOAD.line(stalls=3))
        eventually("another try", lambda: len(receiver.requests) == 2)
        first, second = receiver.requests
        assert 2 <= second.at - first.at < 3, second.at - first.at
        assert stalls(second) == 3, stalls(second)
        is_said(pusher, "503 Service Unavailable: compacting", "tried again")
        is_said(pusher, "takes metrics again, after 1 failed try")
        assert pusher.finish()["failed"] == 1


def each_trouble_is_said_once(program):
    """Of every kind that is worth another try, and what is not tried again."""
    script = [
        answers.hang_up,
        answers.hang_up,
        answers.garbage,
        answers.refused(429, "too many"),
        answers.endless,
        answers.page,
        answers.refused(400, "no tenant"),
        answers.refused(400, "no tenant"),
        answers.partly(7, "out of order"),
        answers.partly(9, "out of order"),
    ]
    with Receiver(script) as receiver, Pusher(program, receiver.url()) as pusher:
        pusher.offer(LOAD.line(stalls=1))
        # It goes on by itself as far as it is told to try again.
        eventually("tries", lambda: len(receiver.requests) == 5, limit_s=40)
        is_said(pusher, "200 OK and far more")
        for number in range(6, 12):
            time.sleep(0.3)
            assert len(receiver.requests) == number - 1, "what was refused was sent again"
            pusher.offer(LOAD.line(stalls=number))
            eventually("a push", lambda: len(receiver.requests) == number)
        is_said(pusher, "takes all of the metrics again")
        said = pusher.said()
        expected = [
            "closed the connection without an answer",
            "does not answer in HTTP",
            "429 Too Many Requests: too many",
            "200 OK and far more",
            "200 OK, but not as a receiver",
            "400 Bad Request: no tenant",
            "does not take all of the metrics: it says: out of order",
            "takes all of the metrics again",
        ]
        assert len(said) == len(expected), said
        for line, words in zip(said, expected):
            assert words in line, f"{words!r} is not in {line!r}"
        waits = [b.at - a.at for a, b in zip(receiver.requests, receiver.requests[1:5])]
        for wait, longest in zip(waits, [1, 2, 4, 8]):
            assert longest / 2 <= wait < longest + 0.5, waits
        end = pusher.finish()
        assert end["failed"] == 8 and end["rejected_points"] == 16, end
        assert end["taken"] == 4, end
    return f"{len(said)} lines for {end['failed'] + 2} troubles"


def one_that_comes_later_gets_all(program):
    with socket.socket() as taken_port:
        # Bound, so that nobody else gets it, but nobody listens.
        taken_port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken_port.bind(("127.0.0.1", 0))
        port = taken_port.getsockname()[1]
        with Pusher(program, f"http://localhost:{port}") as pusher:
            pusher.offer(LOAD.line(stalls=1))
            is_said(pusher, f"http://localhost:{port}/v1/metrics", "cannot connect")
            taken_port.close()
            with Receiver(port=port) as receiver:
                (sent,) = eventually("a push", lambda: receiver.requests)
                assert stalls(sent) == 1
                is_said(pusher, "takes metrics again")


def a_slow_one_costs_neither_time_nor_memory(program):
    """States of a thousand series, offered faster than they can be pushed."""
    load = Load(seed=6).grow(60)
    state = load.line()
    template = state["series"][0]
    state["series"] = [
        {
            "key": template["key"] | {"class": {"symbol": f"lock_{number}"}},
            "times_ns": template["times_ns"],
        }
        for number in range(1000)
    ]
    variables = {"OTEL_EXPORTER_OTLP_TIMEOUT": "700"}
    with Receiver([answers.slow]) as receiver:
        with Pusher(program, receiver.url(), **variables) as pusher:
            pusher.offer(state)
            eventually("a push", lambda: receiver.requests)
            few = pusher.peak_memory()
            for number in range(20):
                pusher.offer(state | {"stalls": 100 + number})
            is_said(pusher, "no answer within 0.7 s")
            eventually("the newest", lambda: stalls(receiver.requests[-1]) == 119)
            size = receiver.requests[-1].size
            many = pusher.peak_memory()
            # Not as if each of the twenty was kept.
            assert many - few < 8 * size, f"{few} bytes became {many}"
            late = pusher.finish()["late_ms"]
    assert late < 500, f"the event loop stood still for {late} ms"
    return (
        f"{size} bytes for 1000 series; {few >> 20} MiB became {many >> 20} MiB, "
        f"and the event loop was {late} ms late"
    )


def one_that_is_dead_does_not_delay_the_end(program):
    with Receiver([answers.slow] * 2) as receiver:
        with Pusher(program, receiver.url()) as pusher:
            pusher.offer(LOAD.line())
            eventually("a push", lambda: receiver.requests)
            farewell = pusher.finish()["farewell_ms"]
    assert farewell <= 3500, farewell
    return f"{farewell} ms"


def the_end_does_not_wait_for_its_turn(program):
    busy = answers.refused(503, "compacting", Retry_After="60")
    with Receiver([busy]) as receiver:
        with Pusher(program, receiver.url()) as pusher:
            pusher.offer(LOAD.line(stalls=7))
            is_said(pusher, "503")
            end = pusher.finish()
            assert (end["taken"], end["failed"]) == (1, 1), end
            assert end["farewell_ms"] < 1000, end
            assert stalls(receiver.requests[-1]) == 7


CHECKS = [
    the_time_it_asks_for_is_given,
    each_trouble_is_said_once,
    one_that_comes_later_gets_all,
    a_slow_one_costs_neither_time_nor_memory,
    one_that_is_dead_does_not_delay_the_end,
    the_end_does_not_wait_for_its_turn,
]
