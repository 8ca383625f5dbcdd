//! What is exported, as a real Prometheus takes it in.

mod scraped;

use std::{collections::BTreeSet, fs};

use lockwatch::{
    export::ROOM,
    latency::{Caller, SeriesKey},
    task::Nanos,
};

use scraped::{
    endpoint::{Endpoint, KERNEL},
    http,
    prometheus::{Prometheus, Sample, promtool},
    rules, scene,
};

const UP: &str = "up{job=\"lockwatch\"}";

/// What one asks for the histogram of [`scene::busy`].
const BUSY: &str =
    "{class=\"mmap_lock\",kind=\"rwsem\",mode=\"read\",caller=\"do_user_addr_fault\"}";

fn labels_of(sample: &Sample, name: &str) -> String {
    sample.0.get(name).cloned().unwrap_or_default()
}

#[test]
#[ignore = "metrics: needs a Prometheus; run by cargo xtask test"]
fn prometheus_reads_what_was_counted() {
    let endpoint = Endpoint::start(scene::trouble(), 10, |_| ()).unwrap();
    let prometheus = Prometheus::start(endpoint.address, &[]).unwrap();
    prometheus.wait_for_value(UP, 1.0).unwrap();
    let waits = scene::many_waits();
    let of_busy = |name: &str| format!("lockwatch_lock_wait_seconds_{name}{BUSY}");
    let value = |expression: &str| prometheus.value(expression).unwrap().unwrap();
    prometheus
        .wait_for_value(&of_busy("count"), waits.count() as f64)
        .unwrap();
    let sum = value(&of_busy("sum"));
    let expected = waits.sum().0 as f64 / 1e9;
    assert!(
        (sum - expected).abs() < 1e-9 * expected,
        "{sum} for {expected}"
    );

    // Each bucket, counted anew from what was recorded.
    let buckets = prometheus.query(&of_busy("bucket")).unwrap();
    assert!(buckets.len() > 25, "{buckets:?}");
    let mut bounds: Vec<f64> = Vec::new();
    for bucket in &buckets {
        let bound: f64 = labels_of(bucket, "le").parse().unwrap();
        let below = waits
            .buckets()
            .filter(|(_, longest, _)| longest.0 as f64 <= (bound * 1e9).round())
            .map(|(_, _, counted)| counted.count)
            .sum::<u64>();
        assert_eq!(bucket.1, below as f64, "up to {bound} s");
        bounds.push(bound);
    }
    bounds.sort_by(f64::total_cmp);

    // A quantile is somewhere in the bucket that has the true one.
    for share in [0.1, 0.5, 0.9, 0.99, 0.999] {
        let told = value(&format!(
            "histogram_quantile({share}, {})",
            of_busy("bucket")
        ));
        let actual = waits.quantile(share).0 as f64 / 1e9;
        let place = bounds.partition_point(|&bound| bound < actual);
        let (from, to) = (bounds[place - 1], bounds[place]);
        assert!((from..=to).contains(&told), "{share}: {told} for {actual}");
    }

    let root = prometheus.query("lockwatch_root_blocked_tasks").unwrap();
    assert_eq!(labels_of(&root[0], "comm"), scene::ODD);
    let odd = prometheus
        .query("lockwatch_lock_wait_seconds_count{kind=\"mutex\"}")
        .unwrap();
    assert_eq!(labels_of(&odd[0], "class"), scene::ODD);
    assert_eq!(odd[0].1, 2.0);
    assert_eq!(value("lockwatch_stall_longest_standing_seconds"), 372.0);
    assert_eq!(value("lockwatch_start_time_seconds"), 1_777_629_600.0);
    let build = prometheus.query("lockwatch_build_info").unwrap();
    assert_eq!(labels_of(&build[0], "version"), env!("CARGO_PKG_VERSION"));
    assert_eq!(labels_of(&build[0], "kernel"), KERNEL);

    // Only OpenMetrics tells units and has the type `info`: that is what was negotiated.
    let known = prometheus.api("metadata").unwrap();
    assert_eq!(known["lockwatch_lock_wait_seconds"][0]["unit"], "seconds");
    assert_eq!(known["lockwatch_build"][0]["type"], "info");
}

#[test]
#[ignore = "metrics: needs a Prometheus; run by cargo xtask test"]
fn nothing_goes_back_as_the_callers_change() {
    const TOP: usize = 2;
    const ROUNDS: u64 = 14;
    let mut round = 0_u64;
    let advance = move |state: &mut lockwatch::export::State| {
        if round == ROUNDS {
            return;
        }
        // The one that comes in has waited longer than all before it together.
        for back in 0..3 {
            let number = round.saturating_sub(back);
            let key = SeriesKey {
                caller: Caller::Function(format!("caller_{number}")),
                ..scene::busy()
            };
            let time = Nanos(1000 << (2 * number));
            state.latency.series.entry(key).or_default().record(time);
        }
        round += 1;
    };
    let mut start = scene::trouble();
    start.latency.series.clear();
    let endpoint = Endpoint::start(start, TOP, advance).unwrap();
    let prometheus = Prometheus::start(endpoint.address, &[]).unwrap();
    let all = "sum(lockwatch_lock_wait_seconds_count)";
    prometheus.wait_for_value(all, 3.0 * ROUNDS as f64).unwrap();

    for name in ["count", "sum", "bucket"] {
        let resets = format!("max(resets(lockwatch_lock_wait_seconds_{name}[5m]))");
        assert_eq!(prometheus.value(&resets).unwrap(), Some(0.0), "{name}");
    }
    let told: BTreeSet<String> = prometheus
        .query("lockwatch_lock_wait_seconds_count")
        .unwrap()
        .iter()
        .map(|sample| labels_of(sample, "caller"))
        .collect();
    assert!(
        told.contains("other") && told.contains("caller_1"),
        "{told:?}"
    );
    assert_eq!(told.len(), TOP * ROOM + 1, "{told:?}");
    // Who came in later was seen from 0 on, so that its growth is all there; a scrape may be
    // missed on a slow machine.
    let seen = "count(min_over_time(lockwatch_lock_wait_seconds_count[5m]) == 0)";
    let seen = prometheus.value(seen).unwrap();
    assert!(seen > Some((TOP * ROOM / 2) as f64), "{seen:?} callers");
    let times: u64 = endpoint
        .state()
        .latency
        .series
        .values()
        .map(|counted| counted.sum().0)
        .sum();
    let sum = prometheus
        .value("sum(lockwatch_lock_wait_seconds_sum)")
        .unwrap();
    let (sum, expected) = (sum.unwrap(), times as f64 / 1e9);
    assert!(
        (sum - expected).abs() < 1e-9 * expected,
        "{sum} for {expected}"
    );
}

#[test]
#[ignore = "metrics: needs a Prometheus; run by cargo xtask test"]
fn promtool_finds_nothing_wrong_with_the_metrics() {
    let endpoint = Endpoint::start(scene::trouble(), 10, |_| ()).unwrap();
    let text = http::get(endpoint.address, "/metrics", "").unwrap();
    let check = |text: &str| {
        let output = promtool(&["check", "metrics"], &rules::docs(), text).unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(said).unwrap())
    };
    assert_eq!(check(&text), (true, String::new()));

    // It does look.
    let nameless = text.replace("lockwatch_stalls_total", "lockwatch_stalls");
    let (passed, said) = check(&nameless);
    assert!(!passed && said.contains("\"_total\""), "{said}");
    let broken = text.replacen("caller=\"", "caller=", 1);
    let (passed, said) = check(&broken);
    assert!(!passed && said.contains("parsing error"), "{said}");
    let twice = format!("{text}{text}");
    assert!(!check(&twice).0);
}

#[test]
#[ignore = "metrics: needs a Prometheus; run by cargo xtask test"]
fn the_alert_rules_say_what_they_should() {
    let folder = rules::docs().join("prometheus");
    for arguments in [
        ["check", "rules", "alerts.yml"],
        ["test", "rules", "alerts_test.yml"],
    ] {
        let output = promtool(&arguments, &folder, "").unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(output.status.success(), "{arguments:?}: {said}");
        assert!(said.contains("SUCCESS"), "{said}");
    }
}

#[test]
#[ignore = "metrics: needs a Prometheus; run by cargo xtask test"]
fn rules_and_dashboard_ask_for_what_there_is() {
    let endpoint = Endpoint::start(scene::trouble(), 10, scene::goes_on).unwrap();
    let alerts = rules::docs().join("prometheus/alerts.yml");
    let alerts = alerts.canonicalize().unwrap();
    let prometheus = Prometheus::start(endpoint.address, std::slice::from_ref(&alerts)).unwrap();
    prometheus
        .wait_for("to scrape three times", || {
            let scraped = prometheus.value(&format!("count_over_time({UP}[1m])"))?;
            Ok((scraped >= Some(3.0)).then_some(()))
        })
        .unwrap();

    let names = prometheus.api("label/__name__/values").unwrap();
    let names: BTreeSet<&str> = names
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|name| name.as_str())
        .collect();
    let asked = |text: &str| {
        let asked = rules::names(text);
        assert!(asked.len() > 5, "{asked:?}");
        for name in asked {
            let is_family = names.contains(format!("{name}_count").as_str());
            assert!(names.contains(name) || is_family, "there is no {name}");
        }
    };
    let dashboard = rules::dashboard().unwrap();
    asked(&fs::read_to_string(&alerts).unwrap());
    asked(&dashboard.to_string());
    // But for the headers, in which OpenMetrics leaves out the suffix.
    let docs = fs::read_to_string(rules::docs().join("prometheus.md")).unwrap();
    let docs: Vec<&str> = docs
        .lines()
        .filter(|line| !line.starts_with("    # "))
        .collect();
    asked(&docs.join("\n"));

    let expressions = rules::expressions(&dashboard);
    assert!(expressions.len() > 20, "{}", expressions.len());
    for expression in expressions {
        let samples = prometheus.query(&expression).unwrap();
        assert!(!samples.is_empty(), "nothing for {expression}");
    }

    // The rules are evaluated, and an alert that needs no waiting fires.
    prometheus
        .wait_for("to fire", || {
            let firing = "ALERTS{alertname=\"LockwatchStallStands\",alertstate=\"firing\"}";
            Ok((prometheus.value(firing)? == Some(1.0)).then_some(()))
        })
        .unwrap();
    let groups = prometheus.api("rules").unwrap();
    for group in groups["groups"].as_array().unwrap() {
        for rule in group["rules"].as_array().unwrap() {
            assert_eq!(rule["health"], "ok", "{rule}");
        }
    }
    endpoint.change(|state| state.stalls.longest_standing = Nanos(0));
    prometheus
        .wait_for("to find it over", || {
            let firing = prometheus.query("ALERTS{alertname=\"LockwatchStallStands\"}")?;
            Ok(firing.is_empty().then_some(()))
        })
        .unwrap();
}
