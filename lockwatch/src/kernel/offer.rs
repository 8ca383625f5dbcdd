//! What the running kernel offers to those who want to watch locks: asked once, kept
//! as plain values, so that plans are made and tested without a kernel.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
    /// `BPF_MAP_TYPE_TASK_STORAGE`, and its helpers in tracing programs (5.11+).
    TaskStorage,
    /// The iterator over all tasks (5.8+): the survey.
    TaskIterator,
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
    /// Tracepoints and the types of their arguments, from BTF's `btf_trace_*`:
    /// `"contention_begin": ["void *", "unsigned int"]`.
    pub tracepoints: BTreeMap<String, Vec<String>>,
    /// Functions that BTF describes, and how many parameters each has.
    pub functions: BTreeMap<String, u8>,
    /// Functions in the symbol table by stem, with every name as it is spelled there
    /// (`.cold` parts are left out; a name that occurs twice is there twice):
    /// `"__mutex_lock": ["__mutex_lock.constprop.0"]`.
    pub symbols: BTreeMap<String, Vec<String>>,
    /// What these privileges lack, each by the name of a capability or namespace.
    pub missing_privileges: Vec<String>,
    /// How far the kernel is locked down; none where it does not say.
    pub lockdown: Option<Lockdown>,
    /// `kernel.kptr_restrict`; none where it cannot be read.
    pub kptr_restrict: Option<u8>,
    /// Ways that this kernel, or a policy on it, refuses, and why. Found by loading a
    /// program that does nothing.
    pub refused: BTreeMap<Mechanism, String>,
    /// Features that this kernel, or a policy on it, refuses, and why.
    pub lacking: BTreeMap<Feature, String>,
    /// What could not be asked, and why: what depends on it may be wrong.
    pub unasked: BTreeSet<String>,
}
