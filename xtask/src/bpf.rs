//! Whether this process may use BPF at all: asked of the kernel, not guessed from the user id.

use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};

use nix::libc;

/// `bpf(2)` command and map type, from `include/uapi/linux/bpf.h`.
const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_TYPE_ARRAY: u32 = 2;

/// `CAP_SYS_ADMIN`, from `include/uapi/linux/capability.h`.
const SYS_ADMIN: u32 = 21;

/// Why live tests cannot run here; `None`: they can.
pub(crate) fn refusal() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("not root: the lab mounts FUSE and lockwatch loads BPF".to_owned());
    }
    if let Err(error) = create_map() {
        return Some(format!("the kernel refuses bpf(2): {error}"));
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    if !may_mount(&status) {
        return Some("no CAP_SYS_ADMIN, as in most containers: the lab mounts FUSE".to_owned());
    }
    let btf = "/sys/kernel/btf/vmlinux";
    (!std::path::Path::new(btf).exists()).then(|| format!("the kernel has no {btf}"))
}

fn may_mount(status: &str) -> bool {
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
        .is_some_and(|set| set >> SYS_ADMIN & 1 == 1)
}

/// Creates and drops the smallest array there is.
fn create_map() -> io::Result<()> {
    // map_type, key_size, value_size, max_entries; the rest of the union is zero.
    let mut attributes = [0_u32; 32];
    attributes[..4].copy_from_slice(&[BPF_MAP_TYPE_ARRAY, 4, 4, 1]);
    // SAFETY: the kernel reads as many bytes as the third argument says, all of
    // which are ours and initialised; larger structs than it knows may end in zeros.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_MAP_CREATE,
            attributes.as_ptr(),
            size_of_val(&attributes),
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the call above has just returned this descriptor, and nobody else has it.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_set_decides() {
        assert!(may_mount("CapPrm:\t0\nCapEff:\t000001ffffffffff\n"));
        assert!(!may_mount(
            "CapPrm:\t000001ffffffffff\nCapEff:\t00000000a80425fb\n"
        ));
        assert!(!may_mount(""));
    }
}
