//! What every plan stands on: privileges, and the survey.

use super::{Gap, Plan, Subject};
use crate::kernel::offer::{Feature, Lockdown, Mechanism, Offer};

impl Gap {
    /// That there are no surveys.
    fn surveys(why: String, remedy: Option<String>) -> Self {
        Self {
            subject: Subject::Surveys,
            missing: "surveys: the state of all tasks and locks at one instant".to_owned(),
            why,
            cost:
                "no diagnose; watch has no names of locks and no holders of those taken before it \
                   came, and finds no tasks or CPUs that hang"
                    .to_owned(),
            remedy,
        }
    }

    /// Puts right, where `watch` runs, what was planned for surveys. `refused`: why none can
    /// be taken; none where they can.
    pub fn set_right(gaps: Vec<Self>, refused: Option<&str>) -> Vec<Self> {
        let (forecast, mut gaps): (Vec<_>, Vec<_>) = gaps
            .into_iter()
            .partition(|gap| matches!(gap.subject, Subject::Everything | Subject::Surveys));
        let Some(refused) = refused else {
            return gaps;
        };
        let mut surveys: Vec<_> = forecast
            .into_iter()
            .map(|gap| Self::surveys(gap.why, gap.remedy))
            .collect();
        if surveys.is_empty() {
            surveys.push(Self::surveys(refused.to_owned(), None));
        }
        if !gaps.iter().any(|gap| gap.subject == Subject::Lockups) {
            gaps.push(Self::lockups(
                "only a survey tells whether a CPU that seems to be locked up is".to_owned(),
                None,
            ));
        }
        surveys.append(&mut gaps);
        surveys
    }
}

/// Adds what keeps programs, or surveys, from being had at all.
pub(super) fn add(plan: &mut Plan, offer: &Offer) {
    let everything = |why: String, remedy: Option<&str>| Gap {
        subject: Subject::Everything,
        missing: "lockwatch itself".to_owned(),
        why,
        cost: "no command works on this host".to_owned(),
        remedy: remedy.map(str::to_owned),
    };
    for missing in &offer.missing_privileges {
        let (why, remedy) = missing.split_once(": ").unwrap_or((missing, ""));
        plan.gaps.push(everything(
            why.to_owned(),
            (!remedy.is_empty()).then_some(remedy),
        ));
    }
    if offer.machine != "x86_64" {
        let why = format!(
            "it does not know the stacks and pointers of {}",
            offer.machine
        );
        plan.gaps.push(everything(why, None));
    }
    if !offer.btf {
        plan.gaps.push(everything(
            "the kernel shows no type information (BTF), so that no offset in its memory is known"
                .to_owned(),
            Some(
                "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y, Linux 5.10 or later; mount /sys",
            ),
        ));
    }
    if let Some(unknown) = &offer.unknown_layout {
        plan.gaps.push(everything(unknown.clone(), None));
    }
    let surveys = |why: String, remedy: Option<&str>| Gap::surveys(why, remedy.map(str::to_owned));
    if let Some(why) = offer.lacking.get(&Feature::TaskIterator) {
        plan.gaps.push(surveys(why.clone(), None));
    }
    if let Some(why) = offer.refusal(Mechanism::RawTp) {
        let why = format!("the program that reads kernel memory is refused: {why}");
        plan.gaps.push(surveys(why, None));
    }
    if offer.lockdown == Some(Lockdown::Confidentiality) {
        plan.gaps.push(surveys(
            "the kernel is locked down for confidentiality, which forbids reading its memory"
                .to_owned(),
            Some("boot with lockdown=integrity"),
        ));
    }
    if offer.kptr_restrict == Some(2) {
        plan.gaps.push(surveys(
            "the kernel hides its symbol addresses from everybody (kernel.kptr_restrict is 2)"
                .to_owned(),
            Some("sysctl kernel.kptr_restrict=1"),
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_that_runs_does_not_say_that_nothing_works() {
        let gap = |subject, why: &str| Gap {
            subject,
            ..Gap::surveys(why.to_owned(), None)
        };
        let planned = vec![
            gap(Subject::Everything, "missing CAP_SYSLOG"),
            gap(Subject::Holds, "fentry is refused"),
        ];
        let subjects = |gaps: &[Gap]| gaps.iter().map(|gap| gap.subject).collect::<Vec<_>>();

        let with_surveys = Gap::set_right(planned.clone(), None);
        assert_eq!(subjects(&with_surveys), [Subject::Holds]);

        let without = Gap::set_right(planned, Some("no survey"));
        let expected = [Subject::Surveys, Subject::Holds, Subject::Lockups];
        assert_eq!(subjects(&without), expected);
        assert_eq!(without[0].why, "missing CAP_SYSLOG");

        let unforeseen = Gap::set_right(Vec::new(), Some("no survey"));
        assert_eq!(
            subjects(&unforeseen),
            [Subject::Surveys, Subject::Lockups],
            "nothing confirms a lockup then"
        );
        assert_eq!(unforeseen[0].why, "no survey");

        let unsampled = vec![gap(Subject::Lockups, "no cpu-clock")];
        let both = Gap::set_right(unsampled, Some("no survey"));
        assert_eq!(subjects(&both), [Subject::Surveys, Subject::Lockups]);
        assert_eq!(both[1].why, "no cpu-clock");
    }
}
