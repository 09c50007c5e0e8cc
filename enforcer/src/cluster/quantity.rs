//! Kubernetes quantities, such as `500m`, `2` or `3Gi`, as integers.
//!
//! Exact, and rounded away from zero like apimachinery's `Quantity.MilliValue` and `Value`
//! (`k8s.io/apimachinery/pkg/api/resource/quantity.go`), because what is published must be the same to the unit.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::units::Amounts;

/// A text that is no quantity.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no quantity: write a number with a suffix such as m, k, M, Ki, Mi or Gi")]
pub struct NoQuantity(String);

/// As Kubernetes has them in lists of resources.
pub type Resources = BTreeMap<String, Quantity>;

/// More digits than any quantity needs; fewer than overflow.
const DIGITS_MAX: usize = 24;
/// Beyond, decimal exponents overflow.
const EXPONENT_MAX: i32 = 18;

/// In thousandths.
///
/// # Errors
/// For a text that is no quantity. One that does not fit becomes the greatest value.
pub fn milli(quantity: &Quantity) -> Result<i64, NoQuantity> {
    scaled(&quantity.0, 1_000)
}

/// In whole units.
///
/// # Errors
/// As [`milli`].
pub fn whole(quantity: &Quantity) -> Result<i64, NoQuantity> {
    scaled(&quantity.0, 1)
}

/// The `cpu` and `memory` of a list; what is missing is zero.
///
/// # Errors
/// As [`milli`].
pub fn cpu_and_memory(resources: Option<&Resources>) -> Result<Amounts, NoQuantity> {
    amounts(resources, "cpu", "memory", milli)
}

/// `batch-cpu` and `batch-memory` of a list, under whatever names. The former counts thousandths already.
///
/// # Errors
/// As [`milli`].
pub fn extended(resources: Option<&Resources>, cpu: &str, memory: &str) -> Result<Amounts, NoQuantity> {
    amounts(resources, cpu, memory, whole)
}

fn amounts(
    resources: Option<&Resources>,
    cpu: &str,
    memory: &str,
    cpu_value: fn(&Quantity) -> Result<i64, NoQuantity>,
) -> Result<Amounts, NoQuantity> {
    let get = |name: &str| resources.and_then(|resources| resources.get(name));
    Ok(Amounts {
        cpu_milli: get(cpu).map_or(Ok(0), cpu_value)?,
        memory_bytes: get(memory).map_or(Ok(0), whole)?,
    })
}

/// The value of `text` times `scale`.
fn scaled(text: &str, scale: i128) -> Result<i64, NoQuantity> {
    let bad = || NoQuantity(text.to_owned());
    let (negative, rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(rest.len());
    let (number, suffix) = rest.split_at(end);
    let (before, after) = number.split_once('.').unwrap_or((number, ""));
    let digits = format!("{before}{after}");
    if digits.is_empty() || digits.len() > DIGITS_MAX || after.contains('.') {
        return Err(bad());
    }
    let mantissa: i128 = digits.parse().map_err(|_| bad())?;
    let (numerator, denominator) = multiplier(suffix).ok_or_else(bad)?;
    let decimals = u32::try_from(after.len()).map_err(|_| bad())?;
    let over = denominator.checked_mul(10_i128.pow(decimals)).ok_or_else(bad)?;
    // Too large for 128 bits is too large for 64.
    let product = mantissa.checked_mul(numerator).and_then(|product| product.checked_mul(scale));
    let value = product.map_or(i128::from(i64::MAX), |product| (product + over - 1) / over);
    let value = i64::try_from(value).unwrap_or(i64::MAX);
    Ok(if negative { -value } else { value })
}

fn multiplier(suffix: &str) -> Option<(i128, i128)> {
    const K: i128 = 1_000;
    Some(match suffix {
        "n" => (1, K * K * K),
        "u" => (1, K * K),
        "m" => (1, K),
        "" => (1, 1),
        "k" => (K, 1),
        "M" => (K.pow(2), 1),
        "G" => (K.pow(3), 1),
        "T" => (K.pow(4), 1),
        "P" => (K.pow(5), 1),
        "E" => (K.pow(6), 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = 10_i128.pow(exponent.unsigned_abs().min(EXPONENT_MAX.unsigned_abs()));
            if exponent >= 0 { (power, 1) } else { (1, power) }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quantity(text: &str) -> Quantity {
        Quantity(text.to_owned())
    }

    #[test]
    fn values_are_kubernetes_own() {
        for (text, in_milli, in_whole) in [
            ("2", 2_000, 2),
            ("500m", 500, 1),
            ("100.5m", 101, 1),
            ("1.5", 1_500, 2),
            ("0", 0, 0),
            ("3456Mi", 3_623_878_656_000, 3_623_878_656),
            ("1k", 1_000_000, 1_000),
            ("1e3", 1_000_000, 1_000),
            ("12E2", 1_200_000, 1_200),
            ("1E", 1_000_000_000_000_000_000_000_i128, 1_000_000_000_000_000_000),
            ("100n", 1, 1),
            ("-1.5", -1_500, -2),
            ("+3", 3_000, 3),
            (".5", 500, 1),
        ] {
            let in_milli = i64::try_from(in_milli).unwrap_or(i64::MAX);
            assert_eq!(milli(&quantity(text)), Ok(in_milli), "{text}");
            assert_eq!(whole(&quantity(text)), Ok(in_whole), "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_told_so() {
        for text in
            ["", "m", "-", "1.2.3", "1 Gi", "1gi", "e3", "1e", "0x10", "١", "1234567890123456789012345"]
        {
            assert_eq!(milli(&quantity(text)), Err(NoQuantity(text.to_owned())));
        }
    }

    #[test]
    fn what_is_missing_in_a_list_is_zero() {
        let list: Resources = [("cpu".to_owned(), quantity("250m"))].into();
        assert_eq!(cpu_and_memory(Some(&list)), Ok(Amounts { cpu_milli: 250, memory_bytes: 0 }));
        assert_eq!(cpu_and_memory(None), Ok(Amounts::default()));
    }
}
