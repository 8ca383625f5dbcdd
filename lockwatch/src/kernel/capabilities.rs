//! What these privileges allow on this host, asked before anything is loaded.

use std::{fs, path::Path};

use rustix::thread::{CapabilitySet, capabilities};

/// A thing that lockwatch cannot do without is missing. Each message names it and
/// the remedy.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Missing {
    /// Capabilities.
    #[error(
        "missing {0}: run as root, or give lockwatch these capabilities (setcap, AmbientCapabilities=)"
    )]
    Capabilities(String),
    /// Capabilities of a user namespace are none to the kernel.
    #[error(
        "this is not the host's user namespace, whose root alone may load programs into the kernel: run lockwatch on the host"
    )]
    UserNamespace,
    /// The kernel's task iterator shows only the reader's PID namespace.
    #[error(
        "this is not the host's PID namespace, so the kernel shows lockwatch only the tasks of this container: run it on the host (nsenter -t 1 -p, docker run --pid=host, hostPID: true)"
    )]
    PidNamespace,
    /// /proc is not there.
    #[error("cannot read /proc/self/ns to tell whose tasks the kernel shows: mount /proc")]
    Proc,
}

/// The initial namespaces by inode number (`PROC_USER_INIT_INO`, `PROC_PID_INIT_INO`,
/// include/linux/proc_ns.h, the same since 3.8).
const INITIAL_USER_NAMESPACE: &str = "user:[4026531837]";
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";

/// Checks privileges and namespace; what passes here can still be refused by the
/// kernel's policy when programs are loaded.
///
/// # Errors
/// Names the first thing that is missing.
pub fn check() -> Result<(), Missing> {
    missing().into_iter().next().map_or(Ok(()), Err)
}

/// Checks the namespaces alone: in others than the host's, the thread IDs that programs
/// see in the kernel are not those that we see.
///
/// # Errors
/// Names the first thing that is missing, which is no capability.
pub fn check_namespaces() -> Result<(), Missing> {
    missing()
        .into_iter()
        .find(|missing| !matches!(missing, Missing::Capabilities(_)))
        .map_or(Ok(()), Err)
}

/// Everything that is missing of privileges and namespaces.
pub fn missing() -> Vec<Missing> {
    let effective = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    let in_initial = |kind, initial, missing| match in_namespace(kind, initial) {
        Ok(true) => Ok(()),
        Ok(false) => Err(missing),
        Err(error) => Err(error),
    };
    let mut all: Vec<Missing> = [
        check_capabilities(effective),
        in_initial("user", INITIAL_USER_NAMESPACE, Missing::UserNamespace),
        in_initial("pid", INITIAL_PID_NAMESPACE, Missing::PidNamespace),
    ]
    .into_iter()
    .filter_map(Result::err)
    .collect();
    all.dedup();
    all
}

fn in_namespace(kind: &str, initial: &str) -> Result<bool, Missing> {
    // A link that procfs makes up: reading it follows nothing.
    let link = fs::read_link(Path::new("/proc/self/ns").join(kind)).map_err(|_| Missing::Proc)?;
    Ok(link.as_os_str() == initial)
}

/// Whether this process may lock as much memory as it likes (`CAP_IPC_LOCK`).
pub fn may_lock_memory() -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK))
        && in_namespace("user", INITIAL_USER_NAMESPACE) == Ok(true)
}

fn check_capabilities(effective: CapabilitySet) -> Result<(), Missing> {
    // CAP_SYS_ADMIN stands in for CAP_BPF and CAP_PERFMON (5.8+), not for CAP_SYSLOG.
    let admin = effective.contains(CapabilitySet::SYS_ADMIN);
    let needed = [
        (CapabilitySet::BPF, admin, "CAP_BPF"),
        (CapabilitySet::PERFMON, admin, "CAP_PERFMON"),
        (CapabilitySet::SYSLOG, false, "CAP_SYSLOG"),
    ];
    let missing: Vec<&str> = needed
        .into_iter()
        .filter(|&(capability, replaced, _)| !replaced && !effective.contains(capability))
        .map(|(_, _, name)| name)
        .collect();
    if missing.is_empty() {
        Ok(())
    } else {
        Err(Missing::Capabilities(missing.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_missing_capability_is_named() {
        let none = check_capabilities(CapabilitySet::empty());
        assert_eq!(
            none,
            Err(Missing::Capabilities(
                "CAP_BPF, CAP_PERFMON, CAP_SYSLOG".into()
            ))
        );
        let admin = check_capabilities(CapabilitySet::SYS_ADMIN);
        assert_eq!(admin, Err(Missing::Capabilities("CAP_SYSLOG".into())));
        let least = CapabilitySet::BPF | CapabilitySet::PERFMON | CapabilitySet::SYSLOG;
        assert_eq!(check_capabilities(least), Ok(()));
    }
}
