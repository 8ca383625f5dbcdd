//! Many recordings at a glance: the contract `lockwatch.recordings/1`. docs/recording.md
//! explains it.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use schemars::JsonSchema;
use serde::Serialize;

use super::Host;
use crate::{
    detect::{Detectors, Severity},
    recording::Replayed,
    task::Nanos,
};

/// Name and version of the contract.
pub const CONTRACT: &str = "lockwatch.recordings/1";

/// What many recordings come to.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Recordings {
    /// Name and version of this contract.
    #[schemars(extend("const" = CONTRACT))]
    pub schema: &'static str,
    /// Version of lockwatch that made it.
    pub lockwatch: &'static str,
    /// The recordings, the one with the longest stall first.
    pub recordings: Vec<Recording>,
    /// What the detectors say of the worst survey of each, those that say the same together,
    /// the most severe first.
    pub findings: Vec<FindingOfMany>,
}

/// One recording.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Recording {
    /// Its file, as it was given.
    pub file: String,
    /// The host it is of.
    pub host: Host,
    /// When it began, RFC 3339 in UTC.
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub from: jiff::Timestamp,
    /// When it ended, or where it is cut off.
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub to: jiff::Timestamp,
    /// How long a wait had to be to be a stall, in ns.
    pub threshold_ns: Nanos,
    /// Stalls; those that stood at the end are counted, too.
    pub stalls: u64,
    /// Stalls that stood at the end.
    pub standing: u64,
    /// The longest stall, in ns. Absent if there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub longest_ns: Option<Nanos>,
    /// Stalls by the class of the lock, the longest first; each is one of the thousand longest
    /// or stood at the end.
    pub classes: Vec<ClassOfStalls>,
    /// Tasks and CPUs that hung on what is no lock.
    pub hangs: u64,
    /// What is not known, one line each.
    pub degraded: Vec<String>,
    /// True if it is cut off or damaged: there may have been more.
    pub is_cut_off: bool,
    /// What the detectors say of the worst survey: detector, severity, sentence.
    #[serde(skip)]
    #[schemars(skip)]
    pub findings: Vec<(String, Severity, String)>,
}

/// Stalls on locks of one class.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ClassOfStalls {
    /// The class; `unknown` if no survey has found the lock.
    pub class: String,
    /// How many.
    pub stalls: u64,
    /// The longest, in ns.
    pub longest_ns: Nanos,
}

/// What one detector says of some of the recordings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct FindingOfMany {
    /// Name of the detector.
    pub detector: String,
    /// How much it matters, at the worst.
    pub severity: Severity,
    /// How many findings there are.
    pub count: u64,
    /// On which hosts.
    pub hosts: BTreeSet<String>,
    /// The worst of them in words, without a full stop.
    pub sentence: String,
    /// The host that this is about.
    pub of_host: String,
}

impl Recording {
    /// What a recording came to.
    pub fn of(file: String, replayed: &Replayed, detectors: &Detectors) -> Self {
        let header = &replayed.header;
        let standing = replayed.standing();
        let ended = replayed.ended.iter();
        let ended = ended.map(|ended| (ended.class.as_ref(), ended.stall.length()));
        let stood = standing.iter().map(|stall| {
            let class = stall.facts.as_ref().map(|facts| &facts.lock().class);
            (class, stall.age(replayed.last_ns))
        });
        let mut classes: BTreeMap<String, ClassOfStalls> = BTreeMap::new();
        for (class, length) in ended.chain(stood) {
            let class = class.map_or_else(|| "unknown".to_owned(), ToString::to_string);
            let new = ClassOfStalls {
                class: class.clone(),
                stalls: 0,
                longest_ns: Nanos(0),
            };
            let of_class = classes.entry(class).or_insert(new);
            of_class.stalls += 1;
            of_class.longest_ns = of_class.longest_ns.max(length);
        }
        let mut classes: Vec<ClassOfStalls> = classes.into_values().collect();
        classes.sort_by_key(|class| Reverse(class.longest_ns));
        let worst = replayed.chosen.as_ref();
        let report = worst.map(|(_, survey)| replayed.report_of(survey, detectors));
        let findings = report.into_iter().flat_map(|report| report.findings);
        Self {
            file,
            host: header.host.clone(),
            from: header.began_at,
            to: header.time_of(replayed.last_ns),
            threshold_ns: header.threshold_ns,
            stalls: replayed.ended_count + standing.len() as u64,
            standing: standing.len() as u64,
            longest_ns: classes.first().map(|class| class.longest_ns),
            classes,
            hangs: replayed.hangs.count,
            degraded: replayed.degraded(),
            is_cut_off: replayed.damage.is_some(),
            findings: findings
                .map(|finding| (finding.detector, finding.severity, finding.sentence))
                .collect(),
        }
    }

    /// True if a stall stood or ended during the recording, or a task or a CPU hung.
    pub fn has_stall(&self) -> bool {
        self.stalls + self.hangs > 0
    }
}

impl Recordings {
    /// Sums them up.
    pub fn of(mut recordings: Vec<Recording>) -> Self {
        recordings.sort_by_key(|recording| Reverse(recording.longest_ns));
        let mut findings: BTreeMap<&str, FindingOfMany> = BTreeMap::new();
        for recording in &recordings {
            for (detector, severity, sentence) in &recording.findings {
                let host = &recording.host.hostname;
                let of_all = findings.entry(detector).or_insert_with(|| FindingOfMany {
                    detector: detector.clone(),
                    severity: *severity,
                    count: 0,
                    hosts: BTreeSet::new(),
                    sentence: sentence.clone(),
                    of_host: host.clone(),
                });
                of_all.count += 1;
                of_all.hosts.insert(host.clone());
                // Of equal ones the first stays: its recording has the longer stall.
                if *severity > of_all.severity {
                    of_all.severity = *severity;
                    of_all.sentence = sentence.clone();
                    of_all.of_host = host.clone();
                }
            }
        }
        let mut findings: Vec<FindingOfMany> = findings.into_values().collect();
        findings.sort_by_key(|finding| (Reverse(finding.severity), Reverse(finding.count)));
        Self {
            schema: CONTRACT,
            lockwatch: env!("CARGO_PKG_VERSION"),
            recordings,
            findings,
        }
    }

    /// The hosts they are of.
    pub fn hosts(&self) -> BTreeSet<&str> {
        let hosts = self.recordings.iter();
        hosts
            .map(|recording| recording.host.hostname.as_str())
            .collect()
    }
}
