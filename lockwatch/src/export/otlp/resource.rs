//! Who pushes, in the attributes of OpenTelemetry's semantic conventions.

use opentelemetry_proto::tonic::{common::v1::KeyValue, resource::v1::Resource};

use super::{attributes::text, list};
use crate::report::Host;

/// The convention's words for machines, by those of `uname`; others go as they are.
const ARCHITECTURES: [(&str, &str); 2] = [("x86_64", "amd64"), ("aarch64", "arm64")];

/// Describes this host; `OTEL_RESOURCE_ATTRIBUTES` and `OTEL_SERVICE_NAME` add to it and
/// change it.
///
/// Prometheus makes the labels `job` and `instance` of `service.name` and
/// `service.instance.id`. An id made anew at every start would begin new series each time;
/// with the host's name, series go on, and a fleet's hosts are told apart.
///
/// # Errors
/// When `OTEL_RESOURCE_ATTRIBUTES` is no list of `name=value`: what is wrong with it.
pub(super) fn resource(
    host: &Host,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Resource, String> {
    let arch = ARCHITECTURES
        .iter()
        .find(|(uname, _)| *uname == host.arch)
        .map_or(host.arch.as_str(), |(_, word)| word);
    let mut attributes = vec![
        text("service.name", "lockwatch"),
        text("service.version", super::VERSION),
        text("service.instance.id", &host.hostname),
        text("host.name", &host.hostname),
        text("host.arch", arch),
        text("os.type", "linux"),
        // There is no attribute for the kernel's release; agents have it here, too.
        text("os.version", &host.kernel),
    ];
    if let Some(list) = variable("OTEL_RESOURCE_ATTRIBUTES") {
        for (name, value) in list::pairs(&list)? {
            set(&mut attributes, text(&name, &value));
        }
    }
    if let Some(name) = variable("OTEL_SERVICE_NAME") {
        set(&mut attributes, text("service.name", &name));
    }
    Ok(Resource {
        attributes,
        ..Resource::default()
    })
}

fn set(attributes: &mut Vec<KeyValue>, new: KeyValue) {
    attributes.retain(|old| old.key != new.key);
    attributes.push(new);
}
