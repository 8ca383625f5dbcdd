//! The process that does the loops, and nothing else, so that it is the same whatever is measured:
//! what a call costs depends also on how the memory of its process is mapped.

use std::{
    env,
    io::{self, BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use lockwatch_tests::clock;

use crate::{
    cycle::{Cycle, Target},
    work::{List, Protect, Sync, Work},
};

/// The argument that makes this program one.
pub(crate) const VERB: &str = "loop";

/// Batches of calls, of which the median counts.
const BATCHES: usize = 15;
/// Calls of what is not timed in batches.
const SINGLE: usize = 601;

/// What it can be told to do.
const TIME: &str = "time";
const CALL: &str = "call";
const DONE: &str = "done";

/// One that waits to be told what to do. Dropped, it ends.
pub(crate) struct Looper {
    /// Of the loops.
    pub(crate) names: Vec<String>,
    child: Child,
    /// `None` while it ends.
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Looper {
    pub(crate) fn start() -> Result<Self> {
        let mut child = Command::new(env::current_exe().context("cannot find our own program")?)
            .arg(VERB)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the loops")?;
        let answers = child.stdout.take().context("no standard output")?;
        let orders = child.stdin.take();
        let mut looper = Self {
            names: Vec::new(),
            child,
            orders,
            answers: BufReader::new(answers),
        };
        looper.names = serde_json::from_str(&looper.answer()?)?;
        Ok(looper)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The median time of a call of each loop, ns.
    pub(crate) fn time(&mut self) -> Result<Vec<f64>> {
        let answer = self.ask(TIME)?;
        serde_json::from_str(&answer).with_context(|| format!("the loops say {answer}"))
    }

    /// Makes so many calls of one loop.
    pub(crate) fn call(&mut self, number: usize, times: u32) -> Result<()> {
        let answer = self.ask(&format!("{CALL} {number} {times:04}"))?;
        ensure!(answer == DONE, "the loops say {answer}");
        Ok(())
    }

    fn ask(&mut self, order: &str) -> Result<String> {
        let orders = self.orders.as_mut().context("the loops end")?;
        writeln!(orders, "{order}").context("the loops have ended")?;
        self.answer()
    }

    fn answer(&mut self) -> Result<String> {
        let mut line = String::new();
        let read = self.answers.read_line(&mut line);
        ensure!(read.context("the loops")? > 0, "the loops have ended");
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for Looper {
    fn drop(&mut self) {
        drop(self.orders.take());
        // It has no child of its own and ends with its orders.
        let _ = self.child.wait();
    }
}

/// Does what standard input says until that ends.
pub(crate) fn obey() -> Result<()> {
    let folder = tempfile::tempdir().context("cannot make a folder")?;
    let mut works: Vec<Box<dyn Work>> = vec![
        Box::new(Sync::new()?),
        Box::new(Protect::new()?),
        Box::new(List::new(folder.path())?),
        Box::new(Cycle::new(
            "contended rwsem cycle",
            Target::file(folder.path())?,
        )?),
        Box::new(Cycle::new("contended mutex cycle", Target::pipe()?)?),
    ];
    let names: Vec<&str> = works.iter().map(|work| work.name()).collect();
    println!("{}", serde_json::to_string(&names)?);
    for order in io::stdin().lines() {
        let order = order.context("cannot read what to do")?;
        let words: Vec<&str> = order.split(' ').collect();
        match words[..] {
            [TIME] => {
                let times: Result<Vec<f64>> = works
                    .iter_mut()
                    .map(|work| time(work.as_mut()).with_context(|| work.name()))
                    .collect();
                println!("{}", serde_json::to_string(&times?)?);
            }
            [CALL, number, times] => {
                let work = works.get_mut(number.parse::<usize>()?);
                let work = work.with_context(|| format!("there is no loop {number}"))?;
                work.make_ready()?;
                for _ in 0..times.parse::<u32>()? {
                    work.call().with_context(|| work.name())?;
                }
                println!("{DONE}");
            }
            _ => bail!("{order} is nothing that can be done"),
        }
    }
    Ok(())
}

/// The median time of a call, ns.
fn time(work: &mut dyn Work) -> Result<f64> {
    let together = work.together();
    let batches = if together == 1 { SINGLE } else { BATCHES };
    let mut times = Vec::with_capacity(batches);
    // The first one is for what is done once.
    for batch in 0..=batches {
        work.make_ready()?;
        let begin = clock::monotonic_ns();
        for _ in 0..together {
            work.call()?;
        }
        let took = clock::monotonic_ns() - begin;
        if batch > 0 {
            times.push(took);
        }
    }
    times.sort_unstable();
    Ok(times[batches / 2] as f64 / together as f64)
}
