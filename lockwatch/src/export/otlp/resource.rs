//! Who pushes, in the attributes of OpenTelemetry's semantic conventions.

use opentelemetry_proto::tonic::{common::v1::KeyValue, resource::v1::Resource};

use super::{
    attributes::text,
    list,
    target::{SettingError, setting},
};
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
/// When `OTEL_RESOURCE_ATTRIBUTES` is no list of `name=value`.
pub(super) fn resource(
    host: &Host,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Resource, SettingError> {
    const ATTRIBUTES: &str = "OTEL_RESOURCE_ATTRIBUTES";
    let variable = |name| variable(name).filter(|value| !value.trim().is_empty());
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
    if let Some(list) = variable(ATTRIBUTES) {
        for (name, value) in list::pairs(&list).map_err(|why| setting(ATTRIBUTES, why))? {
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

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::common::v1::any_value::Value;

    use super::*;

    fn of(variables: &[(&str, &str)]) -> Result<Vec<(String, String)>, SettingError> {
        let host = Host {
            hostname: "db-7".to_owned(),
            kernel: "6.12.9-amd64".to_owned(),
            arch: "x86_64".to_owned(),
            boot_id: None,
        };
        let found = resource(&host, |name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })?;
        let pair = |attribute: KeyValue| match attribute.value.and_then(|value| value.value) {
            Some(Value::StringValue(value)) => (attribute.key, value),
            other => panic!("{other:?}"),
        };
        Ok(found.attributes.into_iter().map(pair).collect())
    }

    #[test]
    fn a_host_is_told_from_others() {
        let found = of(&[("OTEL_SERVICE_NAME", "")]).expect("a resource");
        for (name, value) in [
            ("service.name", "lockwatch"),
            ("service.instance.id", "db-7"),
            ("host.name", "db-7"),
            ("host.arch", "amd64"),
            ("os.type", "linux"),
            ("os.version", "6.12.9-amd64"),
        ] {
            assert!(
                found.contains(&(name.to_owned(), value.to_owned())),
                "{name}"
            );
        }
    }

    #[test]
    fn variables_add_and_change_attributes() {
        let found = of(&[
            (
                "OTEL_RESOURCE_ATTRIBUTES",
                "service.name=a,service.instance.id=db%2d7/b,deployment.environment.name=prod",
            ),
            ("OTEL_SERVICE_NAME", "locks"),
        ])
        .expect("a resource");
        let value = |name: &str| {
            let values: Vec<&str> = found
                .iter()
                .filter(|(known, _)| known == name)
                .map(|(_, value)| value.as_str())
                .collect();
            values.join("|")
        };
        assert_eq!(value("service.name"), "locks");
        assert_eq!(value("service.instance.id"), "db-7/b");
        assert_eq!(value("deployment.environment.name"), "prod");
        let error = of(&[("OTEL_RESOURCE_ATTRIBUTES", "a")]).expect_err("no list");
        assert!(error.to_string().starts_with("OTEL_RESOURCE_ATTRIBUTES: "));
    }
}
