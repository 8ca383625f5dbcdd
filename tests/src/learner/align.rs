//! Which frame of a stack has acquired a lock: the one in which the stack it was acquired
//! with and the present one part.

/// The frame in which two stacks of one task part, both innermost first: its index in
/// each. Frames further out have not returned since; in this one the function is the same
/// and went on. `None` if they part between two functions, or if one is cut off.
pub(crate) fn parting(
    then: &[u64],
    now: &[u64],
    same_function: impl Fn(u64, u64) -> bool,
) -> Option<(usize, usize)> {
    // The outermost frames of either may have no place.
    let outermost = now.last()?;
    let shift = then.iter().rposition(|address| address == outermost)?;
    let mut pairs = (0..=shift).rev().zip((0..now.len()).rev());
    let (then_at, now_at) = pairs.find(|&(then_at, now_at)| then[then_at] != now[now_at])?;
    same_function(then[then_at], now[now_at]).then_some((then_at, now_at))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Addresses of one function have the same tens.
    fn parted(then: &[u64], now: &[u64]) -> Option<(usize, usize)> {
        parting(then, now, |a, b| a / 10 == b / 10)
    }

    #[test]
    fn the_function_that_went_on_has_the_lock() {
        assert_eq!(parted(&[1, 21, 31], &[41, 22, 31]), Some((1, 1)));
        assert_eq!(parted(&[1, 11, 21, 31], &[22, 31]), Some((2, 0)));
        assert_eq!(
            parted(&[1, 21, 31, 99], &[41, 22, 31]),
            Some((1, 1)),
            "cut off"
        );
    }

    #[test]
    fn other_stacks_say_nothing() {
        assert_eq!(parted(&[1, 21, 31], &[41, 51, 31]), None, "a tail call");
        assert_eq!(parted(&[1, 21, 31], &[41, 22, 32]), None);
        assert_eq!(parted(&[1, 21, 31], &[1, 21, 31]), None);
        assert_eq!(parted(&[], &[1]), None);
        assert_eq!(parted(&[1], &[]), None);
    }
}
