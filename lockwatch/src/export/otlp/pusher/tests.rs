//! Against a receiver that is nothing but a socket; `cargo xtask otlp` has real ones.

use std::sync::Mutex;

use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest,
    metrics::v1::{metric::Data, number_data_point::Value},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    time::timeout,
};

use super::*;
use crate::export::{
    Stalls,
    otlp::{Otlp, Setup},
};

const PATIENCE: Duration = Duration::from_secs(30);

async fn receiver() -> (TcpListener, Setup) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let endpoint = format!("http://127.0.0.1:{port}");
    let setup = Setup::new(Some(&endpoint), &[], |_| None).expect("a setup");
    (listener, setup)
}

/// Takes one request, answers it, and tells how many stalls it tells of.
async fn serve(listener: &TcpListener, answer: &str) -> i64 {
    let serve = async {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut request = Vec::new();
        let body = loop {
            let read = stream.read_buf(&mut request).await.expect("a request");
            assert_ne!(read, 0, "it ends early");
            let text = String::from_utf8_lossy(&request).into_owned();
            let Some((head, _)) = text.split_once("\r\n\r\n") else {
                continue;
            };
            assert!(head.starts_with("POST /v1/metrics HTTP/1.1\r\n"), "{head}");
            let head = head.to_lowercase();
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "))
                .expect("a length");
            let length: usize = length.parse().expect("a number");
            if request.len() >= head.len() + 4 + length {
                break request.split_off(request.len() - length);
            }
        };
        let answered = stream.write_all(answer.as_bytes()).await;
        answered.expect("nobody hangs up");
        stalls(&body)
    };
    timeout(PATIENCE, serve).await.expect("in time")
}

fn stalls(body: &[u8]) -> i64 {
    let request = ExportMetricsServiceRequest::decode(body).expect("a request");
    let metrics = &request.resource_metrics[0].scope_metrics[0].metrics;
    let found = metrics
        .iter()
        .find(|metric| metric.name == "lockwatch.stalls");
    match found.and_then(|metric| metric.data.as_ref()) {
        Some(Data::Sum(sum)) => match sum.data_points[0].value {
            Some(Value::AsInt(stalls)) => stalls,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

fn state(stalls: u64) -> State {
    State {
        stalls: Stalls {
            total: stalls,
            ..Stalls::default()
        },
        ..State::default()
    }
}

const TAKEN: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
const BUSY: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n";

fn start(setup: Setup) -> (Otlp, Arc<Mutex<Vec<String>>>) {
    let said = Arc::new(Mutex::new(Vec::new()));
    let lines = Arc::clone(&said);
    let otlp = setup.start(move |line| lines.lock().expect("lines").push(line.to_owned()));
    (otlp, said)
}

#[tokio::test]
async fn what_was_not_taken_is_replaced_by_what_is_newer() {
    let (listener, setup) = receiver().await;
    let (otlp, said) = start(setup);
    otlp.offer(state(1));
    assert_eq!(serve(&listener, BUSY).await, 1);
    otlp.offer(state(2));
    otlp.offer(state(3));
    assert_eq!(serve(&listener, TAKEN).await, 3);
    let (last, pushes) = tokio::join!(serve(&listener, TAKEN), otlp.finish(state(4)));
    assert_eq!(last, 4);
    let expected = Pushes {
        taken: 2,
        failed: 1,
        rejected_points: 0,
    };
    assert_eq!(pushes, expected);
    let said = said.lock().expect("lines").join("\n");
    assert!(
        said.contains("it answers 503 Service Unavailable"),
        "{said}"
    );
    assert!(
        said.contains("takes metrics again, after 1 failed try"),
        "{said}"
    );
}

#[tokio::test]
async fn nothing_is_left_of_one_that_is_dropped() {
    let (listener, setup) = receiver().await;
    let (otlp, _) = start(setup);
    otlp.offer(state(1));
    let (mut stream, _) = timeout(PATIENCE, listener.accept())
        .await
        .expect("in time")
        .expect("a connection");
    drop(otlp);
    // It would wait for its answer for ten seconds.
    let mut rest = Vec::new();
    let end = timeout(Duration::from_secs(5), stream.read_to_end(&mut rest));
    assert!(end.await.is_ok());
}
