//! `simulator measure-path`: a real path, measured so that it can be simulated.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use isthmus_head_client::config::ServerUrl;
use isthmus_head_client::tls::{Fingerprint, Trust};
use isthmus_simulator::survey::{self, Measured, Workload};
use isthmus_simulator::{Format, WholeFile};

use super::{bar, duration};

/// The options of `measure-path`.
#[derive(clap::Args)]
pub struct Args {
    /// A tail-server: quic://HOST:4433 or grpc://HOST:8001; these ports are the defaults.
    #[arg(long, value_name = "URL", env = "ISTHMUS_SERVER")]
    server: ServerUrl,
    /// SHA-256 of the server's certificate, as the server prints it when it starts.
    #[arg(
        long,
        value_name = "HEX",
        env = "ISTHMUS_SERVER_FINGERPRINT",
        conflicts_with = "ca",
        required_unless_present = "ca"
    )]
    server_fingerprint: Option<Fingerprint>,
    /// PEM file of the certificate authorities that may vouch for the server.
    #[arg(long, value_name = "FILE", env = "ISTHMUS_CA")]
    ca: Option<PathBuf>,
    /// Duration of each of the two workloads, light and heavy.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration::seconds)]
    duration: Duration,
    /// Window over which each rate is averaged.
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = duration::seconds)]
    window: Duration,
    /// Trace to write (CSV).
    #[arg(short, long, value_name = "FILE", default_value = "trace.csv")]
    out: PathBuf,
}

/// Measures the path; writes its trace, and prints a link's file that names the trace.
pub fn run(args: &Args) -> anyhow::Result<()> {
    ensure!(args.window <= args.duration, "--window must not be longer than --duration");
    // Before anything is measured: a file that cannot be written must not cost a measurement.
    let named = || args.out.display().to_string();
    let mut out = WholeFile::create(&args.out).with_context(named)?;
    let (light, heavy) = measure(args)?;
    ensure!(
        heavy.rates.iter().any(|rate| rate.as_bps() > 0),
        "{}: connected, but no probe came back: there is no rate to record",
        args.server
    );
    let trace = heavy.to_trace().context("the measurement")?;
    trace.write(Format::Csv, &mut out).and_then(|()| out.finish()).with_context(named)?;
    write!(io::stdout(), "{}", survey::link_file(&args.server, &args.out, &light, &heavy))?;
    eprintln!(
        "{}: {:.3} s, {} in the mean",
        named(),
        trace.duration().as_secs_f64(),
        trace.mean_rate()
    );
    Ok(())
}

/// What the light and the heavy workload came to.
fn measure(args: &Args) -> anyhow::Result<(Measured, Measured)> {
    let Args { duration, window, .. } = *args;
    let trust = match (args.server_fingerprint, &args.ca) {
        (Some(fingerprint), _) => Trust::Fingerprints(vec![fingerprint]),
        (None, Some(file)) => Trust::Authorities(file.clone()),
        (None, None) => bail!("--server-fingerprint or --ca is needed"),
    };
    let bar = bar::styled(2 * duration.as_secs(), "{bar:30} {pos}/{len} s  {wide_msg}")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let measured = runtime.block_on(async {
        let measure = async |workload, name, before: Duration| {
            bar.set_message(name);
            let progress = |passed: Duration| bar.set_position((before + passed).as_secs());
            let server = args.server.clone();
            survey::measure(server, &trust, workload, duration, window, progress).await
        };
        let light = measure(Workload::Light, "light", Duration::ZERO).await?;
        let heavy = measure(Workload::Heavy, "heavy", duration).await?;
        anyhow::Ok((light, heavy))
    });
    bar.finish_and_clear();
    measured
}
