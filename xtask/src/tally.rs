//! What test programs say of their tests, read from their output.

/// As many bytes of a failure's message are kept, from its end: causes come last.
const MESSAGE: usize = 400;

/// Names, with what the tests say about them.
#[derive(Debug, Default)]
pub struct Tally {
    pub skipped: Vec<String>,
    pub failed: Vec<String>,
    /// How many were named, with whatever came of them.
    pub ran: usize,
    place: Place,
}

/// Where in the output. Failures come last: their messages, and then their names, under the same title.
#[derive(Debug, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Tests,
    Failures,
    /// Below the name of one that failed.
    Message,
}

impl Tally {
    pub fn read(&mut self, line: &str) {
        if let Some(skipped) = line.strip_prefix("skipped: ") {
            self.skipped.push(skipped.to_owned());
        }
        self.ran += usize::from(line.starts_with("test ") && line.contains(" ... "));
        if line == "failures:" {
            self.place = Place::Failures;
        } else if line.starts_with("test result: ") {
            self.place = Place::Tests;
        } else if self.place != Place::Tests
            && let Some(name) = failed(line)
        {
            self.failed.push(format!("{name}:"));
            self.place = Place::Message;
        } else if self.place == Place::Message
            && let Some(failure) = self.failed.last_mut()
        {
            for word in line.split_whitespace() {
                failure.push(' ');
                failure.push_str(word);
            }
            shorten(failure);
        }
    }
}

/// The title of a failure's message: the test's name between dashes, and `stdout` where the harness is Rust's own.
fn failed(line: &str) -> Option<&str> {
    let name = line.strip_prefix("---- ")?.strip_suffix(" ----")?;
    Some(name.strip_suffix(" stdout").unwrap_or(name))
}

/// Leaves the name and the end of the message.
fn shorten(failure: &mut String) {
    let begin = failure.find(": ").map_or(0, |colon| colon + 2);
    if failure.len() <= begin + MESSAGE {
        return;
    }
    let mut end = failure.len() - MESSAGE;
    while !failure.is_char_boundary(end) {
        end += 1;
    }
    failure.replace_range(begin..end, "");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(output: &str) -> Tally {
        let mut tally = Tally::default();
        output.lines().for_each(|line| tally.read(line));
        tally
    }

    #[test]
    fn failures_are_named_with_their_messages() {
        let tally = tally(
            "running 3 tests
test fine ... ok
skipped: another (not root)
test broken ... FAILED

failures:

---- broken ----
no limit

Caused by:
    the file is gone

---- waits::broken_as_well stdout ----
panicked at src/lib.rs

failures:
    broken
    waits::broken_as_well

test result: FAILED. 1 passed; 2 failed
---- no title ----",
        );
        assert_eq!(
            tally.failed,
            ["broken: no limit Caused by: the file is gone", "waits::broken_as_well: panicked at src/lib.rs"]
        );
        assert_eq!(tally.skipped, ["another (not root)"]);
        assert_eq!(tally.ran, 2);
    }

    #[test]
    fn of_a_long_message_the_end_is_kept() {
        let long = "é ".repeat(500);
        let tally = tally(&format!("failures:\n---- broken ----\n{long}\nthe cause"));
        let failure = &tally.failed[0];
        assert!(failure.starts_with("broken: ") && failure.ends_with("é the cause"), "{failure}");
        assert!(failure.len() <= "broken: ".len() + MESSAGE, "{}", failure.len());
    }
}
