//! The `head-client` program: runs a network's head on a device and prints the answers.

mod output;
mod service;
mod view;

use std::cell::RefCell;
use std::io::{self, IsTerminal, Write};
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use isthmus_head_client::cli::{Cli, Command, ProfileArgs, RunArgs};
use isthmus_head_client::config::{Options, SourceConfigError};
use isthmus_head_client::{Client, ConnectError, FrameReport, RunError, Unconnected, source, text};
use isthmus_models::{Bundle, Full, Head, Profile};
use isthmus_telemetry::{log, stop};
use output::{Pictures, Printer, quiet_if_broken};
use service::ServiceManager;
use view::View;

/// How often the view is drawn where no frame ends.
const REDRAW: Duration = Duration::from_millis(250);

/// A failure and the exit code that names its kind.
struct Failure {
    code: u8,
    error: anyhow::Error,
}

fn main() -> ExitCode {
    let Cli { command, log, log_format } = Cli::parse();
    // A view shows lines as they are, without colours.
    let views = matches!(&command, Command::Run(args) if args.is_shown());
    let colours = io::stderr().is_terminal() && !views;
    let done = log::start(&log, log_format, colours).context("--log").or_fail(2);
    let done = done.and_then(|()| match command {
        Command::Run(args) => run(args),
        Command::Profile(args) => profile(&args),
        Command::Cameras => cameras(),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { code, error }) => {
            eprintln!("head-client: {}", log::causes(&*error));
            ExitCode::from(code)
        }
    }
}

fn run(args: RunArgs) -> Result<(), Failure> {
    let tui = args.is_shown();
    let RunArgs { config, options, .. } = args;
    if tui {
        View::check().context("--tui").or_fail(2)?;
    }
    let file = config.as_deref().map(Options::read).transpose().or_fail(2)?;
    let options = options.or(file.unwrap_or_default());
    let mut client_config = options.to_config().or_fail(2)?;
    let dir = options.bundle.as_deref().context("--bundle DIR is needed").or_fail(2)?;
    options.input.as_deref().context("--input CAMERA|FILE|DIR|- is needed").or_fail(2)?;

    let bundle = Arc::new(Bundle::open(dir).or_fail(3)?);
    let point = match &options.point {
        Some(text) => bundle.parse_point(text).context("--point").or_fail(2)?,
        None => bundle.default_point(),
    };
    client_config.filter_classes = options.to_filter_classes(bundle.labels()).or_fail(2)?;
    let controller = options.to_controller(&bundle, point).or_fail(2)?;
    let engine = options.to_engine().context("--engine").or_fail(8)?;
    let head = Arc::new(Head::load(Arc::clone(&bundle), &*engine).or_fail(3)?);
    let full = options.runs_locally().then(|| Full::load(Arc::clone(&bundle), &*engine));
    let full = full.transpose().or_fail(3)?.map(Arc::new);
    let source = options.to_source(bundle.labels()).map_err(no_source)?;
    let limit =
        options.limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));

    let title = format!("{} over {}", bundle.name(), client_config.server);
    let (deadline, pace) = (client_config.deadline, client_config.pace);
    let manager = ServiceManager::from_env();
    // One thread for link and session: nothing has to wake another to send or to receive.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().or_fail(1)?;
    let done = runtime.block_on(async {
        let connected = Client::connect(client_config, head, controller).await;
        let client =
            connected.map_err(|error| Failure { code: code_of(&error), error: error.into() })?;
        let client = match full {
            Some(full) => client.with_full(full),
            None => client,
        };
        manager.ready();
        let view = tui.then(|| View::open(title, deadline));
        let view = view.transpose().context("--tui").or_fail(1)?;
        let pictures = Pictures {
            bundle: Arc::clone(&bundle),
            annotate: options.annotate.clone(),
            maps: options.maps.clone(),
        };
        let format = options.format.unwrap_or_default();
        let printer = Printer::new(format, view, pictures, pace).context("a thread").or_fail(1)?;
        let printer = RefCell::new(printer);
        printer.borrow_mut().start();
        let asked = stop::signalled().context("signals").or_fail(1)?;
        let stop = redraw_until(asked, tui.then_some(&printer));
        let sink = |report: &FrameReport| {
            if report.arm.is_some() {
                manager.answered();
            }
            printer.borrow_mut().frame(report)
        };
        let ran = client.run(source.take(limit), stop, sink).await;
        manager.stopping();
        let mut printer = printer.into_inner();
        if let Ok(summary) = &ran {
            printer.summary(summary);
        }
        printer.finish().or_fail(9)?;
        let summary =
            ran.map_err(|error| Failure { code: code_of_run(&error), error: error.into() })?;
        summary.unconnected.map_or(Ok(()), |cause| Err(never_connected(cause)))
    });
    // The capture thread may be waiting for standard input: the process need not wait for it.
    runtime.shutdown_background();
    done
}

/// Redraws what is shown, until the program is asked to stop.
async fn redraw_until(asked: impl Future<Output = ()>, shown: Option<&RefCell<Printer>>) {
    let mut asked = pin!(asked);
    let mut redraw = tokio::time::interval(REDRAW);
    loop {
        tokio::select! {
            () = &mut asked => return,
            _ = redraw.tick(), if shown.is_some() => {
                if let Some(printer) = shown {
                    printer.borrow_mut().redraw();
                }
            }
        }
    }
}

fn no_source(error: SourceConfigError) -> Failure {
    match error {
        SourceConfigError::Config(error) => Failure { code: 2, error: error.into() },
        SourceConfigError::Input(error) => Failure { code: 7, error: error.into() },
    }
}

fn profile(args: &ProfileArgs) -> Result<(), Failure> {
    let bundle = Arc::new(Bundle::open(&args.bundle).or_fail(3)?);
    let engine = args.engine.open(&args.ort_providers).context("--engine").or_fail(8)?;
    let profile = Profile::measure(&bundle, &*engine, args.runs).or_fail(3)?;
    let text = toml::to_string(&profile).or_fail(1)?;
    match &args.out {
        Some(path) => {
            std::fs::write(path, text).with_context(|| path.display().to_string()).or_fail(9)
        }
        None => io::stdout()
            .write_all(text.as_bytes())
            .or_else(quiet_if_broken)
            .context("standard output")
            .or_fail(9),
    }
}

#[cfg(target_os = "linux")]
fn cameras() -> Result<(), Failure> {
    let found = source::find_cameras().context("/dev").or_fail(7)?;
    if found.is_empty() {
        let none = "no camera found: no device /dev/video* gives pictures";
        return Err(anyhow::anyhow!(none)).or_fail(7);
    }
    let text: String = found.iter().map(text::camera).collect();
    io::stdout().write_all(text.as_bytes()).or_else(quiet_if_broken).or_fail(1)
}

#[cfg(not(target_os = "linux"))]
fn cameras() -> Result<(), Failure> {
    Err(anyhow::anyhow!("cameras are supported on Linux only")).or_fail(7)
}

fn code_of(error: &ConnectError) -> u8 {
    match error {
        ConnectError::Trust(_) => 2,
        #[cfg(feature = "otel")]
        ConnectError::Collector(_) => 2,
        ConnectError::Listen { .. } => 10,
        _ => code_of_cause(error.cause()),
    }
}

fn code_of_run(error: &RunError) -> u8 {
    match error {
        RunError::Threads(_) => 1,
        RunError::Source(_) => 7,
        RunError::Hangs { .. } => 11,
    }
}

fn never_connected(cause: Unconnected) -> Failure {
    let error = anyhow::anyhow!("there was no connection in the whole run ({})", cause.name());
    Failure { code: code_of_cause(cause), error }
}

fn code_of_cause(cause: Unconnected) -> u8 {
    match cause {
        Unconnected::Identity => 5,
        Unconnected::NotServed => 6,
        Unconnected::NoAddress | Unconnected::Unreachable | Unconnected::Protocol => 4,
    }
}

trait OrFail<T> {
    fn or_fail(self, code: u8) -> Result<T, Failure>;
}

impl<T, E: Into<anyhow::Error>> OrFail<T> for Result<T, E> {
    fn or_fail(self, code: u8) -> Result<T, Failure> {
        self.map_err(|error| Failure { code, error: error.into() })
    }
}
