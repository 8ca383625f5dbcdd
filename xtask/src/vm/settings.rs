//! How machines are run.

/// What of a machine can be chosen.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Settings {
    /// How often the live tests try each scenario
    #[arg(long, value_name = "N", default_value_t = Self::USUAL.runs)]
    pub(crate) runs: u32,
    /// Machines at the same time; on two cores, two take half the time of one
    #[arg(long, value_name = "N", default_value_t = Self::USUAL.jobs, value_parser = clap::value_parser!(u32).range(1..=16))]
    pub(crate) jobs: u32,
    /// Processors of a machine
    #[arg(long, value_name = "N", default_value_t = Self::USUAL.cpus, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) cpus: u32,
    /// Give the machine one processor, whose clock goes on by one nanosecond with each
    /// instruction: what is timed in it is counted
    #[arg(long, conflicts_with = "cpus")]
    pub(crate) icount: bool,
    /// Memory of a machine, MiB
    #[arg(long, value_name = "MIB", default_value_t = Self::USUAL.memory)]
    pub(crate) memory: u32,
    /// A machine is killed after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = Self::USUAL.timeout)]
    pub(crate) timeout: u64,
    /// A test is killed after so many seconds, by the guest's clock
    #[arg(long, value_name = "SECONDS", default_value_t = Self::USUAL.test_timeout)]
    pub(crate) test_timeout: u64,
    /// Keep the initramfs beside the logs
    #[arg(long)]
    pub(crate) keep: bool,
    /// More words for the kernel's command line
    #[arg(long, value_name = "WORDS", default_value = "")]
    pub(crate) append: String,
}

impl Settings {
    /// For who chooses nothing.
    pub(crate) const USUAL: Self = Self {
        runs: 3,
        jobs: 2,
        cpus: 2,
        icount: false,
        memory: 1024,
        timeout: 1800,
        test_timeout: 180,
        keep: false,
        append: String::new(),
    };
}
