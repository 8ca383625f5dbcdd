//! The tag of a series: `wait/mmap_lock/rwsem/read/do_user_addr_fault`.

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    export::percent::decoded,
    latency::{Caller, Measure, SeriesKey},
    lock::{LockClass, LockMode},
};

/// Between the parts of a tag.
const SEPARATOR: &str = "/";

/// Classes that are no symbols.
const CLASSES: [LockClass; 12] = [
    LockClass::MmapLock,
    LockClass::InodeRwsem,
    LockClass::InvalidateLock,
    LockClass::InodeMmapRwsem,
    LockClass::AnonVma,
    LockClass::SuperUmount,
    LockClass::SuperWriters,
    LockClass::VmaLock,
    LockClass::FilePosition,
    LockClass::Pipe,
    LockClass::KernelData,
    LockClass::Unknown,
];

/// Callers that are no functions.
const CALLERS: [Caller; 3] = [Caller::Short, Caller::Unknown, Caller::Other];

/// The tag of a series: measure, class, kind, mode and caller.
///
/// What the format or this order forbids in names (`,`, `/`, spaces, …) is written as in
/// URLs, `%2C`; so is the first character of a symbol that is called like one of the words for
/// what is none.
pub fn tag(key: &SeriesKey) -> String {
    let class = match &key.class {
        LockClass::Symbol(name) => name_of_its_own(name, CLASSES.iter().any(|c| word(c) == *name)),
        class => word(class),
    };
    let caller = match &key.caller {
        Caller::Function(name) => {
            name_of_its_own(name, CALLERS.iter().any(|c| c.to_string() == *name))
        }
        caller => caller.to_string(),
    };
    let (measure, kind, mode) = (key.measure.word(), key.kind.word(), key.mode.word());
    [measure, &class, kind, mode, &caller].join(SEPARATOR)
}

/// The series of a tag; none if [`tag`] has not made it.
pub fn key(text: &str) -> Option<SeriesKey> {
    let mut parts = text.split(SEPARATOR);
    let mut part = || parts.next();
    let (measure, class, kind, mode, caller) = (part()?, part()?, part()?, part()?, part()?);
    let classes = CLASSES.into_iter().find(|known| word(known) == class);
    let callers = CALLERS
        .into_iter()
        .find(|known| known.to_string() == caller);
    let key = SeriesKey {
        measure: of_contract_word::<Measure>(measure)?,
        class: match classes {
            Some(class) => class,
            None => LockClass::Symbol(decoded(class).ok()?),
        },
        kind: of_contract_word(kind)?,
        mode: of_contract_word::<LockMode>(mode)?,
        caller: match callers {
            Some(caller) => caller,
            None => Caller::Function(decoded(caller).ok()?),
        },
    };
    // Other spellings of the same are not ours.
    (tag(&key) == text).then_some(key)
}

/// The word of a class that is no symbol. People are told `unknown` of both kinds of unnamed
/// locks; here they stay apart.
fn word(class: &LockClass) -> String {
    match class {
        LockClass::KernelData => "kernel-data".to_owned(),
        class => class.to_string(),
    }
}

fn name_of_its_own(name: &str, is_taken: bool) -> String {
    let mut escaped = String::with_capacity(name.len());
    for (at, byte) in name.bytes().enumerate() {
        if is_plain(byte) && !(is_taken && at == 0) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

/// Stands for itself in a tag. All that symbols have in them does.
const fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'_' | b'.' | b':' | b'<' | b'>' | b'[' | b']' | b'$' | b'@' | b'+' | b'-' | b'*'
        )
}

/// What one of the words of the JSON contracts stands for.
fn of_contract_word<T: DeserializeOwned>(word: &str) -> Option<T> {
    serde_json::from_value(Value::String(word.to_owned())).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::lock::LockKind;

    fn any_name() -> impl Strategy<Value = String> {
        prop_oneof![
            "[a-z_.:<>$0-9]{1,20}",
            any::<String>(),
            Just("other".to_owned()),
            Just("unknown".to_owned()),
            Just("mmap_lock".to_owned()),
            Just("kernel-data".to_owned()),
            Just("<slab>".to_owned()),
            Just("do_x.isra.0".to_owned()),
            Just("a,b c/d\n%2C".to_owned()),
        ]
    }

    fn any_key() -> impl Strategy<Value = SeriesKey> {
        let class = prop_oneof![
            proptest::sample::select(CLASSES.to_vec()),
            any_name().prop_map(LockClass::Symbol),
        ];
        let caller = prop_oneof![
            proptest::sample::select(CALLERS.to_vec()),
            any_name().prop_map(Caller::Function),
        ];
        let kinds = vec![
            LockKind::Rwsem,
            LockKind::Mutex,
            LockKind::PercpuRwsem,
            LockKind::RtMutex,
            LockKind::Semaphore,
            LockKind::VmaLock,
            LockKind::Unknown,
        ];
        let kind = proptest::sample::select(kinds);
        (any::<(bool, bool)>(), class, kind, caller).prop_map(
            |((is_wait, is_read), class, kind, caller)| SeriesKey {
                measure: if is_wait {
                    Measure::Wait
                } else {
                    Measure::Hold
                },
                class,
                kind,
                mode: if is_read {
                    LockMode::Read
                } else {
                    LockMode::Write
                },
                caller,
            },
        )
    }

    proptest! {
        #[test]
        fn a_series_has_one_tag_and_a_tag_one_series(a in any_key(), b in any_key()) {
            let text = tag(&a);
            prop_assert!(!text.contains([',', ' ', '\n', '\r', '"']), "{text}");
            prop_assert!(text.is_ascii());
            prop_assert_eq!(text.split('/').filter(|part| !part.is_empty()).count() >= 3, true);
            prop_assert_eq!(a == b, text == tag(&b));
            prop_assert_eq!(key(&text), Some(a));
        }

        #[test]
        fn what_is_no_tag_of_ours_is_none(text in ".*") {
            if let Some(key) = key(&text) {
                prop_assert_eq!(tag(&key), text);
            }
        }
    }

    #[test]
    fn tags_by_example() {
        let mut series = SeriesKey {
            measure: Measure::Wait,
            class: LockClass::MmapLock,
            kind: LockKind::PercpuRwsem,
            mode: LockMode::Read,
            caller: Caller::Function("do_fault.isra.0".to_owned()),
        };
        assert_eq!(
            tag(&series),
            "wait/mmap_lock/percpu_rwsem/read/do_fault.isra.0"
        );
        series.class = LockClass::Symbol("slab:<dentry>, x".to_owned());
        series.caller = Caller::Function("short".to_owned());
        assert_eq!(
            tag(&series),
            "wait/slab:<dentry>%2C%20x/percpu_rwsem/read/%73hort"
        );
        for foreign in [
            "",
            "A",
            "wait/mmap_lock/rwsem/read",
            "wait/mmap_lock/rwsem/read/a/b",
            "wait/%6Dm/rwsem/read/a",
            "wait/x/rwsem/read/%4",
            "wait/x/rwsem/read/%FF",
        ] {
            assert_eq!(key(foreign), None, "{foreign}");
        }
    }
}
