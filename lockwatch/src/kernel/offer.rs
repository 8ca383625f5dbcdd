//! What the running kernel offers to those who want to watch locks: asked once, kept
//! as plain values, so that plans are made and tested without a kernel.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::kernel::{
    btf::Btf,
    capabilities,
    layout::Layout,
    lock_functions::tracepoint,
    symbols::{KALLSYMS, KPTR_RESTRICT, Spelled},
};

/// Ways to run a program when the kernel comes by a place, best first.
///
/// There is no kretprobe, on purpose: it wants one of a fixed number of instances from
/// the entry of the function to its return (about one per CPU, kernel/kprobes.c), so on a
/// function that blocks they run out when a thousand tasks wait, and then it is silent
/// about just those that matter.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Mechanism {
    /// A tracepoint, its arguments typed by BTF: 6 to 7 ns for an empty program.
    TpBtf,
    /// A tracepoint, its arguments as plain words: the same cost.
    RawTp,
    /// The entry of a function that BTF describes: 10 ns.
    Fentry,
    /// The return of a function that BTF describes, with its arguments and its result: 19 ns.
    Fexit,
    /// The entry of any function with a symbol: 18 ns.
    Kprobe,
}

impl Mechanism {
    /// All, best first.
    pub const ALL: [Self; 5] = [
        Self::TpBtf,
        Self::RawTp,
        Self::Fentry,
        Self::Fexit,
        Self::Kprobe,
    ];

    /// As it is written in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::TpBtf => "tp_btf",
            Self::RawTp => "raw_tp",
            Self::Fentry => "fentry",
            Self::Fexit => "fexit",
            Self::Kprobe => "kprobe",
        }
    }
}

/// What else programs need of a kernel: kinds of map, of program, of helper.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Feature {
    /// `BPF_MAP_TYPE_RINGBUF` (5.8+): events to user space.
    RingBuffer,
    /// `BPF_MAP_TYPE_TASK_STORAGE` (5.11+), and its helpers in tracing programs (5.13+).
    TaskStorage,
    /// The iterator over all tasks (5.8+): the survey.
    TaskIterator,
    /// Programs of perf events (4.9+), and the event of a CPU's own clock: lockups.
    CpuSamples,
}

/// How far the kernel is locked down (`/sys/kernel/security/lockdown`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Lockdown {
    /// Not at all.
    None,
    /// Nobody may change the kernel.
    Integrity,
    /// Nobody may read its memory either: no survey, no kprobe.
    Confidentiality,
}

/// What the running kernel, and these privileges, offer.
///
/// Tables hold only what some plan could want, so that an offer is small enough to be
/// kept as a test fixture or sent with a bug report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Offer {
    /// `uname -r`. For people: no decision is made by it.
    pub release: String,
    /// `uname -m`.
    pub machine: String,
    /// Whether its sleeping locks are built on rt_mutexes (`PREEMPT_RT`).
    pub preempt_rt: bool,
    /// Whether it shows its type information.
    pub btf: bool,
    /// What lockwatch does not know about the layout of its types; none if it knows all
    /// that it needs, or there are no types.
    pub unknown_layout: Option<String>,
    /// Tracepoints and the types of their arguments, from BTF's `btf_trace_*`:
    /// `"contention_begin": ["void *", "unsigned int"]`.
    pub tracepoints: BTreeMap<String, Vec<String>>,
    /// Functions that BTF describes, and how many parameters each has.
    pub functions: BTreeMap<String, u8>,
    /// Functions in the symbol table by stem, with every name as it is spelled there
    /// (`.cold` parts are left out; a name that occurs twice is there twice):
    /// `"__mutex_lock": ["__mutex_lock.constprop.0"]`.
    pub symbols: Spelled,
    /// What these privileges lack, each with the remedy.
    pub missing_privileges: Vec<String>,
    /// How far the kernel is locked down; none where it does not say.
    pub lockdown: Option<Lockdown>,
    /// `kernel.kptr_restrict`; none where it cannot be read.
    pub kptr_restrict: Option<u8>,
    /// Ways that this kernel, or a policy on it, refuses, and why. Found by loading a
    /// program that does nothing.
    pub refused: BTreeMap<Mechanism, String>,
    /// Tracepoints and functions of the tables above at which the kernel refuses a program,
    /// though it takes one elsewhere, and why.
    pub unhookable: BTreeMap<String, String>,
    /// Features that this kernel, or a policy on it, refuses, and why.
    pub lacking: BTreeMap<Feature, String>,
    /// What could not be asked, and why: what depends on it may be wrong.
    pub unasked: BTreeSet<String>,
}

/// What only the loading of programs can tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trial {
    /// As [`Offer::refused`].
    pub refused: BTreeMap<Mechanism, String>,
    /// As [`Offer::unhookable`].
    pub unhookable: BTreeMap<String, String>,
    /// As [`Offer::lacking`].
    pub lacking: BTreeMap<Feature, String>,
}

/// Where the kernel says how far it is locked down; the active mode is in brackets.
const LOCKDOWN: &str = "/sys/kernel/security/lockdown";

impl Offer {
    /// What the running kernel says of itself. `trial`: what became of programs that
    /// were loaded; none if these privileges allow no such thing.
    /// `spelled`: [`Self::symbols`], or why they could not be read.
    pub fn of_this_kernel(
        btf: Option<&Btf>,
        spelled: Result<Spelled, String>,
        trial: Option<Trial>,
    ) -> Self {
        let mut unasked = BTreeSet::new();
        let symbols = spelled.unwrap_or_else(|why| {
            unasked.insert(format!(
                "how functions are spelled: cannot read {KALLSYMS}: {why}"
            ));
            Spelled::new()
        });
        let mut ask = |what: &str, path: &str| {
            fs::read_to_string(path)
                .inspect_err(|error| {
                    unasked.insert(format!("{what}: cannot read {path}: {error}"));
                })
                .ok()
        };
        let kptr_restrict = ask("whether addresses are hidden", KPTR_RESTRICT);
        if trial.is_none() {
            unasked.insert(
                "what a security policy refuses: these privileges do not allow to try".to_owned(),
            );
        }
        let Trial {
            refused,
            unhookable,
            lacking,
        } = trial.unwrap_or_default();
        let name = rustix::system::uname();
        Self {
            release: name.release().to_string_lossy().into_owned(),
            machine: name.machine().to_string_lossy().into_owned(),
            preempt_rt: btf
                .map_or_else(|| Path::new("/sys/kernel/realtime").exists(), is_preempt_rt),
            btf: btf.is_some(),
            unknown_layout: btf
                .and_then(|btf| Layout::from_btf(btf).err())
                .map(|error| error.to_string()),
            tracepoints: btf
                .into_iter()
                .flat_map(Btf::tracepoints)
                .filter(|(_, name)| tracepoint::ALL.contains(name))
                .filter_map(|(id, name)| Some((name.to_owned(), btf?.tracepoint_arguments(id)?)))
                .collect(),
            functions: btf
                .into_iter()
                .flat_map(Btf::lock_functions)
                .map(|(_, name, parameters)| (name.to_owned(), parameters))
                .collect(),
            symbols,
            missing_privileges: capabilities::missing()
                .iter()
                .map(ToString::to_string)
                .collect(),
            // Without the file there is no such policy, or no securityfs to tell of it.
            lockdown: fs::read_to_string(LOCKDOWN)
                .ok()
                .and_then(|modes| lockdown(&modes)),
            kptr_restrict: kptr_restrict.and_then(|level| level.trim().parse().ok()),
            refused,
            unhookable,
            lacking,
            unasked,
        }
    }

    /// Why this way cannot be used, if it cannot.
    pub fn refusal(&self, mechanism: Mechanism) -> Option<&str> {
        self.refused.get(&mechanism).map(String::as_str)
    }
}

/// `rwbase`: 5.15+; `rtmutex`: the patches for kernels before that.
fn is_preempt_rt(btf: &Btf) -> bool {
    ["rw_semaphore.rwbase", "rw_semaphore.rtmutex"]
        .iter()
        .any(|member| btf.member(member).is_some())
}

fn lockdown(modes: &str) -> Option<Lockdown> {
    let active = modes.split(['[', ']']).nth(1)?;
    match active {
        "none" => Some(Lockdown::None),
        "integrity" => Some(Lockdown::Integrity),
        "confidentiality" => Some(Lockdown::Confidentiality),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_active_mode_of_lockdown_is_the_one_in_brackets() {
        for (modes, expected) in [
            ("[none] integrity confidentiality\n", Some(Lockdown::None)),
            (
                "none [integrity] confidentiality\n",
                Some(Lockdown::Integrity),
            ),
            (
                "none integrity [confidentiality]\n",
                Some(Lockdown::Confidentiality),
            ),
            ("[future]", None),
            ("", None),
        ] {
            assert_eq!(lockdown(modes), expected, "{modes}");
        }
    }
}
