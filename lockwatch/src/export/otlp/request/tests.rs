use std::time::Duration;

use opentelemetry_proto::tonic::common::v1::{AnyValue, any_value};
use prost::Message as _;

use super::*;
use crate::{
    export::{
        Cost, Hang, Stalls,
        otlp::series::{as_written, together},
    },
    latency::{Caller, CountsLost, SeriesKey, Snapshot},
    lock::{LockClass, LockKind, LockMode},
    task::Nanos,
};

fn key(class: LockClass) -> SeriesKey {
    SeriesKey {
        measure: Measure::Wait,
        class,
        kind: LockKind::PercpuRwsem,
        mode: LockMode::Read,
        caller: Caller::Function("do_mmap".to_owned()),
    }
}

fn root(comm: &str, blocked_tasks: u64) -> Root {
    Root {
        class: LockClass::MmapLock,
        comm: comm.to_owned(),
        stuck: "fuse".to_owned(),
        blocked_tasks,
    }
}

fn state() -> State {
    let mut latency = Snapshot {
        lost: CountsLost { waits: 3, holds: 0 },
        ..Snapshot::default()
    };
    let held = SeriesKey {
        measure: Measure::Hold,
        ..key(LockClass::MmapLock)
    };
    for (key, time) in [
        (key(LockClass::MmapLock), 0),
        (key(LockClass::MmapLock), 250_000_000),
        // Written alike.
        (key(LockClass::Unknown), 1_000),
        (key(LockClass::KernelData), 2_000),
        (held, 7),
    ] {
        latency.series.entry(key).or_default().record(Nanos(time));
    }
    State {
        at: "2026-05-01T10:00:07Z".parse().expect("a time"),
        since: "2026-05-01T10:00:00.25Z".parse().expect("a time"),
        latency,
        stalls: Stalls {
            threshold: Nanos(100_000_000),
            total: 5,
            standing: 1,
            longest_standing: Nanos(1_500_000_000),
            longest: Nanos(60_000_000_000),
        },
        blocked_tasks: 12,
        roots: vec![root("filebeat", 9), root("filebeat", 3)],
        hangs: vec![Hang {
            detector: "hung-task",
            total: 2,
            standing: 1,
        }],
        lost: vec![("events", 7), ("surveys", 0)],
        cost: Cost {
            cpu: Duration::from_millis(1250),
            resident_bytes: 12_000_000,
            map_bytes: 9_000_000,
        },
    }
}

fn metrics_of(state: &State, known: &BTreeSet<RootName>, is_last: bool) -> Vec<Metric> {
    let series = as_written(&state.latency);
    let series = series
        .into_iter()
        .map(|(key, distributions)| (key, together(&distributions)));
    let request = request(Parts {
        resource: &Resource::default(),
        series: series.collect(),
        state,
        known_roots: known,
        is_last,
    });
    let [resource] = &request.resource_metrics[..] else {
        panic!("{request:?}");
    };
    resource.scope_metrics[0].metrics.clone()
}

fn words(attributes: &[KeyValue]) -> Vec<(&str, &str)> {
    let attributes = attributes.iter();
    fn pair(attribute: &KeyValue) -> (&str, &str) {
        match &attribute.value {
            Some(AnyValue {
                value: Some(any_value::Value::StringValue(value)),
            }) => (attribute.key.as_str(), value.as_str()),
            other => panic!("{other:?}"),
        }
    }
    attributes.map(pair).collect()
}

fn numbers(metric: &Metric) -> &[NumberDataPoint] {
    match metric.data.as_ref() {
        Some(Data::Sum(sum)) => &sum.data_points,
        Some(Data::Gauge(gauge)) => &gauge.data_points,
        other => panic!("{other:?}"),
    }
}

fn find<'a>(metrics: &'a [Metric], instrument: &Instrument) -> &'a Metric {
    let found = metrics.iter().find(|metric| metric.name == instrument.name);
    found.expect(instrument.name)
}

#[test]
fn the_list_of_instruments_is_what_is_sent() {
    let metrics = metrics_of(&state(), &BTreeSet::new(), false);
    assert_eq!(metrics.len(), all::INSTRUMENTS.len());
    for (metric, instrument) in metrics.iter().zip(all::INSTRUMENTS) {
        assert_eq!(metric.name, instrument.name);
        assert_eq!(metric.unit, instrument.unit);
        let attributes: Vec<&[KeyValue]> = match metric.data.as_ref().expect("data") {
            Data::ExponentialHistogram(histogram) => {
                assert_eq!(instrument.kind, Kind::ExponentialHistogram);
                let points = histogram.data_points.iter();
                points.map(|point| &point.attributes[..]).collect()
            }
            Data::Sum(sum) => {
                assert_eq!(sum.is_monotonic, instrument.kind == Kind::Counter);
                assert_ne!(instrument.kind, Kind::Gauge);
                numbers(metric)
                    .iter()
                    .map(|point| &point.attributes[..])
                    .collect()
            }
            Data::Gauge(_) => {
                assert_eq!(instrument.kind, Kind::Gauge);
                numbers(metric)
                    .iter()
                    .map(|point| &point.attributes[..])
                    .collect()
            }
            other => panic!("{other:?}"),
        };
        assert!(!attributes.is_empty(), "{}", metric.name);
        let mut seen = BTreeSet::new();
        for attributes in attributes {
            let words = words(attributes);
            let names: Vec<&str> = words.iter().map(|&(name, _)| name).collect();
            assert_eq!(names, instrument.attributes, "{}", metric.name);
            assert!(seen.insert(words), "{} has a series twice", metric.name);
        }
    }
}

#[test]
fn histograms_tell_what_was_counted_and_since_when() {
    let metrics = metrics_of(&state(), &BTreeSet::new(), false);
    let Some(Data::ExponentialHistogram(waits)) = &find(&metrics, &all::WAIT).data else {
        panic!("{metrics:?}");
    };
    let [known, unknown] = &waits.data_points[..] else {
        panic!("{waits:?}");
    };
    assert_eq!(waits.aggregation_temporality, 2);
    assert_eq!((known.count, known.zero_count), (2, 1));
    assert_eq!((known.sum, known.min), (Some(0.25), Some(0.0)));
    assert_eq!(known.start_time_unix_nano, 1_777_629_600_250_000_000);
    assert_eq!(known.time_unix_nano, 1_777_629_607_000_000_000);
    let expected = [
        ("class", "mmap_lock"),
        ("kind", "percpu_rwsem"),
        ("mode", "read"),
        ("caller", "do_mmap"),
    ];
    assert_eq!(words(&known.attributes), expected);
    assert_eq!((unknown.count, unknown.sum), (2, Some(3e-6)));
}

#[test]
fn a_root_that_is_gone_has_no_value_any_more() {
    let name = |comm: &str| ["mmap_lock", "fuse", comm].map(str::to_owned);
    let known = BTreeSet::from([name("filebeat"), name("gone")]);
    let metrics = metrics_of(&state(), &known, false);
    let [stands, gone] = numbers(find(&metrics, &all::ROOT_BLOCKED_TASKS)) else {
        panic!("{metrics:?}");
    };
    assert_eq!((stands.value, stands.flags), (Some(Value::AsInt(12)), 0));
    assert_eq!((gone.value, gone.flags), (None, 1));
    assert!(words(&gone.attributes).contains(&("comm", "gone")));
}

#[test]
fn what_is_of_now_ends_with_the_run_and_what_was_counted_stays() {
    let state = state();
    let metrics = metrics_of(&state, &BTreeSet::new(), true);
    for instrument in all::INSTRUMENTS {
        let metric = find(&metrics, instrument);
        match instrument.kind {
            Kind::ExponentialHistogram => {}
            Kind::Counter => assert!(numbers(metric).iter().all(|point| point.value.is_some())),
            Kind::UpDownCounter | Kind::Gauge => {
                let points = numbers(metric).iter();
                for point in points {
                    assert_eq!((point.value, point.flags), (None, 1), "{}", metric.name);
                }
            }
        }
    }
}

#[test]
fn a_clock_that_was_set_back_makes_no_backward_span() {
    let state = State {
        at: "1969-05-01T10:00:07Z".parse().expect("a time"),
        ..state()
    };
    let metrics = metrics_of(&state, &BTreeSet::new(), false);
    let point = &numbers(find(&metrics, &all::STALLS))[0];
    assert_eq!(point.time_unix_nano, point.start_time_unix_nano);
}

#[test]
fn of_nothing_too() {
    let metrics = metrics_of(&State::default(), &BTreeSet::new(), false);
    assert_eq!(
        numbers(find(&metrics, &all::STALLS))[0].value,
        Some(Value::AsInt(0))
    );
    assert!(metrics.iter().all(|metric| metric.encoded_len() > 0));
}
