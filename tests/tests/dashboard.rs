//! The dashboard of docs/grafana/, as far as that can be told without Grafana.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::collections::BTreeSet;

use lockwatch::export::open_metrics;
use serde_json::Value;

/// Columns of Grafana's grid.
const COLUMNS: u64 = 24;

fn dashboard() -> Value {
    let text = include_str!("../../docs/grafana/lockwatch.json");
    serde_json::from_str(text).unwrap()
}

fn panels(dashboard: &Value) -> &[Value] {
    dashboard["panels"].as_array().unwrap()
}

#[test]
fn no_panel_lies_over_another_one() {
    let dashboard = dashboard();
    let mut taken = BTreeSet::new();
    let mut ids = BTreeSet::new();
    for panel in panels(&dashboard) {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "id of {title}");
        let at = |name: &str| panel["gridPos"][name].as_u64().unwrap();
        assert!(at("x") + at("w") <= COLUMNS, "{title}");
        for x in at("x")..at("x") + at("w") {
            for y in at("y")..at("y") + at("h") {
                assert!(taken.insert((x, y)), "{title} at {x}, {y}");
            }
        }
    }
    let lowest = taken.iter().map(|&(_, y)| y).max().unwrap();
    // And none leaves a hole.
    assert_eq!(taken.len() as u64, (lowest + 1) * COLUMNS);
}

#[test]
fn every_panel_asks_the_chosen_prometheus_for_the_chosen_hosts() {
    let dashboard = dashboard();
    assert!(dashboard["schemaVersion"].as_u64() >= Some(38));
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let names: Vec<&str> = variables
        .iter()
        .map(|variable| variable["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["datasource", "instance", "class"]);
    assert_eq!(variables[0]["type"], "datasource");
    assert_eq!(variables[0]["query"], "prometheus");
    for panel in panels(&dashboard) {
        let title = panel["title"].as_str().unwrap();
        if panel["type"] == "row" {
            continue;
        }
        assert!(
            !panel["description"].as_str().unwrap().is_empty(),
            "{title}"
        );
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{title}");
        let mut references = BTreeSet::new();
        for target in targets {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
            assert!(
                references.insert(target["refId"].as_str().unwrap()),
                "{title}"
            );
            let expression = target["expr"].as_str().unwrap();
            let selectors = expression.matches('{').count();
            let chosen = expression.matches("instance=~\"$instance\"").count();
            assert_eq!(selectors, chosen, "{title}: {expression}");
            assert!(chosen > 0, "{title}: {expression}");
        }
    }
}

#[test]
fn every_metric_has_its_panel() {
    let text = dashboard().to_string();
    // None of these changes with how the host fares.
    let unseen = [
        "lockwatch_other_callers",
        "lockwatch_stall_longest_seconds",
        "lockwatch_stall_threshold_seconds",
        "lockwatch_start_time_seconds",
    ];
    for metric in open_metrics::ALL {
        let name = metric.name();
        let is_unseen = unseen.contains(&name.as_str());
        assert_eq!(text.contains(&name), !is_unseen, "{name}");
    }
}
