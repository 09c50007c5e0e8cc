//! Patterns that name cgroup directories.
//!
//! A pattern is a path below the mount point of a hierarchy. In a component, `*` stands for any characters, `?` for one,
//! `[a-f]` and `[!a-f]` for one of a set; a component `**` stands for any number of directories. A directory that
//! matches belongs to its group with everything below it.
//!
//! Written here rather than taken from a glob crate because the agent also asks two questions that none answers: may
//! something below this directory match (to know what to watch), and do two patterns overlap (to refuse a policy).

use std::{iter::Peekable, str::Chars};

/// What is wrong with a pattern, and the cure.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("the pattern is empty: name a directory below the hierarchy's root, such as batch.slice")]
    Empty,
    #[error("`{0}` can match the root of the hierarchy: name at least one directory")]
    MatchesRoot(String),
    #[error("`{0}` is not allowed in a pattern: write the path as it is below the mount point")]
    Relative(String),
    #[error("`**` must be a component of its own, not part of `{0}`")]
    MixedDepth(String),
    #[error("`[` without its `]` in `{0}`: close it, or write [[] for the character itself")]
    OpenSet(String),
}

/// A compiled pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    AnyDepth,
    Name(Vec<Token>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Many,
    One(Set),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Set {
    negated: bool,
    ranges: Vec<(char, char)>,
}

impl Pattern {
    /// Compiles a pattern. A leading `/` is allowed and means nothing.
    ///
    /// # Errors
    /// [`Error`], with the cure.
    pub fn new(text: &str) -> Result<Self, Error> {
        let parts: Vec<Part> =
            text.split('/').filter(|name| !name.is_empty()).map(Part::parse).collect::<Result<_, _>>()?;
        if parts.is_empty() {
            return Err(Error::Empty);
        }
        if parts.iter().all(|part| *part == Part::AnyDepth) {
            return Err(Error::MatchesRoot(text.to_owned()));
        }
        Ok(Self { text: text.to_owned(), parts })
    }

    /// Whether the directory itself matches (one below a match belongs to the group too, but is not asked for here).
    pub fn matches(&self, path: &str) -> bool {
        matches(&self.parts, &components(path))
    }

    /// Whether some directory below `path` could match.
    pub fn may_match_below(&self, path: &str) -> bool {
        may_match_below(&self.parts, &components(path))
    }

    /// Whether some directory could belong to both patterns: match one of them and match, or lie below a match of, the
    /// other.
    pub fn overlaps(&self, other: &Self) -> bool {
        let below = |parts: &[Part]| -> Vec<Part> { parts.iter().cloned().chain([Part::AnyDepth]).collect() };
        intersect(&below(&self.parts), &below(&other.parts), |part| *part == Part::AnyDepth, Part::meets)
    }
}

impl std::fmt::Display for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl Part {
    fn parse(name: &str) -> Result<Self, Error> {
        match name {
            "**" => return Ok(Self::AnyDepth),
            "." | ".." => return Err(Error::Relative(name.to_owned())),
            _ if name.contains("**") => return Err(Error::MixedDepth(name.to_owned())),
            _ => {}
        }
        let mut tokens = Vec::new();
        let mut rest = name.chars().peekable();
        while let Some(next) = rest.next() {
            tokens.push(match next {
                '*' => Token::Many,
                '?' => Token::One(Set::ANY),
                '[' => Token::One(Set::parse(&mut rest).ok_or_else(|| Error::OpenSet(name.to_owned()))?),
                literal => Token::One(Set { negated: false, ranges: vec![(literal, literal)] }),
            });
        }
        Ok(Self::Name(tokens))
    }

    fn accepts(&self, name: &str) -> bool {
        match self {
            Self::AnyDepth => true,
            Self::Name(tokens) => accepts(tokens, &name.chars().collect::<Vec<_>>()),
        }
    }

    /// Whether one component could match both.
    fn meets(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Name(a), Self::Name(b)) => intersect(
                a,
                b,
                |token| *token == Token::Many,
                |a, b| match (a, b) {
                    (Token::One(a), Token::One(b)) => a.meets(b),
                    _ => true,
                },
            ),
            _ => true,
        }
    }
}

impl Set {
    const ANY: Self = Self { negated: true, ranges: Vec::new() };

    /// The rest of a set, its `[` being gone. A `]` right at the start stands for itself.
    fn parse(rest: &mut Peekable<Chars<'_>>) -> Option<Self> {
        let negated = rest.next_if(|c| matches!(c, '!' | '^')).is_some();
        let mut ranges = Vec::new();
        loop {
            let low = rest.next()?;
            if low == ']' && !ranges.is_empty() {
                return Some(Self { negated, ranges });
            }
            let mut ahead = rest.clone();
            let high = match (ahead.next(), ahead.next()) {
                (Some('-'), Some(high)) if high != ']' => {
                    *rest = ahead;
                    high
                }
                _ => low,
            };
            ranges.push((low, high));
        }
    }

    fn contains(&self, c: char) -> bool {
        self.ranges.iter().any(|(low, high)| (*low..=*high).contains(&c)) != self.negated
    }

    /// Whether one character is in both. Two sets that exclude only a few characters always meet; otherwise a common
    /// character lies at or next to the end of some range.
    fn meets(&self, other: &Self) -> bool {
        let ends = self.ranges.iter().chain(&other.ranges).flat_map(|(low, high)| {
            let after = char::from_u32(*high as u32 + 1).unwrap_or(*high);
            let before = char::from_u32((*low as u32).saturating_sub(1)).unwrap_or(*low);
            [*low, *high, before, after]
        });
        (self.negated && other.negated) || ends.into_iter().any(|c| self.contains(c) && other.contains(c))
    }
}

fn components(path: &str) -> Vec<&str> {
    path.split('/').filter(|name| !name.is_empty()).collect()
}

fn matches(parts: &[Part], names: &[&str]) -> bool {
    match (parts, names) {
        ([], []) => true,
        ([Part::AnyDepth, rest @ ..], _) if matches(rest, names) => true,
        ([Part::AnyDepth, ..], [_, names @ ..]) => matches(parts, names),
        ([part, rest @ ..], [name, names @ ..]) => part.accepts(name) && matches(rest, names),
        _ => false,
    }
}

fn may_match_below(parts: &[Part], names: &[&str]) -> bool {
    match (parts, names) {
        ([], _) => false,
        ([Part::AnyDepth, ..], _) | (_, []) => true,
        ([part, rest @ ..], [name, names @ ..]) => part.accepts(name) && may_match_below(rest, names),
    }
}

fn accepts(tokens: &[Token], name: &[char]) -> bool {
    match (tokens, name) {
        ([], []) => true,
        ([Token::Many, rest @ ..], _) if accepts(rest, name) => true,
        ([Token::Many, ..], [_, name @ ..]) => accepts(tokens, name),
        ([Token::One(set), rest @ ..], [c, name @ ..]) => set.contains(*c) && accepts(rest, name),
        _ => false,
    }
}

/// Whether two sequences, in which some items repeat any number of times, have a common expansion.
fn intersect<T>(a: &[T], b: &[T], repeats: fn(&T) -> bool, meets: fn(&T, &T) -> bool) -> bool {
    match (a, b) {
        ([], []) => true,
        ([item, rest @ ..], _) if repeats(item) => {
            intersect(rest, b, repeats, meets)
                || matches!(b, [_, others @ ..] if intersect(a, others, repeats, meets))
        }
        (_, [item, _rest @ ..]) if repeats(item) => intersect(b, a, repeats, meets),
        ([x, a @ ..], [y, b @ ..]) => meets(x, y) && intersect(a, b, repeats, meets),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Pattern {
        Pattern::new(text).unwrap()
    }

    #[test]
    fn patterns_match_whole_paths() {
        for (text, path, expected) in [
            ("batch.slice", "batch.slice", true),
            ("/batch.slice/", "batch.slice", true),
            ("batch.slice", "batch.slice/job", false),
            (
                "kubepods*/**/*pod*",
                "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podab.slice",
                true,
            ),
            ("kubepods/**/pod*", "kubepods/pod1", true),
            ("a/**", "a", true),
            ("a/**", "a/b/c", true),
            ("job-[0-9]?", "job-7x", true),
            ("job-[!0-9]", "job-7", false),
            ("job-[]]", "job-]", true),
            ("*", "a/b", false),
        ] {
            assert_eq!(pattern(text).matches(path), expected, "{text} on {path}");
        }
    }

    #[test]
    fn only_directories_on_the_way_to_a_match_need_be_watched() {
        for (text, path, expected) in [
            ("a/b*/c", "", true),
            ("a/b*/c", "a", true),
            ("a/b*/c", "a/bx", true),
            ("a/b*/c", "a/x", false),
            ("a/b*/c", "a/bx/c", false),
            ("a/**/c", "a/x/y", true),
        ] {
            assert_eq!(pattern(text).may_match_below(path), expected, "{text} below {path:?}");
        }
    }

    #[test]
    fn overlap_includes_what_lies_below_a_match() {
        for (a, b, expected) in [
            ("web", "batch", false),
            ("web", "web/inner", true),
            ("web*", "*batch", true),
            ("pod[0-4]*", "pod[5-9]*", false),
            ("pod[!0-4]", "pod[!5-9]", true),
            ("**/web", "batch/*", true),
            ("kubepods/burstable/*", "kubepods/besteffort/*", false),
            ("kubepods/**/pod*", "kubepods/besteffort", true),
            ("a?c", "abd", false),
            ("a*c", "ab*", true),
        ] {
            assert_eq!(pattern(a).overlaps(&pattern(b)), expected, "{a} and {b}");
            assert_eq!(pattern(b).overlaps(&pattern(a)), expected, "{b} and {a}");
        }
    }

    #[test]
    fn bad_patterns_are_told_what_is_wrong() {
        for (text, expected) in [
            ("", Error::Empty),
            ("/", Error::Empty),
            ("**", Error::MatchesRoot("**".into())),
            ("a/../b", Error::Relative("..".into())),
            ("a**/b", Error::MixedDepth("a**".into())),
            ("a/[bc", Error::OpenSet("[bc".into())),
        ] {
            assert_eq!(Pattern::new(text), Err(expected), "{text:?}");
        }
    }
}
