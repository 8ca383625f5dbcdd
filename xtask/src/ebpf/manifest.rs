//! `manifest.json`: what the committed objects were made from, and by what.
//!
//! It lets anyone see that an object is stale without having a BPF compiler.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::build::{FLAGS, PROFILE};
use super::elf::Object;
use super::toolchain::Identity;
use super::{OBJECTS, object_path};

/// Raised with every change of the fields or of what the source hash covers.
const SCHEMA: &str = "lockwatch.objects/1";

/// Crates that end up in the kernel beside our own source.
const LINKED_CRATES: [&str; 4] = ["aya-ebpf", "aya-log-common", "aya-log-ebpf", "zerocopy"];

/// The file beside the objects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) schema: String,
    /// SHA-256 over the sources, see [`source_hash`].
    pub(crate) sources_sha256: String,
    pub(crate) toolchain: Identity,
    pub(crate) objects: BTreeMap<String, Entry>,
}

/// One object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) sha256: String,
    pub(crate) bytes: u64,
    /// Program section → 8-byte instructions in it.
    pub(crate) instructions: BTreeMap<String, u64>,
}

impl Manifest {
    /// Describes objects just built, given in the order of [`OBJECTS`].
    pub(crate) fn new(
        sources_sha256: String,
        toolchain: &Identity,
        objects: &[Vec<u8>],
    ) -> Result<Self> {
        let entries = OBJECTS.iter().zip(objects).map(|(name, bytes)| {
            let entry = Entry {
                sha256: hex(&Sha256::digest(bytes)),
                bytes: bytes.len() as u64,
                instructions: Object::parse(bytes)?.instruction_counts(),
            };
            Ok(((*name).to_owned(), entry))
        });
        Ok(Self {
            schema: SCHEMA.to_owned(),
            sources_sha256,
            toolchain: toolchain.clone(),
            objects: entries.collect::<Result<_>>()?,
        })
    }

    /// Reads the committed manifest.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = fs::read(path)
            .with_context(|| format!("no {}: run `cargo xtask ebpf`", path.display()))?;
        let manifest: Self = serde_json::from_slice(&text)
            .with_context(|| format!("bad {}: run `cargo xtask ebpf`", path.display()))?;
        if manifest.schema != SCHEMA {
            bail!(
                "the manifest's schema is {}, not {SCHEMA}: run `cargo xtask ebpf`",
                manifest.schema
            );
        }
        Ok(manifest)
    }

    /// The file's text: sorted keys, so that a rebuild changes only what changed.
    pub(crate) fn to_text(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// Compares sources and files with what is recorded; needs no compiler.
    pub(crate) fn check_files(&self, root: &Path) -> Result<()> {
        let mut stale = Vec::new();
        if source_hash(root)? != self.sources_sha256 {
            stale.push(
                "the sources in lockwatch-ebpf/ (or the crates they link) changed".to_owned(),
            );
        }
        for name in OBJECTS {
            let path = object_path(root, name);
            let Some(entry) = self.objects.get(name) else {
                stale.push(format!("the manifest has no {name}"));
                continue;
            };
            match fs::read(&path) {
                Ok(bytes) if hex(&Sha256::digest(&bytes)) == entry.sha256 => {}
                Ok(_) => stale.push(format!("{} is not the recorded one", path.display())),
                Err(error) => stale.push(format!("{}: {error}", path.display())),
            }
        }
        if !stale.is_empty() {
            bail!(
                "the object is stale: run cargo xtask ebpf ({})",
                stale.join("; ")
            );
        }
        Ok(())
    }
}

/// Hash of everything that decides the objects, save the compiler: our files
/// by their paths inside the tree, the linked crates as locked, and the flags.
pub(crate) fn source_hash(root: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    let mut add = |name: &str, content: &[u8]| {
        // Lengths keep two files from being taken for one longer file.
        hash.update(format!("{name}\0{}\0", content.len()));
        hash.update(content);
    };
    let top = root.join("lockwatch-ebpf");
    let mut files = Vec::new();
    list_files(&top, &mut files)?;
    let mut named: Vec<(String, PathBuf)> = files
        .into_iter()
        .map(|path| {
            let relative = path.strip_prefix(&top).unwrap_or(&path);
            (relative.to_string_lossy().into_owned(), path)
        })
        .collect();
    named.sort();
    for (name, path) in &named {
        let content = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        add(name, &content);
    }
    let lock = root.join("Cargo.lock");
    let lock =
        fs::read_to_string(&lock).with_context(|| format!("cannot read {}", lock.display()))?;
    for line in locked_crates(&lock) {
        add("locked", line.as_bytes());
    }
    for flag in FLAGS {
        add("flag", flag.as_bytes());
    }
    for (key, value) in PROFILE {
        add(key, value.as_bytes());
    }
    Ok(hex(&hash.finalize()))
}

/// All files below `directory`, but no editor's leavings.
fn list_files(directory: &Path, into: &mut Vec<PathBuf>) -> Result<()> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?;
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with('.') || name.ends_with('~') || name == "target" {
            continue;
        }
        if entry.file_type()?.is_dir() {
            list_files(&entry.path(), into)?;
        } else {
            into.push(entry.path());
        }
    }
    Ok(())
}

/// `name version checksum` of each linked crate in a `Cargo.lock`, sorted.
fn locked_crates(lock: &str) -> Vec<String> {
    let mut found: Vec<String> = lock
        .split("[[package]]")
        .filter_map(|block| {
            let field = |key: &str| {
                block
                    .lines()
                    .find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "))
                    .map(|value| value.trim_matches('"'))
            };
            let name = field("name")?;
            LINKED_CRATES
                .iter()
                .any(|prefix| name.starts_with(prefix))
                .then(|| {
                    let version = field("version").unwrap_or_default();
                    format!("{name} {version} {}", field("checksum").unwrap_or_default())
                })
        })
        .collect();
    found.sort();
    found
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCK: &str = r#"version = 4

[[package]]
name = "zerocopy"
version = "0.8.1"
source = "registry+x"
checksum = "bb"

[[package]]
name = "aya-ebpf"
version = "0.2.1"
source = "registry+x"
checksum = "aa"
dependencies = [
 "zerocopy",
]

[[package]]
name = "anyhow"
version = "1.0.0"
checksum = "cc"
"#;

    /// A tree with just what the hash reads, removed again when dropped.
    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str, files: &[&str]) -> Self {
            let root = std::env::temp_dir().join(format!("xtask-{name}-{}", std::process::id()));
            fs::create_dir_all(root.join("lockwatch-ebpf/src")).unwrap();
            fs::write(root.join("Cargo.lock"), LOCK).unwrap();
            for file in files {
                fs::write(root.join("lockwatch-ebpf").join(file), file).unwrap();
            }
            Self(root)
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn only_linked_crates_count_and_their_order_does_not() {
        assert_eq!(
            locked_crates(LOCK),
            ["aya-ebpf 0.2.1 aa", "zerocopy 0.8.1 bb"]
        );
    }

    #[test]
    fn the_hash_ignores_place_and_order_but_no_content() {
        let one = Tree::new("hash-one", &["Cargo.toml", "src/a.rs", "src/b.rs"]);
        let two = Tree::new("hash-two", &["src/b.rs", "src/a.rs", "Cargo.toml"]);
        let before = source_hash(&one.0).unwrap();
        assert_eq!(before, source_hash(&two.0).unwrap());

        fs::write(two.0.join("lockwatch-ebpf/src/a.rs~"), "editor").unwrap();
        assert_eq!(before, source_hash(&two.0).unwrap());
        fs::write(two.0.join("Cargo.lock"), LOCK.replace("0.2.1", "0.2.2")).unwrap();
        assert_ne!(before, source_hash(&two.0).unwrap());
        fs::rename(
            one.0.join("lockwatch-ebpf/src/a.rs"),
            one.0.join("lockwatch-ebpf/src/c.rs"),
        )
        .unwrap();
        assert_ne!(before, source_hash(&one.0).unwrap());
    }

    #[test]
    fn a_changed_source_object_or_manifest_is_stale() {
        let tree = Tree::new("stale", &["Cargo.toml", "src/survey.rs"]);
        let root = &tree.0;
        let real = fs::read(object_path(
            &Path::new(env!("CARGO_MANIFEST_DIR")).join(".."),
            "survey",
        ))
        .unwrap();
        for name in OBJECTS {
            let path = object_path(root, name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, &real).unwrap();
        }
        let toolchain = Identity {
            rustc: "rustc 1".into(),
            llvm: "2".into(),
            bpf_linker: "bpf-linker 3".into(),
        };
        let objects = OBJECTS.map(|_| real.clone());
        let sources = source_hash(root).unwrap();
        let manifest = Manifest::new(sources, &toolchain, &objects).unwrap();
        manifest.check_files(root).unwrap();

        let stale = |manifest: &Manifest, why: &str| {
            let error = manifest.check_files(root).unwrap_err().to_string();
            assert!(
                error.starts_with("the object is stale: run cargo xtask ebpf"),
                "{error}"
            );
            assert!(error.contains(why), "{error}");
        };
        let mut other = manifest.clone();
        other.objects.get_mut("survey").unwrap().sha256 = "00".into();
        stale(&other, "survey.bpf.o is not the recorded one");
        other.objects.remove("survey");
        stale(&other, "the manifest has no survey");

        fs::write(root.join("lockwatch-ebpf/src/survey.rs"), "changed").unwrap();
        stale(&manifest, "the sources in lockwatch-ebpf/");
    }
}
