//! What programs are loaded by: the running kernel's types.

use crate::{
    kernel::{
        btf::{Btf, BtfError},
        fuse,
        layout::Layout,
    },
    probes::loader,
};

/// The running kernel's types, read once for all that is loaded. 7 MB, and of no use
/// afterwards.
#[derive(Debug)]
pub struct Types {
    /// With those of the module that FUSE may be.
    pub kernel: Btf,
    /// The offsets that lockwatch uses.
    pub layout: Layout,
    /// What programs can be loaded for.
    pub hookable: aya::Btf,
}

impl Types {
    /// Reads them.
    ///
    /// # Errors
    /// When the kernel shows none, or lacks what no survey can do without.
    pub fn read() -> Result<Self, BtfError> {
        let kernel = Btf::from_sys_with(fuse::MODULE)?;
        let layout = Layout::from_btf(&kernel)?;
        let hookable = loader::hookable(&kernel).map_err(|error| {
            tracing::debug!("aya says: {error}");
            BtfError::Malformed("aya refuses the types of what is hooked")
        })?;
        Ok(Self {
            kernel,
            layout,
            hookable,
        })
    }
}
