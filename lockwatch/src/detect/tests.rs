use super::*;
use crate::{
    daemon::ServesEvidence,
    graph::chain::chains,
    lock::{Confidence, LockClass, LockKind, LockMode, LockObject},
    lockup::Context,
    report::example::{self, SEC},
    survey::Survey,
    task::TaskState,
};

fn findings(survey: &Survey, threshold: u64) -> Vec<Finding> {
    let chains = chains(&survey.locks, &survey.daemons);
    Detectors::default().check(&Scene::new(
        survey,
        &chains,
        Thresholds::of_waits(Nanos(threshold)),
    ))
}

fn sentences(survey: &Survey) -> Vec<(&'static str, Severity, String)> {
    findings(survey, SEC)
        .into_iter()
        .map(|finding| (finding.detector, finding.severity, finding.sentence))
        .collect()
}

/// What one detector says, in words.
fn said_by(detector: &str, survey: &Survey) -> Vec<String> {
    let mut said = findings(survey, SEC);
    said.retain(|finding| finding.detector == detector);
    said.into_iter().map(|finding| finding.sentence).collect()
}

#[test]
fn the_incident_is_a_long_wait_and_a_convoy() {
    assert_eq!(
        sentences(&example::incident())[..3],
        [
            (
                "long-wait",
                Severity::Critical,
                "1,469 tasks have waited for mmap_lock of filebeat[4424] for 1s or longer; \
                 filebeat[4431] longest, for 6m12s"
                    .to_owned()
            ),
            (
                "convoy",
                Severity::Warning,
                "1,468 readers wait for mmap_lock of filebeat[4424] behind writer \
                 filebeat[4431] although the lock is only read-held"
                    .to_owned()
            ),
            (
                "long-hold",
                Severity::Warning,
                "filebeat[4442] has held mmap_lock of filebeat[4424] for read for at least 6m13s"
                    .to_owned()
            ),
        ]
    );
}

#[test]
fn the_incident_is_explained() {
    assert_eq!(
        said_by("fault-under-mmap-lock", &example::incident()),
        [
            "a page fault of filebeat[4442] waits for a block device and keeps the lock \
             meanwhile: whoever maps memory in that process, or reads /proc/4424/cmdline, \
             environ or maps (ps, top), waits with it"
        ]
    );
    assert_eq!(
        said_by("lost-wakeup", &example::incident()),
        [
            "lost wakeup suspected: filebeat[4442] has waited 6m13s for a free tag of nvme0n1, \
             which has no request in flight"
        ]
    );
}

#[test]
fn a_device_at_work_has_lost_no_wakeup() {
    let mut survey = example::incident();
    let holder = &mut survey.locks[0].holders[0];
    holder.stuck.device.as_mut().unwrap().in_flight = Some(1);
    assert_eq!(said_by("lost-wakeup", &survey), [""; 0]);
    let holder = &mut survey.locks[0].holders[0];
    holder.stuck.device.as_mut().unwrap().in_flight = None;
    assert_eq!(said_by("lost-wakeup", &survey), [""; 0]);
}

#[test]
fn a_daemon_in_its_own_directory_is_a_deadlock() {
    let survey = example::daemon_in_its_own_directory();
    let said = &findings(&survey, SEC)[0];
    assert_eq!(said.detector, "deadlock");
    assert_eq!(said.severity, Severity::Critical);
    assert_eq!(
        said.sentence,
        "sharefs[900] and mkdir[811] wait for each other, 4 tasks blocked for 8.3s, with those \
         that wait for the daemon"
    );
    assert_eq!(said.evidence.len(), 3);
    assert_eq!(said.tasks, [Tid(900), Tid(811)]);
    // No slow file system: the daemon would answer if it could.
    assert_eq!(said_by("slow-file-system", &survey), [""; 0]);
}

#[test]
fn an_idle_daemon_is_a_slow_file_system_and_no_deadlock() {
    let survey = example::idle_daemon();
    assert_eq!(said_by("deadlock", &survey), [""; 0]);
    assert_eq!(said_by("slow-file-system", &survey).len(), 1);
}

#[test]
fn a_daemon_that_is_known_and_waits_for_no_lock_is_a_slow_file_system() {
    let mut survey = example::idle_daemon();
    let thread = &mut survey.daemons[0].threads[0];
    thread.evidence = ServesEvidence::OnlyThread;
    thread.serves = Some(Confidence::Certain);
    assert_eq!(said_by("slow-file-system", &survey).len(), 1);
}

#[test]
fn a_file_system_whose_instance_is_named_as_its_type_is_named_once() {
    let mut survey = example::idle_daemon();
    let said = |survey: &Survey| said_by("slow-file-system", survey).remove(0);
    assert!(said(&survey).contains("below it is (fuse, 0:52): "));
    let Some(LockObject::Inode { sb, .. }) = &mut survey.locks[0].object else {
        panic!("it is a directory");
    };
    *sb = "fuse".to_owned();
    assert!(said(&survey).contains("below it is (fuse): "));
}

/// Each of these is what a passing moment could look like.
#[test]
fn what_has_not_stood_is_no_deadlock() {
    type Change = fn(&mut Survey);
    let changes: [(&str, Change); 8] = [
        ("one look", |survey| survey.looks = 1),
        ("a holder that let go", |survey| {
            survey.locks[0].holders[0].stood = false;
        }),
        ("a client that ran", |survey| {
            survey.daemons[0].clients[0].stood = false;
        }),
        ("a daemon that ran", |survey| {
            survey.daemons[0].threads[0].stood = false;
        }),
        ("a daemon with others that could serve", |survey| {
            survey.daemons[0].threads[0].serves = Some(Confidence::Possible);
        }),
        ("a daemon with another that put the answer off", |survey| {
            survey.daemons[0].threads[0].serves = Some(Confidence::Likely);
        }),
        ("a wait that may have a time limit", |survey| {
            survey.locks[0].kind = LockKind::RtMutex;
            survey.locks[0].waiters[0].state = TaskState::Interruptible;
        }),
        ("a daemon that was granted the lock", |survey| {
            survey.locks[0].waiters[0].granted = true;
        }),
    ];
    for (what, change) in changes {
        let mut survey = example::daemon_in_its_own_directory();
        change(&mut survey);
        assert_eq!(said_by("deadlock", &survey), [""; 0], "{what}");
    }
}

#[test]
fn a_circle_that_is_younger_than_the_threshold_is_not_told_yet() {
    let survey = example::daemon_in_its_own_directory();
    assert!(
        findings(&survey, 9 * SEC)
            .iter()
            .all(|it| it.detector != "deadlock")
    );
}

#[test]
fn two_writers_that_wait_for_each_other_are_a_deadlock() {
    let survey = example::cycle();
    assert_eq!(
        said_by("deadlock", &survey),
        ["stat[820] and mkdir[811] wait for each other, 3 tasks blocked for 9s"]
    );
}

#[test]
fn a_reader_that_reads_again_behind_a_writer_waits_for_itself() {
    let mut survey = example::incident();
    let lock = &mut survey.locks[0];
    lock.waiters[1].task = lock.holders[0].task.clone();
    let said = &findings(&survey, SEC)[0];
    assert_eq!(
        said.sentence,
        "filebeat[4442] waits for itself, 1,469 tasks blocked for 6m11s"
    );
    assert_eq!(
        said.evidence[0],
        "filebeat[4442] has waited 6m11s for mmap_lock of filebeat[4424] behind writer \
         filebeat[4431]"
    );
}

#[test]
fn a_granted_reader_without_a_cpu_is_off_cpu() {
    assert_eq!(
        said_by("off-cpu-holder", &example::granted_reader()),
        [
            "top[10000] was granted mmap_lock of filebeat[4424] and could run, but has had no \
             CPU for 12s: preempted, or throttled by its control group; its control group is \
             /system.slice/collectd.service"
        ]
    );
    let mut survey = example::granted_reader();
    survey.locks[0].holders[0].stood = false;
    assert_eq!(said_by("off-cpu-holder", &survey), [""; 0]);
}

#[test]
fn a_writer_that_is_overtaken_starves() {
    let mut survey = example::incident();
    assert_eq!(said_by("writer-starvation", &survey), [""; 0]);
    survey.locks[0].first_was_overtaken = true;
    assert_eq!(
        said_by("writer-starvation", &survey),
        [
            "writer filebeat[4431] has stood in front of the queue of mmap_lock of \
             filebeat[4424] for 6m12s while others took the lock past it"
        ]
    );
}

#[test]
fn a_fork_of_a_large_process_is_explained() {
    let mut survey = example::incident();
    let stack = example::stack(
        &mut survey.stacks,
        &[
            "copy_pte_range.isra.0",
            "copy_page_range",
            "dup_mmap.constprop.0",
            "copy_process",
        ],
    );
    let holder = &mut survey.locks[0].holders[0];
    holder.mode = LockMode::Write;
    holder.stack = stack;
    assert_eq!(said_by("fork-of-huge-process", &survey).len(), 1);
    assert_eq!(said_by("fault-under-mmap-lock", &survey), [""; 0]);
}

#[test]
fn an_unmount_of_a_busy_file_system_is_explained() {
    let mut survey = example::incident();
    let stack = example::stack(&mut survey.stacks, &["down_write", "deactivate_super"]);
    let lock = &mut survey.locks[0];
    lock.class = LockClass::SuperUmount;
    lock.name = "s_umount of ext4 nvme0n1p2 on /srv".to_owned();
    assert_eq!(said_by("umount-waits", &survey), [""; 0]);
    survey.locks[0].waiters[0].stack = stack;
    assert_eq!(
        said_by("umount-waits", &survey),
        [
            "filebeat[4431] unmounts a file system that is still in use: it waits for s_umount \
             of ext4 nvme0n1p2 on /srv for write, and 1,468 tasks queue behind it"
        ]
    );
}

#[test]
fn detectors_can_be_chosen() {
    let survey = example::incident();
    let chains = chains(&survey.locks, &survey.daemons);
    let scene = Scene::new(&survey, &chains, Thresholds::of_waits(Nanos(SEC)));
    let names = |detectors: &Detectors| -> Vec<&str> {
        let findings = detectors.check(&scene);
        findings.iter().map(|finding| finding.detector).collect()
    };
    assert_eq!(names(&Detectors::selected(&["convoy"], &[])), ["convoy"]);
    assert!(!names(&Detectors::selected(&[], &["convoy"])).contains(&"convoy"));
    assert_eq!(
        names(&Detectors::selected(&["convoy"], &["convoy"])),
        [""; 0]
    );
}

#[test]
fn short_waits_are_no_findings() {
    assert_eq!(findings(&example::no_stall(), SEC), []);
    assert_eq!(findings(&example::incident(), 400 * SEC), []);
}

#[test]
fn a_write_held_lock_has_no_convoy() {
    let findings = findings(&example::write_held_directory(), SEC);
    assert!(findings.iter().all(|finding| finding.detector != "convoy"));
    assert_eq!(findings[0].detector, "long-wait");
    assert_eq!(findings[0].severity, Severity::Warning);
}

#[test]
fn readers_in_front_are_no_convoy() {
    let mut survey = example::incident();
    survey.locks[0].waiters.swap(0, 1);
    assert!(
        findings(&survey, SEC)
            .iter()
            .all(|finding| finding.detector != "convoy")
    );
}

#[test]
fn an_inconsistent_lock_is_told_first() {
    assert_eq!(
        sentences(&example::several_locks())[0],
        (
            "inconsistent-lock",
            Severity::Critical,
            "the words of i_rwsem of /var/log (ext4, nvme0n1p2) contradict each other or its \
             queue: count 0xfffffffe00000000, owner 0x1"
                .to_owned()
        )
    );
}

#[test]
fn names_are_kebab_case_and_differ() {
    let mut names: Vec<&str> = ALL.iter().map(|detector| detector.name()).collect();
    assert!(
        names
            .iter()
            .all(|name| name.chars().all(|c| c.is_ascii_lowercase() || c == '-'))
    );
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), ALL.len());
}

#[test]
fn a_locked_cpu_is_said_with_what_it_keeps_from_others() {
    let survey = example::soft_lockup_of_task();
    let found = findings(&survey, SEC);
    let finding = &found[0];
    assert_eq!(finding.detector, "soft-lockup");
    assert_eq!(finding.severity, Severity::Critical);
    assert_eq!(
        finding.sentence,
        "CPU 3 has run nothing but mmap-spin[412] in the kernel for 24s, in a BPF program on the \
         tracepoint mmap_lock_acquire_returned; it holds mmap_lock of mmap-spin[410] (write, \
         certain), 12 tasks wait behind that; 2 tasks are ready to run there"
    );
    assert_eq!(finding.subject, Some(Subject::Cpu(3)));
    assert_eq!(finding.locks, [survey.locks[0].address]);
    assert_eq!(finding.tasks, [Tid(412), Tid(20), Tid(33)]);
}

#[test]
fn a_task_below_softirqs_is_only_interrupted() {
    assert_eq!(
        said_by("soft-lockup", &example::soft_lockup_in_softirq()),
        [
            "CPU 1 has been in softirq NET_RX (callback process_backlog) for 24s, on top of \
             cat[77], which is only interrupted; 1 task is ready to run there"
        ]
    );
}

#[test]
fn a_lock_of_an_interrupted_task_is_said_to_be_that_tasks() {
    let mut survey = example::soft_lockup_of_task();
    survey.lockups[0].context = Context::Interrupt { handler: None };
    survey.lockups[0].is_task_interrupted = true;
    let said = said_by("soft-lockup", &survey);
    let words =
        "on top of mmap-spin[412], which is only interrupted; mmap-spin[412] holds mmap_lock";
    assert!(said[0].contains(words), "{said:?}");
}

#[test]
fn piled_up_timers_are_said_as_such() {
    assert_eq!(
        said_by("soft-lockup", &example::piled_up_timers()),
        [
            "CPU 0 has been in softirq TIMER for 24s, on top of its idle task: piled-up timer \
             callbacks, 5 different ones, most often tcp_write_timer; 1 task is ready to run there"
        ]
    );
}

#[test]
fn a_cpu_without_interrupts_is_said_with_what_is_known() {
    assert_eq!(
        said_by("hard-lockup", &example::hard_lockup()),
        [
            "CPU 2 has taken no interrupt for 13s, with dd[99] on it, last seen in \
             blk_mq_submit_bio; 1 task on another CPU may share a spinlock with it; 1 task is \
             ready to run there"
        ]
    );
}

#[test]
fn lockups_count_from_their_threshold_on_and_not_at_all_without_one() {
    for (survey, detector) in [
        (example::soft_lockup_of_task(), "soft-lockup"),
        (example::hard_lockup(), "hard-lockup"),
    ] {
        let lasted = survey.lockups[0].lasted;
        let found = |threshold: Option<Nanos>| {
            let thresholds = Thresholds {
                soft_lockup: threshold,
                hard_lockup: threshold,
                ..Thresholds::of_waits(Nanos(SEC))
            };
            let chains = chains(&survey.locks, &survey.daemons);
            let scene = Scene::new(&survey, &chains, thresholds);
            let found = Detectors::default().check(&scene);
            found.iter().any(|finding| finding.detector == detector)
        };
        assert!(found(Some(lasted)));
        assert!(!found(Some(Nanos(lasted.0 + 1))));
        assert!(!found(None));
    }
}

#[test]
fn a_lock_that_is_only_possibly_held_is_not_laid_to_the_cpu() {
    let mut survey = example::soft_lockup_of_task();
    survey.locks[0].holders[0].confidence = Confidence::Possible;
    let said = said_by("soft-lockup", &survey);
    assert!(!said[0].contains("holds"), "{said:?}");
}

#[test]
fn all_tasks_that_hang_on_one_lock_are_one_finding() {
    let mut survey = example::hung_incident();
    for sleeper in &mut survey.sleepers {
        // The last reader came 293 s after the first.
        sleeper.asleep.0 += 300 * SEC;
    }
    let said: Vec<Finding> = findings(&survey, SEC)
        .into_iter()
        .filter(|finding| finding.detector == "hung-task")
        .collect();
    let [lock, device] = said.as_slice() else {
        panic!("{said:?}")
    };
    assert_eq!(lock.tasks.len(), 1_469);
    assert_eq!(lock.tasks[0], Tid(4_431));
    assert_eq!(lock.locks, [survey.locks[0].address]);
    assert_eq!(lock.severity, Severity::Critical);
    assert_eq!(
        lock.sentence,
        "1,469 tasks have hung in uninterruptible sleep (state D) for 2m00s or longer, waiting \
         for mmap_lock of filebeat[4424]; filebeat[4431] longest, for 11m12s; 31 of them can be \
         killed; the root is filebeat[4442]: waiting for block I/O"
    );
    assert_eq!(device.tasks, [Tid(4_442)]);
    assert_eq!(
        device.subject,
        Some(Subject::Awaited(Awaited::Device("nvme0n1".to_owned())))
    );
}

#[test]
fn what_tasks_hang_on_is_told_in_words() {
    let said = said_by("hung-task", &example::hung_without_locks());
    assert_eq!(
        said,
        [
            "12 tasks have hung in uninterruptible sleep (state D) for 2m00s or longer, waiting \
             for block device nvme0n1; postgres[800] longest, for 6m12s; 4 of them can be killed",
            "2 tasks have hung in uninterruptible sleep (state D) for 2m00s or longer, waiting \
             for completion 0xffff888109000040 in nvme_reset_work; kworker/u8:3[77] longest, for \
             3m10s",
            "kworker/u8:4[79] has hung in uninterruptible sleep (state D) for 2m10s, in \
             nvme_reset_work; what that waits for is not known",
        ]
    );
    assert_eq!(
        said_by("hung-task", &example::hung_client()),
        [
            "mkdir[811] has hung in uninterruptible sleep (state D) for 3m20s, waiting for an \
             answer of fuse.sharefs on /mnt/share; its daemon waits for requests and has not \
             answered"
        ]
    );
}

#[test]
fn a_threshold_decides_what_hangs_and_none_lets_nothing_hang() {
    let survey = example::hung_without_locks();
    let chains = chains(&survey.locks, &survey.daemons);
    let hung = |hung_task: Option<Nanos>| {
        let thresholds = Thresholds {
            hung_task,
            ..Thresholds::of_waits(Nanos(SEC))
        };
        let found = HungTask.check(&Scene::new(&survey, &chains, thresholds));
        found.iter().map(|it| it.tasks.len()).collect::<Vec<_>>()
    };
    assert_eq!(hung(None), [0; 0]);
    assert_eq!(hung(Some(Nanos(119 * SEC))), [13, 2, 1]);
    assert_eq!(hung(Some(Nanos(120 * SEC))), [12, 2, 1]);
    assert_eq!(hung(Some(Nanos(372 * SEC))), [1]);
    assert_eq!(hung(Some(Nanos(373 * SEC))), [0; 0]);
}

#[test]
fn a_threshold_of_a_detector_that_is_not_asked_is_off() {
    let all = Thresholds::of_waits(Nanos(1));
    assert_eq!(Detectors::default().asked(all), all);
    let some = Detectors::selected(&[], &["hung-task", "hard-lockup"]);
    let asked = some.asked(all);
    assert_eq!((asked.wait, asked.soft_lockup), (all.wait, all.soft_lockup));
    assert_eq!((asked.hung_task, asked.hard_lockup), (None, None));
    let off = Thresholds {
        soft_lockup: None,
        ..all
    };
    assert_eq!(Detectors::default().asked(off), off);
}
