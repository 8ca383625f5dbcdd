//! Whom everybody waits for, in the end.

use std::collections::BTreeSet;

use super::{Verdict, accused};
use crate::{
    trial::report::{Chain, Lock, Report, Step},
    truth::{Ready, Tid},
};

impl Verdict {
    pub(super) fn chains(&mut self, report: &Report, lock: &Lock, truth: &Ready) {
        // A ring has no root.
        if truth.cycle.is_some() {
            return;
        }
        let here = Step::Lock(lock.id.clone());
        let chains: Vec<&Chain> = report
            .chains
            .iter()
            .filter(|chain| chain.path.contains(&here))
            .collect();
        let may_miss = |tid| truth.owner_hidden && !accused(lock).any(|holder| holder.tid == tid);
        let last = truth
            .next
            .as_ref()
            .map_or(&truth.holders, |next| &next.holders);
        let wanted: BTreeSet<Tid> = last
            .iter()
            .map(|holder| holder.tid)
            .filter(|tid| !may_miss(*tid))
            .collect();
        let mut ends = BTreeSet::new();
        for chain in &chains {
            // It may be a thread of the daemon that the holder waits for.
            let waits = truth.waiters.iter().any(|one| one.tid == chain.root.tid);
            self.expect(!waits, || {
                format!("a chain ends with the waiter {:?}", chain.root)
            });
            let theirs = chain.ends(&report.daemons);
            // A daemon has other clients, too; each chain has to be about a holder.
            let known: Vec<&Tid> = theirs.intersection(&wanted).collect();
            self.expect(!known.is_empty(), || {
                format!("a chain ends with {:?}, not with {wanted:?}", chain.root)
            });
            ends.extend(known);
        }
        self.expect(ends == wanted && chains.len() <= wanted.len(), || {
            format!("{} chains end with {ends:?}, not {wanted:?}", chains.len())
        });
        for chain in chains {
            self.chain(report, chain);
        }
    }

    fn chain(&mut self, report: &Report, chain: &Chain) {
        let on_it = |lock: &&Lock| chain.path.contains(&Step::Lock(lock.id.clone()));
        let waiters = report
            .locks
            .iter()
            .filter(on_it)
            .flat_map(|lock| &lock.waiters);
        let mut blocked: BTreeSet<Tid> = waiters
            .filter(|one| !one.granted)
            .map(|one| one.tid)
            .collect();
        let clients = chain.daemon(&report.daemons).map(|daemon| &daemon.clients);
        blocked.extend(clients.into_iter().flatten().map(|client| client.tid));
        let is_servers = |comm: &str| comm.starts_with("lab-server") || comm == "lab-daemon";
        self.expect(clients.is_none() || is_servers(&chain.root.comm), || {
            format!("{} is no daemon of the lab", chain.root.comm)
        });
        self.expect(chain.blocked_tasks == blocked.len(), || {
            format!(
                "{}[{}] blocks {} tasks, not {}",
                chain.root.comm,
                chain.root.tid.0,
                chain.blocked_tasks,
                blocked.len()
            )
        });
        self.expect(chain.sentence.contains(&chain.root.comm), || {
            format!("`{}` does not name the root", chain.sentence)
        });
    }
}
