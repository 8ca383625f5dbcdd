//! What a receiver says to a request.

use std::time::Duration;

use hyper::StatusCode;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceResponse;
use prost::Message as _;

/// Characters of a receiver's own words that are passed on.
const LONGEST_WORDS: usize = 200;

const PROTOBUF: &str = "application/x-protobuf";
const JSON: &str = "application/json";

/// What became of a request.
#[derive(Debug, PartialEq)]
pub(super) enum Answer {
    /// All is well.
    Taken,
    /// It was taken, but for some points or with a warning. The same again would end so, too.
    Partly {
        /// Points that were not taken.
        rejected: u64,
        /// In words.
        why: String,
    },
    /// Another try may do better.
    Later {
        /// In words.
        why: String,
        /// How long the receiver wants to be left alone.
        after: Option<Duration>,
    },
    /// The same again would be refused again.
    Refused {
        /// In words.
        why: String,
    },
}

/// The message of an error: `google.rpc.Status`, of which two fields matter.
#[derive(Clone, PartialEq, prost::Message)]
struct Status {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
}

impl Answer {
    /// By the specification of OTLP 1.x: `kind` is the answer's content type, and `after`
    /// what it says of when to come back.
    pub(super) fn of(status: StatusCode, kind: &str, body: &[u8], after: Option<Duration>) -> Self {
        let kind = kind.split(';').next().unwrap_or_default().trim();
        if status.is_success() {
            return success(status, kind, body);
        }
        let hint = match status {
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => {
                " (is the path right? Most receivers take metrics at /v1/metrics)"
            }
            _ if status.is_redirection() => " (redirects are not followed)",
            _ => "",
        };
        let words = match words(kind, body) {
            words if words.is_empty() => words,
            words => format!(": {words}"),
        };
        let why = format!("it answers {status}{words}{hint}");
        match status {
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => Self::Later { why, after },
            _ => Self::Refused { why },
        }
    }
}

fn success(status: StatusCode, kind: &str, body: &[u8]) -> Answer {
    if body.is_empty() {
        return Answer::Taken;
    }
    let read = match kind {
        PROTOBUF | "" => protobuf(body),
        JSON => json(body),
        _ => None,
    };
    match read {
        Some((0, why)) if why.is_empty() => Answer::Taken,
        Some((rejected, message)) => Answer::Partly {
            rejected,
            why: match (rejected, plain(&message)) {
                (0, message) => format!("it took all and warns: {message}"),
                (_, message) if message.is_empty() => "it does not say why".to_owned(),
                (_, message) => format!("it says: {message}"),
            },
        },
        None => Answer::Refused {
            why: format!("it answers {status}, but not as a receiver of OTLP does"),
        },
    }
}

/// Rejected points, and why.
fn protobuf(body: &[u8]) -> Option<(u64, String)> {
    let response = ExportMetricsServiceResponse::decode(body).ok()?;
    let partial = response.partial_success.unwrap_or_default();
    let rejected = u64::try_from(partial.rejected_data_points).unwrap_or(0);
    Some((rejected, partial.error_message))
}

/// The same from a receiver that answers in the other form there is.
fn json(body: &[u8]) -> Option<(u64, String)> {
    let response: serde_json::Value = serde_json::from_slice(body).ok()?;
    response.as_object()?;
    let partial = &response["partialSuccess"];
    let rejected = &partial["rejectedDataPoints"];
    // 64-bit numbers are text there.
    let rejected = rejected
        .as_u64()
        .or_else(|| rejected.as_str()?.parse().ok())
        .unwrap_or(0);
    let message = partial["errorMessage"].as_str().unwrap_or_default();
    Some((rejected, message.to_owned()))
}

/// What the body of an error says, as one line.
fn words(kind: &str, body: &[u8]) -> String {
    let text = match kind {
        PROTOBUF => Status::decode(body).unwrap_or_default().message,
        JSON => {
            let status = serde_json::from_slice(body).unwrap_or(serde_json::Value::Null);
            status["message"].as_str().unwrap_or_default().to_owned()
        }
        // A page for people, of which most is markup.
        "text/html" => String::new(),
        _ => String::from_utf8_lossy(body).into_owned(),
    };
    plain(&text)
}

/// The beginning of a text without what a terminal would obey.
fn plain(text: &str) -> String {
    let printable = text
        .trim()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c });
    printable.take(LONGEST_WORDS).collect()
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsPartialSuccess;

    use super::*;

    fn partial(rejected: i64, message: &str) -> Vec<u8> {
        ExportMetricsServiceResponse {
            partial_success: Some(ExportMetricsPartialSuccess {
                rejected_data_points: rejected,
                error_message: message.to_owned(),
            }),
        }
        .encode_to_vec()
    }

    fn ok(kind: &str, body: &[u8]) -> Answer {
        Answer::of(StatusCode::OK, kind, body, None)
    }

    #[test]
    fn a_success_may_be_a_part_of_one() {
        assert_eq!(ok("", b""), Answer::Taken);
        assert_eq!(ok(PROTOBUF, &partial(0, "")), Answer::Taken);
        assert_eq!(ok(JSON, b"{\"partialSuccess\":{}}"), Answer::Taken);
        let rejected = Answer::Partly {
            rejected: 7,
            why: "it says: out of order".to_owned(),
        };
        assert_eq!(ok(PROTOBUF, &partial(7, "out of order")), rejected);
        let text =
            br#"{"partialSuccess":{"rejectedDataPoints":"7","errorMessage":"out of order"}}"#;
        assert_eq!(ok("application/json; charset=utf-8", text), rejected);
        let warning = ok(PROTOBUF, &partial(0, "old\nversion"));
        assert!(
            matches!(warning, Answer::Partly { rejected: 0, why } if why.contains("old version"))
        );
    }

    #[test]
    fn who_answers_otherwise_has_taken_nothing() {
        for (kind, body) in [
            ("text/html", "<html>welcome"),
            ("", "welcome"),
            (PROTOBUF, "welcome"),
            (JSON, "[1]"),
            (JSON, "{"),
        ] {
            let answer = ok(kind, body.as_bytes());
            assert!(
                matches!(answer, Answer::Refused { .. }),
                "{body}: {answer:?}"
            );
        }
    }

    #[test]
    fn only_what_the_specification_names_is_tried_again() {
        let after = Some(Duration::from_secs(3));
        for code in 300..600 {
            let status = StatusCode::from_u16(code).expect("a status");
            let answer = Answer::of(status, "", b"", after);
            let is_later = matches!(answer, Answer::Later { after: told, .. } if told == after);
            assert_eq!(is_later, [429, 502, 503, 504].contains(&code), "{code}");
        }
    }

    #[test]
    fn words_of_a_receiver_are_passed_on() {
        let refused = |status, kind, body: &[u8]| match Answer::of(status, kind, body, None) {
            Answer::Refused { why } => why,
            other => panic!("{other:?}"),
        };
        let status = Status {
            code: 3,
            message: "no \u{1b}[31mtenant".to_owned(),
        };
        let why = refused(StatusCode::BAD_REQUEST, PROTOBUF, &status.encode_to_vec());
        assert_eq!(why, "it answers 400 Bad Request: no  [31mtenant");
        let why = refused(StatusCode::NOT_FOUND, "text/html", b"<html>");
        assert!(
            why.starts_with("it answers 404 Not Found (is the path right?"),
            "{why}"
        );
        let why = refused(StatusCode::FORBIDDEN, "text/plain", &[b'x'; 5000]);
        assert!(why.len() < 300, "{why}");
        let why = refused(StatusCode::FOUND, "", b"");
        assert_eq!(why, "it answers 302 Found (redirects are not followed)");
    }
}
