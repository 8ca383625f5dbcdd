use super::*;

fn of(endpoint: Option<&str>, variables: &[(&str, &str)]) -> Result<Target, SettingError> {
    with_headers(endpoint, &[], variables)
}

fn with_headers(
    endpoint: Option<&str>,
    headers: &[Header],
    variables: &[(&str, &str)],
) -> Result<Target, SettingError> {
    Target::new(endpoint, headers, |name| {
        let found = variables.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| (*value).to_owned())
    })
}

fn url(endpoint: Option<&str>, variables: &[(&str, &str)]) -> String {
    of(endpoint, variables).expect("a target").to_string()
}

#[test]
fn a_path_is_added_only_where_the_rules_say_so() {
    const ALL: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
    const METRICS: &str = "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT";
    let local = "http://localhost:4318/v1/metrics";
    assert_eq!(url(None, &[]), local);
    assert_eq!(url(None, &[(ALL, "")]), local);
    assert_eq!(url(Some("http://h:1"), &[]), "http://h:1/v1/metrics");
    assert_eq!(url(Some("http://h:1/"), &[]), "http://h:1/v1/metrics");
    assert_eq!(url(Some("http://h/a/b?c=d"), &[]), "http://h/a/b?c=d");
    assert_eq!(url(None, &[(ALL, "http://h:1")]), "http://h:1/v1/metrics");
    // What Prometheus documents for its own receiver.
    let prometheus = [(ALL, "http://h:9090/api/v1/otlp")];
    assert_eq!(
        url(None, &prometheus),
        "http://h:9090/api/v1/otlp/v1/metrics"
    );
    assert_eq!(url(None, &[(ALL, "http://h/a/")]), "http://h/a/v1/metrics");
    assert_eq!(url(None, &[(METRICS, "http://h:1")]), "http://h:1/");
    let both = [(ALL, "http://all:1"), (METRICS, "http://h:1/x")];
    assert_eq!(url(None, &both), "http://h:1/x");
    assert_eq!(url(Some("http://me:2/x"), &both), "http://me:2/x");
}

#[test]
fn hosts_and_ports_are_told_apart() {
    let parts = |endpoint| {
        let target = of(Some(endpoint), &[]).expect("a target");
        (target.host, target.port, target.authority)
    };
    let expected = ("::1".to_owned(), 4318, "[::1]:4318".to_owned());
    assert_eq!(parts("http://[::1]:4318"), expected);
    assert_eq!(parts("http://h"), ("h".to_owned(), 80, "h".to_owned()));
}

#[test]
fn what_cannot_be_used_is_told_with_its_name() {
    let refused = |endpoint, variables: &[(&str, &str)]| {
        let error = of(endpoint, variables).expect_err("no target");
        error.to_string()
    };
    assert!(refused(Some("https://h:4318"), &[]).contains("collector on this host"));
    for bad in [
        "localhost:4318",
        "grpc://h:1",
        "http://",
        "http://h:99999",
        "http://h:x",
        "",
        "http://a b",
        "http://u:p@h:1",
    ] {
        let error = refused(Some(bad), &[]);
        assert!(error.starts_with("--otlp: it "), "{bad}: {error}");
    }
    for (name, value) in [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "h:1"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://h:1/a?b"),
        ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "https://h:1"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a b=c"),
        ("OTEL_EXPORTER_OTLP_METRICS_HEADERS", "Content-Type=c"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
        ("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "0"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"),
    ] {
        let error = refused(None, &[(name, value)]);
        assert!(error.starts_with(&format!("{name}: ")), "{error}");
    }
}

#[test]
fn the_command_line_comes_before_variables() {
    let given: Header = "Api-Key = of=flag".parse().expect("a header");
    let variables = [
        (
            "OTEL_EXPORTER_OTLP_HEADERS",
            "api-key=of%20variable,tenant=7",
        ),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "2500"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
        ("OTEL_EXPORTER_OTLP_METRICS_COMPRESSION", "none"),
        ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "http/protobuf"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
    ];
    let target = with_headers(None, &[given], &variables).expect("a target");
    let headers: Vec<(&str, &str)> = target
        .headers
        .iter()
        .map(|header| {
            let value = header.value().to_str().expect("text");
            (header.name().as_str(), value)
        })
        .collect();
    assert_eq!(headers, [("api-key", "of=flag"), ("tenant", "7")]);
    assert_eq!(target.timeout, Duration::from_millis(2500));
    assert!(!target.gzip);
    assert!(!format!("{target:?}{target}").contains("flag"));
}

#[test]
fn a_header_without_a_value_is_refused_without_repeating_it() {
    for bad in ["secret", "a:secret", "Host=h", "=x", "a=\u{1}secret"] {
        let error = bad.parse::<Header>().expect_err(bad);
        assert!(!error.contains("secret"), "{error}");
    }
}
