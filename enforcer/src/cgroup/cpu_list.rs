//! Lists of CPUs as the kernel writes them: `0-3,8`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// CPU numbers, ascending and without repetition, so that two texts for the same CPUs are equal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CpuList(Vec<u32>);

/// Far above what any kernel is built for; a garbled file must not fill the memory.
const CPU_MAX: u32 = 1 << 16;

/// A text that is no list of CPUs.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no list of CPUs such as 0-3,8")]
pub struct NotCpus(String);

impl CpuList {
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The last `count` of them: kernels and most interrupt handlers prefer the first ones.
    #[must_use]
    pub fn last(&self, count: usize) -> Self {
        Self(self.0[self.0.len().saturating_sub(count)..].to_vec())
    }
}

impl FromStr for CpuList {
    type Err = NotCpus;

    fn from_str(text: &str) -> Result<Self, NotCpus> {
        let bad = || NotCpus(text.to_owned());
        let mut cpus = Vec::new();
        for part in text.trim().split(',').filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let number = |text: &str| text.parse::<u32>().map_err(|_| bad());
            let (first, last) = (number(first)?, number(last)?);
            if first > last || last > CPU_MAX {
                return Err(bad());
            }
            cpus.extend(first..=last);
        }
        cpus.sort_unstable();
        cpus.dedup();
        Ok(Self(cpus))
    }
}

impl fmt::Display for CpuList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, run) in self.0.chunk_by(|a, b| a + 1 == *b).enumerate() {
            let comma = if index > 0 { "," } else { "" };
            match run {
                [only] => write!(f, "{comma}{only}")?,
                [first, .., last] => write!(f, "{comma}{first}-{last}")?,
                [] => {}
            }
        }
        Ok(())
    }
}

impl TryFrom<String> for CpuList {
    type Error = NotCpus;

    fn try_from(text: String) -> Result<Self, NotCpus> {
        text.parse()
    }
}

impl From<CpuList> for String {
    fn from(list: CpuList) -> Self {
        list.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_as_the_kernel_writes_it_and_written_back() {
        for (text, expected) in
            [("0-3,8\n", "0-3,8"), ("3,2,1,0", "0-3"), ("7", "7"), ("\n", ""), ("1-2,2-4", "1-4")]
        {
            assert_eq!(text.parse::<CpuList>().unwrap().to_string(), expected);
        }
        for text in ["a", "3-1", "1-", "-", "0-99999999"] {
            assert!(text.parse::<CpuList>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_last_ones_are_taken() {
        let all: CpuList = "0-3,8".parse().unwrap();
        assert_eq!(all.last(2).to_string(), "3,8");
        assert_eq!(all.last(9), all);
    }
}
