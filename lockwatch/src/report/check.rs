//! What `check` says: the contract `lockwatch.check/1`. docs/check.md explains it.

use schemars::JsonSchema;
use serde::Serialize;

use crate::plan::{Gap, Offer, Plan, Subject, Wanted, plan};

/// Name and version of the contract.
pub const CONTRACT: &str = "lockwatch.check/1";

/// What this kernel and these privileges allow.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Check {
    /// Name and version of this contract.
    #[schemars(extend("const" = CONTRACT))]
    pub schema: &'static str,
    /// Version of lockwatch that made it.
    pub lockwatch: &'static str,
    /// The sum of it.
    pub works: Works,
    /// What each command can do here.
    pub commands: Vec<Ability>,
    /// What is attached, and what is missing.
    pub plan: Plan,
    /// What the kernel offers.
    pub offer: Offer,
}

/// How much works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Works {
    /// Nothing.
    Not,
    /// Something is missing.
    Partly,
    /// All that lockwatch wants is there.
    Wholly,
}

/// What one command can do here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Ability {
    /// Its name.
    pub command: &'static str,
    /// How much of it works.
    pub works: Works,
    /// What is missing for it, as in `plan.gaps`.
    pub missing: Vec<String>,
}

impl Check {
    /// Makes a plan for everything, and says what it comes to.
    pub fn of(offer: Offer) -> Self {
        let plan = plan(&offer, Wanted::ALL);
        let has = |subject| plan.gaps_in(subject).next().is_some();
        let surveys = !has(Subject::Everything) && !has(Subject::Surveys);
        let stream = !has(Subject::Everything) && plan.sees_waits();
        let ability = |command, usable: bool, wanted: &dyn Fn(&Gap) -> bool| {
            let missing: Vec<String> = plan
                .gaps
                .iter()
                .filter(|gap| wanted(gap))
                .map(|gap| gap.missing.clone())
                .collect();
            let works = match (usable, missing.is_empty()) {
                (false, _) => Works::Not,
                (true, false) => Works::Partly,
                (true, true) => Works::Wholly,
            };
            Ability {
                command,
                works,
                missing,
            }
        };
        let of_survey = |gap: &Gap| matches!(gap.subject, Subject::Everything | Subject::Surveys);
        let commands = vec![
            ability("diagnose", surveys, &of_survey),
            ability("watch", surveys || stream, &|_| true),
        ];
        let works = if plan.gaps.is_empty() {
            Works::Wholly
        } else if commands.iter().any(|ability| ability.works > Works::Not) {
            Works::Partly
        } else {
            Works::Not
        };
        Self {
            schema: CONTRACT,
            lockwatch: env!("CARGO_PKG_VERSION"),
            works,
            commands,
            plan,
            offer,
        }
    }
}
