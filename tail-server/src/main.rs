//! `tail-server`: serves the tails of every bundle in a folder.

use std::io::{self, IsTerminal, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use isthmus_tail_server::config::Options;
use isthmus_tail_server::{Server, ServerConfig, StartError};
use isthmus_telemetry::log::{self, LogFormat};
use isthmus_telemetry::stop;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Longest wait for a connection and for an answer to `--check-health`.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(2);

const EXIT_CODES: &str = "\
Options may also stand in the file of --config, under the same names with underscores; the command
line goes before the environment, and that before the file.

With --check-health the program serves nothing. It asks the server that has the same options for
/v2/health/ready, and ends with 0 if it is ready, or with 1.

Exit codes: 0 stopped by SIGINT or SIGTERM, 1 anything else, 2 usage or configuration,
3 a bundle is missing or bad, 4 an address cannot be listened on, 5 certificate or key.";

/// Serves the tails of every bundle in a folder, over QUIC and gRPC.
#[derive(Parser)]
#[command(name = "tail-server", version, about, after_help = EXIT_CODES)]
struct Arguments {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE", env = "ISTHMUS_SERVER_CONFIG")]
    config: Option<PathBuf>,
    /// What to log, to standard error: a level, or modules with a level each
    /// (info,isthmus_tail_server=debug)
    #[arg(long, value_name = "FILTER", default_value = "info", env = "ISTHMUS_LOG")]
    log: String,
    /// How to log
    #[arg(long, value_name = "FORMAT", default_value = "text", env = "ISTHMUS_LOG_FORMAT")]
    log_format: LogFormat,
    /// Exit with 0 if the server with these options is ready, with 1 if not
    #[arg(long)]
    check_health: bool,
    #[command(flatten)]
    options: Options,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tail-server: {}", log::causes(&*error));
            exit_code(&error)
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { config, log, log_format, check_health, options } = arguments;
    let options = match config {
        Some(path) => options.or(Options::from_file(&path).map_err(StartError::from)?),
        None => options,
    };
    if check_health {
        let off =
            || Usage("--check-health asks over HTTP, which --allow-http false switches off".into());
        return ask_health(options.http().ok_or_else(off)?);
    }
    log::start(&log, log_format, io::stderr().is_terminal())
        .map_err(|error| Usage(format!("--log: {error}")))?;
    let config = options.into_config().map_err(StartError::from)?;
    // The tail runs on threads of its own; two are enough to move bytes.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("the asynchronous runtime cannot be started")?;
    more_descriptors();
    let served = runtime.block_on(serve(config));
    // A bundle on a drive that does not answer may still be read by a thread that nothing can end.
    runtime.shutdown_background();
    served
}

/// Raises the limit of open files as far as it may be: each gRPC connection takes one.
fn more_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!("the limit of open files stays at {:?}: {error}", limit.current);
    }
}

/// Fails unless the server behind `address` says that it is ready.
fn ask_health(mut address: SocketAddr) -> anyhow::Result<()> {
    if address.port() == 0 {
        return Err(
            Usage("--check-health needs --http-port: a free one is not known".into()).into()
        );
    }
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    let ask = || {
        let mut stream = TcpStream::connect_timeout(&address, HEALTH_TIMEOUT)?;
        stream.set_read_timeout(Some(HEALTH_TIMEOUT))?;
        stream.write_all(b"GET /v2/health/ready HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
        let mut status = [0; b"HTTP/1.1 200".len()];
        stream.read_exact(&mut status)?;
        io::Result::Ok(status)
    };
    let status = ask().with_context(|| format!("no answer from http://{address}"))?;
    anyhow::ensure!(status.ends_with(b" 200"), "http://{address} is not ready");
    Ok(())
}

async fn serve(config: ServerConfig) -> anyhow::Result<()> {
    // Listened for first, so that a signal during a long start is not lost.
    let stop = stop::signalled().context("signals")?;
    let mut reload = stop::Reload::new().context("signals")?;
    let mut stop = pin!(stop);
    let server = tokio::select! {
        server = Server::start(config) => server?,
        () = &mut stop => {
            tracing::info!("stopped before it served");
            return Ok(());
        }
    };
    announce(&server).context("standard output")?;
    loop {
        tokio::select! {
            () = &mut stop => break,
            () = reload.asked() => server.reload(),
        }
    }
    tracing::info!("stopping; accepted frames are answered first");
    let counters = server.shutdown().await;
    tracing::info!(
        arrived = counters.arrived,
        answered = counters.answered,
        echoed = counters.echoed,
        refused = ?counters.refused,
        dropped = ?counters.dropped,
        "stopped"
    );
    Ok(())
}

fn announce(server: &Server) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for model in server.registry().models() {
        writeln!(out, "bundle {} {}", model.name(), model.digest())?;
    }
    if let Some(address) = server.quic_addr() {
        writeln!(out, "quic {address}")?;
    }
    if let Some(address) = server.grpc_addr() {
        writeln!(out, "grpc {address}")?;
    }
    if let Some(address) = server.http_addr() {
        writeln!(out, "http {address}")?;
    }
    if let Some(address) = server.metrics_addr() {
        writeln!(out, "metrics {address}")?;
    }
    writeln!(out, "certificate sha256 {}", server.fingerprint())?;
    writeln!(out, "ready")?;
    out.flush()
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

fn exit_code(error: &anyhow::Error) -> ExitCode {
    if error.is::<Usage>() {
        return ExitCode::from(2);
    }
    ExitCode::from(match error.downcast_ref::<StartError>() {
        Some(StartError::Config(_) | StartError::Engine(_) | StartError::Collector(_)) => 2,
        Some(StartError::Registry(_)) => 3,
        Some(StartError::Bind { .. }) => 4,
        Some(StartError::Tls(_)) => 5,
        Some(StartError::Threads(_)) | None => 1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Args, CommandFactory};

    /// Options of `command` that a variable of their name cannot set.
    fn without_twin(command: &clap::Command) -> Vec<String> {
        let own = command.get_arguments().filter_map(|option| {
            let long = option.get_long().filter(|long| !["help", "version"].contains(long))?;
            let twin = format!("ISTHMUS_{}", long.to_uppercase().replace('-', "_"));
            let env = option.get_env().and_then(|env| env.to_str());
            (env != Some(&twin)).then(|| long.to_owned())
        });
        own.chain(command.get_subcommands().flat_map(without_twin)).collect()
    }

    #[test]
    fn every_option_has_its_variable_and_its_line_in_the_shipped_file() {
        // A client on the same machine may have a file of its own in ISTHMUS_CONFIG. A check shares
        // its environment with the server, which must not become one.
        assert_eq!(without_twin(&Arguments::command()), ["config", "check-health"]);
        let shipped = include_str!("../../configs/server.toml");
        let command = Options::augment_args(clap::Command::new("options"));
        for option in command.get_arguments() {
            let key = option.get_id().as_str();
            let has = |line: &str| line.trim_start_matches("# ").starts_with(&format!("{key} = "));
            assert!(shipped.lines().any(has), "{key}");
        }
    }
}
