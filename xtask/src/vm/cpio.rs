//! An archive in the form that the kernel unpacks at boot: cpio, "newc"
//! (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeSet;
use std::path::Path;

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const LINK: u32 = 0o120_777;
const DEVICE: u32 = 0o020_600;

/// An archive that grows; the folders above an entry are made for it.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    names: BTreeSet<String>,
}

impl Archive {
    /// A folder.
    pub(crate) fn folder(&mut self, path: &str) {
        self.entry(path, DIRECTORY, (0, 0), b"");
    }

    /// A file that may be run.
    pub(crate) fn file(&mut self, path: &str, contents: &[u8]) {
        self.entry(path, PROGRAM, (0, 0), contents);
    }

    /// A symbolic link.
    pub(crate) fn link(&mut self, path: &str, to: &str) {
        self.entry(path, LINK, (0, 0), to.as_bytes());
    }

    /// A character device.
    pub(crate) fn device(&mut self, path: &str, major: u32, minor: u32) {
        self.entry(path, DEVICE, (major, minor), b"");
    }

    /// Whether something of this path is in it.
    pub(crate) fn contains(&self, path: &str) -> bool {
        self.names.contains(path.trim_start_matches('/'))
    }

    /// The whole archive.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.write("TRAILER!!!", 0, (0, 0), b"");
        self.bytes
    }

    /// The first of a name stays: an archive with two gives either.
    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), contents: &[u8]) {
        let path = path.trim_start_matches('/');
        if path.is_empty() || self.contains(path) {
            return;
        }
        if let Some(above) = Path::new(path).parent().and_then(Path::to_str) {
            self.folder(above);
        }
        self.write(path, mode, device, contents);
        self.names.insert(path.to_owned());
    }

    fn write(&mut self, name: &str, mode: u32, (major, minor): (u32, u32), contents: &[u8]) {
        let size = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        let inode = size(self.names.len()) + 1;
        // inode, mode, uid, gid, links, time, size, device of the file, device
        // that it is, length of the name, checksum (unused in this form).
        let fields = [
            inode,
            mode,
            0,
            0,
            1,
            0,
            size(contents.len()),
            0,
            0,
            major,
            minor,
            size(name.len() + 1),
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_above_come_first_and_once() {
        let mut archive = Archive::default();
        archive.file("/a/b/c", b"12345");
        archive.file("/a/b/d", b"");
        archive.file("/a/b/d", b"ignored");
        assert!(archive.contains("/a/b"));
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8(bytes).unwrap();
        let names: Vec<&str> = text
            .split("070701")
            .skip(1)
            .map(|entry| entry[104..].split('\0').next().unwrap())
            .collect();
        assert_eq!(names, ["a", "a/b", "a/b/c", "a/b/d", "TRAILER!!!"]);
        assert!(text.contains("12345\0\0\x00070701"));
        assert!(!text.contains("ignored"));
    }
}
