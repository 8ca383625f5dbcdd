//! Network file systems, and how a mount names their servers.

/// Types of file systems that a server on the network stands behind (`file_system_type.name`).
const TYPES: &[&str] = &[
    "nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "afs", "orangefs", "lustre",
];

/// Whether a file system of this type asks a server.
pub fn is_one(fstype: &str) -> bool {
    TYPES.contains(&fstype)
}

/// The server in what was mounted (`mount.mnt_devname`): `fs1` of `fs1:/home` and of
/// `//fs1/share`; all of it where it has another form.
pub fn server(source: &str) -> &str {
    let share = source
        .strip_prefix("//")
        .or_else(|| source.strip_prefix(r"\\"))
        .and_then(|rest| rest.split(['/', '\\']).next());
    let export = source.find(":/").map(|at| &source[..at]);
    share
        .or(export)
        .filter(|server| !server.is_empty())
        .unwrap_or(source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_told_from_what_they_serve() {
        assert_eq!(server("fs1.example.net:/export/home"), "fs1.example.net");
        assert_eq!(server("[2001:db8::1]:/home"), "[2001:db8::1]");
        assert_eq!(server("//files/share/deep"), "files");
        assert_eq!(server(r"\\files\share"), "files");
        assert_eq!(
            server("10.0.0.1:6789,10.0.0.2:6789:/"),
            "10.0.0.1:6789,10.0.0.2:6789"
        );
        assert_eq!(server("hostshare"), "hostshare");
        assert_eq!(server(":/x"), ":/x");
        assert_eq!(server(""), "");
    }
}
