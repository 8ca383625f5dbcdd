//! Where to push to, and how: from the command line, and from the variables that
//! OpenTelemetry's specification names (protocol/exporter, 1.x).

use std::{fmt, str::FromStr, time::Duration};

use hyper::{
    Uri,
    header::{self, HeaderName, HeaderValue},
};
use thiserror::Error;

use super::list;

/// Where a collector on the same host listens, by the specification.
const DEFAULT: &str = "http://localhost:4318";
const DEFAULT_PORT: u16 = 80;
/// Added to an endpoint that serves all signals.
const METRICS_PATH: &str = "/v1/metrics";
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// Headers that the request itself needs.
const OURS: [HeaderName; 6] = [
    header::CONNECTION,
    header::CONTENT_ENCODING,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::HOST,
    header::TRANSFER_ENCODING,
];

/// An option or a variable that cannot be used.
#[derive(Debug, Error)]
#[error("{setting}: {why}")]
pub struct SettingError {
    /// Its name.
    pub setting: &'static str,
    /// In words. Repeats no value of a header, which may be a secret.
    pub why: String,
}

/// A header of requests, as it is given on the command line: `name=value`.
#[derive(Clone, PartialEq, Eq)]
pub struct Header {
    name: HeaderName,
    value: HeaderValue,
}

impl Header {
    pub(super) fn name(&self) -> &HeaderName {
        &self.name
    }

    pub(super) fn value(&self) -> &HeaderValue {
        &self.value
    }

    fn new(name: &str, value: &str) -> Result<Self, String> {
        let name: HeaderName = name
            .parse()
            .map_err(|_| format!("`{name}` is no name of a header"))?;
        if OURS.contains(&name) {
            return Err(format!("{name} is set by lockwatch itself"));
        }
        let mut value: HeaderValue = value
            .parse()
            .map_err(|_| format!("the value of {name} has characters that a header cannot have"))?;
        value.set_sensitive(true);
        Ok(Self { name, value })
    }
}

impl FromStr for Header {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text
            .split_once('=')
            .ok_or("it has no `=`: a header is given as name=value")?;
        Self::new(name.trim(), value.trim())
    }
}

impl fmt::Debug for Header {
    /// Without the value, which may be a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=…", self.name)
    }
}

/// Where to push to, and how.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// Name or address; that of an IPv6 one without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    /// As a `Host` header has it.
    pub(super) authority: String,
    /// With what follows a `?`.
    pub(super) path: String,
    pub(super) headers: Vec<Header>,
    /// Of one request, from the connection to the end of the answer.
    pub(super) timeout: Duration,
    pub(super) gzip: bool,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.authority, self.path)
    }
}

impl Target {
    /// Puts together what the command line says, which comes first, and what the variables
    /// `OTEL_EXPORTER_OTLP_*` say; an empty one counts as not there.
    ///
    /// `/v1/metrics` is added to an `endpoint` without a path; one with a path is used as it
    /// is. Without an endpoint the variables decide, and without these it is the collector
    /// on this host. The variable for all signals always gets `/v1/metrics` added, that for
    /// metrics never: the specification says so.
    ///
    /// # Errors
    /// When an endpoint, a header or another setting cannot be used; which, and why.
    pub(super) fn new(
        endpoint: Option<&str>,
        headers: &[Header],
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, SettingError> {
        let variables = Variables(&variable);
        let mut target = match endpoint {
            Some(url) => {
                let target = parse(url).map_err(|why| setting("--otlp", why))?;
                if target.path == "/" {
                    target.below()
                } else {
                    target
                }
            }
            None => from_variables(&variables)?,
        };
        variables.check_protocol()?;
        let mut all: Vec<Header> = headers.to_vec();
        for header in variables.headers()? {
            if !all.iter().any(|known| known.name == header.name) {
                all.push(header);
            }
        }
        target.headers = all;
        target.timeout = variables.timeout()?;
        target.gzip = variables.gzip()?;
        Ok(target)
    }

    /// The place for metrics below one that serves all signals.
    fn below(mut self) -> Self {
        self.path = format!("{}{METRICS_PATH}", self.path.trim_end_matches('/'));
        self
    }
}

fn from_variables(variables: &Variables<'_>) -> Result<Target, SettingError> {
    const METRICS: &str = "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT";
    const ALL: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
    if let Some(url) = variables.get(METRICS) {
        return parse(&url).map_err(|why| setting(METRICS, why));
    }
    let url = variables.get(ALL);
    let target = parse(url.as_deref().unwrap_or(DEFAULT)).map_err(|why| setting(ALL, why))?;
    if target.path.contains('?') {
        let why = format!("it has a `?` in it, after which no path can be added: set {METRICS}");
        return Err(setting(ALL, why));
    }
    Ok(target.below())
}

pub(super) fn setting(setting: &'static str, why: String) -> SettingError {
    SettingError { setting, why }
}

/// Takes a URL apart; its path is `/` if it has none.
fn parse(url: &str) -> Result<Target, String> {
    const FORM: &str = "it must be a URL like http://host:4318";
    if url.starts_with("https://") {
        return Err(
            "lockwatch has no TLS built in: push to an OpenTelemetry collector on this host \
             (http://localhost:4318), which sends on over https"
                .to_owned(),
        );
    }
    if !url.starts_with("http://") {
        return Err(FORM.to_owned());
    }
    let uri: Uri = url.parse().map_err(|error| format!("{FORM}: {error}"))?;
    let authority = uri.authority().ok_or(FORM)?;
    if authority.as_str().contains('@') {
        return Err("it has a user's name in it: give credentials in a header".to_owned());
    }
    let host = authority.host();
    let bare = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    // A port that is there and no number in range.
    if authority.port().is_none() && authority.as_str() != host {
        return Err(format!("{FORM}: its port is none"));
    }
    Ok(Target {
        host: bare.unwrap_or(host).to_owned(),
        port: authority.port_u16().unwrap_or(DEFAULT_PORT),
        authority: authority.as_str().to_owned(),
        path: uri
            .path_and_query()
            .map_or_else(|| "/".to_owned(), ToString::to_string),
        headers: Vec::new(),
        timeout: DEFAULT_TIMEOUT,
        gzip: false,
    })
}

/// The variables, of which those for metrics come before those for all signals.
struct Variables<'a>(&'a dyn Fn(&str) -> Option<String>);

impl Variables<'_> {
    fn get(&self, name: &str) -> Option<String> {
        (self.0)(name).filter(|value| !value.trim().is_empty())
    }

    fn first(&self, names: [&'static str; 2]) -> Option<(&'static str, String)> {
        let value = |name| self.get(name).map(|value| (name, value));
        names.into_iter().find_map(value)
    }

    fn check_protocol(&self) -> Result<(), SettingError> {
        let names = [
            "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL",
            "OTEL_EXPORTER_OTLP_PROTOCOL",
        ];
        match self.first(names) {
            Some((name, protocol)) if protocol.trim() != "http/protobuf" => {
                let why = format!("lockwatch speaks http/protobuf only, not {protocol}");
                Err(setting(name, why))
            }
            _ => Ok(()),
        }
    }

    fn headers(&self) -> Result<Vec<Header>, SettingError> {
        let names = [
            "OTEL_EXPORTER_OTLP_METRICS_HEADERS",
            "OTEL_EXPORTER_OTLP_HEADERS",
        ];
        let Some((name, list)) = self.first(names) else {
            return Ok(Vec::new());
        };
        let header = |(key, value): (String, String)| Header::new(&key, &value);
        list::pairs(&list)
            .and_then(|pairs| pairs.into_iter().map(header).collect())
            .map_err(|why| setting(name, why))
    }

    fn timeout(&self) -> Result<Duration, SettingError> {
        let names = [
            "OTEL_EXPORTER_OTLP_METRICS_TIMEOUT",
            "OTEL_EXPORTER_OTLP_TIMEOUT",
        ];
        let Some((name, text)) = self.first(names) else {
            return Ok(DEFAULT_TIMEOUT);
        };
        match text.trim().parse() {
            Ok(millis) if millis > 0 => Ok(Duration::from_millis(millis)),
            _ => Err(setting(
                name,
                format!("{text} is no number of milliseconds"),
            )),
        }
    }

    fn gzip(&self) -> Result<bool, SettingError> {
        let names = [
            "OTEL_EXPORTER_OTLP_METRICS_COMPRESSION",
            "OTEL_EXPORTER_OTLP_COMPRESSION",
        ];
        match self.first(names) {
            None => Ok(false),
            Some((name, word)) => match word.trim() {
                "gzip" => Ok(true),
                "none" => Ok(false),
                other => Err(setting(name, format!("{other} is neither gzip nor none"))),
            },
        }
    }
}

#[cfg(test)]
mod tests;
