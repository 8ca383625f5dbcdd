//! Debian's archive, asked through an apt configuration of our own: sources,
//! package lists and downloads are kept in the cache, nothing of the system's
//! apt is changed. The mirror is the one that the machine's own sources name;
//! apt checks the lists against the archive's key, and packages against the lists.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};

use crate::process::{self, say, timed};

/// Where kernels are, beside the machine's own release.
const SECURITY: [&str; 3] = ["bullseye-security", "bookworm-security", "trixie-security"];
const MAIN: [&str; 1] = ["trixie-backports"];
/// The archive's keys, on every Debian system.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Package lists older than this are fetched anew.
const STALE: Duration = Duration::from_secs(24 * 60 * 60);

/// The private apt.
#[derive(Debug)]
pub(crate) struct Archive {
    configuration: PathBuf,
    home: PathBuf,
}

impl Archive {
    /// Sets a private apt for kernels up in `home`; needs no network.
    pub(crate) fn of_kernels(home: &Path) -> Result<Self> {
        let Repositories { main, security } = repositories()?;
        let security = SECURITY.map(|suite| (security.as_str(), suite));
        let main = MAIN.map(|suite| (main.as_str(), suite));
        Self::open(home, security.into_iter().chain(main))
    }

    /// Sets a private apt for one of Debian's releases up in `home`; needs no network.
    pub(crate) fn of_release(home: &Path, release: &str) -> Result<Self> {
        Self::open(home, [(repositories()?.main.as_str(), release)])
    }

    fn open<'a>(home: &Path, suites: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self> {
        for folder in ["lists/partial", "cache/archives/partial", "log"] {
            let folder = home.join(folder);
            fs::create_dir_all(&folder)
                .with_context(|| format!("cannot create {}", folder.display()))?;
        }
        let sources = home.join("sources.list");
        write_if_new(&sources, &sources_list(suites)?)?;
        let configuration = home.join("apt.conf");
        write_if_new(&configuration, &apt_conf(home, &sources))?;
        Ok(Self {
            configuration,
            home: home.to_path_buf(),
        })
    }

    /// Whether the package lists are those of these sources, and not a day old.
    pub(crate) fn is_fresh(&self) -> bool {
        let stamp = self.stamp();
        let age = fs::metadata(&stamp)
            .and_then(|metadata| metadata.modified())
            .map(|time| SystemTime::now().duration_since(time));
        matches!(age, Ok(Ok(age)) if age < STALE)
            && fs::read(&stamp).is_ok_and(|of| of == self.sources())
    }

    /// Fetches the package lists.
    pub(crate) fn refresh(&self) -> Result<()> {
        timed("fetching Debian's package lists", || {
            let mut update = self.apt("apt-get");
            // Without it, a list that could not be fetched is only a warning.
            update.args(["-qq", "-o", "APT::Update::Error-Mode=any", "update"]);
            process::capture(&mut update)?;
            fs::write(self.stamp(), self.sources()).context("cannot write into the cache")
        })
    }

    /// Has the sources whose lists were fetched, at that time.
    fn stamp(&self) -> PathBuf {
        self.home.join("fetched")
    }

    fn sources(&self) -> Vec<u8> {
        fs::read(self.home.join("sources.list")).unwrap_or_default()
    }

    /// Names of all known packages of kernels.
    pub(crate) fn kernel_packages(&self) -> Result<Vec<String>> {
        let mut command = self.apt("apt-cache");
        let names = process::capture(command.args(["pkgnames", "linux-"]))?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    /// Names of the packages that one depends on, alternatives included.
    pub(crate) fn depends(&self, package: &str) -> Result<Vec<String>> {
        let mut command = self.apt("apt-cache");
        command.args(["depends", "--important", package]);
        Ok(parse_depends(&process::capture(&mut command)?))
    }

    /// Downloads one package into a folder and says how large it is.
    pub(crate) fn download(&self, package: &str, into: &Path) -> Result<(PathBuf, u64)> {
        timed(&format!("downloading {package}"), || {
            let mut command = self.apt("apt-get");
            command.current_dir(into).args(["-qq", "download", package]);
            process::capture(command.stdout(Stdio::null()))
        })?;
        let prefix = format!("{package}_");
        let deb = fs::read_dir(into)?
            .flatten()
            .find(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
            .with_context(|| format!("apt said nothing and downloaded no {package}"))?;
        let size = deb.metadata()?.len();
        say(format_args!("  {:.1} MB", size as f64 / 1e6));
        Ok((deb.path(), size))
    }

    /// Downloads packages into a folder, with all that they depend on, as if nothing were
    /// installed; where they are.
    pub(crate) fn download_all(&self, packages: &[&str], into: &Path) -> Result<Vec<PathBuf>> {
        timed(&format!("downloading {}", packages.join(", ")), || {
            let mut command = self.apt("apt-get");
            command
                .args(["-qq", "--yes", "--no-install-recommends", "--download-only"])
                .arg("-o")
                .arg(format!("Dir::Cache::archives={}", into.display()))
                .arg("install")
                .args(packages);
            process::capture(&mut command)
        })?;
        let mut debs: Vec<PathBuf> = fs::read_dir(into)?
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .collect();
        debs.sort();
        Ok(debs)
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("APT_CONFIG", &self.configuration)
            .env("LC_ALL", "C");
        command
    }
}

/// Takes the names of `Depends: name` rows, of which alternatives begin with a bar.
fn parse_depends(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| {
            line.trim()
                .trim_start_matches('|')
                .strip_prefix("Depends: ")
        })
        .map(|name| name.trim().to_owned())
        .collect()
}

/// Where the machine's own apt gets Debian from.
#[derive(Debug, PartialEq, Eq)]
struct Repositories {
    main: String,
    security: String,
}

fn repositories() -> Result<Repositories> {
    let mut command = Command::new("apt-get");
    command.args(["indextargets", "--format", "$(REPO_URI) $(RELEASE)"]);
    command.arg("Created-By: Packages");
    let targets = process::capture(&mut command).context(
        "cannot ask apt for the machine's sources: what is not on it comes from Debian's archive",
    )?;
    parse_targets(&targets)
}

/// Takes the repositories of `uri release` rows.
fn parse_targets(targets: &str) -> Result<Repositories> {
    let find = |fits: &dyn Fn(&str) -> bool| {
        targets
            .lines()
            .filter_map(|line| line.split_once(' '))
            .find(|(_, release)| fits(release))
            .map(|(uri, _)| uri.to_owned())
    };
    let releases = [
        "bookworm",
        "trixie",
        "forky",
        "sid",
        "oldstable",
        "stable",
        "testing",
        "unstable",
    ];
    let main = find(&|release| releases.contains(&release)).context(
        "the machine's apt sources name no Debian release: what is not on it comes from Debian's archive",
    )?;
    // Releases that get no security updates have it at the place where mirrors put it.
    let security = find(&|release| release.ends_with("-security"))
        .unwrap_or_else(|| format!("{}-security/", main.trim_end_matches('/')));
    Ok(Repositories { main, security })
}

/// Of pairs of repository and suite.
fn sources_list<'a>(suites: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<String> {
    if !Path::new(KEYRING).exists() {
        bail!("{KEYRING} is missing: install debian-archive-keyring");
    }
    let mut list = String::new();
    for (uri, suite) in suites {
        writeln!(
            list,
            "deb [arch=amd64 signed-by={KEYRING}] {uri} {suite} main"
        )?;
    }
    Ok(list)
}

fn apt_conf(home: &Path, sources: &Path) -> String {
    let home = home.display();
    let sources = sources.display();
    format!(
        r#"Dir::Etc::sourcelist "{sources}";
Dir::Etc::sourceparts "-";
Dir::State::lists "{home}/lists";
Dir::State::status "/dev/null";
Dir::Cache "{home}/cache";
Dir::Log "{home}/log";
Acquire::Languages "none";
# apt's own user may not write into this cache.
APT::Sandbox::User "root";
"#
    )
}

/// Keeps an unchanged file's time.
fn write_if_new(path: &Path, text: &str) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == text.as_bytes()) {
        return Ok(());
    }
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_come_from_the_machine() {
        let targets = "http://tools.example/ nodistro
http://archive.example/debian/ bookworm-updates
http://archive.example/debian/ bookworm
http://archive.example/debian-security/ bookworm-security
";
        let found = parse_targets(targets).unwrap();
        assert_eq!(found.main, "http://archive.example/debian/");
        assert_eq!(found.security, "http://archive.example/debian-security/");
    }

    #[test]
    fn dependencies_are_those_that_must_be() {
        let text = "linux-headers-6.1.0-56-cloud-amd64
  Depends: linux-headers-6.1.0-56-common
 |Depends: linux-kbuild-6.1
  PreDepends: dpkg
";
        let wanted = ["linux-headers-6.1.0-56-common", "linux-kbuild-6.1"];
        assert_eq!(parse_depends(text), wanted);
    }

    #[test]
    fn a_release_without_security_updates_will_do() {
        let found = parse_targets("http://archive.example/debian/ sid\n").unwrap();
        assert_eq!(found.security, "http://archive.example/debian-security/");
    }

    #[test]
    fn another_system_is_told() {
        let error = parse_targets("http://archive.example/other/ other\n").unwrap_err();
        assert!(error.to_string().contains("no Debian release"), "{error}");
    }
}
