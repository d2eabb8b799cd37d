//! Links by name, and as files.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use isthmus_proto::{Bitrate, DataSize, Timestamp};
use serde::Deserialize;

use crate::chance::scattered;
use crate::trace::{Columns, Direction, Trace, TraceError};
use crate::{
    AtEnd, Capacity, Delay, Discipline, Jitter, LinkConfig, Loss, MarkovRate, Outage, Playback,
    QueueConfig, Rate,
};

/// The built-in links, by name.
pub const BUILT_IN: [(&str, &str); 9] = [
    ("wifi", include_str!("../../../configs/links/wifi.toml")),
    ("wifi-weak", include_str!("../../../configs/links/wifi-weak.toml")),
    ("lte-driving", include_str!("../../../configs/links/lte-driving.toml")),
    ("umts-driving", include_str!("../../../configs/links/umts-driving.toml")),
    ("nr-walking", include_str!("../../../configs/links/nr-walking.toml")),
    ("bluetooth", include_str!("../../../configs/links/bluetooth.toml")),
    ("satellite", include_str!("../../../configs/links/satellite.toml")),
    ("nb-iot", include_str!("../../../configs/links/nb-iot.toml")),
    ("lora", include_str!("../../../configs/links/lora.toml")),
];

/// How long a drawn rate goes on before it repeats, unless the file says otherwise.
const DRAWN: f64 = 3_600.0;

/// Longest time a file may name (s).
const LONGEST: f64 = 1e9;

/// Why a link cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// Neither a built-in link nor a file.
    #[error("{name}: no such link; there is {}, or the path of a TOML file", names())]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// The file cannot be read.
    #[error("{}: {cause}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// What the system says.
        cause: std::io::Error,
    },
    /// No TOML, or a key that is missing, unknown or of the wrong type.
    #[error("{file}: {cause}")]
    Syntax {
        /// The file or name.
        file: String,
        /// Where and what.
        cause: Box<toml::de::Error>,
    },
    /// A value that cannot be meant.
    #[error("{key}: {problem}")]
    Value {
        /// Path of the key.
        key: String,
        /// What was found and what is expected.
        problem: String,
    },
    /// The rate's trace is unusable.
    #[error(transparent)]
    Trace(#[from] TraceError),
}

/// A path in both directions, as its file says it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PathSpec {
    /// For people.
    pub description: String,
    /// Where the numbers come from, or that they are assumed.
    pub source: String,
    /// From the device to the server.
    pub uplink: LinkSpec,
    /// From the server to the device.
    pub downlink: LinkSpec,
    /// When the device's address changes, as the server sees it; never by default.
    #[serde(default)]
    pub rebindings: RebindingSpec,
}

/// When a device's address changes, as the server sees it: a NAT on the way gives it another port.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RebindingSpec {
    /// At these times (s).
    pub at_s: Vec<f64>,
    /// And so often (s), for the first time after as long.
    pub every_s: Option<f64>,
}

/// One direction of a path, as its file says it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkSpec {
    /// `{ kbits = … }`, `{ trace = "FILE", … }` or `{ markov = [{ kbits = …, seconds = … }, …] }`.
    pub rate: RateSpec,
    /// Time from leaving the queue to arriving (ms).
    #[serde(default)]
    pub delay_ms: f64,
    /// How that varies.
    #[serde(default)]
    pub jitter: JitterSpec,
    /// Packets that leave and never arrive.
    #[serde(default)]
    pub loss: LossSpec,
    /// What waits.
    #[serde(default)]
    pub queue: QueueSpec,
    /// Probability that a packet arrives twice.
    #[serde(default)]
    pub duplication: f64,
    /// Probability that a packet arrives damaged.
    #[serde(default)]
    pub corruption: f64,
    /// When nothing is sent.
    #[serde(default)]
    pub outages: Vec<OutageSpec>,
}

/// A rate; exactly one of `kbits`, `trace` and `markov` is given.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateSpec {
    /// Constant (kbit/s).
    pub kbits: Option<f64>,
    /// A trace file, by its path from the file that names it.
    pub trace: Option<PathBuf>,
    /// States of a Markov-modulated rate, the first one first.
    pub markov: Option<Vec<StateSpec>>,
    /// Multiplies a trace's rates; 1 by default.
    pub scale: Option<f64>,
    /// Where in a trace to start (s); 0 by default.
    pub offset_s: Option<f64>,
    /// After a trace's end, `loop` (the default) or `once`: its last rate for ever.
    pub at_end: Option<AtEnd>,
    /// Column of a CSV trace's time.
    pub time_column: Option<String>,
    /// Column of a CSV trace's rate.
    pub rate_column: Option<String>,
    /// Which way of a JSON trace; `uplink` by default.
    pub direction: Option<Direction>,
    /// After how long a drawn rate repeats (s); 3,600 by default.
    pub drawn_s: Option<f64>,
}

/// A state of a Markov-modulated rate.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StateSpec {
    /// Its rate (kbit/s).
    pub kbits: f64,
    /// Mean time in it (s).
    pub seconds: f64,
    /// Weights with which each state follows; by default all others alike.
    pub moves: Option<Vec<f64>>,
}

/// How a delay varies; at most one of the three distributions is given.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JitterSpec {
    /// Evenly, by so much less or more (ms).
    pub uniform_ms: Option<f64>,
    /// Normally, with this standard deviation (ms).
    pub normal_ms: Option<f64>,
    /// Exponentially on top of the delay, with this mean (ms).
    pub exponential_ms: Option<f64>,
    /// Correlation with the packet before, −1 to 1.
    pub correlation: f64,
    /// Whether packets may overtake each other.
    pub reordering: bool,
}

/// Loss: `{ uniform = p }`, or bursts by Gilbert and Elliott.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LossSpec {
    /// Probability of each packet.
    pub uniform: Option<f64>,
    /// Probability of moving from good to bad.
    pub to_bad: Option<f64>,
    /// Probability of moving from bad to good.
    pub to_good: Option<f64>,
    /// Probability of loss while good; 0 by default.
    pub good_loss: Option<f64>,
    /// Probability of loss while bad; 1 by default.
    pub bad_loss: Option<f64>,
}

/// A queue; at most one of `bytes` and `packets` is given, by default 65,536 bytes.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QueueSpec {
    /// Most bytes.
    pub bytes: Option<u64>,
    /// Most packets.
    pub packets: Option<usize>,
    /// `drop-tail` (the default), `drop-head`, `codel` or `pie`.
    pub discipline: DisciplineSpec,
    /// CoDel's or PIE's target (ms); 5 and 15 by default.
    pub target_ms: Option<f64>,
    /// CoDel's interval (ms); 100 by default.
    pub interval_ms: Option<f64>,
}

/// A queue's discipline by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum DisciplineSpec {
    #[default]
    DropTail,
    DropHead,
    #[serde(rename = "codel")]
    CoDel,
    Pie,
}

/// A time without sending.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutageSpec {
    /// From when (s).
    pub start_s: f64,
    /// For how long (s).
    pub length_s: f64,
}

/// A path ready to be simulated.
#[derive(Clone, Debug, PartialEq)]
pub struct PathConfig {
    /// From the device to the server.
    pub uplink: LinkConfig,
    /// From the server to the device.
    pub downlink: LinkConfig,
    /// When the device's address changes, as the server sees it.
    pub rebindings: Rebindings,
}

/// When a device's address changes, as the server sees it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rebindings {
    /// At these times, in order.
    at: Vec<Timestamp>,
    /// And so often; more than zero.
    every: Option<Duration>,
}

impl Rebindings {
    /// The first one after `now`.
    pub fn after(&self, now: Timestamp) -> Option<Timestamp> {
        let named = self.at.get(self.at.partition_point(|&at| at <= now)).copied();
        let regular = self.every.map(|every| {
            let every = every.as_micros() as u64;
            Timestamp::from_micros((now.as_micros() / every + 1).saturating_mul(every))
        });
        named.into_iter().chain(regular).min()
    }
}

impl PathSpec {
    /// The built-in link of this name, or that of the TOML file at this path.
    pub fn find(name: &str) -> Result<(PathSpec, PathBuf), ProfileError> {
        if let Some((_, text)) = BUILT_IN.iter().find(|(built_in, _)| *built_in == name) {
            return Ok((Self::parse(text, name)?, PathBuf::new()));
        }
        let file = Path::new(name);
        if !name.ends_with(".toml") && !file.exists() {
            return Err(ProfileError::Unknown { name: name.to_owned() });
        }
        let text = fs::read_to_string(file)
            .map_err(|cause| ProfileError::Io { file: file.to_owned(), cause })?;
        let folder = file.parent().unwrap_or(Path::new("")).to_owned();
        Ok((Self::parse(&text, name)?, folder))
    }

    fn parse(text: &str, file: &str) -> Result<PathSpec, ProfileError> {
        toml::from_str(text).map_err(|cause| {
            let cause = Box::new(cause);
            ProfileError::Syntax { file: file.to_owned(), cause }
        })
    }

    /// Checks every value, reads traces (relative to `folder`) and draws what is random.
    pub fn to_config(&self, folder: &Path, seed: u64) -> Result<PathConfig, ProfileError> {
        Ok(PathConfig {
            uplink: self.uplink.to_config("uplink", folder, seed)?,
            downlink: self.downlink.to_config("downlink", folder, scattered(seed))?,
            rebindings: self.rebindings.to_config("rebindings")?,
        })
    }
}

impl RebindingSpec {
    /// Checks every value. Errors name keys below `key`.
    pub fn to_config(&self, key: &str) -> Result<Rebindings, ProfileError> {
        let named = |(at, &seconds): (usize, &f64)| {
            let name = format!("at_s[{at}]");
            Ok(Timestamp::ZERO + time(key, &name, seconds, 1.0)?)
        };
        let mut at: Vec<Timestamp> =
            self.at_s.iter().enumerate().map(named).collect::<Result<_, ProfileError>>()?;
        at.sort_unstable();
        let every = self.every_s.map(|every| time(key, "every_s", every, 1.0)).transpose()?;
        if every.is_some_and(|every| every < Duration::from_millis(1)) {
            return Err(value(key, "every_s", "is less than a millisecond"));
        }
        Ok(Rebindings { at, every })
    }
}

impl LinkSpec {
    /// Checks every value, reads a trace (relative to `folder`) and draws what is random. Errors
    /// name keys below `key`.
    pub fn to_config(
        &self,
        key: &str,
        folder: &Path,
        seed: u64,
    ) -> Result<LinkConfig, ProfileError> {
        let outage = |(at, outage): (usize, &OutageSpec)| -> Result<Outage, ProfileError> {
            let key = format!("{key}.outages[{at}]");
            Ok(Outage {
                start: Timestamp::ZERO + time(&key, "start_s", outage.start_s, 1.0)?,
                length: time(&key, "length_s", outage.length_s, 1.0)?,
            })
        };
        Ok(LinkConfig {
            rate: self.rate.to_rate(&format!("{key}.rate"), folder, seed)?,
            outages: self.outages.iter().enumerate().map(outage).collect::<Result<_, _>>()?,
            queue: self.queue.to_config(&format!("{key}.queue"))?,
            delay: self
                .jitter
                .to_delay(&format!("{key}.jitter"), time(key, "delay_ms", self.delay_ms, 1e-3)?)?,
            loss: self.loss.to_loss(&format!("{key}.loss"))?,
            duplication: probability(key, "duplication", self.duplication)?,
            corruption: probability(key, "corruption", self.corruption)?,
        })
    }
}

impl RateSpec {
    fn to_rate(&self, key: &str, folder: &Path, seed: u64) -> Result<Rate, ProfileError> {
        let for_trace = [
            ("scale", self.scale.is_some()),
            ("offset_s", self.offset_s.is_some()),
            ("at_end", self.at_end.is_some()),
            ("time_column", self.time_column.is_some()),
            ("rate_column", self.rate_column.is_some()),
            ("direction", self.direction.is_some()),
        ];
        let only = |what: &str, wrong: Option<&(&str, bool)>| match wrong {
            Some((name, _)) => Err(value(key, name, &format!("is only for a {what}"))),
            None => Ok(()),
        };
        if self.trace.is_none() {
            only("trace", for_trace.iter().find(|(_, given)| *given))?;
        }
        if self.markov.is_none() {
            only("markov rate", [("drawn_s", self.drawn_s.is_some())].iter().find(|it| it.1))?;
        }
        match (&self.kbits, &self.trace, &self.markov) {
            (Some(kbits), None, None) => Ok(Rate::Constant(bitrate(key, "kbits", *kbits)?)),
            (None, Some(file), None) => {
                let columns = Columns {
                    time: self.time_column.clone(),
                    rate: self.rate_column.clone(),
                    direction: self.direction.unwrap_or_default(),
                };
                let mut trace = Trace::read(&folder.join(file), &columns)?;
                if let Some(scale) = self.scale {
                    if !(scale.is_finite() && scale > 0.0 && scale < 1e6) {
                        return Err(value(key, "scale", &format!("{scale} is not more than 0")));
                    }
                    trace = trace.scaled(scale);
                }
                let offset = time(key, "offset_s", self.offset_s.unwrap_or(0.0), 1.0)?;
                let at_end = self.at_end.unwrap_or_default();
                Ok(Rate::Trace(Playback { trace: Arc::new(trace), offset, at_end }))
            }
            (None, None, Some(states)) => {
                let drawn = time(key, "drawn_s", self.drawn_s.unwrap_or(DRAWN), 1.0)?;
                let markov = to_markov(&format!("{key}.markov"), states)?;
                let trace = markov
                    .draw(drawn, seed)
                    .map_err(|error| value(key, "drawn_s", &error.to_string()))?;
                let (trace, offset) = (Arc::new(trace), Duration::ZERO);
                Ok(Rate::Trace(Playback { trace, offset, at_end: AtEnd::Loop }))
            }
            _ => Err(ProfileError::Value {
                key: key.to_owned(),
                problem: "exactly one of kbits, trace and markov is needed".into(),
            }),
        }
    }
}

fn to_markov(key: &str, states: &[StateSpec]) -> Result<MarkovRate, ProfileError> {
    if states.is_empty() {
        let (key, problem) = (key.to_owned(), "at least one state is needed".into());
        return Err(ProfileError::Value { key, problem });
    }
    let mut markov = MarkovRate { states: Vec::new(), moves: Vec::new() };
    for (at, state) in states.iter().enumerate() {
        let key = format!("{key}[{at}]");
        let mean = time(&key, "seconds", state.seconds, 1.0)?;
        if mean.is_zero() {
            return Err(value(&key, "seconds", "0 is not more than 0"));
        }
        markov.states.push((bitrate(&key, "kbits", state.kbits)?, mean));
        let even = || (0..states.len()).map(|other| if other == at { 0.0 } else { 1.0 }).collect();
        let moves = state.moves.clone().unwrap_or_else(even);
        if moves.len() != states.len() || moves.iter().any(|weight| !(0.0..1e9).contains(weight)) {
            let problem = format!("{moves:?} is not {} weights of 0 or more", states.len());
            return Err(value(&key, "moves", &problem));
        }
        markov.moves.push(moves);
    }
    Ok(markov)
}

impl JitterSpec {
    fn to_delay(&self, key: &str, base: Duration) -> Result<Delay, ProfileError> {
        let ms = |name, ms| time(key, name, ms, 1e-3);
        let jitter = match (self.uniform_ms, self.normal_ms, self.exponential_ms) {
            (None, None, None) => Jitter::None,
            (Some(most), None, None) => Jitter::Uniform(ms("uniform_ms", most)?),
            (None, Some(deviation), None) => Jitter::Normal(ms("normal_ms", deviation)?),
            (None, None, Some(mean)) => Jitter::Exponential(ms("exponential_ms", mean)?),
            _ => {
                let problem = "uniform_ms, normal_ms and exponential_ms exclude each other".into();
                return Err(ProfileError::Value { key: key.to_owned(), problem });
            }
        };
        let correlation = self.correlation;
        if !(-1.0..=1.0).contains(&correlation) {
            let problem = format!("{correlation} is not within −1 to 1");
            return Err(value(key, "correlation", &problem));
        }
        Ok(Delay { base, jitter, correlation, reordering: self.reordering })
    }
}

impl LossSpec {
    fn to_loss(&self, key: &str) -> Result<Loss, ProfileError> {
        let bursts = [self.to_bad, self.to_good, self.good_loss, self.bad_loss];
        match (self.uniform, self.to_bad, self.to_good) {
            (None, None, None) if bursts == [None; 4] => Ok(Loss::None),
            (Some(p), _, _) if bursts == [None; 4] => {
                Ok(Loss::Uniform(probability(key, "uniform", p)?))
            }
            (None, Some(to_bad), Some(to_good)) => Ok(Loss::GilbertElliott {
                to_bad: probability(key, "to_bad", to_bad)?,
                to_good: probability(key, "to_good", to_good)?,
                good_loss: probability(key, "good_loss", self.good_loss.unwrap_or(0.0))?,
                bad_loss: probability(key, "bad_loss", self.bad_loss.unwrap_or(1.0))?,
            }),
            _ => Err(ProfileError::Value {
                key: key.to_owned(),
                problem: "either uniform, or to_bad and to_good with good_loss and bad_loss".into(),
            }),
        }
    }
}

impl QueueSpec {
    fn to_config(&self, key: &str) -> Result<QueueConfig, ProfileError> {
        let capacity = match (self.bytes, self.packets) {
            (None, None) => Capacity::Bytes(DataSize::from_bytes(65_536)),
            (Some(bytes), None) if bytes > 0 => Capacity::Bytes(DataSize::from_bytes(bytes)),
            (None, Some(packets)) if packets > 0 => Capacity::Packets(packets),
            _ => {
                let problem = "either bytes or packets, more than 0".into();
                return Err(ProfileError::Value { key: key.to_owned(), problem });
            }
        };
        let target = |default| {
            let target = time(key, "target_ms", self.target_ms.unwrap_or(default), 1e-3)?;
            match target.is_zero() {
                true => Err(value(key, "target_ms", "0 is not more than 0")),
                false => Ok(target),
            }
        };
        let discipline = match self.discipline {
            DisciplineSpec::DropTail => Discipline::DropTail,
            DisciplineSpec::DropHead => Discipline::DropHead,
            DisciplineSpec::CoDel => {
                let interval = time(key, "interval_ms", self.interval_ms.unwrap_or(100.0), 1e-3)?;
                Discipline::CoDel { target: target(5.0)?, interval }
            }
            DisciplineSpec::Pie => Discipline::Pie { target: target(15.0)? },
        };
        Ok(QueueConfig { capacity, discipline })
    }
}

fn names() -> String {
    BUILT_IN.map(|(name, _)| name).join(", ")
}

/// `value` of `unit` seconds.
fn time(key: &str, name: &str, number: f64, unit: f64) -> Result<Duration, ProfileError> {
    let seconds = number * unit;
    if !(0.0..=LONGEST).contains(&seconds) {
        return Err(value(key, name, &format!("{number} is no time of 0 or more")));
    }
    Ok(Duration::from_micros((seconds * 1e6).round() as u64))
}

fn bitrate(key: &str, name: &str, kbits: f64) -> Result<Bitrate, ProfileError> {
    if !(0.0..=1e9).contains(&kbits) {
        return Err(value(key, name, &format!("{kbits} is not within 0 to 10^9 kbit/s")));
    }
    Ok(Bitrate::from_bps((kbits * 1e3).round() as u64))
}

fn probability(key: &str, name: &str, p: f64) -> Result<f64, ProfileError> {
    match (0.0..=1.0).contains(&p) {
        true => Ok(p),
        false => Err(value(key, name, &format!("{p} is not within 0 to 1"))),
    }
}

fn value(key: &str, name: &str, problem: &str) -> ProfileError {
    ProfileError::Value { key: format!("{key}.{name}"), problem: problem.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(text: &str) -> Result<LinkConfig, String> {
        let spec: LinkSpec = toml::from_str(text).map_err(|error| error.to_string())?;
        spec.to_config("uplink", Path::new(""), 1).map_err(|error| error.to_string())
    }

    #[test]
    fn every_built_in_link_is_valid_and_says_its_source() {
        for (name, _) in BUILT_IN {
            let (spec, folder) = PathSpec::find(name).expect(name);
            assert!(!spec.source.is_empty() && !spec.description.is_empty(), "{name}");
            spec.to_config(&folder, 1).expect(name);
        }
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/links");
        let files = fs::read_dir(folder).expect("the folder").count();
        assert_eq!(files, BUILT_IN.len(), "every file is built in");
    }

    #[test]
    fn a_drawn_rate_hangs_from_the_seed() {
        let (spec, folder) = PathSpec::find("lte-driving").expect("built in");
        let config = |seed| spec.to_config(&folder, seed).expect("valid");
        assert_eq!(config(1), config(1));
        assert_ne!(config(1).uplink.rate, config(2).uplink.rate);
    }

    #[test]
    fn everything_can_be_said() {
        let config = link(
            "rate = { kbits = 100 }\ndelay_ms = 20\n\
             jitter = { normal_ms = 3, correlation = 0.5, reordering = true }\n\
             loss = { to_bad = 0.1, to_good = 0.5 }\nduplication = 0.1\ncorruption = 0.2\n\
             queue = { packets = 7, discipline = 'codel', interval_ms = 50 }\n\
             outages = [{ start_s = 1, length_s = 0.5 }]",
        )
        .expect("valid");
        let ms = Duration::from_millis;
        assert_eq!(config.delay.jitter, Jitter::Normal(ms(3)));
        assert_eq!(config.queue.discipline, Discipline::CoDel { target: ms(5), interval: ms(50) });
        assert_eq!(
            config.outages,
            [Outage { start: Timestamp::from_micros(1_000_000), length: ms(500) }]
        );
    }

    #[test]
    fn what_cannot_be_meant_is_named() {
        for (text, expected) in [
            ("rate = {}", "uplink.rate: exactly one"),
            ("rate = { kbits = 1, trace = 'x' }", "uplink.rate: exactly one"),
            ("rate = { kbits = -1 }", "uplink.rate.kbits: -1"),
            ("rate = { kbits = nan }", "uplink.rate.kbits: NaN"),
            ("rate = { kbits = 1, scale = 2 }", "uplink.rate.scale: is only for a trace"),
            ("rate = { kbits = 1, drawn_s = 2 }", "uplink.rate.drawn_s: is only"),
            ("rate = { trace = 'none.csv' }", "none.csv: "),
            ("rate = { trace = 'none.csv', scale = 0 }", "none.csv: "),
            ("rate = { markov = [] }", "uplink.rate.markov: at least one"),
            ("rate = { markov = [{ kbits = 1, seconds = 0 }] }", "uplink.rate.markov[0].seconds"),
            ("rate = { markov = [{ kbits = 1, seconds = 1, moves = [] }] }", "markov[0].moves"),
            ("rate = { kbits = 1, tempo = 3 }", "unknown field `tempo`"),
            ("rate = { kbits = 1 }\ndelay_ms = -1", "uplink.delay_ms: -1"),
            ("rate = { kbits = 1 }\ndelai_ms = 1", "unknown field `delai_ms`"),
            ("rate = { kbits = 1 }\nloss = { uniform = 2 }", "uplink.loss.uniform: 2"),
            ("rate = { kbits = 1 }\nloss = { to_bad = 0.1 }", "uplink.loss: either"),
            ("rate = { kbits = 1 }\njitter = { correlation = 2 }", "uplink.jitter.correlation"),
            (
                "rate = { kbits = 1 }\njitter = { normal_ms = 1, uniform_ms = 1 }",
                "uplink.jitter: uniform_ms",
            ),
            ("rate = { kbits = 1 }\nqueue = { bytes = 0 }", "uplink.queue: either"),
            ("rate = { kbits = 1 }\nqueue = { discipline = 'red' }", "unknown variant `red`"),
            (
                "rate = { kbits = 1 }\noutages = [{ start_s = 1, length_s = -1 }]",
                "outages[0].length_s",
            ),
        ] {
            let error = link(text).expect_err(text);
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let error = PathSpec::find("wfi").expect_err("a typo").to_string();
        assert!(error.contains("lte-driving") && error.contains("wfi"), "{error}");
    }
}
