//! Runs of a scenario shown on the terminal, as they would pass in real time.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use isthmus_head_client::Verdict;
use isthmus_head_client::live::{Live, Screen, Seen};
use isthmus_simulator::results::point_name;
use isthmus_simulator::scenario::Prepared;
use isthmus_simulator::world::FrameEnd;
use isthmus_telemetry::stop;
use tokio::runtime::Runtime;

/// A sleep is at most this long, so that a signal is heard soon.
const LONGEST_SLEEP: Duration = Duration::from_millis(100);

/// Shows each controller's run with the first seed, `speed` times as fast as real time, until a
/// signal or the last of them ends it.
pub fn show(prepared: &Prepared, speed: f64) -> anyhow::Result<()> {
    let signal = Signal::listen()?;
    let deadline = Duration::from_secs_f64(prepared.scenario().deadline_ms / 1e3);
    let seed = prepared.scenario().seeds[0];
    let mut screen = Screen::open().context("--tui")?;
    for controller in prepared.controllers() {
        let title = format!("{}, seed {seed}: {}", controller.name(), prepared.description());
        let mut live = Live::new(title, deadline);
        let mut shown = Ok(());
        let began = Instant::now();
        let mut observer = |end: &FrameEnd<'_>| {
            let seen = seen(prepared, end);
            let due = began + seen.at.div_f64(speed);
            // After a signal the rest of the run passes at once.
            while shown.is_ok() && !signal.came() {
                let left = due.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    live.record(seen);
                    shown = screen.show(&live);
                    return;
                }
                thread::sleep(left.min(LONGEST_SLEEP));
            }
        };
        prepared.simulate(controller, seed, Some(&mut observer))?;
        shown.context("--tui")?;
        if signal.came() {
            break;
        }
    }
    Ok(())
}

fn seen(prepared: &Prepared, end: &FrameEnd<'_>) -> Seen {
    let outcome = end.outcome;
    let took = outcome.finished.saturating_since(outcome.captured);
    let answered = matches!(outcome.verdict, Verdict::Answered { .. });
    Seen {
        at: Duration::from_micros(outcome.finished.as_micros()),
        point: point_name(prepared, outcome),
        reason: end.reason.to_owned(),
        latency: answered.then_some(took),
        bytes: outcome.sent.map(|_| u64::from(end.bytes)),
        missed: end.missed,
        on_time: outcome.on_time,
        quality: Some(end.quality),
        estimate: end.estimate,
        capacity: Some(end.capacity),
    }
}

/// Whether a signal asked for an end, which must not come before the terminal is given back.
struct Signal {
    came: Arc<AtomicBool>,
    _listener: Runtime,
}

impl Signal {
    fn listen() -> io::Result<Signal> {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let listener = runtime.worker_threads(1).enable_all().build()?;
        let came = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&came);
        let within = listener.enter();
        let asked = stop::signalled()?;
        drop(within);
        listener.spawn(async move {
            asked.await;
            seen.store(true, Ordering::Relaxed);
        });
        Ok(Signal { came, _listener: listener })
    }

    fn came(&self) -> bool {
        self.came.load(Ordering::Relaxed)
    }
}
