//! What a program touched in file systems, from strace's record.

/// System calls recorded in lines like
/// `12 openat(AT_FDCWD, "/proc/kallsyms", O_RDONLY) = 3`.
pub struct Touched {
    /// The calls, in order.
    pub calls: Vec<Call>,
}

/// A call that names a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Thread id of the caller, if the record has it.
    pub tid: Option<u32>,
    /// The system call.
    pub name: String,
    /// The path as given; the folder it starts from before it, if that is a
    /// descriptor.
    pub path: String,
}

impl Touched {
    /// Reads the record of `strace -f -y -e trace=%file,openat2`.
    pub fn read(record: &str) -> Self {
        Self {
            calls: record.lines().filter_map(call).collect(),
        }
    }
}

/// `None` for lines that name no file: signals, exits, second halves of calls.
fn call(line: &str) -> Option<Call> {
    let (head, arguments) = line.split_once('(')?;
    let mut words = head.split_whitespace();
    let name = words.next_back()?;
    if !name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    {
        return None;
    }
    let (before, rest) = arguments.split_once('"')?;
    // strace escapes quotes inside of strings.
    let path = rest.split('"').next()?;
    let folder = before
        .split_once('<')
        .and_then(|(_, rest)| rest.split_once('>'))
        .map(|(folder, _)| folder)
        .filter(|_| !path.starts_with('/'));
    Some(Call {
        tid: words.next().and_then(|word| word.parse().ok()),
        name: name.to_owned(),
        path: match folder {
            Some(folder) if path.is_empty() => folder.to_owned(),
            Some(folder) => format!("{folder}/{path}"),
            None => path.to_owned(),
        },
    })
}

/// Files of processes that lockwatch must not touch while a host hangs:
/// reading or opening them takes the mmap_lock or the exec_update_lock of the
/// process, or enters the file system.
const FORBIDDEN: [&str; 16] = [
    "cmdline",
    "environ",
    "mem",
    "pagemap",
    "clear_refs",
    "map_files",
    "smaps",
    "smaps_rollup",
    "maps",
    "numa_maps",
    "io",
    "stack",
    "syscall",
    "fd",
    "exe",
    "cwd",
];

impl Call {
    /// The file of a process that it touches and must not.
    pub fn forbidden(&self) -> Option<&'static str> {
        let mut parts = self.path.strip_prefix("/proc/")?.split('/');
        let is_process = |part: &str| {
            matches!(part, "self" | "thread-self")
                || !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit())
        };
        if !is_process(parts.next()?) {
            return None;
        }
        parts.find_map(|part| FORBIDDEN.into_iter().find(|name| *name == part))
    }

    /// Rust's own look, before `main`, at where its main thread's stack is.
    pub fn is_rusts_start(&self) -> bool {
        let own = || self.tid.map(|tid| format!("/proc/{tid}/maps"));
        self.path == "/proc/self/maps" || own().as_ref() == Some(&self.path)
    }

    /// What the loader does before `main`: the program and its libraries.
    pub fn is_loaders(&self) -> bool {
        self.name == "execve"
            || self.path.starts_with("/etc/ld.so.")
            || ["/lib/", "/lib64/", "/usr/lib/", "/usr/lib64/"]
                .iter()
                .any(|folder| self.path.starts_with(folder))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(line: &str) -> Call {
        let mut calls = Touched::read(line).calls;
        assert_eq!(calls.len(), 1, "{line}");
        calls.remove(0)
    }

    #[test]
    fn calls_are_read_with_and_without_a_folder() {
        let call =
            one(r#"12 openat(AT_FDCWD</home>, "/proc/kallsyms", O_RDONLY) = 3</proc/kallsyms>"#);
        assert_eq!((&*call.name, &*call.path), ("openat", "/proc/kallsyms"));
        let call = one(r#"12 openat(3</proc/77>, "cmdline", O_RDONLY <unfinished ...>"#);
        assert_eq!(call.path, "/proc/77/cmdline");
        assert_eq!(
            one(r#"statx(3</proc/77/mem>, "", AT_EMPTY_PATH, 0) = 0"#).path,
            "/proc/77/mem"
        );
    }

    #[test]
    fn only_its_own_maps_belong_to_the_start() {
        let own = one(r#"12 newfstatat(3</proc/12/maps>, "", {}, AT_EMPTY_PATH) = 0"#);
        assert!(own.is_rusts_start());
        let other = one(r#"12 newfstatat(3</proc/13/maps>, "", {}, AT_EMPTY_PATH) = 0"#);
        assert!(!other.is_rusts_start());
    }

    #[test]
    fn other_lines_are_no_calls() {
        for line in [
            "12 +++ exited with 0 +++",
            "12 --- SIGCHLD {si_signo=SIGCHLD} ---",
            "12 <... openat resumed>) = 3",
        ] {
            assert!(Touched::read(line).calls.is_empty(), "{line}");
        }
    }

    #[test]
    fn what_could_hang_is_forbidden() {
        let forbidden = |path: &str| {
            let line = format!(r#"openat(AT_FDCWD, "{path}", O_RDONLY) = 3"#);
            one(&line).forbidden()
        };
        assert_eq!(forbidden("/proc/77/cmdline"), Some("cmdline"));
        assert_eq!(forbidden("/proc/self/fd/3"), Some("fd"));
        assert_eq!(forbidden("/proc/77/task/78/stack"), Some("stack"));
        assert_eq!(forbidden("/proc/self/status"), None);
        assert_eq!(forbidden("/proc/cmdline"), None);
        assert_eq!(forbidden("/proc/sys/kernel/io"), None);
    }
}
