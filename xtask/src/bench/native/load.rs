//! Work that takes kernel locks, of a fixed amount.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::bench::Bench;
use crate::bench::runs::cpu_of_children;
use crate::packages::Program;
use crate::process::{self, say};

/// What the loads are made with.
pub(super) const PROGRAMS: [Program; 2] = [
    Program {
        name: "stress-ng",
        package: "stress-ng",
        purpose: "makes work that takes kernel locks",
    },
    Program {
        name: "hackbench",
        package: "rt-tests",
        purpose: "makes work that waits for kernel locks",
    },
];

/// One kind of work.
#[derive(Debug)]
pub(super) struct Load {
    pub(super) name: &'static str,
    /// Its program and arguments; how much is to be done comes last.
    command: Vec<String>,
    /// So much of it is done in about [`LONG_ENOUGH`].
    amount: u64,
}

/// What some work took.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spent {
    /// User and system time of all its tasks.
    pub(super) cpu: Duration,
    pub(super) wall: Duration,
}

/// Longer, and a round is hit by more of what else the machine does; shorter, and starting
/// the program weighs too much.
const LONG_ENOUGH: Duration = Duration::from_millis(400);
/// Whatever hangs is ended after so many seconds.
const LIMIT: &str = "60";

/// Finds files as often as its last argument says.
const FIND: &str =
    "i=0; while [ $i -lt $1 ]; do find \"$0\" -type f -newer / >/dev/null; i=$((i+1)); done";

/// All kinds, each with as much of it as takes long enough here.
pub(super) fn all(bench: &Bench<'_>) -> Result<Vec<Load>> {
    say("  how much work takes long enough");
    let tree = bench.workspace.root.display().to_string();
    let stress = |kind: &str, more: &[&str]| {
        let (worker, amount) = (format!("--{kind}"), format!("--{kind}-ops"));
        // No disk: it would have the say.
        let program = [
            "stress-ng",
            "--quiet",
            "--temp-path",
            "/dev/shm",
            &worker,
            "1",
        ];
        let command = [&program, more, &[&amount]].concat();
        command.iter().map(ToString::to_string).collect()
    };
    // With a first guess at how much takes a while.
    [
        (
            "mmap (stress-ng)",
            stress("mmap", &["--mmap-bytes", "8m"]),
            10,
        ),
        ("page faults (stress-ng)", stress("fault", &[]), 5_000),
        ("directories (stress-ng)", stress("dir", &[]), 2_000),
        (
            "find in a source tree",
            ["sh", "-c", FIND, &tree].map(str::to_owned).to_vec(),
            10,
        ),
        (
            "messages through pipes (hackbench)",
            ["hackbench", "--pipe", "-g", "2", "-f", "5", "-l"]
                .map(str::to_owned)
                .to_vec(),
            1_000,
        ),
        (
            "messages through sockets (hackbench)",
            ["hackbench", "-g", "2", "-f", "5", "-l"]
                .map(str::to_owned)
                .to_vec(),
            1_000,
        ),
    ]
    .into_iter()
    .map(|(name, command, amount)| {
        let mut load = Load {
            name,
            command,
            amount,
        };
        load.calibrate()?;
        Ok(load)
    })
    .collect()
}

impl Load {
    fn calibrate(&mut self) -> Result<()> {
        for _ in 0..4 {
            let took = self.run()?.wall;
            let factor = LONG_ENOUGH.as_secs_f64() / took.as_secs_f64();
            if (0.7..1.4).contains(&factor) {
                break;
            }
            // What starting takes makes a short run look longer than its work.
            self.amount = ((self.amount as f64 * factor.min(20.0)) as u64).max(1);
        }
        say(format_args!("    {}: {}", self.name, self.amount));
        Ok(())
    }

    /// Does the work once.
    pub(super) fn run(&self) -> Result<Spent> {
        let mut command = Command::new("timeout");
        command
            .arg(LIMIT)
            .args(&self.command)
            .arg(self.amount.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let line = process::name(&command);
        process::heed_signals()?;
        let before = cpu_of_children()?;
        let began = Instant::now();
        let status = command
            .status()
            .with_context(|| format!("cannot start `{line}`"))?;
        let wall = began.elapsed();
        process::heed_signals()?;
        if !status.success() {
            bail!("`{line}` ended with {status}");
        }
        Ok(Spent {
            cpu: cpu_of_children()?.saturating_sub(before),
            wall,
        })
    }
}
