//! A measured path as a link's file.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use isthmus_head_client::config::ServerUrl;

use super::probes::Measured;

/// Quantiles in the comments.
const QUANTILES: [f64; 3] = [0.1, 0.5, 0.9];

/// A link's file of what was measured, for `simulator link` and scenarios. It names the trace by
/// `trace`; comments at its head say what both workloads came to.
pub fn link_file(server: &ServerUrl, trace: &Path, light: &Measured, heavy: &Measured) -> String {
    let ms = |span: Duration| span.as_secs_f64() * 1e3;
    let mut text = String::from(
        "#         probes  no echo    lost  p10 ms   p50 ms   p90 ms p10 kbit/s       p50       p90\n",
    );
    for (name, measured) in [("light", light), ("heavy", heavy)] {
        let Measured { sent, timed_out, lost, .. } = measured;
        let _ = write!(text, "# {name:<6} {sent:>8} {timed_out:>8} {lost:>7}");
        for quantile in QUANTILES {
            let span = measured.round_trip(quantile);
            let span = span.map_or_else(|| "-".into(), |span| format!("{:.1}", ms(span)));
            let _ = write!(text, " {span:>8}");
        }
        for quantile in QUANTILES {
            let kbits = measured.rate(quantile).as_bps() as f64 / 1e3;
            let _ = write!(text, " {kbits:>9.0}");
        }
        text.push('\n');
    }
    let quoted = |text: &str| toml::Value::from(text).to_string();
    // Half of a round trip that nothing else held up.
    let delay = ms(light.round_trip(0.5).unwrap_or_default()) / 2.0;
    let trace = quoted(&trace.to_string_lossy());
    let downlink = heavy.rate(0.9).as_bps() as f64 / 1e3;
    let _ = write!(
        text,
        "description = {}\n\
         source = \"Uplink and delay: recorded. Downlink: assumed as fast as the uplink at its best.\"\n\n\
         [uplink]\nrate = {{ trace = {trace} }}\ndelay_ms = {delay:.1}\n\n\
         [downlink]\nrate = {{ kbits = {downlink:.0} }}\ndelay_ms = {delay:.1}\n",
        quoted(&format!("the path to {server}")),
    );
    text
}
