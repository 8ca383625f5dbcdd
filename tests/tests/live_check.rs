//! `lockwatch check` on the running kernel: what it says is so.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::{collections::BTreeSet, fs, process::Command, time::Duration};

use aya::programs::loaded_programs;
use lockwatch_tests::trial::{self, Ended, Program};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(20);

fn check(arguments: &[&str]) -> Ended {
    let mut command = Command::new(trial::lockwatch().unwrap());
    Program::run(command.arg("check").args(arguments), trial::bound(LIMIT)).unwrap()
}

fn parsed(ended: &Ended) -> Value {
    serde_json::from_str(&ended.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", ended.describe()))
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key]
        .as_str()
        .unwrap_or_else(|| panic!("no {key}: {value}"))
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn each_hook_of_the_plan_is_a_place_of_this_kernel() {
    let ended = check(&["--format", "json"]);
    let checked = parsed(&ended);
    let types = fs::read("/sys/kernel/btf/vmlinux").unwrap();
    let types: BTreeSet<&[u8]> = types.split(|&byte| byte == 0).collect();
    let symbols = fs::read_to_string("/proc/kallsyms").unwrap();
    let symbols: BTreeSet<&str> = symbols
        .lines()
        .filter_map(|line| line.split_ascii_whitespace().nth(2))
        .collect();
    let hooks = checked["plan"]["hooks"].as_array().unwrap();
    for hook in hooks {
        let target = text(hook, "target");
        match text(hook, "mechanism") {
            "tp_btf" | "raw_tp" => {
                let prototype = format!("btf_trace_{target}");
                assert!(types.contains(prototype.as_bytes()), "{hook}");
            }
            "fentry" | "fexit" => {
                assert!(types.contains(target.as_bytes()), "{hook}");
                assert!(symbols.contains(target), "{hook}");
            }
            "kprobe" => assert!(symbols.contains(target), "{hook}"),
            other => panic!("{other} is in no plan: {hook}"),
        }
    }
    let kinds: BTreeSet<&str> = hooks
        .iter()
        .map(|hook| text(&hook["purpose"], "kind"))
        .collect();
    for kind in ["wait_begin", "wait_end", "holder_switch", "holder_wakeup"] {
        assert!(kinds.contains(kind), "{kind} in {kinds:?}");
    }
    // The kernels that these tests run on let every place be hooked that their types have.
    assert_eq!(checked["offer"]["unhookable"], serde_json::json!({}));
    let expected = match text(&checked, "works") {
        "wholly" => Some(0),
        "partly" => Some(1),
        _ => None,
    };
    assert!(
        expected.is_some(),
        "root can use lockwatch: {}",
        ended.describe()
    );
    assert_eq!(ended.code(), expected, "{}", ended.describe());
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn asking_leaves_no_program_behind() {
    let ids = || -> BTreeSet<u32> { loaded_programs().flatten().map(|one| one.id()).collect() };
    let before = ids();
    let ended = check(&[]);
    // The kernel frees what is let go of in its own time.
    let mut left: BTreeSet<u32> = ids().difference(&before).copied().collect();
    let ends = std::time::Instant::now() + trial::bound(Duration::from_secs(2));
    while !left.is_empty() && std::time::Instant::now() < ends {
        std::thread::sleep(Duration::from_millis(50));
        left = left.intersection(&ids()).copied().collect();
    }
    assert!(left.is_empty(), "{left:?}: {}", ended.describe());
    assert!(ended.stdout.contains("contention") || ended.stdout.contains("slowpath"));
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn without_privileges_it_says_what_is_missing_and_what_it_could_not_ask() {
    let mut command = Command::new("setpriv");
    command
        .args(["--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"])
        .arg(trial::lockwatch().unwrap())
        .args(["check", "--format", "json"]);
    let ended = Program::run(&mut command, trial::bound(LIMIT)).unwrap();
    let checked = parsed(&ended);
    assert_eq!(ended.code(), Some(2), "{}", ended.describe());
    assert_eq!(text(&checked, "works"), "not");
    let missing = checked["offer"]["missing_privileges"].to_string();
    assert!(missing.contains("CAP_BPF"), "{missing}");
    let unasked = checked["offer"]["unasked"].to_string();
    assert!(unasked.contains("policy"), "{unasked}");
    assert!(
        !checked["plan"]["hooks"].as_array().unwrap().is_empty(),
        "the plan is still told: {}",
        ended.describe()
    );
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn a_kernel_without_btf_has_no_plan_that_works() {
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c"])
        .arg("mount -t tmpfs none /sys/kernel/btf && exec \"$0\" check")
        .arg(trial::lockwatch().unwrap());
    let ended = Program::run(&mut command, trial::bound(LIMIT)).unwrap();
    assert_eq!(ended.code(), Some(2), "{}", ended.describe());
    for words in ["does not work", "CONFIG_DEBUG_INFO_BTF"] {
        assert!(ended.stdout.contains(words), "{}", ended.describe());
    }
}
