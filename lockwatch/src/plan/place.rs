//! Places where a program can run, as an [`Offer`] has them.

use crate::kernel::offer::{Lockdown, Mechanism, Offer};

/// How a function can be hooked.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Function<'a> {
    /// This kernel has no function of that name.
    Absent,
    /// At its entry and at its return, with all parameters.
    Typed {
        /// Number of parameters.
        parameters: u8,
    },
    /// At its entry alone, under these spellings; the lock is all that is sure.
    Untyped {
        /// Every spelling.
        targets: Vec<&'a str>,
        /// Why no more.
        why: String,
    },
    /// Not at all.
    Refused {
        /// Why not with its types.
        typed: String,
        /// Why not without.
        untyped: String,
    },
}

impl<'a> Function<'a> {
    /// Looks a function up by its stem.
    pub(super) fn find(offer: &'a Offer, stem: &'a str) -> Self {
        let spelled = offer.symbols.get(stem);
        let typed = offer.functions.get(stem);
        // Without any symbol table, BTF has to do.
        let found = spelled.is_some() || (offer.symbols.is_empty() && typed.is_some());
        if !found {
            return Self::Absent;
        }
        let spelled = spelled.map(Vec::as_slice).unwrap_or_default();
        // The kernel looks a typed function up by its name as BTF has it, so the one
        // symbol must be that name; a clone beside it would take calls past the hook.
        let exact = spelled.is_empty() || spelled == [stem];
        let refused = typed_refusal(offer).or_else(|| offer.unhookable.get(stem).cloned());
        let why_untyped = match (refused, typed) {
            (None, Some(&parameters)) if exact => return Self::Typed { parameters },
            (Some(why), _) => why,
            (None, None) => "the kernel's type information does not have it".to_owned(),
            (None, Some(_)) => format!("it is compiled as {}", spelled.join(", ")),
        };
        let whole: Vec<&str> = spelled
            .iter()
            .map(String::as_str)
            // A part is entered from the function itself, if that is there.
            .filter(|name| !name.contains(".part.") || spelled.len() == 1)
            .collect();
        // A kprobe is set by name, and refuses a name that occurs twice.
        let unique = whole
            .iter()
            .all(|name| whole.iter().filter(|other| *other == name).count() == 1);
        match offer.refusal(Mechanism::Kprobe) {
            None if unique && !whole.is_empty() => Self::Untyped {
                targets: whole,
                why: why_untyped,
            },
            None => Self::Refused {
                typed: why_untyped,
                untyped: "its name is not unique".to_owned(),
            },
            Some(why) => Self::Refused {
                typed: why_untyped,
                untyped: format!("kprobe is refused: {why}"),
            },
        }
    }
}

/// Why no function at all can be hooked with its types: both ends of it are wanted.
pub(super) fn typed_refusal(offer: &Offer) -> Option<String> {
    if !offer.btf {
        return Some("fentry and fexit need the kernel's type information (BTF)".to_owned());
    }
    [Mechanism::Fentry, Mechanism::Fexit]
        .into_iter()
        .find_map(|mechanism| {
            let why = offer.refusal(mechanism)?;
            Some(format!("{} is refused: {why}", mechanism.name()))
        })
}

/// The best way to hook a tracepoint: its mechanism and its arguments; or why there is none.
pub(super) fn tracepoint<'a>(
    offer: &'a Offer,
    name: &str,
) -> Result<(Mechanism, &'a [String]), String> {
    let arguments = offer
        .tracepoints
        .get(name)
        .ok_or_else(|| format!("this kernel has no tracepoint {name}"))?;
    if let Some(why) = offer.unhookable.get(name) {
        return Err(format!("tracepoint {name}: {why}"));
    }
    let refused = |mechanism: Mechanism| {
        let why = offer.refusal(mechanism)?;
        Some(format!("{} is refused: {why}", mechanism.name()))
    };
    let raw = refused(Mechanism::RawTp).or_else(|| memory_refusal(offer, "a raw_tp program has"));
    match (refused(Mechanism::TpBtf), raw) {
        (None, _) => Ok((Mechanism::TpBtf, arguments)),
        (Some(_), None) => Ok((Mechanism::RawTp, arguments)),
        (Some(typed), Some(raw)) => Err(format!("{typed}; {raw}")),
    }
}

/// Why programs that have to read the kernel's memory cannot be loaded: `these have`, say.
/// Those that only follow typed pointers can.
pub(super) fn memory_refusal(offer: &Offer, these_have: &str) -> Option<String> {
    (offer.lockdown == Some(Lockdown::Confidentiality)).then(|| {
        format!(
            "{these_have} to read the kernel's memory, which is locked down for confidentiality"
        )
    })
}

/// What lifts that.
pub(super) const MEMORY_REMEDY: &str = "boot with lockdown=integrity";

/// Positions of the arguments of this type.
pub(super) fn positions(arguments: &[String], ty: &str) -> Vec<u8> {
    (0..)
        .zip(arguments)
        .filter(|(_, argument)| *argument == ty)
        .map(|(position, _)| position)
        .collect()
}

/// The number of arguments.
pub(super) fn count(arguments: &[String]) -> u8 {
    u8::try_from(arguments.len()).unwrap_or(u8::MAX)
}
