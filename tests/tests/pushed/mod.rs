//! A receiver of OTLP on loopback that takes all and keeps it.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::mpsc::{Receiver, Sender, channel},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest,
    metrics::v1::{ExponentialHistogramDataPoint, metric::Data},
};
use prost::Message as _;

/// No request takes that long to come.
const LIMIT: Duration = Duration::from_secs(20);

/// The receiver, in a thread of its own.
pub(crate) struct Collector {
    pub(crate) address: SocketAddr,
    requests: Receiver<ExportMetricsServiceRequest>,
    thread: JoinHandle<Result<()>>,
}

impl Collector {
    pub(crate) fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let (taken, requests) = channel();
        Ok(Self {
            address,
            requests,
            thread: thread::spawn(move || take_all(&listener, &taken)),
        })
    }

    /// All that was pushed, in order. Nobody pushes any more.
    pub(crate) fn finish(self) -> Result<Vec<ExportMetricsServiceRequest>> {
        // A connection that says nothing is the end.
        drop(TcpStream::connect(self.address)?);
        self.thread.join().expect("no panic")?;
        Ok(self.requests.iter().collect())
    }
}

fn take_all(listener: &TcpListener, taken: &Sender<ExportMetricsServiceRequest>) -> Result<()> {
    loop {
        let (stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(LIMIT))?;
        let Some(request) = take(stream)? else {
            return Ok(());
        };
        taken.send(request)?;
    }
}

fn take(stream: TcpStream) -> Result<Option<ExportMetricsServiceRequest>> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    ensure!(line == "POST /v1/metrics HTTP/1.1\r\n", "{line}");
    let mut length = None;
    while line != "\r\n" {
        line.clear();
        ensure!(reader.read_line(&mut line)? > 0, "the head ends early");
        let field = line.to_ascii_lowercase();
        if let Some(value) = field.strip_prefix("content-length:") {
            length = Some(value.trim().parse()?);
        }
    }
    let mut body = vec![0; length.context("no length")?];
    reader.read_exact(&mut body)?;
    let request = ExportMetricsServiceRequest::decode(body.as_slice())?;
    let mut stream = reader.into_inner();
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")?;
    Ok(Some(request))
}

/// The series of an exponential histogram.
pub(crate) fn histogram<'a>(
    request: &'a ExportMetricsServiceRequest,
    name: &str,
) -> &'a [ExponentialHistogramDataPoint] {
    let metrics = &request.resource_metrics[0].scope_metrics[0].metrics;
    let metric = metrics.iter().find(|metric| metric.name == name);
    match metric.and_then(|metric| metric.data.as_ref()) {
        Some(Data::ExponentialHistogram(histogram)) => &histogram.data_points,
        other => panic!("{name}: {other:?}"),
    }
}

/// The attributes of a series as text, in the order in which they were sent.
pub(crate) fn attributes(series: &ExponentialHistogramDataPoint) -> String {
    let words = series.attributes.iter().map(|attribute| {
        let value = attribute.value.as_ref();
        format!("{}={:?}", attribute.key, value.map(|value| &value.value))
    });
    words.collect::<Vec<_>>().join(" ")
}
