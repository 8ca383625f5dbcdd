//! Against real connections.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};

use super::*;
use crate::{
    latency::{Caller, Measure, SeriesKey},
    lock::{LockClass, LockKind, LockMode},
    task::Nanos,
};

/// No test takes that long.
const BOUND: Duration = Duration::from_secs(20);
/// How long clients may take where that is tried.
const SHORT: Duration = Duration::from_millis(1500);

/// A server, which asks the returned end for states.
fn server(limits: Limits) -> (SocketAddr, mpsc::Receiver<Scrape>, JoinSet<Infallible>) {
    let listener = listen("127.0.0.1:0".parse().expect("an address")).expect("a free port");
    let address = listener.local_addr().expect("bound");
    let (scrapes, asked) = mpsc::channel(4);
    let mut running = JoinSet::new();
    running.spawn(serve(
        listener,
        scrapes,
        Exposition::new(10, "6.12.0"),
        limits,
    ));
    (address, asked, running)
}

/// Answers every scrape with the same state.
fn answer(mut asked: mpsc::Receiver<Scrape>, state: State, running: &mut JoinSet<Infallible>) {
    running.spawn(async move {
        while let Some(scrape) = asked.recv().await {
            let _ = scrape.send(state.clone());
        }
        std::future::pending().await
    });
}

async fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).await.expect("a connection")
}

/// All that comes until the other side closes.
async fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let read = timeout(BOUND, stream.read_to_end(&mut bytes)).await;
    // A reset ends it as well.
    let _ = read.expect("it stays open");
    String::from_utf8(bytes).expect("UTF-8")
}

/// One request on a connection of its own.
async fn ask(address: SocketAddr, line: &str, fields: &str) -> String {
    let mut stream = connect(address).await;
    let request = format!("{line} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n{fields}\r\n");
    stream
        .write_all(request.as_bytes())
        .await
        .expect("it is read");
    rest(&mut stream).await
}

/// The answer without what differs from run to run, and from one set of metrics to another.
fn undated(answer: &str) -> String {
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let lines = head
        .split("\r\n")
        .filter(|line| !line.starts_with("date: "));
    let length = |line: &str| {
        let length = line.strip_prefix("content-length: ")?.parse::<u64>().ok()?;
        (length > 1000).then(|| "content-length: thousands".to_owned())
    };
    let lines: Vec<String> = lines
        .map(|line| length(line).unwrap_or_else(|| line.to_owned()))
        .collect();
    format!("{}\n\n{body}", lines.join("\n"))
}

/// One with long texts.
fn big() -> State {
    let mut state = State::default();
    for symbol in 0..SERIES {
        let key = SeriesKey {
            measure: Measure::Wait,
            class: LockClass::MmapLock,
            kind: LockKind::Rwsem,
            mode: LockMode::Read,
            caller: Caller::Function(format!("{symbol}{}", "x".repeat(5_000))),
        };
        let mut counted = crate::latency::Distribution::default();
        counted.record(Nanos(1000));
        state.latency.series.insert(key, counted);
    }
    state
}
const SERIES: usize = 40;

#[tokio::test]
async fn every_path_has_its_answer() {
    let (address, asked, mut running) = server(Limits::default());
    answer(asked, State::default(), &mut running);
    let mut answers = Vec::new();
    for line in [
        "GET /",
        "GET /healthz",
        "GET /metric",
        "POST /metrics",
        "HEAD /metrics",
        "PUT /elsewhere",
    ] {
        answers.push(format!(
            "> {line}\n{}",
            undated(&ask(address, line, "").await)
        ));
    }
    insta::assert_snapshot!(answers.join("\n"));
}

#[tokio::test]
async fn the_format_is_the_one_that_is_asked_for() {
    let (address, asked, mut running) = server(Limits::default());
    answer(asked, State::default(), &mut running);
    let classic = ask(address, "GET /metrics?x=1", "").await;
    let kind = "content-type: text/plain; version=0.0.4; charset=utf-8\r\n";
    assert!(classic.contains(kind), "{classic}");
    assert!(!classic.contains("# EOF"), "{classic}");
    let fields = "Accept: text/html\r\nAccept: application/openmetrics-text; version=1.0.0\r\n";
    let open = ask(address, "GET /metrics", fields).await;
    let kind = "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n";
    assert!(open.contains(kind), "{open}");
    assert!(open.ends_with("# EOF\n"), "{open}");
}

#[tokio::test]
async fn each_scrape_sees_the_state_as_it_is_then() {
    let (address, mut asked, mut running) = server(Limits::default());
    running.spawn(async move {
        for blocked_tasks in 1.. {
            let Some(scrape) = asked.recv().await else {
                break;
            };
            let _ = scrape.send(State {
                blocked_tasks,
                ..State::default()
            });
        }
        std::future::pending().await
    });
    for blocked in 1..=3 {
        let answer = ask(address, "GET /metrics", "").await;
        let line = format!("\nlockwatch_blocked_tasks {blocked}\n");
        assert!(answer.contains(&line), "{answer}");
    }
}

#[tokio::test]
async fn a_connection_serves_many_requests() {
    let (address, asked, mut running) = server(Limits::default());
    answer(asked, State::default(), &mut running);
    let mut stream = connect(address).await;
    let request = "GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n".repeat(3);
    stream
        .write_all(request.as_bytes())
        .await
        .expect("it is read");
    let mut text = String::new();
    while text.matches("\r\n\r\nok\n").count() < 3 {
        let mut bytes = [0; 4096];
        let read = timeout(BOUND, stream.read(&mut bytes)).await;
        let read = read.expect("in time").expect("open");
        assert!(read > 0, "closed after {text}");
        text.push_str(&String::from_utf8_lossy(&bytes[..read]));
    }
}

#[tokio::test]
async fn without_a_state_it_says_so() {
    let limits = Limits {
        state: SHORT,
        ..Limits::default()
    };
    let (address, asked, _running) = server(limits);
    let busy = ask(address, "GET /metrics", "").await;
    assert!(busy.starts_with("HTTP/1.1 503 "), "{busy}");
    assert!(
        busy.ends_with("lockwatch is too busy to tell its state\n"),
        "{busy}"
    );
    drop(asked);
    let ending = ask(address, "GET /metrics", "").await;
    assert!(ending.starts_with("HTTP/1.1 503 "), "{ending}");
    assert!(ending.ends_with("lockwatch is about to end\n"), "{ending}");
}

#[tokio::test]
async fn a_head_that_is_too_long_is_refused() {
    let (address, _asked, _running) = server(Limits::default());
    for fields in [
        format!("Long: {}\r\n", "x".repeat(2 * LONGEST_HEAD)),
        "Short: x\r\n".repeat(2 * MOST_FIELDS),
    ] {
        let answer = ask(address, "GET /healthz", &fields).await;
        // What is not read any more resets the connection: the answer may be lost with it.
        let refused = answer.starts_with("HTTP/1.1 431 ") || answer.is_empty();
        assert!(refused, "{answer}");
    }
    let answer = ask(address, "GET /healthz", "").await;
    assert!(answer.ends_with("ok\n"), "{answer}");
}

#[tokio::test]
async fn who_is_slow_is_left() {
    let limits = Limits {
        request: SHORT,
        idle: SHORT,
        ..Limits::default()
    };
    let (address, asked, mut running) = server(limits);
    answer(asked, State::default(), &mut running);
    let after = async |request: &[u8]| {
        let mut stream = connect(address).await;
        stream.write_all(request).await.expect("it is read");
        rest(&mut stream).await
    };
    let (silent, half, idle) = tokio::join!(
        after(b""),
        after(b"GET /healthz HTT"),
        after(b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n"),
    );
    assert_eq!((silent.as_str(), half.as_str()), ("", ""));
    assert!(idle.ends_with("\r\n\r\nok\n"), "{idle}");
}

#[tokio::test]
async fn who_does_not_read_the_answer_is_left() {
    let limits = Limits {
        connections: 1,
        request: SHORT,
        ..Limits::default()
    };
    let (address, asked, mut running) = server(limits);
    answer(asked, big(), &mut running);
    let mut stream = connect(address).await;
    let request = "GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n".repeat(20);
    stream
        .write_all(request.as_bytes())
        .await
        .expect("it is read");
    // It has the only place until its time is up.
    let next = ask(address, "GET /healthz", "").await;
    assert!(next.ends_with("ok\n"), "{next}");
    let answers = rest(&mut stream).await;
    assert!(answers.len() > 100_000, "{} bytes", answers.len());
    assert!(answers.matches("HTTP/1.1 200 OK").count() < 20);
}

#[tokio::test]
async fn idle_connections_make_room() {
    let limits = Limits {
        connections: 2,
        ..Limits::default()
    };
    let (address, _asked, _running) = server(limits);
    let request = b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n";
    let mut kept = Vec::new();
    for _ in 0..2 {
        let mut stream = connect(address).await;
        stream.write_all(request).await.expect("it is read");
        let mut bytes = [0; 1000];
        let read = timeout(BOUND, stream.read(&mut bytes)).await;
        assert!(read.expect("in time").expect("open") > 0);
        kept.push(stream);
    }
    let next = timeout(Duration::from_secs(5), ask(address, "GET /healthz", "")).await;
    assert!(next.expect("no place was made").ends_with("ok\n"));
    assert_eq!(rest(&mut kept[0]).await, "");
}
