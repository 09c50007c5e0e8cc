//! What test programs say of their tests, read from their output.

/// Names, with reasons where the tests give them.
#[derive(Debug, Default)]
pub struct Tally {
    pub skipped: Vec<String>,
    pub failed: Vec<String>,
    /// Whether the list of failures, which ends a test program's output, is being read.
    lists_failures: bool,
}

impl Tally {
    pub fn read(&mut self, line: &str) {
        if let Some(skipped) = line.strip_prefix("skipped: ") {
            self.skipped.push(skipped.to_owned());
        }
        // The list comes after the failures' messages under the same title. Only names stand alone on indented lines.
        let name = line.strip_prefix("    ").filter(|name| name.split(' ').count() == 1 && !name.is_empty());
        match name {
            Some(name) if self.lists_failures => self.failed.push(name.to_owned()),
            _ => self.lists_failures = line == "failures:" || self.lists_failures && line.is_empty(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_failures_is_told_from_their_messages() {
        let output = "running 3 tests
test fine ... ok
skipped: another (not root)
test broken ... FAILED

failures:

---- broken ----
test panicked:
    indented
    an indented message

failures:
    broken
    waits::broken_as_well

test result: FAILED. 1 passed; 2 failed
    indented";
        let mut tally = Tally::default();
        output.lines().for_each(|line| tally.read(line));
        assert_eq!(tally.failed, ["broken", "waits::broken_as_well"]);
        assert_eq!(tally.skipped, ["another (not root)"]);
    }
}
