//! The sampler of CPUs.

use super::{
    Feature, Gap, Mechanism, Offer, Plan, Subject,
    place::{MEMORY_REMEDY, memory_refusal},
};

/// Says so where CPUs cannot be sampled. Those programs are no hooks: they run by a timer.
pub(super) fn add(plan: &mut Plan, offer: &Offer) {
    let lacking = |offer: &Offer| {
        let samples = offer.lacking.get(&Feature::CpuSamples);
        let why = samples.map(|why| format!("no program can run by a CPU's own timer: {why}"));
        // It sees CPUs come and go.
        why.or_else(|| {
            let why = offer.refusal(Mechanism::RawTp)?;
            Some(format!("raw_tp is refused: {why}"))
        })
    };
    let of_memory = memory_refusal(offer, "the program that samples CPUs has");
    let remedy = of_memory.is_some().then(|| MEMORY_REMEDY.to_owned());
    if let Some(why) = of_memory.or_else(|| lacking(offer)) {
        plan.gaps.push(Gap::lockups(why, remedy));
    }
}

impl Plan {
    /// Whether CPUs are sampled, as far as the offer tells.
    pub fn samples_cpus(&self) -> bool {
        self.gaps_in(Subject::Lockups).next().is_none()
    }

    /// Adds that they are not after all.
    pub fn lacks_lockups(&mut self, why: String) {
        self.gaps.push(Gap::lockups(why, None));
        self.gaps.sort_by_key(|gap| gap.subject);
    }
}

impl Gap {
    /// That CPUs are not seen to hang.
    pub fn lockups(why: String, remedy: Option<String>) -> Self {
        Self {
            subject: Subject::Lockups,
            missing: "soft and hard lockups: CPUs that do not go on".to_owned(),
            why,
            cost: "of a CPU that is locked up, only the kernel's own messages tell".to_owned(),
            remedy,
        }
    }
}
