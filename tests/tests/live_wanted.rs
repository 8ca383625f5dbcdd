//! Only waits that are asked for are counted.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod counting;

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process,
    time::Duration,
};

use counting::{Counting, total};
use lockwatch::{
    latency::{Caller, Snapshot},
    stream::counts::{CountOptions, CountsWanted},
    task::{Nanos, Tgid},
};
use lockwatch_tests::storm::Storm;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Counts what is asked for while threads of ours contend for their mmap_lock, and says how
/// often they waited.
fn counted(wanted: CountsWanted) -> (u64, Snapshot) {
    let options = CountOptions {
        callers_from: Nanos(0),
        wanted,
        ..CountOptions::default()
    };
    let counting = Counting::attach(&options, false);
    Storm::MmapLock.run(8, Duration::from_secs(1)).unwrap();
    let snapshot = counting.read();
    (total(&snapshot, |_| true).count(), snapshot)
}

/// Cgroup v2, mounted, with a group that our process is in. Dropped, it is back where it was.
struct Group {
    mounted: tempfile::TempDir,
    group: PathBuf,
}

impl Group {
    fn enter() -> Self {
        let mounted = tempfile::tempdir().unwrap();
        let nothing: Option<&str> = None;
        mount(
            Some("none"),
            mounted.path(),
            Some("cgroup2"),
            MsFlags::empty(),
            nothing,
        )
        .unwrap();
        let group = mounted.path().join(format!("storm-{}", process::id()));
        let group = Self { mounted, group };
        fs::create_dir(&group.group).unwrap();
        enter(&group.group).unwrap();
        group
    }

    fn id(&self) -> u64 {
        self.group.metadata().unwrap().ino()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let left = enter(self.mounted.path()).and_then(|()| fs::remove_dir(&self.group));
        let gone = umount2(self.mounted.path(), MntFlags::MNT_DETACH);
        println!("left the group: {left:?}, {gone:?}");
    }
}

fn enter(group: &Path) -> std::io::Result<()> {
    fs::write(group.join("cgroup.procs"), process::id().to_string())
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn only_what_is_asked_for_is_counted() {
    let wanted = CountsWanted::default;
    let us = Tgid(process::id());
    let (count, _) = counted(CountsWanted {
        pids: vec![Tgid(1), us],
        ..wanted()
    });
    assert!(count > 20, "{count} waits of our process");
    let (count, snapshot) = counted(CountsWanted {
        pids: vec![Tgid(1)],
        ..wanted()
    });
    assert_eq!(count, 0, "of another process: {snapshot:#?}");

    let (count, snapshot) = counted(CountsWanted {
        comms: vec!["storm-".to_owned(), "stor".to_owned()],
        ..wanted()
    });
    assert_eq!(count, 0, "of other names: {snapshot:#?}");

    let (count, snapshot) = counted(CountsWanted {
        pids: vec![us],
        classes: vec!["mmap_lock".to_owned()],
        ..wanted()
    });
    assert!(count > 20, "{count} waits for mmap_lock");
    for key in snapshot.series.keys() {
        assert_eq!(key.class.to_string(), "mmap_lock");
    }
    let (count, snapshot) = counted(CountsWanted {
        pids: vec![us],
        classes: vec!["i_rwsem".to_owned(), "s_umount".to_owned()],
        ..wanted()
    });
    assert_eq!(count, 0, "of other classes: {snapshot:#?}");

    let munmap = "__vm_munmap".to_owned();
    let (count, snapshot) = counted(CountsWanted {
        pids: vec![us],
        callers: vec![munmap.clone()],
        ..wanted()
    });
    assert!(count > 5, "{count} waits in {munmap}");
    for key in snapshot.series.keys() {
        assert_eq!(key.caller, Caller::Function(munmap.clone()));
    }
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn only_what_is_in_the_control_group_is_counted() {
    let group = Group::enter();
    let (count, _) = counted(CountsWanted {
        cgroups: vec![group.id()],
        ..CountsWanted::default()
    });
    assert!(count > 20, "{count} waits in our group");
    let other = group.mounted.path().metadata().unwrap().ino();
    let (count, snapshot) = counted(CountsWanted {
        cgroups: vec![other],
        pids: vec![Tgid(process::id())],
        ..CountsWanted::default()
    });
    assert_eq!(count, 0, "in the group above: {snapshot:#?}");
}
