//! Build, test and demo verbs of the project: `cargo xtask help`.

mod archive;
mod bench;
mod bpf;
mod cache;
mod deb;
mod demo;
mod document;
mod ebpf;
mod formats;
mod grid;
mod kernels;
mod lab;
mod learn;
mod live;
mod metrics;
mod mutation;
mod otlp;
mod packages;
mod process;
mod test;
mod truth;
mod verified;
mod vm;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Build, test and demo verbs of the lockwatch project.
///
/// `cargo build` needs none of these: the kernel objects are kept in the tree.
/// Whoever changes a file under lockwatch-ebpf/ runs `cargo xtask ebpf`, and
/// `cargo xtask test` before handing the change on.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Ebpf(ebpf::Args),
    Test(test::Args),
    Demo(demo::Args),
    Formats(formats::Args),
    Metrics(metrics::Args),
    Mutation(mutation::Args),
    Otlp(otlp::Args),
    Live(live::Args),
    Vm(vm::Args),
    Verified(verified::Args),
    Kernels(kernels::Args),
    Learn(learn::Args),
    Bench(bench::Args),
    #[command(hide = true)]
    VmVerified(verified::WitnessArgs),
    #[command(hide = true)]
    VmStart(bench::StartArgs),
    #[command(hide = true)]
    VmDemo(demo::StallArgs),
    #[command(hide = true)]
    VmOff(vm::SwitchArgs),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().verb {
        Verb::Ebpf(args) => ebpf::run(&args).map(|()| ExitCode::SUCCESS),
        Verb::Test(args) => test::run(&args),
        Verb::Demo(args) => demo::run(&args),
        Verb::Formats(args) => formats::run(&args),
        Verb::Metrics(args) => metrics::run(&args),
        Verb::Mutation(args) => mutation::run(&args),
        Verb::Otlp(args) => otlp::run(&args),
        Verb::Live(args) => live::run(&args),
        Verb::Vm(args) => vm::run(&args),
        Verb::Kernels(args) => kernels::run(&args),
        Verb::Learn(args) => learn::run(&args),
        Verb::Bench(args) => bench::run(&args),
        Verb::Verified(args) => verified::run(&args),
        Verb::VmVerified(args) => verified::witness(&args).map(|()| ExitCode::SUCCESS),
        Verb::VmStart(args) => bench::start_in_machine(&args).map(|()| ExitCode::SUCCESS),
        Verb::VmDemo(args) => demo::run_in_machine(&args),
        Verb::VmOff(args) => vm::switch_off(&args).map(|()| ExitCode::SUCCESS),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
