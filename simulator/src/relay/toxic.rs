//! What can be done to the link while it runs, in Toxiproxy's words.

use std::time::Duration;

use isthmus_proto::Bitrate;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::link::{Jitter, LinkConfig, Loss, Playback, Rate};

/// Longest time that a toxic may name (ms).
const LONGEST: u64 = 3_600_000;

/// Something that makes one direction of the link worse.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Toxic {
    /// By which it is changed and removed.
    pub name: String,
    /// The direction that it works in.
    pub stream: Stream,
    /// Fraction of connections that it works on; always 1.
    pub toxicity: f64,
    /// What it does.
    #[serde(flatten)]
    pub effect: Effect,
}

/// A direction, as Toxiproxy names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// From client to upstream: the uplink.
    Upstream,
    /// Back.
    #[default]
    Downstream,
}

/// What a toxic does.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", content = "attributes", rename_all = "lowercase", deny_unknown_fields)]
pub enum Effect {
    /// Adds delay.
    Latency {
        /// So much (ms).
        #[serde(default)]
        latency: u64,
        /// Evenly so much more or less (ms), in place of the link's own jitter; 0 keeps that.
        #[serde(default)]
        jitter: u64,
    },
    /// Limits the rate.
    Bandwidth {
        /// Most (1,000 bytes/s); 0 stops everything.
        rate: u64,
    },
    /// Lets nothing through.
    Timeout {
        /// After how long connections are closed (ms); only 0, never, is supported.
        #[serde(default)]
        timeout: u64,
    },
    /// Lets nothing through: the rate is zero.
    Outage {},
    /// Loses packets that were sent.
    Loss {
        /// Of each packet, 0 to 1.
        probability: f64,
    },
}

/// Why a toxic is refused.
#[derive(Debug, thiserror::Error)]
pub enum ToxicError {
    /// No JSON, or not that of a toxic.
    #[error("bad request body: {0}")]
    Body(#[from] serde_json::Error),
    /// A value that this link cannot have.
    #[error("{key}: {problem}")]
    Value {
        /// The attribute.
        key: &'static str,
        /// What was found and what is expected.
        problem: String,
    },
}

#[derive(Deserialize)]
struct Request {
    name: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    stream: Option<Stream>,
    toxicity: Option<f64>,
    attributes: Option<serde_json::Map<String, Value>>,
}

impl Toxic {
    /// Reads a new toxic.
    pub fn parse(body: &[u8]) -> Result<Toxic, ToxicError> {
        let request: Request = serde_json::from_slice(body)?;
        let kind = request.kind.unwrap_or_default();
        let attributes = request.attributes.unwrap_or_default();
        let effect = Effect::parse(json!({ "type": kind, "attributes": attributes }))?;
        let stream = request.stream.unwrap_or_default();
        let toxicity = check_toxicity(request.toxicity)?;
        let name = request.name.filter(|name| !name.is_empty());
        let name = name.unwrap_or_else(|| {
            let stream = if stream == Stream::Upstream { "upstream" } else { "downstream" };
            format!("{kind}_{stream}")
        });
        Ok(Toxic { name, stream, toxicity, effect })
    }

    /// The same with other attributes; those that are not given stay.
    pub fn updated(&self, body: &[u8]) -> Result<Toxic, ToxicError> {
        let request: Request = serde_json::from_slice(body)?;
        let toxicity = check_toxicity(request.toxicity)?;
        let mut effect = serde_json::to_value(self.effect)?;
        if let Some(attributes) = effect["attributes"].as_object_mut() {
            attributes.extend(request.attributes.unwrap_or_default());
        }
        Ok(Toxic { toxicity, effect: Effect::parse(effect)?, ..self.clone() })
    }
}

impl Effect {
    fn parse(value: Value) -> Result<Effect, ToxicError> {
        let effect = serde_json::from_value(value)?;
        let problem = match effect {
            Effect::Latency { latency, jitter } if latency.max(jitter) > LONGEST => {
                ("latency", format!("{} ms is more than {LONGEST}", latency.max(jitter)))
            }
            Effect::Timeout { timeout } if timeout > 0 => {
                let instead = "set the proxy's `enabled` to false to close connections";
                ("timeout", format!("only 0 is supported, not {timeout}; {instead}"))
            }
            Effect::Loss { probability } if !(0.0..=1.0).contains(&probability) => {
                ("probability", format!("{probability} is not within 0 and 1"))
            }
            _ => return Ok(effect),
        };
        Err(ToxicError::Value { key: problem.0, problem: problem.1 })
    }

    /// A link that is like `config`, but for this.
    fn applied(self, mut config: LinkConfig) -> LinkConfig {
        match self {
            Effect::Latency { latency, jitter } => {
                config.delay.base += Duration::from_millis(latency);
                if jitter > 0 {
                    config.delay.jitter = Jitter::Uniform(Duration::from_millis(jitter));
                }
            }
            Effect::Bandwidth { rate } => {
                let most = Bitrate::from_bps(rate.saturating_mul(8_000));
                config.rate = match config.rate {
                    Rate::Constant(rate) => Rate::Constant(rate.min(most)),
                    Rate::Trace(Playback { trace, offset, at_end }) => {
                        Rate::Trace(Playback { trace: trace.capped(most).into(), offset, at_end })
                    }
                };
            }
            Effect::Timeout { .. } | Effect::Outage {} => {
                config.rate = Rate::Constant(Bitrate::from_bps(0));
            }
            Effect::Loss { probability } => {
                let either = |other: f64| 1.0 - (1.0 - other) * (1.0 - probability);
                config.loss = match config.loss {
                    Loss::None => Loss::Uniform(probability),
                    Loss::Uniform(other) => Loss::Uniform(either(other)),
                    Loss::GilbertElliott { to_bad, to_good, good_loss, bad_loss } => {
                        let (good_loss, bad_loss) = (either(good_loss), either(bad_loss));
                        Loss::GilbertElliott { to_bad, to_good, good_loss, bad_loss }
                    }
                };
            }
        }
        config
    }
}

/// A link that is like `config`, but for those of `toxics` that work on its direction.
pub(super) fn poisoned<'a>(
    config: &LinkConfig,
    stream: Stream,
    toxics: impl IntoIterator<Item = &'a Toxic>,
) -> LinkConfig {
    let toxics = toxics.into_iter().filter(|toxic| toxic.stream == stream);
    toxics.fold(config.clone(), |config, toxic| toxic.effect.applied(config))
}

fn check_toxicity(toxicity: Option<f64>) -> Result<f64, ToxicError> {
    match toxicity {
        None | Some(1.0) => Ok(1.0),
        Some(other) => {
            let problem = format!("only 1 is supported, not {other}: all share one link");
            Err(ToxicError::Value { key: "toxicity", problem })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use isthmus_proto::{DataSize, Timestamp};

    use super::*;
    use crate::Trace;
    use crate::link::AtEnd;

    fn config() -> LinkConfig {
        let rate = Bitrate::from_bps(8_000_000);
        LinkConfig::constant(rate, Duration::from_millis(20), DataSize::from_bytes(1 << 16))
    }

    fn toxic(body: Value) -> Toxic {
        Toxic::parse(body.to_string().as_bytes()).expect("a toxic")
    }

    #[test]
    fn toxics_of_one_direction_add_up() {
        let toxics = [
            toxic(json!({ "type": "latency", "attributes": { "latency": 80, "jitter": 5 } })),
            toxic(json!({ "type": "bandwidth", "attributes": { "rate": 100 } })),
            toxic(json!({ "type": "loss", "attributes": { "probability": 0.5 } })),
            toxic(json!({ "name": "more", "type": "loss", "attributes": { "probability": 0.5 } })),
            toxic(json!({ "type": "outage", "stream": "upstream" })),
        ];
        let down = poisoned(&config(), Stream::Downstream, &toxics);
        assert_eq!(down.delay.base, Duration::from_millis(100));
        assert_eq!(down.delay.jitter, Jitter::Uniform(Duration::from_millis(5)));
        assert_eq!(down.rate, Rate::Constant(Bitrate::from_bps(800_000)));
        assert_eq!(down.loss, Loss::Uniform(0.75));
        let up = poisoned(&config(), Stream::Upstream, &toxics);
        assert_eq!(up, LinkConfig { rate: Rate::Constant(Bitrate::from_bps(0)), ..config() });
    }

    #[test]
    fn a_trace_is_limited_where_it_is_faster() {
        let second = Duration::from_secs(1);
        let trace = [9_000_000, 100_000].map(|bps| (second, Bitrate::from_bps(bps)));
        let trace = Arc::new(Trace::new(trace).expect("a trace"));
        let playback = Playback { trace, offset: Duration::ZERO, at_end: AtEnd::Loop };
        let link = LinkConfig { rate: Rate::Trace(playback), ..config() };
        let rate = Effect::Bandwidth { rate: 125 }.applied(link).rate;
        let at = |millis: u64| rate.at(Timestamp::from_micros(millis * 1_000)).as_bps();
        assert_eq!((at(500), at(1_500)), (1_000_000, 100_000));
    }

    #[test]
    fn it_reads_and_writes_toxiproxy_s_form() {
        let toxic = toxic(json!({ "type": "latency", "attributes": { "latency": 80 } }));
        let written = serde_json::to_value(&toxic).expect("JSON");
        let expected = json!({
            "name": "latency_downstream", "type": "latency", "stream": "downstream",
            "toxicity": 1.0, "attributes": { "latency": 80, "jitter": 0 },
        });
        assert_eq!(written, expected);
        let updated = toxic.updated(br#"{"attributes": {"jitter": 3}}"#).expect("a toxic");
        assert_eq!(updated.effect, Effect::Latency { latency: 80, jitter: 3 });
    }

    #[test]
    fn what_the_link_cannot_do_is_refused_by_name() {
        for (body, said) in [
            (r#"{"type": "slicer"}"#, "slicer"),
            (r#"{"type": "latency", "toxicity": 0.5}"#, "toxicity"),
            (r#"{"type": "latency", "attributes": {"delay": 1}}"#, "delay"),
            (r#"{"type": "latency", "attributes": {"latency": -1}}"#, "-1"),
            (r#"{"type": "latency", "attributes": {"latency": 9999999999}}"#, "9999999999"),
            (r#"{"type": "loss", "attributes": {"probability": 2}}"#, "probability"),
            (r#"{"type": "bandwidth"}"#, "rate"),
            (r#"{"type": "timeout", "attributes": {"timeout": 5}}"#, "enabled"),
            (r#"{"type": "outage", "stream": "sideways"}"#, "sideways"),
            ("[", "body"),
        ] {
            let error = Toxic::parse(body.as_bytes()).expect_err(body).to_string();
            assert!(error.contains(said), "{body}: {error}");
        }
    }
}
