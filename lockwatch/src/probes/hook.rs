//! The hooks of a plan: each is one program at one place.

use aya::{
    Btf, Ebpf,
    programs::{BtfTracePoint, FEntry, FExit, KProbe, Program, ProgramError, RawTracePoint},
};

use crate::{
    plan::{Hook, Mechanism},
    probes::LoadError,
};

/// A hook that the kernel refused, though its offer had seemed to allow it.
#[derive(Debug, thiserror::Error)]
#[error("cannot hook {target} by {}", .mechanism.name())]
pub struct Refused {
    /// What is refused.
    pub mechanism: Mechanism,
    /// Where.
    pub target: String,
    /// Why.
    #[source]
    pub source: LoadError,
}

impl Refused {
    fn new(hook: &Hook, source: LoadError) -> Self {
        Self {
            mechanism: hook.mechanism,
            target: hook.target.clone(),
            source,
        }
    }
}

/// Programs of one object, each with the hook it is loaded for, in the plan's order.
#[derive(Debug, Default)]
pub(super) struct Hooks(Vec<(String, Hook)>);

impl Hooks {
    /// Hooks with the programs that serve them.
    pub(super) fn new(hooks: impl IntoIterator<Item = (String, Hook)>) -> Self {
        Self(hooks.into_iter().collect())
    }

    /// The programs' names and hooks, in the plan's order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &(String, Hook)> {
        self.0.iter()
    }

    /// Loads all of them, and attaches none: a refusal leaves nothing behind.
    pub(super) fn load(&self, ebpf: &mut Ebpf, btf: &Btf) -> Result<(), Refused> {
        for (name, hook) in &self.0 {
            load(program(ebpf, name, hook)?, &hook.target, btf)
                .map_err(|error| Refused::new(hook, LoadError::program(error)))?;
        }
        Ok(())
    }

    /// Attaches all of them, in order.
    pub(super) fn attach(&self, ebpf: &mut Ebpf) -> Result<(), Refused> {
        for (name, hook) in &self.0 {
            attach(program(ebpf, name, hook)?, &hook.target)
                .map_err(|error| Refused::new(hook, LoadError::program(error)))?;
        }
        Ok(())
    }
}

impl Hook {
    /// The program for a tracepoint that this hook is at; none if it is at a function.
    pub(super) fn tracepoint_program(&self) -> Option<String> {
        match self.mechanism {
            Mechanism::TpBtf => Some(self.target.clone()),
            Mechanism::RawTp => Some(format!("raw_{}", self.target)),
            Mechanism::Fentry | Mechanism::Fexit | Mechanism::Kprobe => None,
        }
    }

    /// The error when no program serves it.
    pub(super) fn unserved(&self) -> Refused {
        let wanted = format!("at {} by {}", self.target, self.mechanism.name());
        Refused::new(self, LoadError::NoProgram(wanted))
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str, hook: &Hook) -> Result<&'a mut Program, Refused> {
    ebpf.program_mut(name)
        .ok_or_else(|| Refused::new(hook, LoadError::NoProgram(name.to_owned())))
}

fn load(program: &mut Program, target: &str, btf: &Btf) -> Result<(), ProgramError> {
    match program {
        Program::BtfTracePoint(program) => BtfTracePoint::load(program, target, btf),
        Program::RawTracePoint(program) => RawTracePoint::load(program),
        Program::FEntry(program) => FEntry::load(program, target, btf),
        Program::FExit(program) => FExit::load(program, target, btf),
        Program::KProbe(program) => KProbe::load(program),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

fn attach(program: &mut Program, target: &str) -> Result<(), ProgramError> {
    match program {
        Program::BtfTracePoint(program) => program.attach().map(drop),
        Program::RawTracePoint(program) => program.attach(target).map(drop),
        Program::FEntry(program) => program.attach().map(drop),
        Program::FExit(program) => program.attach().map(drop),
        Program::KProbe(program) => program.attach(target, 0).map(drop),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}
