//! What is scraped: lockwatch's own server, with states that the test makes.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result};
use lockwatch::export::{
    State,
    http::{self, Limits},
    open_metrics::Exposition,
};
use tokio::sync::{mpsc, oneshot};

/// The kernel that it claims to run on.
pub(crate) const KERNEL: &str = "6.12.0-1-amd64";

/// A server on a free port of loopback, until it is dropped.
pub(crate) struct Endpoint {
    pub(crate) address: SocketAddr,
    state: Arc<Mutex<State>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Endpoint {
    /// `advance` changes the state before each scrape, from the second one on.
    pub(crate) fn start(
        state: State,
        callers: usize,
        mut advance: impl FnMut(&mut State) + Send + 'static,
    ) -> Result<Self> {
        let state = Arc::new(Mutex::new(state));
        let shared = Arc::clone(&state);
        let (stop, stopped) = oneshot::channel();
        let (told, tell) = std::sync::mpsc::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let thread = thread::spawn(move || {
            runtime.block_on(async move {
                let any = SocketAddr::from(([127, 0, 0, 1], 0));
                let listener = http::listen(any).expect("a free port");
                let _ = told.send(listener.local_addr().expect("bound"));
                let (scrapes, mut asked) = mpsc::channel::<http::Scrape>(1);
                let answer = async {
                    let mut is_first = true;
                    while let Some(scrape) = asked.recv().await {
                        let mut state = shared.lock().expect("no panic before");
                        if !is_first {
                            advance(&mut state);
                        }
                        is_first = false;
                        let _ = scrape.send(state.clone());
                    }
                };
                let exposition = Exposition::new(callers, KERNEL);
                tokio::select! {
                    never = http::serve(listener, scrapes, exposition, Limits::default()) => match never {},
                    () = answer => {}
                    _ = stopped => {}
                }
            });
        });
        Ok(Self {
            address: tell.recv().context("the server did not start")?,
            state,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// The state as it was scraped last.
    pub(crate) fn state(&self) -> State {
        self.state.lock().expect("no panic before").clone()
    }

    /// Changes what is scraped next.
    pub(crate) fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().expect("no panic before"));
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
