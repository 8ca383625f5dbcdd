//! Whether a report says what the stall lab made: no less, and nobody else accused.

use std::fmt::{self, Display, Formatter};

use serde_json::Value;

/// The report's schema that this comparison reads.
const SCHEMA: &str = "lockwatch.report/1";

/// One thing that was compared.
#[derive(Debug)]
pub(crate) struct Verdict {
    what: &'static str,
    subject: String,
    /// Why it is wrong; `None`: it is right.
    wrong: Option<String>,
}

impl Verdict {
    /// Whether report and truth agree.
    pub(crate) fn is_ok(&self) -> bool {
        self.wrong.is_none()
    }
}

impl Display for Verdict {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let verdict = self.wrong.as_deref().unwrap_or("ok");
        write!(f, "{:<8} {}  {verdict}", self.what, self.subject)
    }
}

/// Compares the lab's `ready` event with a JSON report, point by point.
pub(crate) fn compare(truth: &Value, report: &Value) -> Vec<Verdict> {
    let mut verdicts = vec![verdict("schema", SCHEMA, || {
        expect(SCHEMA, text(&report["schema"]))
    })];
    let name = text(&truth["lock"]["name"]);
    let candidates: Vec<&Value> = array(&report["locks"])
        .iter()
        .filter(|lock| is_the_lock(&truth["lock"], lock))
        .collect();
    verdicts.push(verdict("lock", name, || match candidates.len() {
        1 => None,
        0 => Some(format!(
            "missing; the report has {}",
            names(&report["locks"])
        )),
        found => Some(format!("{found} locks in the report could be it")),
    }));
    let [lock] = candidates[..] else {
        return verdicts;
    };

    let state = text(&truth["state"]);
    verdicts.push(verdict("state", state, || {
        expect(state, text(&lock["state"]))
    }));
    if let Some(readers) = truth["reader_count"].as_u64() {
        verdicts.push(verdict("readers", readers, || {
            let found = &lock["reader_count"];
            (found.as_u64() != Some(readers)).then(|| format!("reported as {found}"))
        }));
    }
    for holder in array(&truth["holders"]) {
        verdicts.push(verdict("holder", task(holder), || {
            holder_error(holder, lock)
        }));
    }
    verdicts.push(others_accused(truth, lock));
    verdicts.push(queue(truth, lock));
    for decoy in array(&truth["decoys"]) {
        let subject = format!("{} ({})", task(decoy), text(&decoy["what"]));
        verdicts.push(verdict("decoy", subject, || decoy_error(decoy, lock)));
    }
    verdicts
}

/// Same class, and the same object: by address space, by inode, or else by name.
fn is_the_lock(truth: &Value, lock: &Value) -> bool {
    let same = |key: &str| {
        let wanted = &truth[key];
        let object = &lock["object"];
        let nested = object
            .as_object()
            .into_iter()
            .flat_map(|object| object.values());
        !wanted.is_null()
            && std::iter::once(object)
                .chain(nested)
                .any(|part| part[key] == *wanted)
    };
    text(&truth["class"]) == text(&lock["class"])
        && (same("tgid") || same("ino") || text(&truth["name"]) == text(&lock["name"]))
}

fn holder_error(holder: &Value, lock: &Value) -> Option<String> {
    let Some(found) = by_tid(&lock["holders"], &holder["tid"]) else {
        return Some(format!(
            "not named; holders are {}",
            names(&lock["holders"])
        ));
    };
    for key in ["tgid", "comm", "mode"] {
        if found[key] != holder[key] {
            return Some(format!(
                "{key} is {}, reported as {}",
                holder[key], found[key]
            ));
        }
    }
    if !is_accused(found) {
        return Some(format!("only {}", text(&found["confidence"])));
    }
    let stuck = text(&holder["stuck"]);
    let reported = text(&found["stuck"]["class"]);
    (!stuck.is_empty() && stuck != reported)
        .then(|| format!("stuck in {stuck}, reported {reported}"))
}

/// A wrong accusation is worse than none: nobody but the true holders.
fn others_accused(truth: &Value, lock: &Value) -> Verdict {
    let accused: Vec<String> = array(&lock["holders"])
        .iter()
        .filter(|holder| is_accused(holder))
        .filter(|holder| by_tid(&truth["holders"], &holder["tid"]).is_none())
        .map(task)
        .collect();
    verdict("others", "nobody else accused", || {
        (!accused.is_empty()).then(|| format!("wrongly accused: {}", accused.join(", ")))
    })
}

/// All of the lab's waiters, in their order; a bystander may have queued as well.
fn queue(truth: &Value, lock: &Value) -> Verdict {
    let wanted = array(&truth["waiters"]);
    let mut reported: Vec<&Value> = array(&lock["waiters"]).iter().collect();
    reported.sort_by_key(|waiter| waiter["position"].as_u64());
    let ours: Vec<&Value> = reported
        .iter()
        .copied()
        .filter(|waiter| by_tid(&truth["waiters"], &waiter["tid"]).is_some())
        .collect();
    let others = reported.len() - ours.len();
    let mut subject = format!("{} of {} in order", ours.len(), wanted.len());
    if others > 0 {
        subject.push_str(&format!(" (and {others} other tasks)"));
    }
    verdict("waiters", subject, || {
        if ours.len() != wanted.len() {
            let missing = wanted
                .iter()
                .find(|waiter| by_tid(&lock["waiters"], &waiter["tid"]).is_none());
            return Some(missing.map_or_else(
                || "a waiter is reported twice".to_owned(),
                |waiter| format!("{} is missing", task(waiter)),
            ));
        }
        wanted.iter().zip(&ours).find_map(|(wanted, found)| {
            let same = wanted["tid"] == found["tid"] && wanted["mode"] == found["mode"];
            (!same).then(|| {
                format!(
                    "#{} is {} {}, reported is {} {}",
                    wanted["position"],
                    task(wanted),
                    text(&wanted["mode"]),
                    task(found),
                    text(&found["mode"])
                )
            })
        })
    })
}

fn decoy_error(decoy: &Value, lock: &Value) -> Option<String> {
    if by_tid(&lock["waiters"], &decoy["tid"]).is_some() {
        return Some("reported as a waiter".to_owned());
    }
    by_tid(&lock["holders"], &decoy["tid"])
        .filter(|holder| is_accused(holder))
        .map(|holder| format!("accused: {}", text(&holder["confidence"])))
}

/// `possible` is a hint, the other two are accusations.
fn is_accused(holder: &Value) -> bool {
    matches!(text(&holder["confidence"]), "certain" | "likely")
}

fn verdict(
    what: &'static str,
    subject: impl Display,
    wrong: impl FnOnce() -> Option<String>,
) -> Verdict {
    Verdict {
        what,
        subject: subject.to_string(),
        wrong: wrong(),
    }
}

fn expect(wanted: &str, found: &str) -> Option<String> {
    (wanted != found).then(|| format!("reported as `{found}`"))
}

fn by_tid<'v>(tasks: &'v Value, tid: &Value) -> Option<&'v Value> {
    array(tasks)
        .iter()
        .find(|task| !tid.is_null() && task["tid"] == *tid)
}

/// `comm[tid]`, as everywhere in the project.
fn task(task: &Value) -> String {
    format!("{}[{}]", text(&task["comm"]), task["tid"])
}

/// What a list has, for a message about what it has not.
fn names(list: &Value) -> String {
    let names: Vec<String> = array(list)
        .iter()
        .map(|item| {
            if item["tid"].is_null() {
                text(&item["name"]).to_owned()
            } else {
                task(item)
            }
        })
        .collect();
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn truth() -> Value {
        json!({
            "event": "ready", "state": "read-held", "reader_count": 1,
            "lock": {"kind": "rwsem", "class": "mmap_lock", "name": "mmap_lock of lab-target[10]",
                     "tgid": 10, "comm": "lab-target"},
            "holders": [{"tid": 11, "tgid": 10, "comm": "lab-holder", "mode": "read", "stuck": "fuse"}],
            "waiters": [{"position": 1, "tid": 21, "comm": "lab-writer", "mode": "write"},
                        {"position": 2, "tid": 22, "comm": "lab-reader", "mode": "read"}],
            "decoys": [{"tid": 31, "comm": "lab-decoy", "what": "futex"}],
        })
    }

    fn report() -> Value {
        json!({
            "schema": "lockwatch.report/1",
            "locks": [
                {"class": "i_rwsem", "name": "i_rwsem of /", "holders": [], "waiters": []},
                {"class": "mmap_lock", "name": "mmap_lock of lab-target[10]", "state": "read-held",
                 "object": {"mm": {"tgid": 10, "comm": "lab-target"}}, "reader_count": 1,
                 "holders": [{"tid": 11, "tgid": 10, "comm": "lab-holder", "mode": "read",
                              "confidence": "certain", "stuck": {"class": "fuse"}}],
                 "waiters": [{"position": 2, "tid": 22, "comm": "lab-reader", "mode": "read"},
                             {"position": 3, "tid": 99, "comm": "ps", "mode": "read"},
                             {"position": 1, "tid": 21, "comm": "lab-writer", "mode": "write"}]},
            ],
        })
    }

    /// The lines that are not ok after `change`.
    fn wrong(change: impl FnOnce(&mut Value)) -> Vec<String> {
        let mut report = report();
        change(&mut report["locks"][1]);
        compare(&truth(), &report)
            .iter()
            .filter(|verdict| !verdict.is_ok())
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn a_true_report_is_ok_in_every_point() {
        let lines: Vec<String> = compare(&truth(), &report())
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            lines,
            [
                "schema   lockwatch.report/1  ok",
                "lock     mmap_lock of lab-target[10]  ok",
                "state    read-held  ok",
                "readers  1  ok",
                "holder   lab-holder[11]  ok",
                "others   nobody else accused  ok",
                "waiters  2 of 2 in order (and 1 other tasks)  ok",
                "decoy    lab-decoy[31] (futex)  ok",
            ]
        );
    }

    #[test]
    fn each_lie_is_named() {
        type Lie = fn(&mut Value);
        let lies: [(Lie, &str); 12] = [
            (
                |lock| lock["class"] = json!("i_rwsem"),
                "missing; the report has i_rwsem of /",
            ),
            (|lock| lock["state"] = json!("free"), "reported as `free`"),
            (|lock| lock["reader_count"] = json!(2), "reported as 2"),
            (
                |lock| lock["holders"] = json!([]),
                "not named; holders are none",
            ),
            (
                |lock| lock["holders"][0]["confidence"] = json!("possible"),
                "only possible",
            ),
            (
                |lock| lock["holders"][0]["mode"] = json!("write"),
                "mode is \"read\"",
            ),
            (
                |lock| lock["holders"][0]["stuck"]["class"] = json!("lock"),
                "stuck in fuse",
            ),
            (
                |lock| lock["waiters"][0]["tid"] = json!(50),
                "lab-reader[22] is missing",
            ),
            (
                |lock| lock["waiters"][0]["position"] = json!(0),
                "#1 is lab-writer[21] write",
            ),
            (|lock| lock["waiters"][1]["tid"] = json!(22), "a waiter"),
            (
                |lock| lock["waiters"][1]["tid"] = json!(31),
                "reported as a waiter",
            ),
            (
                |lock| lock["waiters"][2]["mode"] = json!("read"),
                "reported is lab-writer[21] read",
            ),
        ];
        for (lie, reason) in lies {
            let lines = wrong(lie);
            assert!(
                lines.iter().any(|line| line.contains(reason)),
                "{reason}: {lines:?}"
            );
        }
    }

    #[test]
    fn a_decoy_may_be_possible_but_never_likely() {
        let accuse = |confidence: &str| {
            let accused =
                json!({"tid": 31, "comm": "lab-decoy", "mode": "read", "confidence": confidence});
            wrong(|lock| lock["holders"].as_array_mut().unwrap().push(accused))
        };
        assert_eq!(accuse("possible"), Vec::<String>::new());
        let lines = accuse("likely");
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(
            lines[0].contains("wrongly accused: lab-decoy[31]"),
            "{lines:?}"
        );
        assert!(lines[1].contains("accused: likely"), "{lines:?}");
    }
}
