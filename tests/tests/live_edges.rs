//! Throw-away: do the edges happen?
#![expect(clippy::unwrap_used, reason = "x")]
use std::{thread, time::Duration};
use lockwatch_tests::{edge::{actor::*, agitator::*}, trial::{self, Lab}, truth::Scenario};

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn look() {
    let means = match Agitator::attach(c"nobody", Place::Nowhere, Means::Functions) {
        Ok(_) => Means::Functions,
        Err(error) => {
            eprintln!("functions: {error:#}");
            Means::Tracepoints { success_argument: 2 }
        }
    };
    let rate = |name, part| {
        for place in [Place::Nowhere, Place::UnderIt, Place::AtSwitch] {
            let agitator = match Agitator::attach(c"edge-act", place, means) {
                Ok(agitator) => agitator,
                Err(error) => { eprintln!("{name} {place:?}: {error:#}"); continue }
            };
            let actor = Actor::start(c"edge-act", part).unwrap();
            let t = actor.turns();
            thread::sleep(trial::bound(Duration::from_secs(1)));
            eprintln!("{name} {place:?}: turns {} {:?} lock {:x?}", actor.turns() - t, agitator.count().unwrap(), agitator.lock(0).ok());
        }
    };
    rate("unmap", Part::Unmap);
    rate("fault", Part::Fault);
    rate("nap", Part::Nap);
    rate("fault beside nap", Part::FaultBesideNap);
    rate("breed", Part::Breed);
    for (comm, place) in [(c"lab-holder", Place::UnderIt), (c"lab-holder", Place::AtSwitch), (c"lab-w1", Place::AtSwitch), (c"lab-w1", Place::UnderIt)] {
        let agitator = match Agitator::attach(comm, place, means) {
            Ok(agitator) => agitator,
            Err(error) => { eprintln!("{comm:?} {place:?}: {error:#}"); continue }
        };
        let lab = Lab::raise(Scenario::MmapReadHeld, 3).unwrap();
        eprintln!("{comm:?} {place:?}: {:?} lock {:x?}", agitator.count().unwrap(), agitator.lock(0).ok());
        lab.finish().unwrap();
        eprintln!("   at end {:?}", agitator.count().unwrap());
    }
}
