//! Durations as people write them: `300ms`, `15s`, `2m`, or a plain number of a unit.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

/// What a plain number of milliseconds counts.
pub const MILLISECOND: Duration = Duration::from_millis(1);

/// What a plain number of seconds counts.
pub const SECOND: Duration = Duration::from_secs(1);

/// The duration that `text` says; a plain number counts `unit`s.
pub fn parse(text: &str, unit: Duration) -> Result<Duration, String> {
    let duration = match text.trim().parse::<f64>() {
        Ok(number) => Duration::try_from_secs_f64(number * unit.as_secs_f64()).ok(),
        Err(_) => humantime::parse_duration(text.trim()).ok(),
    };
    duration
        .ok_or_else(|| format!("{text} is not a duration; expected one such as 300ms, 15s or 2m"))
}

/// Reads a file's value in milliseconds: a number of them, or text such as `"300ms"`.
pub fn milliseconds<'de, D: Deserializer<'de>>(value: D) -> Result<f64, D::Error> {
    in_units(value, MILLISECOND)
}

/// Reads a file's value in seconds: a number of them, or text such as `"2m"`.
pub fn seconds<'de, D: Deserializer<'de>>(value: D) -> Result<f64, D::Error> {
    in_units(value, SECOND)
}

/// As [`seconds`], for a value that may be left out.
pub fn optional_seconds<'de, D: Deserializer<'de>>(value: D) -> Result<Option<f64>, D::Error> {
    seconds(value).map(Some)
}

/// As [`milliseconds`], for a value that may be left out.
pub fn optional_milliseconds<'de, D: Deserializer<'de>>(value: D) -> Result<Option<f64>, D::Error> {
    milliseconds(value).map(Some)
}

/// As [`milliseconds`], for a table of names.
pub fn map_of_milliseconds<'de, D: Deserializer<'de>>(
    values: D,
) -> Result<BTreeMap<String, f64>, D::Error> {
    let values = BTreeMap::<String, Value>::deserialize(values)?;
    let in_units = |(name, value): (String, Value)| Ok((name, value.in_units(MILLISECOND)?));
    values.into_iter().map(in_units).collect()
}

/// As [`seconds`], for a list.
pub fn list_of_seconds<'de, D: Deserializer<'de>>(values: D) -> Result<Vec<f64>, D::Error> {
    let values = Vec::<Value>::deserialize(values)?;
    values.into_iter().map(|value| value.in_units(SECOND)).collect()
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a number, or a duration such as \"300ms\" or \"15s\"")]
enum Value {
    Whole(i64),
    Number(f64),
    Text(String),
}

impl Value {
    fn in_units<E: de::Error>(self, unit: Duration) -> Result<f64, E> {
        match self {
            Value::Whole(number) => Ok(number as f64),
            Value::Number(number) => Ok(number),
            Value::Text(text) => {
                let duration = humantime::parse_duration(&text).map_err(|error| {
                    let problem = format!("{text:?} is not a duration: {error}");
                    E::custom(format!("{problem}; expected one such as \"300ms\" or \"15s\""))
                })?;
                Ok(duration.as_nanos() as f64 / unit.as_nanos() as f64)
            }
        }
    }
}

fn in_units<'de, D: Deserializer<'de>>(value: D, unit: Duration) -> Result<f64, D::Error> {
    Value::deserialize(value)?.in_units(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    struct Times {
        #[serde(alias = "delay_ms", deserialize_with = "milliseconds")]
        delay: f64,
        #[serde(default, alias = "every_s", deserialize_with = "optional_seconds")]
        every: Option<f64>,
        #[serde(default, deserialize_with = "list_of_seconds")]
        at: Vec<f64>,
    }

    #[test]
    fn text_and_plain_numbers_say_the_same() {
        let plain: Times =
            toml::from_str("delay_ms = 300\nevery_s = 1.5\nat = [90]").expect("plain");
        let text = "delay = '300ms'\nevery = '1s 500ms'\nat = ['1m 30s']";
        assert_eq!(toml::from_str::<Times>(text).expect("text"), plain);
        assert_eq!(plain, Times { delay: 300.0, every: Some(1.5), at: vec![90.0] });
        let error = toml::from_str::<Times>("delay = '300 somethings'").expect_err("no unit");
        assert!(error.to_string().contains("300ms"), "{error}");
    }

    #[test]
    fn options_take_either() {
        assert_eq!(parse("300", MILLISECOND), parse("300ms", SECOND));
        assert_eq!(parse("2m", SECOND), Ok(Duration::from_secs(120)));
        assert_eq!(parse("0.5", SECOND), Ok(Duration::from_millis(500)));
        for text in ["-1", "nan", "fast", ""] {
            let error = parse(text, SECOND).expect_err(text);
            assert!(error.contains("expected one such as"), "{error}");
        }
    }
}
