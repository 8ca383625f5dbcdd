//! The slots of open waits, shared with the programs: read without a system call.

use std::{
    os::fd::AsFd as _,
    sync::atomic::{AtomicU64, Ordering, fence},
};

use aya::{Ebpf, maps::Map};
use lockwatch_ebpf::stream::{
    OpenWait, WAIT_IS_WRITTEN, WAIT_SETS, WAIT_WAYS, WaitKey, WaitSlot, wait_id,
};

use crate::probes::{LoadError, mapped::Mapped};

/// All slots.
#[derive(Debug)]
pub(super) struct WaitSlots(Mapped<WaitSlot>);

impl WaitSlots {
    /// Those of an object that was loaded with [`WAIT_SETS`] sets.
    pub(super) fn new(ebpf: &Ebpf) -> Result<Self, LoadError> {
        const NAME: &str = "WAIT_SLOTS";
        let Some(Map::Array(map)) = ebpf.map(NAME) else {
            return Err(LoadError::Missing(NAME));
        };
        let len = WAIT_SETS as usize * WAIT_WAYS;
        Mapped::new(map.fd().as_fd(), len).map(Self)
    }

    /// Hands over the waits that are there. Those that stand still meanwhile are all found.
    pub(super) fn read(&self, mut each: impl FnMut(WaitKey, OpenWait)) {
        for index in 0..self.0.len() {
            if let Some((key, wait)) = self.at(index) {
                each(key, wait);
            }
        }
    }

    /// The open wait of this task on this lock.
    pub(super) fn find(&self, key: WaitKey) -> Option<OpenWait> {
        self.set_of(key.tid)
            .filter_map(|index| self.at(index))
            .find_map(|(found, wait)| (found == key).then_some(wait))
    }

    /// Takes out this very wait; false if it is not there any more.
    pub(super) fn remove(&self, key: WaitKey, since_ns: u64) -> bool {
        let id = wait_id(key.tid, since_ns) | WAIT_IS_WRITTEN;
        self.set_of(key.tid).any(|index| {
            self.at(index).is_some_and(|(found, _)| found == key)
                && self
                    .id(index)
                    .compare_exchange(id, 0, Ordering::SeqCst, Ordering::SeqCst)
                    .is_ok()
        })
    }

    /// The slots in which a task's waits are looked for.
    fn set_of(&self, tid: u32) -> impl Iterator<Item = usize> + use<> {
        let first = (tid % WAIT_SETS) as usize * WAIT_WAYS;
        first..first + WAIT_WAYS
    }

    fn id(&self, index: usize) -> &AtomicU64 {
        let slot = self.0.at(index);
        // SAFETY: mapped for the life of `self`.
        let id = unsafe { &raw mut (*slot).id };
        // SAFETY: as above, aligned, and everybody accesses it as atomic.
        unsafe { AtomicU64::from_ptr(id) }
    }

    /// The wait in a slot; `None` if there is none, or if it begins or ends right now.
    fn at(&self, index: usize) -> Option<(WaitKey, OpenWait)> {
        let id = self.id(index).load(Ordering::Acquire);
        if id & WAIT_IS_WRITTEN == 0 {
            return None;
        }
        // If any of it changes meanwhile, the id does, too.
        let slot = self.0.read(index);
        fence(Ordering::Acquire);
        let key = WaitKey {
            lock: slot.lock,
            tid: (id >> 32) as u32,
            _pad: 0,
        };
        (self.id(index).load(Ordering::Acquire) == id).then_some((key, slot.wait))
    }
}
