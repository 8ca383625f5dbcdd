//! One kernel from its image to its outcome.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::Errand;
use super::catalogue::Kernel;
use super::image::Image;
use super::initramfs::{self, Base, PlannedTest, Question, Work};
use super::machine::{Ending, Machine};
use super::outcome::Outcome;
use super::settings::Settings;
use super::transcript::{News, Transcript};
use crate::live::run::{TestRun, Verdict};
use crate::live::second;
use crate::live::targets::{self, Target};
use crate::process::{Next, say};
use crate::verified::{Loaded, Programs, Table};

/// How many times longer than on a real machine things may take in a test.
const SLOWNESS: u32 = 5;

/// What all machines of a run have in common.
#[derive(Debug)]
pub(crate) struct Runner<'r> {
    pub(crate) settings: &'r Settings,
    pub(crate) errand: &'r Errand<'r>,
    pub(crate) base: &'r Base,
    pub(crate) targets: &'r [Target],
    /// Those of the objects in the tree.
    pub(crate) programs: &'r Programs,
    /// A folder per kernel is made in it.
    pub(crate) home: &'r Path,
}

impl Runner<'_> {
    /// Boots an image and runs what is to be run.
    pub(crate) fn run(&self, kernel: &'static Kernel, image: &Image) -> Outcome {
        let begun = Instant::now();
        let mut outcome = Outcome {
            kernel,
            release: Some(image.release.clone()),
            boot: None,
            total: Duration::ZERO,
            runs: Vec::new(),
            is_whole: matches!(self.errand, Errand::Tests { filter } if filter.is_empty()),
            facts: BTreeMap::new(),
            trouble: None,
        };
        let (left_out, planned) = self.plan(kernel);
        let script = matches!(self.errand, Errand::Script { .. });
        say(format_args!(
            "{}: booting {} ({:.0} MB of packages) …",
            kernel.name,
            image.release,
            image.download as f64 / 1e6
        ));
        let mut transcript = Transcript::default();
        let told = initramfs::facts();
        let facts = match self.errand {
            Errand::Ask { question, .. } => std::slice::from_ref(*question),
            _ if self.is_about_kernels() => &told,
            _ => &[],
        };
        let mut boot = |transcript: &mut Transcript| {
            self.boot(
                kernel,
                image,
                (&planned, facts),
                transcript,
                &mut outcome.boot,
            )
        };
        let mut ending = boot(&mut transcript);
        if let (Ok(Ending::Broken(why)), None) = (&ending, &transcript.boot) {
            say(format_args!(
                "{}: it did not boot ({why}), which emulation is known for; once more …",
                kernel.name
            ));
            self.keep_log(kernel, "console", "failed-boot");
            transcript = Transcript::default();
            ending = boot(&mut transcript);
        }
        outcome.trouble = trouble(&ending, &transcript, script);
        let why = outcome.trouble.as_deref().unwrap_or("it was not run");
        transcript.interrupted(why);
        outcome.runs = transcript.runs;
        for test in &planned[outcome.runs.len().min(planned.len())..] {
            let why = "not run: the machine ended before";
            outcome
                .runs
                .push(TestRun::failed(&test.target, &test.name, why));
        }
        outcome.facts = transcript.facts;
        if outcome.trouble.is_none() {
            outcome.trouble = self.try_again(kernel, image, &mut outcome.runs);
        }
        outcome.total = begun.elapsed();
        outcome.runs.extend(left_out);
        if self.is_about_kernels() {
            outcome.runs.push(self.verified(&outcome));
        }
        if let Some(trouble) = &outcome.trouble {
            say(format_args!("{}: {trouble}", kernel.name));
        }
        outcome
    }

    /// A part of the tests says nothing of a kernel as a whole.
    fn is_about_kernels(&self) -> bool {
        match self.errand {
            Errand::Facts => true,
            Errand::Tests { filter } => filter.is_empty(),
            Errand::Script { .. } | Errand::Ask { .. } => false,
        }
    }

    /// What the verifier needed for each program, as a test.
    fn verified(&self, outcome: &Outcome) -> TestRun {
        let name = outcome.kernel.name;
        let (verdict, output) = match outcome.fact::<Loaded>(initramfs::VERIFIED) {
            Err(why) => (Verdict::Failed(why), String::new()),
            Ok(loaded) => {
                let table = Table::new(self.programs, &[(name, &loaded)]);
                let complaints = table.complaints(false);
                let verdict = match &complaints[..] {
                    [] => Verdict::Passed,
                    some => Verdict::Failed(some.join("; ")),
                };
                (verdict, table.to_string())
            }
        };
        TestRun {
            verdict,
            output,
            ..TestRun::failed("vm", "programs_are_verified_within_the_limit", "")
        }
    }

    /// Keeps a log that the next boot would begin anew. Of a kernel that did not boot it tells
    /// nothing of ours. Seen: an int3 left behind while TCG's other processor patched the
    /// kernel's text.
    fn keep_log(&self, kernel: &Kernel, name: &str, of: &str) {
        let logs = self.home.join(kernel.name);
        // For a closer look only.
        let _ = fs::rename(
            logs.join(format!("{name}.log")),
            logs.join(format!("{name}-{of}.log")),
        );
    }

    /// Gives failed tests their second try, in a machine of their own; says what is wrong with
    /// that machine.
    fn try_again(
        &self,
        kernel: &'static Kernel,
        image: &Image,
        runs: &mut [TestRun],
    ) -> Option<String> {
        let planned: Vec<PlannedTest> = second::wanted(kernel.name, runs)
            .iter()
            .map(|(target, name)| self.planned(target, name))
            .collect();
        if planned.is_empty() {
            return None;
        }
        for name in ["console", "guest"] {
            self.keep_log(kernel, name, "first-try");
        }
        let mut transcript = Transcript::default();
        let ending = self.boot(kernel, image, (&planned, &[]), &mut transcript, &mut None);
        let trouble = trouble(&ending, &transcript, false);
        transcript.interrupted(trouble.as_deref().unwrap_or("it was not run"));
        second::take(runs, transcript.runs);
        trouble
    }

    /// The tests that are asked for: those that are left out on this kernel, and the others.
    fn plan(&self, kernel: &Kernel) -> (Vec<TestRun>, Vec<PlannedTest>) {
        let Errand::Tests { filter } = self.errand else {
            return (Vec::new(), Vec::new());
        };
        let (mut left_out, mut planned) = (Vec::new(), Vec::new());
        for (target, name) in targets::chosen(self.targets, filter) {
            match kernel.leaves_out(&target.name) {
                None => planned.push(self.planned(&target.name, name)),
                Some(why) => left_out.push(TestRun {
                    verdict: Verdict::Skipped(why),
                    ..TestRun::failed(&target.name, name, "")
                }),
            }
        }
        (left_out, planned)
    }

    fn planned(&self, target: &str, name: &str) -> PlannedTest {
        PlannedTest {
            target: target.to_owned(),
            name: name.to_owned(),
            limit_s: self.settings.test_timeout,
        }
    }

    fn boot(
        &self,
        kernel: &Kernel,
        image: &Image,
        (tests, facts): (&[PlannedTest], &[Question]),
        transcript: &mut Transcript,
        boot: &mut Option<Duration>,
    ) -> Result<Ending> {
        let logs = self.home.join(kernel.name);
        fs::create_dir_all(&logs).with_context(|| format!("cannot create {}", logs.display()))?;
        let (work, prefix) = match self.errand {
            Errand::Script { text, bare } => {
                let prefix = if *bare {
                    String::new()
                } else {
                    format!("{}: ", kernel.name)
                };
                (Work::Script(text), Some(prefix))
            }
            Errand::Tests { .. } | Errand::Facts | Errand::Ask { .. } => {
                (Work::Tests { tests, facts }, None)
            }
        };
        let initramfs = logs.join("initramfs.cpio");
        let environment = format!(
            "export LOCKWATCH_BIN=/bin/lockwatch STALL_LAB_BIN=/bin/stall-lab\n\
             export LOCKUP_LAB_BIN=/bin/lockup-lab LOCKWATCH_OWN_MACHINE=1\n\
             export LOCKWATCH_HOST=/dev/ttyS1\n\
             export LOCKWATCH_RUNS={} LOCKWATCH_SLOWNESS={SLOWNESS}\n\
             export LOCKWATCH_MAY_SKIP={}\n",
            self.settings.runs,
            kernel.impossible.join(",")
        );
        let environment = environment + &of_generator(image);
        fs::write(&initramfs, self.base.pack(image, &work, &environment)?)
            .with_context(|| format!("cannot write {}", initramfs.display()))?;
        let machine = Machine {
            vmlinuz: &image.vmlinuz,
            initramfs: &initramfs,
            append: &self.settings.append,
            memory_mib: self.settings.memory,
            cpus: self.settings.cpus,
            icount: self.settings.icount,
            logs: &logs,
        };
        let start = Instant::now();
        let name = kernel.name;
        let ending = machine.run(Duration::from_secs(self.settings.timeout), |line| {
            match transcript.add(line) {
                News::Booted => {
                    let took = *boot.insert(start.elapsed());
                    say(format_args!("{name}: up after {:.1} s", took.as_secs_f64()));
                }
                News::Tested => {
                    if let Some(run) = transcript.runs.last() {
                        say(format_args!("{name}: {}", run.progress()));
                    }
                }
                News::Said(line) => {
                    if let Some(prefix) = prefix.as_ref().filter(|_| !line.is_empty()) {
                        println!("{prefix}{line}");
                    }
                }
                News::StandStill(time) => return Next::StandStill(time),
                News::Nothing => {}
            }
            Next::GoOn
        });
        if !self.settings.keep {
            fs::remove_file(&initramfs).context("cannot remove the initramfs")?;
        }
        ending
    }
}

/// Tells the tests where the kernel's own maker of lockups is, or why it is not.
fn of_generator(image: &Image) -> String {
    match &image.generator {
        Ok(_) => format!("export LOCKWATCH_TEST_LOCKUP=/{}\n", initramfs::GENERATOR),
        Err(why) => {
            let why = why.replace(['\'', '\n'], " ");
            format!("export LOCKWATCH_NO_TEST_LOCKUP='{why}'\n")
        }
    }
}

/// What is wrong apart from failed tests. The guest's exit and its words must agree.
fn trouble(ending: &Result<Ending>, transcript: &Transcript, script: bool) -> Option<String> {
    let failed = |run: &TestRun| run.failure().is_some();
    match ending {
        Err(error) => Some(format!("{error:#}")),
        Ok(Ending::Broken(why)) if transcript.boot.is_none() => {
            Some(format!("it did not boot: {why}"))
        }
        Ok(Ending::Broken(why)) => Some(why.clone()),
        Ok(Ending::Off { .. }) if script => match transcript.script {
            Some(0) => None,
            Some(code) => Some(format!("the script ended with exit code {code}")),
            None => Some("the script did not end".to_owned()),
        },
        Ok(Ending::Off { well: true }) if transcript.runs.iter().any(failed) => {
            Some("the guest takes a failed test for a passed one".to_owned())
        }
        Ok(Ending::Off { .. }) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_and_words_of_a_guest_must_agree() {
        let mut transcript = Transcript::default();
        for line in ["@@vm boot 1 6.12", "@@vm test live one", "@@vm end 101 1"] {
            transcript.add(line);
        }
        let off = |well| Ok(Ending::Off { well });
        assert_eq!(trouble(&off(false), &transcript, false), None);
        assert!(trouble(&off(true), &transcript, false).is_some());
    }

    #[test]
    fn a_machine_that_did_not_boot_says_so() {
        let broken = Ok(Ending::Broken("killed after 5 s".to_owned()));
        let found = trouble(&broken, &Transcript::default(), false);
        assert_eq!(found.as_deref(), Some("it did not boot: killed after 5 s"));
    }

    #[test]
    fn a_script_must_end_well() {
        let mut transcript = Transcript::default();
        let off = Ok(Ending::Off { well: true });
        assert!(trouble(&off, &transcript, true).is_some());
        transcript.add("@@vm script 0");
        assert_eq!(trouble(&off, &transcript, true), None);
    }
}
