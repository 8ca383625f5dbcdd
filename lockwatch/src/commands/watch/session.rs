//! One run of `watch`: from the sources through the graph to the reports.

mod state;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::Arc,
};

use crate::{
    clock::now_ns,
    commands::{
        one_line,
        recorder::Recorder,
        watch::{
            filter::Filter,
            hang_watch::HangWatch,
            holders::{HolderTimes, times_of, watch_holders},
            output::{Now, Output, Summary},
            progress::{Progress, Reason},
            reports::Reports,
            sources::Sources,
            surveys::{SurveyAnswer, Surveys},
            unseen::{self, Seeds},
            words::by_kind,
        },
    },
    detect::Thresholds,
    graph::{Change, Forecasts, Input as GraphInput, Stall, StallId, WaitGraph},
    kernel::symbols::Symbols,
    report::over_time::Ended,
    stream::{Lost, PolledWaits, Stream, UnseenEnds, Wait, counts::Counts},
    survey::{Survey, SurveyError},
    task::Nanos,
};

/// What a session waits for besides the clock.
#[derive(Debug)]
pub(super) enum Input {
    /// The ring buffer fills up.
    Events,
    /// A survey has ended.
    Survey(SurveyAnswer),
}

/// Everything that lives as long as the run.
#[derive(Debug)]
pub(in crate::commands) struct Session {
    graph: WaitGraph,
    /// Is told of all that the graph takes in, in the same order.
    recorder: Option<Recorder>,
    /// `None` where no program sees waits: then surveys alone show them.
    stream: Option<Stream>,
    surveys: Option<Surveys>,
    /// Names for the stacks of holders; there with surveys.
    symbols: Option<Arc<Symbols>>,
    polled: PolledWaits,
    seeds: Seeds,
    progress: BTreeMap<StallId, Progress>,
    filter: Filter,
    hangs: HangWatch,
    reports: Reports,
    /// `None`: nothing is printed.
    output: Option<Output>,
    stall_count: u64,
    forecasts: Forecasts,
    lost: Lost,
    survey_error: Option<String>,
    threshold: Nanos,
    /// Waits past the threshold may stand, of which surveys have not said yet.
    is_hinted: bool,
    /// `None`: nothing is counted.
    counts: Option<Counts>,
    /// The longest wait in any stall that is over.
    longest: Nanos,
    since: jiff::Timestamp,
}

impl Session {
    pub(super) fn new(
        thresholds: Thresholds,
        filter: Filter,
        reports: Reports,
        output: Option<Output>,
        recorder: Option<Recorder>,
        sources: Sources,
    ) -> Self {
        Self {
            graph: WaitGraph::new(thresholds.wait),
            recorder,
            stream: sources.stream,
            surveys: sources.surveys,
            symbols: sources.symbols,
            polled: PolledWaits::of_others(),
            seeds: Seeds::default(),
            progress: BTreeMap::new(),
            filter,
            hangs: HangWatch::new(thresholds, sources.cpus),
            reports,
            output,
            stall_count: 0,
            forecasts: Forecasts::default(),
            lost: Lost::default(),
            survey_error: None,
            threshold: thresholds.wait,
            is_hinted: false,
            counts: sources.counts,
            longest: Nanos(0),
            since: jiff::Timestamp::now(),
        }
    }

    /// Asks for the survey that shows the waits that are there already.
    pub(super) fn start(&mut self) {
        if let Some(surveys) = &mut self.surveys {
            surveys.request(now_ns(), Vec::new());
        }
    }

    /// Waits for what cannot be polled: a ring buffer that fills, or a survey.
    pub(super) async fn next(&mut self) -> io::Result<Input> {
        let Self {
            stream, surveys, ..
        } = self;
        let filling = async {
            match stream {
                Some(stream) => stream.ready().await,
                None => std::future::pending().await,
            }
        };
        let answer = async {
            match surveys {
                Some(surveys) => surveys.next(now_ns).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            filling = filling => filling.map(|()| Input::Events),
            answer = answer => Ok(Input::Survey(answer)),
        }
    }

    /// Takes in what has come.
    pub(super) fn take(&mut self, input: Input) -> io::Result<()> {
        match input {
            Input::Events => {
                self.take_events();
                Ok(())
            }
            Input::Survey(answer) => self.take_survey(answer),
        }
    }

    /// Takes the events that are there.
    fn take_events(&mut self) {
        let Self {
            stream,
            graph,
            recorder,
            ..
        } = self;
        if let Some(stream) = stream {
            stream.events(|event| feed(graph, recorder, GraphInput::Event(event)));
        }
    }

    /// Lets the graph take something in that brings no changes.
    fn feed(&mut self, input: GraphInput) {
        feed(&mut self.graph, &mut self.recorder, input);
    }

    /// Brings the graph up to date, reports what has ended and asks for surveys.
    pub(super) fn tick(&mut self) -> io::Result<()> {
        self.read_waits()?;
        let now_ns = now_ns();
        // Without surveys, or with one that does not come back, say what is known.
        let no_survey = self
            .surveys
            .as_ref()
            .is_none_or(|surveys| surveys.is_overdue(now_ns));
        self.report(None, no_survey, now_ns)?;
        let over = self.hangs.tick();
        self.end_findings(&over)?;
        let has_news = self.hangs.has_news(now_ns);
        let needs_survey = has_news
            || self.hangs.is_look_due(now_ns)
            || self.needs_survey_for_ends()
            || self.progress.iter().any(|(&id, progress)| {
                let stall = self.graph.stall(id);
                stall.is_some_and(|stall| progress.needs_survey(stall, now_ns))
            });
        if needs_survey && let Some(surveys) = &mut self.surveys {
            if has_news {
                surveys.allow_now();
            }
            self.hangs.ask(|suspects| surveys.request(now_ns, suspects));
        }
        Ok(())
    }

    /// True while there may be waits whose ends only a survey can see.
    fn needs_survey_for_ends(&self) -> bool {
        match self.stream.as_ref().map(Stream::unseen_ends) {
            None => true,
            Some(UnseenEnds::OfAll) => self.is_hinted || !self.progress.is_empty(),
            Some(ends) => self.seeds.end_unseen(ends),
        }
    }

    /// Makes the graph what the kernel's maps say, and reports what has ended.
    fn read_waits(&mut self) -> io::Result<()> {
        let Some(stream) = &mut self.stream else {
            return Ok(());
        };
        // The reading first: the event of each end that it does not show is there
        // afterwards.
        let scan = stream.scan();
        if stream.unseen_ends() == UnseenEnds::OfAll {
            // Most of these are over: they only say that it is worth a survey.
            let stands = |wait: &Wait| Nanos::between(wait.since_ns, scan.at_ns) >= self.threshold;
            self.is_hinted = scan.waits.iter().any(stands);
            self.say_losses();
            return Ok(());
        }
        let at_ns = scan.at_ns;
        self.take_events();
        self.feed(GraphInput::Scan(scan));
        self.say_losses();
        self.advance(at_ns)
    }

    /// Takes in a survey and reports what it explains.
    fn take_survey(&mut self, answer: SurveyAnswer) -> io::Result<()> {
        let survey = match answer {
            Ok(survey) => survey,
            Err(error) => {
                self.say_survey_error(error);
                return Ok(());
            }
        };
        let mut scan = self.polled.read(&survey);
        match &mut self.stream {
            Some(stream) if stream.unseen_ends() != UnseenEnds::OfAll => {
                let refuted = self.seeds.check(stream, &scan.waits);
                if self.seeds.enter(stream, &scan.waits)
                    && let Some(surveys) = &mut self.surveys
                {
                    surveys.allow_now();
                    self.hangs
                        .ask(|suspects| surveys.request(now_ns(), suspects));
                }
                for wait in refuted {
                    self.feed(GraphInput::Refuted(wait));
                }
                self.read_waits()?;
            }
            stream => {
                if let Some(stream) = stream {
                    unseen::settle(stream, &mut scan);
                }
                let at_ns = scan.at_ns;
                self.feed(GraphInput::Scan(scan));
                self.advance(at_ns)?;
            }
        }
        let now_ns = now_ns();
        self.feed(GraphInput::Survey(Arc::clone(&survey)));
        for progress in self.progress.values_mut() {
            progress.surveyed(now_ns);
        }
        self.report(Some(&survey), false, now_ns)?;
        self.report_findings(&survey, now_ns)
    }

    /// Reports what hangs that is about no lock alone, where it is new or due.
    fn report_findings(&mut self, survey: &Arc<Survey>, now_ns: u64) -> io::Result<()> {
        let findings = &mut self.hangs.findings;
        if !self.reports.may_hang(survey) && !findings.has_hung_tasks() {
            self.hangs.surveyed(now_ns);
            return Ok(());
        }
        let report = self.reports.of(survey);
        let is_asked_for = self.filter.of_findings(survey);
        let (due, over) = findings.take(survey, &report, is_asked_for, now_ns);
        let at = jiff::Timestamp::now();
        if let Some(output) = &mut self.output {
            for due in &due {
                output.finding(due, &report, Now { at, ns: now_ns })?;
            }
        }
        self.hangs.surveyed(now_ns);
        self.end_findings(&over)
    }

    fn end_findings(&mut self, over: &[Ended]) -> io::Result<()> {
        let at = jiff::Timestamp::now();
        if let Some(output) = &mut self.output {
            for ended in over {
                output.finding_ended(ended, at)?;
            }
        }
        Ok(())
    }

    /// Reports the stalls that stand and are due.
    fn report(
        &mut self,
        survey: Option<&Arc<Survey>>,
        no_survey: bool,
        now_ns: u64,
    ) -> io::Result<()> {
        for (&id, progress) in &mut self.progress {
            let Some(stall) = self.graph.stall(id) else {
                continue;
            };
            let is_surveyed = survey.is_some_and(|survey| {
                let facts = stall.facts.as_ref();
                facts.is_some_and(|facts| Arc::ptr_eq(facts.survey(), survey))
            });
            if is_surveyed && let Some(stream) = &mut self.stream {
                watch_holders(stream, stall, progress);
            }
            if let (true, Some(facts), true) = (is_surveyed, &stall.facts, self.output.is_some()) {
                progress.is_deadlocked = self.reports.is_deadlocked(facts);
            }
            let Some(reason) = progress.due(stall, is_surveyed, no_survey, now_ns) else {
                continue;
            };
            if !self.filter.matches(stall) {
                continue;
            }
            if reason == Reason::Crossed {
                self.stall_count += 1;
            }
            let waits = self.graph.waits_for(stall.lock);
            let at = jiff::Timestamp::now();
            let now = Now { at, ns: now_ns };
            let holders = match &self.stream {
                Some(stream) if reason != Reason::Crossed => {
                    times_of(stream, self.symbols.as_deref(), progress)
                }
                _ => Vec::new(),
            };
            if let Some(output) = &mut self.output {
                let facts = stall.facts.as_ref();
                let report = facts.map(|facts| self.reports.of(facts.survey()));
                output.stall(stall, report.as_deref(), &waits, &holders, reason, now)?;
            }
            progress.reported(stall, reason, now_ns);
        }
        Ok(())
    }

    fn advance(&mut self, now_ns: u64) -> io::Result<()> {
        let input = GraphInput::Clock(now_ns);
        if let Some(recorder) = &mut self.recorder {
            recorder.input(&input);
        }
        for change in self.graph.take(input) {
            match change {
                Change::Began(id) => {
                    self.progress.insert(id, Progress::new(now_ns));
                }
                Change::Ended(stall) => self.end(&stall)?,
            }
        }
        // A refuted stall goes without a word.
        let gone: Vec<StallId> = self
            .progress
            .keys()
            .copied()
            .filter(|&id| self.graph.stall(id).is_none())
            .collect();
        for id in gone {
            self.holder_times(id);
        }
        Ok(())
    }

    fn end(&mut self, stall: &Stall) -> io::Result<()> {
        self.forecasts += stall.forecasts;
        let was_reported = self
            .progress
            .get(&stall.id)
            .is_some_and(Progress::is_reported);
        let times = self.holder_times(stall.id);
        if was_reported || self.filter.matches(stall) {
            self.longest = self.longest.max(stall.length());
            if !was_reported {
                self.stall_count += 1;
            }
            if let Some(output) = &mut self.output {
                output.ended(stall, &times, jiff::Timestamp::now())?;
            }
        }
        Ok(())
    }

    /// The times of the stall's holders; they are no longer kept for it.
    fn holder_times(&mut self, id: StallId) -> Vec<HolderTimes> {
        let Some(progress) = self.progress.remove(&id) else {
            return Vec::new();
        };
        let Some(stream) = &mut self.stream else {
            return Vec::new();
        };
        let times = times_of(stream, self.symbols.as_deref(), &progress);
        for watched in &progress.watched {
            stream.release(watched.task.key);
        }
        times
    }

    fn say_losses(&mut self) {
        let Some(stream) = &self.stream else {
            return;
        };
        let lost = stream.lost();
        if lost != self.lost {
            tracing::warn!("lost: {}", by_kind(&lost));
            self.lost = lost;
            if let Some(recorder) = &mut self.recorder {
                recorder.lost(lost);
            }
        }
    }

    fn say_survey_error(&mut self, error: SurveyError) {
        let text = one_line(&error.into());
        if self.survey_error.as_ref() != Some(&text) {
            tracing::warn!("no survey, so that holders are not known: {text}");
            self.survey_error = Some(text);
        }
    }

    /// The CPUs that seem to be locked up.
    pub(super) fn locked_cpus(&self) -> BTreeSet<u32> {
        self.hangs.locked_cpus()
    }

    /// True if a stall, or a hanging task or CPU, was found.
    pub(super) fn has_found(&self) -> bool {
        self.stall_count > 0 || self.hangs.findings.count() > 0
    }

    /// Reports what has crossed the threshold and was still waiting for its survey: the
    /// run is about to end.
    pub(super) fn report_rest(&mut self) -> io::Result<()> {
        self.read_waits()?;
        self.report(None, true, now_ns())
    }

    /// Ends the run: says the counts.
    pub(super) fn finish(&mut self) -> io::Result<Summary> {
        let summary = Summary {
            waits: self.stream.as_ref().map(Stream::wait_count),
            stalls: self.stall_count,
            findings: self.hangs.findings.count(),
            surveys: self.surveys.as_ref().map_or(0, Surveys::count),
            forecasts: self.forecasts,
            lost: self.lost,
        };
        if let Some(output) = &mut self.output {
            output.summary(&summary)?;
        }
        Ok(summary)
    }

    /// What records the run, to be ended.
    pub(super) fn into_recorder(self) -> Option<Recorder> {
        self.recorder
    }

    /// True once nothing more can be recorded.
    pub(super) fn cannot_record(&self) -> bool {
        self.recorder.as_ref().is_some_and(Recorder::has_failed)
    }
}

/// Lets the graph take something in, once it is written down.
fn feed(graph: &mut WaitGraph, recorder: &mut Option<Recorder>, input: GraphInput) {
    if let Some(recorder) = recorder {
        recorder.input(&input);
    }
    graph.take(input);
}
