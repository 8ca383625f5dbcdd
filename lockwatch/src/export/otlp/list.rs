//! Lists in variables: `name=value,name=value`, values written as in URLs.

use crate::export::percent::decoded;

/// Takes a list apart. Blanks round names and values do not count, nor do empty entries.
///
/// The specification refers to W3C Baggage, in whose values what is not printable ASCII, and
/// commas, semicolons, quotes and percent signs, are written as `%` and two hex digits.
///
/// # Errors
/// In words, when an entry has no name or a value is no such text.
pub(super) fn pairs(list: &str) -> Result<Vec<(String, String)>, String> {
    let entries = list.split(',').map(str::trim);
    entries
        .filter(|entry| !entry.is_empty())
        .map(|entry| {
            // The entry itself may be a secret: it is not repeated.
            let (name, value) = entry
                .split_once('=')
                .ok_or("an entry has no `=`: it is a list of name=value, with commas between")?;
            let name = decoded(name.trim())?;
            if name.is_empty() {
                return Err("an entry has nothing before its `=`".to_owned());
            }
            Ok((name, decoded(value.trim())?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_taken_apart() {
        let found = pairs("api-key=a%2Cb%3d, x = y=z ,,empty=").expect("a list");
        let found: Vec<_> = found
            .iter()
            .map(|(n, v)| (n.as_str(), v.as_str()))
            .collect();
        assert_eq!(found, [("api-key", "a,b="), ("x", "y=z"), ("empty", "")]);
        assert!(pairs("").expect("a list").is_empty());
    }

    #[test]
    fn what_is_no_list_is_refused_without_repeating_it() {
        for bad in ["secret", "=secret", "a=%secret", "a=%2", "a=%ff"] {
            let error = pairs(bad).expect_err(bad);
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
