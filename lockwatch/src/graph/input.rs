//! What a graph is made of, one thing after the other: what a recording keeps.

use std::sync::Arc;

use super::{Change, WaitGraph};
use crate::{
    stream::{Event, Scan, Wait},
    survey::Survey,
};

/// One thing that a graph takes in. The same inputs in the same order give the same graph.
#[derive(Clone, Debug)]
pub enum Input {
    /// [`WaitGraph::apply`]
    Event(Event),
    /// [`WaitGraph::reconcile_waits`]
    Scan(Scan),
    /// [`WaitGraph::refute`]
    Refuted(Wait),
    /// [`WaitGraph::reconcile_survey`]
    Survey(Arc<Survey>),
    /// [`WaitGraph::advance`] to this time, `CLOCK_MONOTONIC` ns.
    Clock(u64),
}

impl WaitGraph {
    /// Takes in one thing. Only a time brings changes.
    pub fn take(&mut self, input: Input) -> Vec<Change> {
        match input {
            Input::Event(event) => self.apply(&event),
            Input::Scan(scan) => self.reconcile_waits(&scan),
            Input::Refuted(wait) => self.refute(&wait),
            Input::Survey(survey) => {
                self.reconcile_survey(&survey);
            }
            Input::Clock(now_ns) => return self.advance(now_ns),
        }
        Vec::new()
    }
}
