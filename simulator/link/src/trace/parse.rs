//! Trace files read.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use isthmus_proto::Bitrate;
use serde::Deserialize;

use super::{Format, MAX_BPS, OPPORTUNITY, Trace, TraceError};

/// Largest trace file that is read (bytes).
const MAX_BYTES: u64 = 256 << 20;

/// Which columns of a CSV file, or which part of a JSON file, to read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Columns {
    /// Name of the column with the time; by default the one called `time_s`, `time_ms`, `time_us`,
    /// `time` (seconds) or `timestamp`, in any case.
    pub time: Option<String>,
    /// Name of the column with the rate, ending in `bps`, `kbps`, `mbps` or `gbps`; by default the
    /// only such.
    pub rate: Option<String>,
    /// Which direction, where a file has both.
    pub direction: Direction,
}

/// The direction that a rate is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// From the device to the server.
    #[default]
    Uplink,
    /// From the server to the device.
    Downlink,
}

impl Trace {
    /// Reads a trace file; its format shows in its first line.
    pub fn read(file: &Path, columns: &Columns) -> Result<Trace, TraceError> {
        let io = |cause| TraceError::Io { file: file.to_owned(), cause };
        let mut bytes = Vec::new();
        File::open(file).map_err(io)?.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
        let whole = |problem: &str| TraceError::Whole {
            file: file.to_owned(),
            problem: problem.to_owned(),
        };
        if bytes.len() as u64 > MAX_BYTES {
            return Err(whole("has more than 256 MiB; no trace needs that"));
        }
        let text = String::from_utf8(bytes)
            .map_err(|_| whole("is not UTF-8 text; a trace is mahimahi, Pensieve, CSV or JSON"))?;
        Trace::parse(&text, columns, file)
    }

    /// Reads a trace from text; errors name `file`.
    pub fn parse(text: &str, columns: &Columns, file: &Path) -> Result<Trace, TraceError> {
        let input = Input { text: text.strip_prefix('\u{feff}').unwrap_or(text), file };
        match input.format()? {
            Format::Mahimahi => input.mahimahi(),
            Format::Pensieve => input.pensieve(),
            Format::Csv => input.csv(columns),
            Format::Json => input.json(columns.direction),
        }
    }
}

struct Input<'a> {
    text: &'a str,
    file: &'a Path,
}

/// A rate that holds up to an instant, from the one before.
struct Sample {
    line: usize,
    /// s.
    time: f64,
    /// bits/s.
    bps: f64,
}

impl<'a> Input<'a> {
    fn format(&self) -> Result<Format, TraceError> {
        let (line, first) = self.lines().next().ok_or_else(|| {
            self.whole("is empty; a trace is mahimahi (milliseconds), Pensieve (seconds Mbit/s), CSV or JSON")
        })?;
        let fields = first.split_whitespace().map(|field| field.parse::<f64>().is_ok());
        match (first.starts_with('{'), fields.collect::<Vec<_>>().as_slice()) {
            (true, _) => Ok(Format::Json),
            (_, [true]) => Ok(Format::Mahimahi),
            (_, [true, true]) => Ok(Format::Pensieve),
            _ if first.contains(',') => Ok(Format::Csv),
            _ => Err(self.at(
                line,
                format!(
                    "expected milliseconds (mahimahi), seconds and Mbit/s (Pensieve), names of \
                     columns (CSV) or {{ (JSON), found {}",
                    quoted(first)
                ),
            )),
        }
    }

    fn mahimahi(&self) -> Result<Trace, TraceError> {
        // Opportunities of the millisecond that ends at the key; those at 0 count to the first.
        let mut counts: Vec<(u64, u64)> = Vec::new();
        let mut last = 0;
        for (line, text) in self.lines() {
            let at: u64 = text.parse().ok().filter(|&ms| ms < 1 << 40).ok_or_else(|| {
                self.at(line, format!("expected whole milliseconds, found {}", quoted(text)))
            })?;
            if at < last {
                return Err(self.at(line, format!("time goes back from {last} ms to {at} ms")));
            }
            last = at;
            match counts.last_mut() {
                Some((ms, count)) if *ms == at.max(1) => *count += 1,
                _ => counts.push((at.max(1), 1)),
            }
        }
        if last == 0 {
            return Err(self.whole("lasts no time; the last opportunity must be later than 0 ms"));
        }
        let ms = Duration::from_millis;
        let mut end = 0;
        let pieces = counts.iter().flat_map(|&(at, count)| {
            let pause = at - 1 - end;
            end = at;
            let rate = count.saturating_mul(OPPORTUNITY * 8 * 1_000);
            [(ms(pause), Bitrate::from_bps(0)), (ms(1), Bitrate::from_bps(rate))]
        });
        self.finish(pieces)
    }

    fn pensieve(&self) -> Result<Trace, TraceError> {
        let mut samples = Vec::new();
        for (line, text) in self.lines() {
            let mut numbers = text.split_whitespace().map(str::parse::<f64>);
            let (Some(Ok(time)), Some(Ok(mbps)), None) =
                (numbers.next(), numbers.next(), numbers.next())
            else {
                let found = quoted(text);
                return Err(self.at(line, format!("expected `seconds Mbit/s`, found {found}")));
            };
            samples.push(Sample { line, time, bps: mbps * 1e6 });
        }
        self.samples(samples)
    }

    fn csv(&self, columns: &Columns) -> Result<Trace, TraceError> {
        let mut reader = csv::ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .trim(csv::Trim::All)
            .from_reader(self.text.as_bytes());
        // A line of blanks says nothing.
        let rows = reader.records().filter(|row| !row.as_ref().is_ok_and(is_blank));
        let mut rows = rows.map(|row| {
            let row = row.map_err(|error| self.whole(&error.to_string()))?;
            Ok((row.position().map_or(0, |position| position.line() as usize), row))
        });
        let (line, head) = rows.next().unwrap_or_else(|| Err(self.whole("is empty")))?;
        let names: Vec<&str> = head.iter().collect();
        let time = self.time_column(line, &names, columns.time.as_deref())?;
        let rate = self.rate_column(line, &names, columns.rate.as_deref())?;
        let rate_unit = rate_unit(names[rate]).unwrap_or(1.0);
        let time_unit = time_unit(names[time]);
        let mut samples = Vec::new();
        for row in rows {
            let (line, fields) = row?;
            if fields.len() != names.len() {
                let (found, expected) = (fields.len(), names.len());
                return Err(self.at(line, format!("expected {expected} fields, found {found}")));
            }
            let number = |column: usize| {
                fields[column].parse::<f64>().map_err(|_| {
                    let (name, found) = (names[column], quoted(&fields[column]));
                    self.at(line, format!("expected a number in column {name}, found {found}"))
                })
            };
            let seconds = match calendar_seconds(&fields[time]) {
                Some(seconds) => seconds,
                None => number(time)? * time_unit,
            };
            samples.push(Sample { line, time: seconds, bps: number(rate)? * rate_unit });
        }
        self.samples(samples)
    }

    fn json(&self, direction: Direction) -> Result<Trace, TraceError> {
        let pattern: Pattern = serde_json::from_str(self.text).map_err(|error| {
            self.at(error.line(), format!("{error}; expected AlphaRTC's trace_pattern"))
        })?;
        let (name, steps) = match direction {
            Direction::Uplink => ("uplink", pattern.uplink),
            Direction::Downlink => ("downlink", pattern.downlink),
        };
        let steps = steps.and_then(|steps| steps.trace_pattern);
        let steps = steps.ok_or_else(|| self.whole(&format!("has no {name}.trace_pattern")))?;
        let mut pieces = Vec::with_capacity(steps.len());
        for (at, Step { duration, capacity }) in steps.into_iter().enumerate() {
            let place = || format!("{name}.trace_pattern[{at}]");
            if !(duration > 0.0 && duration < 1e12) {
                let problem =
                    format!("{}: expected a duration of more than 0 ms, found {duration}", place());
                return Err(self.whole(&problem));
            }
            if !(0.0..=MAX_BPS).contains(&(capacity * 1e3)) {
                let problem = format!(
                    "{}: expected a capacity of 0 kbit/s or more, found {capacity}",
                    place()
                );
                return Err(self.whole(&problem));
            }
            let span = Duration::from_micros((duration * 1e3).round() as u64);
            pieces.push((span, Bitrate::from_bps((capacity * 1e3).round() as u64)));
        }
        self.finish(pieces)
    }

    fn samples(&self, samples: Vec<Sample>) -> Result<Trace, TraceError> {
        let mut pieces: Vec<(Duration, Bitrate)> = Vec::new();
        // Samples of one instant, and the instant before.
        let (mut origin, mut before, mut since) = (None, 0.0, 0u64);
        let (mut sum, mut count) = (0.0, 0.0);
        let mut flush = |until: f64, sum: f64, count: f64| {
            // Rounded from the origin on, so that errors do not add up.
            let until = (until * 1e6).round() as u64;
            pieces.push((
                Duration::from_micros(until.saturating_sub(since)),
                Bitrate::from_bps((sum / count).round() as u64),
            ));
            since = until;
        };
        for Sample { line, time, bps } in samples {
            if !(time.is_finite() && time.abs() < 1e12) {
                return Err(self.at(line, format!("expected a time in seconds, found {time}")));
            }
            if !(0.0..=MAX_BPS).contains(&bps) {
                let problem = format!("expected a rate of 0 to 10^12 bits/s, found {bps}");
                return Err(self.at(line, problem));
            }
            let Some(origin) = origin else {
                origin = Some(time);
                continue;
            };
            let time = time - origin;
            if time < before {
                let problem =
                    format!("time goes back from {} s to {} s", before + origin, time + origin);
                return Err(self.at(line, problem));
            }
            if time > before {
                if count > 0.0 {
                    flush(before, sum, count);
                }
                (sum, count, before) = (0.0, 0.0, time);
            }
            if time > 0.0 {
                (sum, count) = (sum + bps, count + 1.0);
            }
        }
        if count > 0.0 {
            flush(before, sum, count);
        }
        self.finish(pieces)
    }

    fn time_column(
        &self,
        line: usize,
        names: &[&str],
        asked: Option<&str>,
    ) -> Result<usize, TraceError> {
        const KNOWN: [&str; 5] = ["time_s", "time_ms", "time_us", "time", "timestamp"];
        let known = |name: &str| KNOWN.iter().any(|known| known.eq_ignore_ascii_case(name));
        let found = names.iter().position(|&name| match asked {
            Some(asked) => name == asked,
            None => known(name),
        });
        found.ok_or_else(|| {
            let expected = asked.map_or_else(|| KNOWN.join(", "), str::to_owned);
            self.at(
                line,
                format!("expected a column {expected}; the file has {}", names.join(", ")),
            )
        })
    }

    fn rate_column(
        &self,
        line: usize,
        names: &[&str],
        asked: Option<&str>,
    ) -> Result<usize, TraceError> {
        let fits =
            |name: &str| rate_unit(name).is_some() && asked.is_none_or(|asked| name == asked);
        let found: Vec<usize> = (0..names.len()).filter(|&at| fits(names[at])).collect();
        match (found.as_slice(), asked) {
            (&[column], _) => Ok(column),
            (_, Some(asked)) => Err(self.at(
                line,
                format!(
                    "expected a column {asked} whose name ends in bps, kbps, mbps or gbps; the file has {}",
                    names.join(", ")
                ),
            )),
            ([], None) => Err(self.at(
                line,
                format!(
                    "expected a column whose name ends in bps, kbps, mbps or gbps; the file has {}",
                    names.join(", ")
                ),
            )),
            (several, None) => {
                let several: Vec<&str> = several.iter().map(|&at| names[at]).collect();
                Err(self.at(line, format!("say which column is the rate: {}", several.join(", "))))
            }
        }
    }

    fn finish(
        &self,
        pieces: impl IntoIterator<Item = (Duration, Bitrate)>,
    ) -> Result<Trace, TraceError> {
        Trace::new(pieces).map_err(|error| self.whole(&error.to_string()))
    }

    /// Lines with something on them, and their numbers from 1.
    fn lines(&self) -> impl Iterator<Item = (usize, &'a str)> + use<'a> {
        let lines = self.text.lines().enumerate().map(|(at, line)| (at + 1, line.trim()));
        lines.filter(|(_, line)| !line.is_empty())
    }

    fn at(&self, line: usize, problem: String) -> TraceError {
        TraceError::Line { file: self.file.to_owned(), line, problem }
    }

    fn whole(&self, problem: &str) -> TraceError {
        TraceError::Whole { file: self.file.to_owned(), problem: problem.to_owned() }
    }
}

/// AlphaRTC's form; loss, jitter and the rest of it are not the trace's.
#[derive(Deserialize)]
struct Pattern {
    uplink: Option<Steps>,
    downlink: Option<Steps>,
}

#[derive(Deserialize)]
struct Steps {
    trace_pattern: Option<Vec<Step>>,
}

#[derive(Deserialize)]
struct Step {
    /// ms.
    duration: f64,
    /// kbit/s.
    capacity: f64,
}

/// Bits/s of one unit of a column of this name.
fn rate_unit(name: &str) -> Option<f64> {
    let name = name.to_ascii_lowercase();
    let units = [("kbps", 1e3), ("mbps", 1e6), ("gbps", 1e9), ("bps", 1.0)];
    units.iter().find(|(unit, _)| name.ends_with(unit)).map(|&(_, factor)| factor)
}

/// Seconds of one unit of a column of this name.
fn time_unit(name: &str) -> f64 {
    match name.to_ascii_lowercase() {
        name if name.ends_with("_ms") => 1e-3,
        name if name.ends_with("_us") => 1e-6,
        _ => 1.0,
    }
}

/// `2019.12.14_10.16.30` or `2019-12-14T10:16:30`, with any separators and any fraction, as
/// seconds since 1970.
fn calendar_seconds(text: &str) -> Option<f64> {
    let text = text.trim_matches('"').trim_end_matches('Z');
    let mut numbers = [0u32; 5];
    let mut rest = text;
    for number in &mut numbers {
        let end = rest.find(|c: char| !c.is_ascii_digit())?;
        *number = rest[..end].parse().ok()?;
        rest = rest[end..].strip_prefix(['.', '-', '/', '_', ':', ' ', 'T'])?;
    }
    let seconds: f64 = rest.parse().ok().filter(|s| (0.0..61.0).contains(s))?;
    let [year, month, day, hour, minute] = numbers.map(i64::from);
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Days from civil (Hinnant, "chrono-Compatible Low-Level Date Algorithms"): years from March.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let era_day = year * 365 + year / 4 - year / 100 + year / 400;
    let days = era_day + (153 * month + 2) / 5 + day - 1 - 719_468;
    Some(((days * 24 + hour) * 60 + minute) as f64 * 60.0 + seconds)
}

fn is_blank(row: &csv::StringRecord) -> bool {
    row.iter().all(str::is_empty) && row.len() <= 1
}

/// What was found, short enough for a message.
fn quoted(text: &str) -> String {
    let short: String = text.chars().take(40).collect();
    if short.len() < text.len() { format!("{short:?}…") } else { format!("{short:?}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Trace, String> {
        parse_columns(text, &Columns::default())
    }

    fn parse_columns(text: &str, columns: &Columns) -> Result<Trace, String> {
        Trace::parse(text, columns, Path::new("x.trace")).map_err(|error| error.to_string())
    }

    fn pieces(text: &str) -> Vec<(u64, u64)> {
        let trace = parse(text).expect(text);
        trace.pieces().map(|(span, rate)| (span.as_micros() as u64, rate.as_bps())).collect()
    }

    #[test]
    fn a_mahimahi_line_is_1500_bytes_in_the_millisecond_before() {
        assert_eq!(
            pieces("2\n2\n4\n"),
            [(1_000, 0), (1_000, 24_000_000), (1_000, 0), (1_000, 12_000_000)]
        );
        // Opportunities at 0 are not lost.
        assert_eq!(pieces("0\n1\n2\n"), [(1_000, 24_000_000), (1_000, 12_000_000)]);
    }

    #[test]
    fn a_pensieve_line_is_the_rate_since_the_line_before() {
        assert_eq!(pieces("3.5 9\n4 1.5\n\n6 0\n"), [(500_000, 1_500_000), (2_000_000, 0)]);
    }

    #[test]
    fn csv_columns_are_found_by_name_or_by_wish() {
        let text = "time_ms,loss,rate_kbps\n0,0,1\n500,0,8\n1500,0,16\n";
        assert_eq!(pieces(text), [(500_000, 8_000), (1_000_000, 16_000)]);
        let both = "time,a_kbps,b_bps\n0,1,1\n1,8,5\n";
        let error = parse(both).expect_err("ambiguous");
        assert_eq!(error, "x.trace:1: say which column is the rate: a_kbps, b_bps");
        let columns = Columns { rate: Some("b_bps".into()), ..Columns::default() };
        let trace = parse_columns(both, &columns).expect("said");
        assert_eq!(trace.mean_rate(), Bitrate::from_bps(5));
    }

    #[test]
    fn rows_of_one_instant_are_averaged() {
        let text = "Timestamp,DL_kbps\n2019.12.31_23.59.59,7\n2019.12.31_23.59.59,7\n\
                    2020.01.01_00.00.00,10\n2020.01.01_00.00.00,20\n2020.01.01_00.00.02,4\n";
        assert_eq!(pieces(text), [(1_000_000, 15_000), (2_000_000, 4_000)]);
        assert_eq!(calendar_seconds("2000-02-29T12:00:00.5Z"), Some(951_825_600.5));
    }

    #[test]
    fn json_has_durations_and_capacities() {
        let text = r#"{"uplink": {"trace_pattern": [
            {"duration": 200.0, "capacity": 2.4, "loss": 0.1}, {"duration": 100, "capacity": 300}]}}"#;
        assert_eq!(pieces(text), [(200_000, 2_400), (100_000, 300_000)]);
        let columns = Columns { direction: Direction::Downlink, ..Columns::default() };
        let error = parse_columns(text, &columns).expect_err("one way only");
        assert_eq!(error, "x.trace: has no downlink.trace_pattern");
    }

    #[test]
    fn bad_input_names_file_line_and_expectation() {
        for (text, parts) in [
            ("", ["x.trace:", "is empty"]),
            ("\n \n", ["x.trace:", "is empty"]),
            ("hello world\n", ["x.trace:1:", "expected milliseconds"]),
            // Backward.
            ("5\n4\n", ["x.trace:2:", "goes back from 5 ms to 4 ms"]),
            ("0 1\n2 1\n1 1\n", ["x.trace:3:", "goes back from 2 s to 1 s"]),
            ("time_s,x_bps\n5,1\n4,1\n", ["x.trace:3:", "goes back"]),
            // Negative.
            ("-5\n4\n", ["x.trace:1:", "expected whole milliseconds"]),
            ("0 1\n2 -1\n", ["x.trace:2:", "expected a rate of 0"]),
            ("time_s,x_kbps\n0,1\n1,-1\n", ["x.trace:3:", "expected a rate of 0"]),
            (
                r#"{"uplink":{"trace_pattern":[{"duration":1,"capacity":-1}]}}"#,
                ["trace_pattern[0]", "expected a capacity of 0"],
            ),
            // Not a number.
            ("0 1\nnan 1\n", ["x.trace:2:", "expected a time"]),
            ("0 1\n1 NaN\n", ["x.trace:2:", "expected a rate"]),
            ("0 1\n1 inf\n", ["x.trace:2:", "expected a rate"]),
            ("time_s,x_bps\n0,1\n1,fast\n", ["x.trace:3:", "expected a number in column x_bps"]),
            // Mixed.
            ("1\n2 3\n", ["x.trace:2:", "expected whole milliseconds"]),
            ("0 1\n7\n", ["x.trace:2:", "expected `seconds Mbit/s`"]),
            ("time_s,x_bps\n0,1\n1 2\n", ["x.trace:3:", "expected 2 fields, found 1"]),
            ("{\n\"uplink\": 3}", ["x.trace:2:", "expected AlphaRTC's"]),
            ("{\"uplink\": {}}", ["x.trace:", "has no uplink.trace_pattern"]),
            // Without duration.
            ("0\n0\n", ["x.trace:", "lasts no time"]),
            ("3 1\n", ["x.trace:", "lasts no time"]),
            ("3 1\n3 2\n", ["x.trace:", "lasts no time"]),
            (r#"{"uplink":{"trace_pattern":[]}}"#, ["x.trace:", "lasts no time"]),
            (
                r#"{"uplink":{"trace_pattern":[{"duration":0,"capacity":1}]}}"#,
                ["trace_pattern[0]", "more than 0 ms"],
            ),
            // Columns.
            ("when,x_bps\n0,1\n", ["x.trace:1:", "expected a column time_s"]),
            ("time_s,x\n0,1\n", ["x.trace:1:", "ends in bps"]),
        ] {
            let error = parse(text).expect_err(text);
            assert!(parts.iter().all(|part| error.contains(part)), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Trace::read(Path::new("no/such.trace"), &Columns::default()).expect_err("none");
        assert!(error.to_string().starts_with("no/such.trace: "), "{error}");
    }
}
