//! Trace files written.

use std::io::{self, Write};
use std::time::Duration;

use serde_json::json;

use super::{Format, OPPORTUNITY, Trace, capacity_of};
use isthmus_proto::DataSize;

impl Trace {
    /// Writes the trace. All formats but mahimahi's keep it as it is, to the microsecond and the
    /// bit per second; mahimahi's keeps whole opportunities of 1,500 bytes in whole milliseconds,
    /// and ends with the last one.
    pub fn write(&self, format: Format, out: &mut dyn Write) -> io::Result<()> {
        match format {
            Format::Mahimahi => self.write_mahimahi(out),
            Format::Pensieve => self.write_rows(out, " "),
            Format::Csv => {
                writeln!(out, "time_s,rate_mbps")?;
                self.write_rows(out, ",")
            }
            Format::Json => {
                let ms = |span: Duration| span.as_micros() as f64 / 1e3;
                let step = |(span, rate): (Duration, isthmus_proto::Bitrate)| json!({ "duration": ms(span), "capacity": rate.as_bps() as f64 / 1e3 });
                let steps: Vec<_> = self.pieces().map(step).collect();
                writeln!(out, "{}", json!({ "uplink": { "trace_pattern": steps } }))
            }
        }
    }

    fn write_mahimahi(&self, out: &mut dyn Write) -> io::Result<()> {
        let opportunity = capacity_of(DataSize::from_bytes(OPPORTUNITY));
        for number in 1..=self.total / opportunity {
            let at = self.time_of(number * opportunity).unwrap_or(self.end);
            writeln!(out, "{}", at.div_ceil(1_000))?;
        }
        Ok(())
    }

    fn write_rows(&self, out: &mut dyn Write, separator: &str) -> io::Result<()> {
        let mut end = Duration::ZERO;
        for (at, (span, rate)) in self.pieces().enumerate() {
            let mbps = rate.as_bps() as f64 / 1e6;
            if at == 0 {
                writeln!(out, "0{separator}{mbps}")?;
            }
            end += span;
            writeln!(out, "{}{separator}{mbps}", end.as_micros() as f64 / 1e6)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use isthmus_proto::Bitrate;
    use proptest::prelude::*;

    use super::*;
    use crate::trace::Columns;

    fn through(trace: &Trace, format: Format) -> Trace {
        let mut text = Vec::new();
        trace.write(format, &mut text).expect("memory takes everything");
        let text = String::from_utf8(text).expect("text");
        Trace::parse(&text, &Columns::default(), Path::new("x")).expect("our own")
    }

    #[test]
    fn mahimahi_survives_itself() {
        let text = "1\n3\n3\n7\n10\n";
        let trace = Trace::parse(text, &Columns::default(), Path::new("x")).expect("a trace");
        assert_eq!(through(&trace, Format::Mahimahi), trace);
    }

    proptest! {
        #[test]
        fn all_other_formats_keep_a_trace(
            pieces in prop::collection::vec((1u64..5_000_000, 0u64..200_000_000), 1..20),
        ) {
            let piece = |&(us, bps): &(u64, u64)| (Duration::from_micros(us), Bitrate::from_bps(bps));
            let trace = Trace::new(pieces.iter().map(piece)).expect("a trace");
            for format in [Format::Pensieve, Format::Csv, Format::Json] {
                prop_assert_eq!(&through(&trace, format), &trace, "{:?}", format);
            }
        }
    }
}
