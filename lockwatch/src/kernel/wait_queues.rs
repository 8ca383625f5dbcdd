//! What tasks queue on that is no lock: wait queues, completions and bits.
//!
//! Sources: include/linux/wait.h, wait_bit.h, swait.h, completion.h and pagemap.h, and
//! kernel/sched/wait.c, wait_bit.c and mm/filemap.c of 5.10, 6.1, 6.12, 6.18 and 7.3.

use super::{btf::Btf, stems::stem, symbols::Symbols};

/// How entries lie on the stacks of those who wait, and the heads that they hang on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitLayout {
    /// `struct wait_queue_entry`
    pub entry: EntryLayout,
    /// `struct wait_queue_head.head`
    pub head: u64,
    /// `struct wait_bit_queue_entry`
    pub bit: Option<KeyLayout>,
    /// `struct wait_page_queue`
    pub page: Option<KeyLayout>,
    /// `struct swait_queue` (4.6+).
    pub simple: Option<SimpleLayout>,
}

/// `struct wait_queue_entry`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryLayout {
    /// `flags`
    pub flags: usize,
    /// `private`: the task, for an entry that a task made for itself.
    pub task: usize,
    /// `func`: what a wake-up calls.
    pub wake: usize,
    /// `entry`: its links.
    pub links: usize,
    /// Bytes of it.
    pub size: usize,
}

/// An entry in a queue that is shared by hash: what it waits for stands in front of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyLayout {
    /// Where the word's address lies (`key.flags`, or `folio`).
    pub word: usize,
    /// Where the number of the bit lies.
    pub bit: usize,
    /// Where the `wait_queue_entry` begins.
    pub entry: usize,
}

/// `struct swait_queue`, and the completion made of it (5.7+).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimpleLayout {
    /// `task`
    pub task: usize,
    /// `task_list`
    pub links: usize,
    /// Bytes of it.
    pub size: usize,
    /// `swait_queue_head.task_list`
    pub head: u64,
    /// `completion.wait.task_list` and `completion.done`
    pub completion: Option<(u64, u64)>,
}

/// All flags of an entry that there have been.
const FLAGS_KNOWN: u64 = 0x3f;

/// Whether a word can be the flags of an entry, in its low half.
pub const fn are_flags(word: u64) -> bool {
    word & 0xffff_ffff & !FLAGS_KNOWN == 0
}

impl WaitLayout {
    /// `None` where this kernel spells wait queues in another way (before 4.13).
    pub fn from_btf(btf: &Btf) -> Option<Self> {
        let at = |path: &str| btf.member(path).map(|member| member.offset as usize);
        let at64 = |path: &str| btf.member(path).map(|member| u64::from(member.offset));
        let size = |name: &str| usize::try_from(btf.size_of(name)?).ok();
        let bit = || {
            Some(KeyLayout {
                word: at("wait_bit_queue_entry.key.flags")?,
                bit: at("wait_bit_queue_entry.key.bit_nr")?,
                entry: at("wait_bit_queue_entry.wq_entry")?,
            })
        };
        let page = || {
            Some(KeyLayout {
                // `page` before 5.16.
                word: at("wait_page_queue.folio").or_else(|| at("wait_page_queue.page"))?,
                bit: at("wait_page_queue.bit_nr")?,
                entry: at("wait_page_queue.wait")?,
            })
        };
        let simple = || {
            let in_completion = at64("completion.wait.task_list").zip(at64("completion.done"));
            Some(SimpleLayout {
                task: at("swait_queue.task")?,
                links: at("swait_queue.task_list")?,
                size: size("swait_queue")?,
                head: at64("swait_queue_head.task_list")?,
                completion: in_completion,
            })
        };
        Some(Self {
            entry: EntryLayout {
                flags: at("wait_queue_entry.flags")?,
                task: at("wait_queue_entry.private")?,
                wake: at("wait_queue_entry.func")?,
                links: at("wait_queue_entry.entry")?,
                size: size("wait_queue_entry")?,
            },
            head: at64("wait_queue_head.head")?,
            bit: bit(),
            page: page(),
            simple: simple(),
        })
    }
}

/// What an entry stands for, by what a wake-up of it calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// A bit of a word (`wait_on_bit`).
    Bit,
    /// A variable (`wait_var_event`).
    Variable,
    /// A bit of a page's flags.
    Page,
    /// The queue itself.
    Queue,
}

/// `None` for an address at which no function begins.
pub fn wake_of(symbols: &Symbols, function: u64) -> Option<Wake> {
    let name = symbols.exact(function)?;
    symbols.function_at(function)?;
    Some(match stem(name) {
        "wake_bit_function" => Wake::Bit,
        "var_wake_function" => Wake::Variable,
        "wake_page_function" => Wake::Page,
        _ => Wake::Queue,
    })
}
