//! Which format a client wants.

use crate::export::open_metrics::Format;

/// The format for a request's `Accept` fields.
///
/// OpenMetrics only where it is asked for by name, in a version that we write, and not liked
/// less than the older format: whoever asks for anything else gets that, as from other
/// exporters.
pub(super) fn format<'a>(fields: impl Iterator<Item = &'a str>) -> Format {
    let (mut open, mut classic) = (0.0, 0.0);
    for range in fields.flat_map(|field| field.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
        let (mut weight, mut is_ours) = (1.0, true);
        for parameter in parts {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let value = value.trim().trim_matches('"');
            match name.trim().to_ascii_lowercase().as_str() {
                "q" => weight = value.parse().unwrap_or(0.0),
                "version" if kind == "application/openmetrics-text" => {
                    is_ours = ["1.0.0", "0.0.1"].contains(&value);
                }
                "version" => is_ours = value == "0.0.4",
                _ => {}
            }
        }
        let best: &mut f64 = match kind.as_str() {
            "application/openmetrics-text" => &mut open,
            "text/plain" | "text/*" => &mut classic,
            _ => continue,
        };
        if is_ours {
            *best = best.max(weight);
        }
    }
    if open > 0.0 && open >= classic {
        Format::OpenMetrics
    } else {
        Format::Classic
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(field: &str) -> Format {
        format([field].into_iter())
    }

    #[test]
    fn what_prometheus_asks_for() {
        for field in [
            // 2.42
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            // 3.x
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
            "Application/OpenMetrics-Text ; Version=\"1.0.0\"",
        ] {
            assert_eq!(of(field), Format::OpenMetrics, "{field}");
        }
    }

    #[test]
    fn whoever_does_not_ask_for_it_gets_the_older_format() {
        for field in [
            "",
            "*/*",
            "text/html,application/xhtml+xml,*/*;q=0.8",
            "text/plain;version=0.0.4,application/openmetrics-text;version=1.0.0;q=0.5",
            "application/openmetrics-text;version=2.0.0",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text;q=nonsense",
            ";;,=;q,",
        ] {
            assert_eq!(of(field), Format::Classic, "{field}");
        }
        assert_eq!(format(std::iter::empty()), Format::Classic);
    }
}
