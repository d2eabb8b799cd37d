//! A survey carried out over a real connection.

use std::time::{Duration, Instant};

use isthmus_head_client::config::ServerUrl;
use isthmus_head_client::tls::Trust;
use isthmus_head_client::{ConnectError, Heard, Prober};
use isthmus_proto::Timestamp;

use super::probes::{Measured, Probe, Survey, TIMEOUT, Workload};

/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Measures one workload over a connection of its own, for `duration`, in windows of `window`;
/// `progress` gets the time that has passed, again and again.
pub async fn measure(
    server: ServerUrl,
    trust: &Trust,
    workload: Workload,
    duration: Duration,
    window: Duration,
    mut progress: impl FnMut(Duration),
) -> Result<Measured, ConnectError> {
    let mut prober = Prober::connect(server, trust, CONNECT_TIMEOUT).await?;
    let zero = Instant::now();
    let now = || Timestamp::from_micros(zero.elapsed().as_micros() as u64);
    let mut survey = Survey::new(workload, now(), duration);
    let mut up = true;
    loop {
        for number in survey.expire(now()) {
            prober.cancel(number);
        }
        if survey.is_over(now()) {
            break;
        }
        // Without a connection a light probe is lost, and a heavy one would be at once, and the next.
        while (up || workload == Workload::Light)
            && let Some(Probe { number, padding }) = survey.poll_send(now())
        {
            prober.send(number, padding, 2 * TIMEOUT);
        }
        progress(zero.elapsed());
        let due = zero + Duration::from_micros(survey.poll_timeout().as_micros());
        let heard = tokio::time::timeout_at(due.into(), prober.next()).await;
        match heard {
            Err(_) => {}
            Ok(Heard::Echo { probe, receive_span }) => {
                survey.on_echo(now(), probe, receive_span);
            }
            Ok(Heard::Lost { probe, reason }) => {
                tracing::debug!(probe, reason, "no echo");
                survey.on_lost(probe);
            }
            Ok(Heard::Up) => up = true,
            Ok(Heard::Down) => {
                up = false;
                survey.on_down();
            }
        }
    }
    prober.close().await;
    Ok(survey.finish(window))
}
