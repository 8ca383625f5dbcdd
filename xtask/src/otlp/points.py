"""What a request says, checked against the protocol's rules, and quantiles of what was
counted, by the definition of exponential histograms in the data model."""

import math

from opentelemetry.proto.metrics.v1 import metrics_pb2

from pusher import HIGHEST_NS

CUMULATIVE = metrics_pb2.AGGREGATION_TEMPORALITY_CUMULATIVE
NO_VALUE = metrics_pb2.DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK
# How far the middle of a bucket may be from a time in it, docs/opentelemetry.md.
MIDDLE = 0.0094


def attributes(pairs):
    found = {pair.key: pair.value.string_value for pair in pairs}
    assert len(found) == len(pairs), pairs
    return found


def metrics(message):
    """All metrics of a request by name, each with its points."""
    (resource,) = message.resource_metrics
    (scope,) = resource.scope_metrics
    assert scope.scope.name == "lockwatch" and scope.scope.version, scope.scope
    found = {metric.name: metric for metric in scope.metrics}
    assert len(found) == len(scope.metrics), "a metric is there twice"
    for metric in found.values():
        check(metric)
    return found


def points(metric):
    return getattr(metric, metric.WhichOneof("data")).data_points


def check(metric):
    kind = metric.WhichOneof("data")
    assert metric.unit and metric.description, metric.name
    if kind != "gauge":
        temporality = getattr(metric, kind).aggregation_temporality
        assert temporality == CUMULATIVE, metric.name
    seen = set()
    for point in points(metric):
        identity = tuple(sorted(attributes(point.attributes).items()))
        assert identity not in seen, f"{metric.name} has {identity} twice"
        seen.add(identity)
        assert point.time_unix_nano >= point.start_time_unix_nano, metric.name
        assert (kind == "gauge") == (point.start_time_unix_nano == 0), metric.name
        if kind == "exponential_histogram":
            buckets = sum(point.positive.bucket_counts)
            assert point.count == point.zero_count + buckets, metric.name
            assert not point.negative.bucket_counts
            if buckets:
                assert point.positive.bucket_counts[0] > 0, "begins with nothing"
                assert point.positive.bucket_counts[-1] > 0, "ends with nothing"
        else:
            has_value = point.WhichOneof("value") is not None
            assert has_value != bool(point.flags & NO_VALUE), metric.name


def bucket_counts(point):
    """Counts by index of the bucket."""
    indexes = range(point.positive.offset, 1 << 31)
    return {
        index: count
        for index, count in zip(indexes, point.positive.bucket_counts)
        if count
    }


def at_rank(point, rank):
    """The geometric middle in seconds of the bucket that has the time of this rank."""
    counted = point.zero_count
    if rank <= counted:
        return 0.0
    base = 2 ** (2**-point.scale)
    for index, count in bucket_counts(point).items():
        counted += count
        if rank <= counted:
            return base ** (index + 0.5)
    raise AssertionError(f"no rank {rank} in {point.count}")


def error(found_s, time_ns):
    """How far off, relatively; longer times than an hour count as an hour."""
    time_s = min(time_ns, HIGHEST_NS) / 1e9
    return abs(found_s - time_s) / time_s if time_s else abs(found_s)


def check_against(point, times):
    """A point has to tell of these times, which are sorted."""
    assert point.count == len(times)
    assert point.zero_count == times.count(0)
    assert math.isclose(point.sum, sum(times) / 1e9, rel_tol=1e-12)
    worst = max(error(at_rank(point, n + 1), time) for n, time in enumerate(times))
    assert worst <= MIDDLE, worst
    assert error(point.min, times[0]) <= 0.008, point.min
    assert error(point.max, times[-1]) <= 0.008, point.max
    return worst
