//! Scenario overrides, shared by `run` and `sweep`.

use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use isthmus_simulator::sweep::Selection;
use isthmus_simulator::world::TransportKind;

use super::duration;
use super::shell::word;

/// Scenario overrides.
#[derive(clap::Args)]
pub struct Overrides {
    /// Simulate only these controllers, by name or by first word, such as mpc or fixed. The oracle is
    /// always included.
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    controllers: Vec<String>,
    /// Use seeds 1 to N instead of the scenario's.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    seeds: Option<u64>,
    /// Use this seed instead of the scenario's.
    #[arg(long, value_name = "SEED", conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Transport that carries frames [default: the scenario's]
    #[arg(long, value_enum, env = "ISTHMUS_TRANSPORT")]
    transport: Option<TransportKind>,
    /// Capture frames for so long, instead of the scenario's duration.
    #[arg(long, value_name = "DURATION", value_parser = duration::seconds)]
    duration: Option<Duration>,
    /// Bundle by name or folder, instead of the scenario's.
    #[arg(long, value_name = "NAME|DIR")]
    bundle: Option<PathBuf>,
}

impl Overrides {
    /// What they change.
    pub fn selection(&self) -> Selection {
        let seeds = match (self.seeds, self.seed) {
            (Some(count), _) => (1..=count).collect(),
            (None, seed) => seed.into_iter().collect(),
        };
        Selection {
            controllers: self.controllers.clone(),
            seeds,
            transport: self.transport,
            duration: self.duration,
            bundle: self.bundle.clone(),
        }
    }

    /// The command that simulates `scenario` with them, wherever its results go.
    pub fn command(&self, name: &str, scenario: &str) -> String {
        let mut command = format!("simulator {name} {}", word(scenario));
        if !self.controllers.is_empty() {
            command += &format!(" --controllers {}", word(&self.controllers.join(",")));
        }
        match (self.seeds, self.seed) {
            (Some(seeds), _) => command += &format!(" --seeds {seeds}"),
            (None, Some(seed)) => command += &format!(" --seed {seed}"),
            (None, None) => {}
        }
        if let Some(transport) = self.transport.and_then(|it| it.to_possible_value()) {
            command += &format!(" --transport {}", transport.get_name());
        }
        if let Some(duration) = self.duration {
            command += &format!(" --duration {}s", duration.as_secs_f64());
        }
        if let Some(bundle) = &self.bundle {
            command += &format!(" --bundle {}", word(&bundle.to_string_lossy()));
        }
        command
    }
}
