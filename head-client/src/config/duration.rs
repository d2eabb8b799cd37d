//! Durations as people write them: `300ms`, `15s`, `2m`.

use std::fmt;

use serde::{Deserializer, de};

/// A text that is not a duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid duration {0:?}; expected a number with a unit, such as 300ms, 15s, 2m or 1h, or a \
     number of milliseconds"
)]
pub(super) struct DurationError(String);

/// The milliseconds of a duration such as `300ms`, `1.5s`, `2m` or `1h`; a number without a unit is
/// one of milliseconds. Fractions of a millisecond are rounded.
pub(super) fn parse_ms(text: &str) -> Result<u64, DurationError> {
    let invalid = || DurationError(text.to_owned());
    let text = text.trim();
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit = match unit.trim_start() {
        "" => return number.parse().map_err(|_| invalid()),
        "ms" => 1.0,
        "s" => 1e3,
        "m" | "min" => 6e4,
        "h" => 3.6e6,
        _ => return Err(invalid()),
    };
    let ms = number.parse::<f64>().map_err(|_| invalid())? * unit;
    // Every whole number up to this has an `f64` of its own.
    (ms <= 2f64.powi(53)).then_some(ms.round() as u64).ok_or_else(invalid)
}

/// Deserialises a duration: a text, or a number of milliseconds.
pub(super) fn deserialize_ms<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<u64>, D::Error> {
    struct Visitor;

    impl de::Visitor<'_> for Visitor {
        type Value = Option<u64>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a duration such as \"15s\", or a number of milliseconds")
        }

        fn visit_u64<E: de::Error>(self, value: u64) -> Result<Option<u64>, E> {
            Ok(Some(value))
        }

        fn visit_i64<E: de::Error>(self, value: i64) -> Result<Option<u64>, E> {
            let value = u64::try_from(value);
            value.map(Some).map_err(|_| E::custom("a duration cannot be negative"))
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Option<u64>, E> {
            parse_ms(text).map(Some).map_err(E::custom)
        }
    }

    deserializer.deserialize_any(Visitor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, ms) in [
            ("300", 300),
            ("300ms", 300),
            ("15s", 15_000),
            ("1.5 s", 1_500),
            ("2m", 120_000),
            ("2min", 120_000),
            ("1h", 3_600_000),
            ("0.25ms", 0),
        ] {
            assert_eq!(parse_ms(text), Ok(ms), "{text}");
        }
        for bad in ["", "s", "-1s", "1d", "1.5", "1..5s", "ms300", "99999999999999999999s", "nan s"]
        {
            let error = parse_ms(bad).expect_err(bad).to_string();
            assert!(error.contains(&format!("{bad:?}")) && error.contains("15s"), "{error}");
        }
    }
}
