//! What a process has in the kernel's BPF subsystem, and what outlives it.

use std::{collections::BTreeSet, fs};

use aya::{
    maps::loaded_maps,
    programs::{loaded_links, loaded_programs},
};

/// Ids of what a process has in the kernel's BPF subsystem.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Attached {
    pub(crate) programs: BTreeSet<u32>,
    pub(crate) links: BTreeSet<u32>,
    pub(crate) maps: BTreeSet<u32>,
}

impl Attached {
    /// What the descriptors of the process stand for.
    pub(crate) fn by(process: i32) -> Self {
        let mut found = Self::default();
        for entry in fs::read_dir(format!("/proc/{process}/fdinfo")).unwrap() {
            let text = fs::read_to_string(entry.unwrap().path()).unwrap_or_default();
            for line in text.lines() {
                let Some((key, id)) = line.split_once(':') else {
                    continue;
                };
                let Ok(id) = id.trim().parse() else { continue };
                match key {
                    "prog_id" => found.programs.insert(id),
                    "link_id" => found.links.insert(id),
                    "map_id" => found.maps.insert(id),
                    _ => continue,
                };
            }
        }
        found
    }

    /// What of this still exists.
    pub(crate) fn left(&self) -> Self {
        // An object may go away between its number and the look at it.
        let programs: BTreeSet<u32> = loaded_programs().flatten().map(|one| one.id()).collect();
        let links: BTreeSet<u32> = loaded_links().flatten().map(|one| one.id()).collect();
        let maps: BTreeSet<u32> = loaded_maps().flatten().map(|one| one.id()).collect();
        Self {
            programs: &self.programs & &programs,
            links: &self.links & &links,
            maps: &self.maps & &maps,
        }
    }
}
