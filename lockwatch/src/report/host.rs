//! The host a report is about.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The host a report is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Host {
    /// Its name, from `uname`.
    pub hostname: String,
    /// Kernel release: `6.12.9-amd64`.
    pub kernel: String,
    /// Machine: `x86_64`.
    pub arch: String,
    /// Identity of this boot. Absent where it could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
}

impl Host {
    /// The host we run on. Asks no file system but procfs.
    pub fn this() -> Self {
        let uname = rustix::system::uname();
        Self {
            hostname: uname.nodename().to_string_lossy().into_owned(),
            kernel: uname.release().to_string_lossy().into_owned(),
            arch: uname.machine().to_string_lossy().into_owned(),
            boot_id: std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
                .ok()
                .map(|id| id.trim().to_owned()),
        }
    }
}
