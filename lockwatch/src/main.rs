//! lockwatch
fn main() {}
