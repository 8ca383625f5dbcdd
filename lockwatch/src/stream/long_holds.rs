//! Which long holds are kept in the kernel.

use lockwatch_ebpf::long_holds::LongHoldConfig;

use crate::{
    kernel::{layout::Layout, lock_classes},
    probes::long_holds::LongHoldGlobals,
    task::Nanos,
};

/// Everything that the programs are loaded with to keep the holds this long or longer; 0:
/// none.
pub fn globals(least: Nanos, layout: &Layout) -> LongHoldGlobals {
    LongHoldGlobals {
        config: LongHoldConfig {
            least_ns: least.0,
            seed: lock_classes::meaning(layout),
            own_tgid: std::process::id(),
            _pad: 0,
        },
        object_words: lock_classes::object_words(layout),
    }
}
