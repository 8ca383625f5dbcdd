//! A Prometheus of the test's own, and promtool.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write as _,
    net::{SocketAddr, TcpListener},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::{prctl, signal::Signal};
use serde_json::Value;
use tempfile::TempDir;

use super::http;

/// How often it scrapes.
const INTERVAL: Duration = Duration::from_secs(1);
/// How often it is started, if it ends at once.
const ATTEMPTS: usize = 3;
/// How long it may take until something is as it is expected to be.
const LIMIT: Duration = Duration::from_secs(60);

/// A sample: labels without the name, and the value.
pub(crate) type Sample = (BTreeMap<String, String>, f64);

/// A server that scrapes, until it is dropped.
pub(crate) struct Prometheus {
    address: SocketAddr,
    child: Child,
    folder: TempDir,
}

impl Prometheus {
    /// Scrapes `target` as a job `lockwatch`, and evaluates the rules in these files.
    pub(crate) fn start(target: SocketAddr, rules: &[PathBuf]) -> Result<Self> {
        let mut folder = TempDir::new()?;
        let configuration = serde_json::json!({
            "global": { "scrape_interval": "1s", "evaluation_interval": "1s" },
            "rule_files": rules,
            "scrape_configs": [{
                "job_name": "lockwatch",
                "static_configs": [{ "targets": [target.to_string()] }],
            }],
        });
        let file = folder.path().join("prometheus.yml");
        // YAML has JSON in it.
        fs::write(&file, configuration.to_string())?;
        let mut attempts = 0..ATTEMPTS;
        loop {
            // Somebody else may take the port before it does.
            let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
            let child = spawn(folder.path(), &file, address)?;
            let mut prometheus = Self {
                address,
                child,
                folder,
            };
            if prometheus.has_started()? {
                return Ok(prometheus);
            }
            attempts.next().with_context(|| prometheus.log())?;
            folder = std::mem::replace(&mut prometheus.folder, TempDir::new()?);
        }
    }

    /// Waits until it is ready; false if it has ended.
    fn has_started(&mut self) -> Result<bool> {
        let deadline = Instant::now() + LIMIT;
        while Instant::now() < deadline {
            if http::get(self.address, "/-/ready", "").is_ok() {
                return Ok(true);
            }
            if self.child.try_wait()?.is_some() {
                return Ok(false);
            }
            thread::sleep(INTERVAL / 10);
        }
        bail!(
            "waited {LIMIT:?} for Prometheus to be ready: {}",
            self.log()
        );
    }

    /// What it has said.
    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Asks again and again until there is an answer.
    pub(crate) fn wait_for<T>(
        &self,
        what: &str,
        mut ask: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(answer) = ask()? {
                return Ok(answer);
            }
            if Instant::now() >= deadline {
                bail!(
                    "waited {LIMIT:?} for Prometheus {what}; it has said\n{}",
                    self.log()
                );
            }
            thread::sleep(INTERVAL / 2);
        }
    }

    /// The `data` of an answer of its API.
    pub(crate) fn api(&self, path: &str) -> Result<Value> {
        let answer = http::get(self.address, &format!("/api/v1/{path}"), "")?;
        let mut answer: Value = serde_json::from_str(&answer)?;
        ensure!(answer["status"] == "success", "{path}: {answer}");
        Ok(answer["data"].take())
    }

    /// The samples that an expression has now.
    pub(crate) fn query(&self, expression: &str) -> Result<Vec<Sample>> {
        let data = self
            .api(&format!("query?query={}", http::escaped(expression)))
            .with_context(|| expression.to_owned())?;
        let samples = data["result"].as_array().context("no result")?;
        samples.iter().map(sample).collect()
    }

    /// The value of an expression with one sample.
    pub(crate) fn value(&self, expression: &str) -> Result<Option<f64>> {
        let samples = self.query(expression)?;
        ensure!(samples.len() <= 1, "{expression} has {samples:?}");
        Ok(samples.first().map(|&(_, value)| value))
    }

    /// Waits until an expression has one sample with this value.
    pub(crate) fn wait_for_value(&self, expression: &str, value: f64) -> Result<()> {
        self.wait_for(&format!("to say {expression} = {value}"), || {
            Ok((self.value(expression)? == Some(value)).then_some(()))
        })
    }
}

fn spawn(folder: &Path, configuration: &Path, address: SocketAddr) -> Result<Child> {
    let log = File::create(folder.join("log"))?;
    let mut command = Command::new(program("prometheus")?);
    command
        .arg(format!("--config.file={}", configuration.display()))
        .arg(format!(
            "--storage.tsdb.path={}",
            folder.join("tsdb").display()
        ))
        .arg(format!("--web.listen-address={address}"))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    // SAFETY: prctl is a system call and nothing else; no lock is taken, no memory.
    unsafe {
        command.pre_exec(|| prctl::set_pdeathsig(Signal::SIGKILL).map_err(Into::into));
    }
    command.spawn().context("cannot start prometheus")
}

fn sample(of: &Value) -> Result<Sample> {
    let labels = of["metric"].as_object().context("no labels")?;
    let labels = labels
        .iter()
        .filter(|(name, _)| *name != "__name__")
        .map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned()))
        .collect();
    let value = of["value"][1].as_str().context("no value")?;
    Ok((labels, value.parse()?))
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs promtool, with this on its stdin.
pub(crate) fn promtool(arguments: &[&str], folder: &Path, stdin: &str) -> Result<Output> {
    let mut child = Command::new(program("promtool")?)
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start promtool")?;
    // It reads all of it before it says anything.
    let written = child
        .stdin
        .take()
        .context("no stdin")?
        .write_all(stdin.as_bytes());
    let output = child.wait_with_output()?;
    written.context("promtool did not read its stdin")?;
    Ok(output)
}

fn program(name: &str) -> Result<PathBuf> {
    let folder = std::env::var_os("LOCKWATCH_PROMETHEUS")
        .context("run `cargo xtask metrics`, which gets Prometheus")?;
    Ok(PathBuf::from(folder).join(name))
}
