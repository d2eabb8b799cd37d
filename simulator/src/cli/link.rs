//! `simulator link`: an emulated link between real programs.

use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt as _;
use std::pin::Pin;
use std::process::{ExitCode, ExitStatus};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use isthmus_simulator::PathSpec;
use isthmus_simulator::relay::{Forward, Relay, RelayConfig, api};
use isthmus_telemetry::stop;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::signal::unix;

/// How long COMMAND has to end after it was asked to.
const GRACE: Duration = Duration::from_secs(5);

/// The options of `link`.
#[derive(clap::Args)]
pub struct Args {
    /// Link: the name of a built-in one (`simulator list`), or a TOML file like those in configs/links.
    #[arg(long, value_name = "NAME|FILE")]
    link: String,
    /// Relay datagrams: listen on IP:PORT, or on PORT of the loopback interface (0 picks a free one),
    /// and send to HOST:PORT; repeatable.
    #[arg(long, value_name = "LISTEN=UPSTREAM", required_unless_present = "tcp")]
    udp: Vec<Forward>,
    /// Relay streams: listen likewise, and connect to HOST:PORT; repeatable.
    #[arg(long, value_name = "LISTEN=UPSTREAM")]
    tcp: Vec<Forward>,
    /// Seed of everything random in the link.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Address of an API like Toxiproxy's, such as 127.0.0.1:8474.
    #[arg(long, value_name = "IP:PORT")]
    api: Option<SocketAddr>,
    /// Program to run over the link, with its arguments; the link ends with it. It finds the
    /// addresses in SIMULATOR_UDP_1, SIMULATOR_TCP_1, …, and SIMULATOR_API.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Relays until a signal, or until COMMAND ends; its exit code is the answer.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(relay(args))
}

async fn relay(args: &Args) -> anyhow::Result<ExitCode> {
    // Listened for first, so that none is lost.
    let mut signals = Signals::listen()?;
    let (spec, folder) = PathSpec::find(&args.link).context("--link")?;
    let path = spec.to_config(&folder, args.seed).with_context(|| args.link.clone())?;
    let (up, down) = (path.uplink.to_string(), path.downlink.to_string());
    let (udp, tcp) = (args.udp.clone(), args.tcp.clone());
    let relay = Relay::start(RelayConfig { path, seed: args.seed, udp, tcp }).await?;
    let relay = Arc::new(relay);
    let api = match args.api {
        Some(address) => Some(serve(address, &relay).await?),
        None => None,
    };

    // Standard output belongs to COMMAND.
    eprintln!("link {}: up {up}; down {down}", args.link);
    for (forward, (name, listen)) in args.udp.iter().chain(&args.tcp).zip(relay.addresses()) {
        eprintln!("{name} {listen} to {}", forward.upstream);
    }
    if let Some(address) = api {
        eprintln!("api http://{address}");
    }
    eprintln!("ready");

    let mut command = start(args, &relay, api)?;
    let code = loop {
        tokio::select! {
            status = ended(&mut command) => break exit_code(status?),
            signal = signals.next() => match signal {
                Signal::Counters => eprint!("{}", relay.counters()),
                Signal::Stop => break match command {
                    Some(child) => exit_code(stop(child).await?),
                    None => ExitCode::SUCCESS,
                },
            }
        }
    };
    eprint!("{}", relay.counters());
    Ok(code)
}

/// Serves the API in the background; where it is found.
async fn serve(address: SocketAddr, relay: &Arc<Relay>) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind(address).await;
    let listener = listener.with_context(|| format!("--api: cannot listen on {address}"))?;
    let address = listener.local_addr()?;
    let relay = Arc::clone(relay);
    tokio::spawn(async move {
        if let Err(error) = api::serve(listener, relay).await {
            tracing::error!(%error, "the API ended");
        }
    });
    Ok(address)
}

fn start(args: &Args, relay: &Relay, api: Option<SocketAddr>) -> anyhow::Result<Option<Child>> {
    let Some((program, arguments)) = args.command.split_first() else { return Ok(None) };
    ensure!(!program.is_empty(), "COMMAND is empty: the name of a program is expected");
    let api = api.map(|address| ("SIMULATOR_API".to_owned(), address.to_string()));
    let proxies = relay.addresses().map(|(name, address)| {
        (format!("SIMULATOR_{}", name.to_uppercase().replace('-', "_")), address.to_string())
    });
    let child = Command::new(program)
        .args(arguments)
        .envs(proxies.chain(api))
        .kill_on_drop(true)
        .spawn()
        .with_context(|| {
            let program = program.to_string_lossy();
            format!("COMMAND {program:?} does not start; a program on PATH or its path is expected")
        })?;
    Ok(Some(child))
}

/// How COMMAND ended; never, where there is none.
async fn ended(child: &mut Option<Child>) -> io::Result<ExitStatus> {
    match child {
        Some(child) => child.wait().await,
        None => std::future::pending().await,
    }
}

/// Asks COMMAND to end, and ends it if it does not.
async fn stop(mut child: Child) -> io::Result<ExitStatus> {
    if let Some(id) = child.id().and_then(|id| rustix::process::Pid::from_raw(id as i32)) {
        // It may have ended by itself.
        let _ = rustix::process::kill_process(id, rustix::process::Signal::TERM);
        if let Ok(status) = tokio::time::timeout(GRACE, child.wait()).await {
            return status;
        }
    }
    child.start_kill()?;
    child.wait().await
}

/// The exit code as a shell gives it: 128 and the number of a signal.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or(status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}

enum Signal {
    /// Print the counters.
    Counters,
    Stop,
}

struct Signals {
    stop: Pin<Box<dyn Future<Output = ()>>>,
    user: unix::Signal,
}

impl Signals {
    fn listen() -> io::Result<Signals> {
        Ok(Signals {
            stop: Box::pin(stop::signalled()?),
            user: unix::signal(unix::SignalKind::user_defined1())?,
        })
    }

    async fn next(&mut self) -> Signal {
        tokio::select! {
            () = &mut self.stop => Signal::Stop,
            _ = self.user.recv() => Signal::Counters,
        }
    }
}
