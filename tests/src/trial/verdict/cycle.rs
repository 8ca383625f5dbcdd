//! What a report gets wrong about a deadlock, and about a crowd of waiters.

use std::collections::{BTreeMap, BTreeSet};

use super::Verdict;
use crate::{
    trial::report::{Finding, Lock, Report, Step},
    truth::{Crowd, Cycle, Mode, Ready, Tid},
};

/// The detector that finds rings.
const DETECTOR: &str = "deadlock";

impl Verdict {
    /// The ring is found once, as it is; where there is none, none is found.
    pub(super) fn cycle(&mut self, report: &Report, truth: &Ready) {
        let found: Vec<&Finding> = report
            .findings
            .iter()
            .filter(|finding| finding.detector == DETECTOR)
            .collect();
        match (&truth.cycle, &found[..]) {
            (None, []) => {}
            (None, _) => self.complain(format!(
                "a deadlock is found where there is none: {}",
                found[0].sentence
            )),
            (Some(cycle), [finding]) => {
                let name = |id: &str| {
                    let mut locks = report.locks.iter();
                    let lock = locks.find(|lock| lock.id == id);
                    lock.map_or_else(|| id.to_owned(), |lock| lock.name.clone())
                };
                self.wrong.extend(complaints(finding, cycle, name));
            }
            (Some(_), found) => {
                self.complain(format!("{} deadlocks are found, not 1", found.len()));
            }
        }
    }

    /// Everybody of the crowd is in the queue, as a reader, and no other task of theirs.
    pub(super) fn crowd(&mut self, lock: &Lock, truth: &Ready) {
        let mut queued = BTreeMap::new();
        for waiter in lock.waiters.iter().filter(|waiter| !waiter.granted) {
            if waiter.mode == Mode::Read {
                *queued.entry((waiter.tgid, &*waiter.comm)).or_insert(0) += 1;
            }
        }
        for Crowd { tgid, comm, tasks } in &truth.crowd {
            let found = queued.get(&(*tgid, &**comm)).copied().unwrap_or(0);
            self.expect(found == *tasks, || {
                format!(
                    "{found} readers of {comm}[{}] are queued, not {tasks}",
                    tgid.0
                )
            });
        }
    }
}

/// Whether a finding is about this ring: nobody is missing, and nobody else is in it.
pub fn is_ring(finding: &Finding, cycle: &Cycle) -> bool {
    let is_member = |tid: &Tid| cycle.tasks.iter().any(|member| member.tid == *tid);
    finding.locks.len() == cycle.locks.len()
        && cycle
            .tasks
            .iter()
            .all(|member| finding.tasks.contains(&member.tid))
        && finding
            .tasks
            .iter()
            .all(|tid| is_member(tid) || cycle.between.contains(tid))
}

/// What is wrong with a finding about this ring; `name` tells the name of a lock by its id.
fn complaints(finding: &Finding, cycle: &Cycle, name: impl Fn(&str) -> String) -> Vec<String> {
    let mut wrong = Vec::new();
    let ring: Vec<Tid> = cycle.tasks.iter().map(|member| member.tid).collect();
    let tasks: BTreeSet<Tid> = finding.tasks.iter().copied().collect();
    let missing: Vec<_> = ring.iter().filter(|tid| !tasks.contains(tid)).collect();
    if !missing.is_empty() {
        wrong.push(format!("the deadlock is found without {missing:?}"));
    }
    let innocent: Vec<_> = tasks
        .iter()
        .filter(|tid| !ring.contains(tid) && !cycle.between.contains(tid))
        .collect();
    if !innocent.is_empty() {
        wrong.push(format!("the deadlock is said to have {innocent:?} in it"));
    }
    let locks: BTreeSet<String> = finding.locks.iter().map(|id| name(id)).collect();
    let wanted: BTreeSet<String> = cycle.locks.iter().cloned().collect();
    if locks != wanted {
        wrong.push(format!("the deadlock is about {locks:?}, not {wanted:?}"));
    }
    let order = order(&finding.path, &ring);
    if !is_rotated(&order, &ring) {
        wrong.push(format!(
            "the path of the deadlock leads along {order:?}, in truth {ring:?}"
        ));
    }
    if !cycle
        .tasks
        .iter()
        .any(|member| finding.sentence.contains(&member.comm))
    {
        wrong.push(format!(
            "`{}` names no task of the deadlock",
            finding.sentence
        ));
    }
    wrong
}

/// The tasks of the ring as the path goes, each once where it is named twice in a row, or at
/// the beginning and at the end.
fn order(path: &[Step], ring: &[Tid]) -> Vec<Tid> {
    let mut order: Vec<Tid> = path
        .iter()
        .filter_map(|step| match step {
            Step::Task(tid) | Step::Daemon(tid) => Some(*tid),
            Step::Lock(_) => None,
        })
        .filter(|tid| ring.contains(tid))
        .collect();
    order.dedup();
    if order.len() > 1 && order.first() == order.last() {
        order.pop();
    }
    order
}

/// A ring has no beginning.
fn is_rotated(order: &[Tid], ring: &[Tid]) -> bool {
    order.len() == ring.len()
        && (0..ring.len()).any(|at| [&ring[at..], &ring[..at]].concat() == *order)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn cycle() -> Cycle {
        let member = |tid: i32, comm: &str, role: &str| json!({"tid": tid, "tgid": 10, "comm": comm, "role": role});
        serde_json::from_value(json!({
            "tasks": [member(11, "lab-holder", "holder"), member(12, "lab-server", "daemon")],
            "between": [21], "locks": ["i_rwsem of /mnt/dir"]
        }))
        .unwrap()
    }

    fn finding() -> Value {
        json!({
            "detector": "deadlock", "locks": ["a"], "tasks": [11, 12],
            "path": [{"task": 11}, {"daemon": 12}, {"lock": "a"}, {"task": 11}],
            "sentence": "lab-holder[11] and lab-server[12] wait for each other"
        })
    }

    fn judge(finding: Value) -> Vec<String> {
        let finding: Finding = serde_json::from_value(finding).unwrap();
        complaints(&finding, &cycle(), |id| match id {
            "a" => "i_rwsem of /mnt/dir".to_owned(),
            other => other.to_owned(),
        })
    }

    #[test]
    fn a_ring_may_begin_anywhere_and_name_who_stands_between() {
        assert_eq!(judge(finding()), Vec::<String>::new());
        let mut other = finding();
        other["path"] = json!([{"lock": "a"}, {"task": 21}, {"task": 11}, {"daemon": 12}]);
        other["tasks"] = json!([12, 21, 11]);
        assert_eq!(judge(other), Vec::<String>::new());
    }

    #[test]
    fn every_lie_about_a_ring_is_found() {
        let lies = [
            ("tasks", json!([11]), "without"),
            ("tasks", json!([11, 12, 31]), "31"),
            ("locks", json!([]), "is about"),
            ("locks", json!(["a", "b"]), "is about"),
            ("path", json!([]), "leads along"),
            ("path", json!([{"task": 11}, {"lock": "a"}]), "leads along"),
            ("sentence", json!("two tasks wait"), "names no task"),
        ];
        let read = |finding| serde_json::from_value::<Finding>(finding).unwrap();
        assert!(is_ring(&read(finding()), &cycle()));
        for (field, lie, word) in lies {
            let mut finding = finding();
            finding[field] = lie.clone();
            let matters = field == "tasks" || lie == json!([]) && field == "locks";
            assert!(
                !matters || !is_ring(&read(finding.clone()), &cycle()),
                "{lie}"
            );
            let wrong = judge(finding);
            assert!(
                wrong.iter().any(|one| one.contains(word)),
                "{field} = {lie}: {wrong:?}"
            );
        }
    }

    #[test]
    fn a_ring_of_three_has_a_direction() {
        let tids = |tids: &[i32]| tids.iter().map(|tid| Tid(*tid)).collect::<Vec<_>>();
        let ring = tids(&[1, 2, 3]);
        assert!(is_rotated(&tids(&[3, 1, 2]), &ring));
        assert!(!is_rotated(&tids(&[3, 2, 1]), &ring));
        assert!(!is_rotated(&tids(&[1, 2]), &ring));
    }
}
