//! What `check` found, for a person.

use std::io::{self, Write};

use super::page::{GLUE, Style, Text, Tone, write_field};
use crate::{
    kernel::offer::Lockdown,
    lock::LockKind,
    plan::{Awaited, Gap, Hook, Offer, Outcome, Purpose, State, WaitEnds},
    report::check::{Check, Works},
};

/// Writes it: the kernel, the commands, the hooks, what is missing.
///
/// # Errors
/// When `out` does.
pub fn write_check(out: &mut dyn Write, check: &Check, style: Style) -> io::Result<()> {
    let sum = match check.works {
        Works::Wholly => Text::new().with(Tone::Strong, "all that lockwatch wants is there"),
        Works::Partly => Text::new().with(Tone::Doubt, "lockwatch works here, with gaps"),
        Works::Not => Text::new().with(Tone::Alarm, "lockwatch does not work here"),
    };
    sum.write(out, style, 0)?;
    write_field(out, style, "kernel", &[kernel(&check.offer)])?;
    for ability in &check.commands {
        let verdict = match ability.works {
            Works::Wholly => Text::plain("works"),
            Works::Partly => Text::new().with(Tone::Doubt, "works, but see what is missing"),
            Works::Not => Text::new().with(Tone::Alarm, "does not work"),
        };
        write_field(out, style, ability.command, &[verdict])?;
    }
    writeln!(out)?;
    write_hooks(out, check, style)?;
    for gap in &check.plan.gaps {
        writeln!(out)?;
        write_gap(out, gap, style)?;
    }
    if !check.offer.unasked.is_empty() {
        writeln!(out)?;
        let unasked: Vec<Text> = check.offer.unasked.iter().map(Text::plain).collect();
        write_field(out, style, "unasked", &unasked)?;
    }
    Ok(())
}

fn kernel(offer: &Offer) -> Text {
    let mut words = vec![format!("{} {}", offer.release, offer.machine)];
    if offer.preempt_rt {
        words.push("PREEMPT_RT".to_owned());
    }
    words.push(if offer.btf { "BTF" } else { "no BTF" }.to_owned());
    match offer.lockdown {
        Some(Lockdown::Integrity) => words.push("locked down (integrity)".to_owned()),
        Some(Lockdown::Confidentiality) => words.push("locked down (confidentiality)".to_owned()),
        Some(Lockdown::None) | None => {}
    }
    words.push(match offer.missing_privileges.len() {
        0 => "all privileges".to_owned(),
        _ => "not all privileges".to_owned(),
    });
    Text::plain(words.join(" · "))
}

fn write_hooks(out: &mut dyn Write, check: &Check, style: Style) -> io::Result<()> {
    let plan = &check.plan;
    if plan.hooks.is_empty() {
        return write_field(out, style, "hooks", &[Text::plain("none")]);
    }
    if check.works == Works::Not {
        let would = "what would be attached, were it not for what is missing:";
        write_field(out, style, "", &[Text::new().with(Tone::Dim, would)])?;
    }
    let columns = plan.hooks.iter().map(|hook| hook.target.len()).max();
    let columns = columns.unwrap_or_default();
    let hooks: Vec<Text> = plan
        .hooks
        .iter()
        .map(|hook| {
            let place = format!("{:<6} {:<columns$}", hook.mechanism.name(), hook.target);
            // One word, so that columns are kept.
            let place = place.replace(' ', &GLUE.to_string());
            Text::new()
                .with(Tone::Plain, place)
                .with(Tone::Dim, format!("  {}", purpose(hook)))
        })
        .collect();
    write_field(out, style, "hooks", &hooks)?;
    let state = match plan.state {
        State::TaskStorage => "task storage",
        State::Hash => "a hash map by thread ID",
    };
    write_field(out, style, "state", &[Text::plain(state)])?;
    let reasons: Vec<Text> = plan.reasons.iter().map(Text::plain).collect();
    write_field(out, style, "because", &reasons)
}

/// What a hook is for, in words.
fn purpose(hook: &Hook) -> String {
    match hook.purpose {
        Purpose::WaitBegin { awaited, end } => {
            let end = match end {
                WaitEnds::Hook => "",
                WaitEnds::Survey => ", which a survey sees end",
            };
            format!("a wait{} begins{end}", of(awaited))
        }
        Purpose::WaitEnd { awaited, .. } => format!("a wait{} ends", of(awaited)),
        Purpose::Acquire { mode, outcome } => {
            let unless = match outcome {
                Outcome::Always => "",
                Outcome::ZeroIsSuccess | Outcome::PointerIsSuccess => ", unless interrupted",
                Outcome::OneIsSuccess => ", if it was free",
            };
            format!("acquired for {}{unless}", mode.word())
        }
        Purpose::Release { mode } => format!("released, was held for {}", mode.word()),
        Purpose::Downgrade => "from write to read".to_owned(),
        Purpose::MmapAcquired { .. } => "mmap_lock acquired, or not".to_owned(),
        Purpose::MmapReleased { .. } => "mmap_lock released".to_owned(),
        Purpose::HolderSwitch { .. } => "a holder leaves its CPU or gets one".to_owned(),
        Purpose::HolderWakeup => "a holder could run again".to_owned(),
        Purpose::TaskExit => "a task is gone".to_owned(),
    }
}

fn of(awaited: Option<Awaited>) -> String {
    let Some(Awaited { kind, mode }) = awaited else {
        return String::new();
    };
    let name = kind.words();
    match mode.filter(|_| kind == LockKind::Rwsem) {
        Some(mode) => format!(" for {name} ({})", mode.word()),
        None => format!(" for {name}"),
    }
}

fn write_gap(out: &mut dyn Write, gap: &Gap, style: Style) -> io::Result<()> {
    let missing = Text::new().with(Tone::Doubt, &gap.missing);
    write_field(out, style, "missing", &[missing])?;
    write_field(out, style, "why", &[Text::plain(&gap.why)])?;
    write_field(out, style, "cost", &[Text::plain(&gap.cost)])?;
    if let Some(remedy) = &gap.remedy {
        write_field(out, style, "remedy", &[Text::plain(remedy)])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::offer;

    fn shown(offer: Offer, width: usize) -> String {
        let mut out = Vec::new();
        let color = false;
        write_check(&mut out, &Check::of(offer), Style { width, color }).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn for_a_person() {
        insta::assert_snapshot!("wholly", shown(offer("6.12"), 100));
        insta::assert_snapshot!("partly", shown(offer("6.18-restricted"), 100));
        insta::assert_snapshot!("before_5_19", shown(offer("5.10"), 100));
        insta::assert_snapshot!("not", shown(offer("4.19"), 60));
    }

    #[test]
    fn what_could_not_be_asked_is_said() {
        let mut unprivileged = offer("6.12");
        unprivileged
            .missing_privileges
            .push("missing CAP_BPF: run as root".to_owned());
        unprivileged.unasked.insert("the policy".to_owned());
        insta::assert_snapshot!("unprivileged", shown(unprivileged, 100));
    }
}
