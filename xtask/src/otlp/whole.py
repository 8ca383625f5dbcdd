"""What a receiver that does all well is sent."""

import platform

import points
from points import attributes, metrics
from pusher import Load, Pusher, eventually, root
from receiver import Receiver

HISTOGRAMS = {"wait": "lockwatch.lock.wait", "hold": "lockwatch.lock.hold"}


def point_of(found, name):
    """The point of a series."""
    measure, lock_class, kind, mode, caller = name
    wanted = {"class": lock_class, "kind": kind, "mode": mode, "caller": caller}
    all_points = points.points(found[HISTOGRAMS[measure]])
    (point,) = [p for p in all_points if attributes(p.attributes) == wanted]
    return point


def everything_arrives(program):
    load = Load(seed=1)
    worst = 0
    before = {}
    with Receiver() as receiver, Pusher(program, receiver.url()) as pusher:
        for number in range(1, 6):
            pusher.offer(load.grow(200).line(stalls=number, roots=[root("filebeat", 9)]))
            eventually("a push", lambda: len(receiver.requests) == number)
            found = metrics(receiver.requests[-1].message)
            for name in load.times:
                point = point_of(found, name)
                worst = max(worst, points.check_against(point, load.expected(name)))
                # A count that falls would be a restart to a receiver.
                counts = points.bucket_counts(point)
                for index, count in before.get(name, {}).items():
                    assert counts[index] >= count, name
                before[name] = counts
            (stalls,) = points.points(found["lockwatch.stalls"])
            assert stalls.as_int == number
        starts = {
            point.start_time_unix_nano
            for request in receiver.requests
            for metric in metrics(request.message).values()
            for point in points.points(metric)
        }
        assert len(starts - {0}) == 1, f"the run has several beginnings: {starts}"
        end = pusher.finish()
        assert end["taken"] == 6 and end["failed"] == 0, end
        assert pusher.said() == [], pusher.said()
        check_farewell(metrics(receiver.requests[-1].message))
        sent = receiver.requests[0]
    assert sent.path == "/v1/metrics", sent.path
    assert sent.headers["Content-Type"] == "application/x-protobuf"
    assert sent.headers["User-Agent"].startswith("lockwatch/")
    check_resource(sent.message.resource_metrics[0].resource)
    return f"every quantile within {worst:.2%}, {sent.size} bytes a request"


def check_farewell(found):
    """In the last push what is about now has no value, and all counts are there."""
    for metric in found.values():
        kind = metric.WhichOneof("data")
        is_of_now = kind == "gauge" or kind == "sum" and not metric.sum.is_monotonic
        for point in points.points(metric):
            assert bool(point.flags & points.NO_VALUE) == is_of_now, metric.name


def check_resource(resource):
    found = attributes(resource.attributes)
    uname = platform.uname()
    for name, value in {
        "service.name": "lockwatch",
        "service.instance.id": uname.node,
        "host.name": uname.node,
        "os.type": "linux",
        "os.version": uname.release,
    }.items():
        assert found[name] == value, f"{name} is {found.get(name)}"
    assert found["service.version"]


def the_environment_counts(program):
    load = Load(seed=2).grow(50)
    with Receiver() as receiver:
        variables = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"{receiver.url()}/api/v1/otlp",
            "OTEL_EXPORTER_OTLP_HEADERS": "api-key=a%2Cb,tenant=7",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
            "OTEL_RESOURCE_ATTRIBUTES": "service.instance.id=rack%207",
        }
        with Pusher(program, **variables) as pusher:
            pusher.offer(load.line())
            (sent,) = eventually("a push", lambda: receiver.requests)
            assert sent.path == "/api/v1/otlp/v1/metrics", sent.path
            assert sent.headers["Content-Encoding"] == "gzip"
            assert sent.headers["api-key"] == "a,b" and sent.headers["tenant"] == "7"
            resource = sent.message.resource_metrics[0].resource
            assert attributes(resource.attributes)["service.instance.id"] == "rack 7"
            for name in load.times:
                point = point_of(metrics(sent.message), name)
                points.check_against(point, load.expected(name))
            assert pusher.finish()["taken"] == 2


def the_command_line_comes_first(program):
    with Receiver() as receiver:
        headers = ["tenant=8"]
        variables = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1",
            "OTEL_EXPORTER_OTLP_HEADERS": "tenant=7",
        }
        endpoint = f"{receiver.url()}/otel?db=locks"
        with Pusher(program, endpoint, headers, **variables) as pusher:
            pusher.offer(Load(seed=3).grow(5).line())
            (sent,) = eventually("a push", lambda: receiver.requests)
            assert sent.path == "/otel?db=locks", sent.path
            assert sent.headers.get_all("tenant") == ["8"]


def a_root_that_is_gone_is_told_to_be(program):
    load = Load(seed=4).grow(5)
    with Receiver() as receiver, Pusher(program, receiver.url()) as pusher:

        def roots_when(roots):
            count = len(receiver.requests)
            pusher.offer(load.line(roots=roots))
            eventually("a push", lambda: len(receiver.requests) > count)
            found = metrics(receiver.requests[-1].message)
            return {
                attributes(point.attributes)["comm"]: None
                if point.flags & points.NO_VALUE
                else point.as_int
                for point in points.points(found["lockwatch.root.blocked_tasks"])
            }

        assert roots_when([root("a", 3), root("b", 2), root("a", 1)]) == {"a": 4, "b": 2}
        assert roots_when([root("b", 5)]) == {"a": None, "b": 5}
        assert roots_when([]) == {"b": None}
        assert roots_when([]) == {}


CHECKS = [
    everything_arrives,
    the_environment_counts,
    the_command_line_comes_first,
    a_root_that_is_gone_is_told_to_be,
]
