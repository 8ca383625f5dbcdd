//! What we know of the running kernel: types, symbols, layouts, memory, and what
//! its functions do with locks. No other room has an offset, a count bit or a
//! symbol's spelling.

pub mod arch;
pub mod block;
pub mod bpf_files;
pub mod btf;
pub mod capabilities;
pub mod cgroup;
pub mod cpus;
pub mod fault;
pub mod fuse;
pub mod hold_frames;
pub mod kallsyms;
pub mod layout;
pub mod learned;
pub mod lock_classes;
pub mod lock_functions;
pub mod locks;
pub mod memory;
pub mod messages;
pub mod network_fs;
pub mod offer;
pub mod parked_frames;
pub mod scheduler;
pub mod sleep_frames;
pub mod softirqs;
pub mod spin_frames;
pub mod stems;
pub mod symbol_tables;
pub mod symbols;
pub mod wait_queues;
pub mod watchdogs;
pub mod writer_frames;
