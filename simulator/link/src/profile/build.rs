//! From a link's file to a link: every value is checked, traces are read, and what is random is drawn.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use isthmus_proto::{Bitrate, DataSize, Timestamp};

use super::spec::{
    DisciplineSpec, JitterSpec, LinkSpec, LossSpec, OutageSpec, PathSpec, QueueSpec, RateSpec,
    RebindingSpec, StateSpec,
};
use super::{PathConfig, ProfileError, Rebindings};
use crate::chance::scattered;
use crate::trace::{Columns, Trace};
use crate::{
    AtEnd, Capacity, Delay, Discipline, Jitter, LinkConfig, Loss, MarkovRate, Outage, Playback,
    QueueConfig, Rate,
};

/// How long a drawn rate goes on before it repeats, unless the file says otherwise.
const DRAWN: f64 = 3_600.0;

/// Longest time a file may name (s).
const LONGEST: f64 = 1e9;

impl PathSpec {
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

/// `value` of `unit` seconds.
fn time(key: &str, name: &str, number: f64, unit: f64) -> Result<Duration, ProfileError> {
    let seconds = number * unit;
    if !(0.0..=LONGEST).contains(&seconds) {
        return Err(value(key, name, &format!("{number} is not a duration of 0 or more")));
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
