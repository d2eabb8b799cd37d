//! Commands about links, traces and scenarios.

use std::env;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use isthmus_head_client::config::ServerUrl;
use isthmus_head_client::live;
use isthmus_head_client::tls::{Fingerprint, Trust};
use isthmus_simulator::profile::BUILT_IN;
use isthmus_simulator::results::{self, Comparison, Results, ResultsError};
use isthmus_simulator::scenario::{self, Line};
use isthmus_simulator::survey::{self, Workload};
use isthmus_simulator::sweep::{self, Selection, Shard, Subject, Tally};
use isthmus_simulator::world::TransportKind;
use isthmus_simulator::{Columns, Direction, Format, PathSpec, Trace, WholeFile, report};
use serde_json::json;

use crate::show;

/// What `list` is told.
#[derive(Args)]
pub struct ListArgs {
    /// How to write the list.
    #[arg(long, value_enum, default_value_t = ListFormat::Text)]
    format: ListFormat,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ListFormat {
    Text,
    Json,
}

/// What `convert` is told.
#[derive(Args)]
pub struct ConvertArgs {
    /// Trace to read: mahimahi, Pensieve, CSV or JSON.
    input: PathBuf,
    /// Format to write.
    #[arg(long, value_enum)]
    to: Format,
    /// File to write [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Multiply every rate.
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    scale: f64,
    /// Column of a CSV file with the time.
    #[arg(long, value_name = "NAME")]
    time_column: Option<String>,
    /// Column of a CSV file with the rate, ending in bps, kbps, mbps or gbps.
    #[arg(long, value_name = "NAME")]
    rate_column: Option<String>,
    /// Which way to take of a JSON file.
    #[arg(long, value_enum, default_value_t)]
    direction: Direction,
}

/// What `record` is told.
#[derive(Args)]
pub struct RecordArgs {
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
    /// How long to measure each of the two workloads (seconds).
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0)]
    duration: f64,
    /// Over how long to take each rate (seconds).
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    window: f64,
    /// Trace to write (CSV).
    #[arg(short, long, value_name = "FILE", default_value = "trace.csv")]
    out: PathBuf,
}

/// What `run` is told.
#[derive(Args)]
pub struct RunArgs {
    /// Scenario to play (TOML), such as one of configs/scenarios.
    scenario: PathBuf,
    #[command(flatten)]
    selection: Selected,
    /// Write all that was measured to a file, for `simulator report`.
    #[arg(short, long, value_name = "RESULTS.json")]
    out: Option<PathBuf>,
    /// How to write the results to standard output.
    #[arg(long, value_enum, default_value_t = RunFormat::Text)]
    format: RunFormat,
    /// Before the results, show each controller's run with the first seed on the terminal; Ctrl-C
    /// leads on to them.
    #[arg(long)]
    tui: bool,
    /// How many times as fast as real time to show them.
    #[arg(long, value_name = "TIMES", default_value_t = 10.0, requires = "tui")]
    speed: f64,
}

impl RunArgs {
    /// Whether runs are shown on the terminal.
    pub fn is_shown(&self) -> bool {
        self.tui
    }
}

/// What `sweep` is told.
#[derive(Args)]
pub struct SweepArgs {
    /// Scenarios to play (TOML).
    #[arg(required = true)]
    scenarios: Vec<PathBuf>,
    #[command(flatten)]
    selection: Selected,
    /// Folder for the results, a file for each scenario, controller and seed; what is there already
    /// is not run again.
    #[arg(short, long, value_name = "DIR")]
    out: PathBuf,
    /// Threads that run them [default: as many as there are cores]
    #[arg(long, value_name = "N")]
    jobs: Option<NonZeroUsize>,
    /// Run one part of several, such as 2/8, so that several machines share the work.
    #[arg(long, value_name = "PART/PARTS", default_value = "1/1")]
    shard: Shard,
}

/// What to leave out of a scenario, or to put in its place.
#[derive(Args)]
struct Selected {
    /// Compare only these: mpc, greedy, fixed, or one by its whole name. The oracle is always there.
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    controllers: Vec<String>,
    /// Play seeds 1 to N instead of the scenario's.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    seeds: Option<u64>,
    /// Play this seed instead of the scenario's.
    #[arg(long, value_name = "SEED", conflicts_with = "seeds")]
    seed: Option<u64>,
    /// What carries frames [default: as the scenario says]
    #[arg(long, value_enum, env = "ISTHMUS_TRANSPORT")]
    transport: Option<TransportKind>,
}

/// What `report` is told.
#[derive(Args)]
pub struct ReportArgs {
    /// Results: files of `simulator run -o`, and folders of `simulator sweep`.
    #[arg(required = true, value_name = "FILE|DIR")]
    results: Vec<PathBuf>,
    /// Page to write (HTML).
    #[arg(short, long, value_name = "FILE", default_value = "report.html")]
    out: PathBuf,
    /// Write tables for a spreadsheet, too: runs.csv, ends.csv and timelines.csv.
    #[arg(long, value_name = "DIR")]
    csv: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RunFormat {
    Text,
    Json,
    Csv,
}

impl Selected {
    fn selection(&self) -> Selection {
        let seeds = match (self.seeds, self.seed) {
            (Some(count), _) => (1..=count).collect(),
            (None, seed) => seed.into_iter().collect(),
        };
        Selection { controllers: self.controllers.clone(), seeds, transport: self.transport }
    }

    /// The command that plays `scenario` so, wherever its results went.
    fn command(&self, name: &str, scenario: &Path) -> String {
        let mut command = format!("simulator {name} {}", word(&scenario.to_string_lossy()));
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
        command
    }
}

/// A word as a shell takes it.
fn word(text: &str) -> String {
    let plain = |letter: char| letter.is_alphanumeric() || "/._-,=+".contains(letter);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

fn progress_bar(length: usize) -> anyhow::Result<ProgressBar> {
    let bar = ProgressBar::new(length as u64);
    bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} {eta:>5}  {wide_msg}")?);
    Ok(bar)
}

/// Plays a scenario.
pub fn run(args: &RunArgs) -> anyhow::Result<()> {
    let command = args.selection.command("run", &args.scenario);
    let subject = Subject::read(&args.scenario, &args.selection.selection(), command)?;
    if args.tui {
        let speed = args.speed;
        let is_one = speed.is_finite() && speed > 0.0;
        ensure!(is_one, "--speed must be a number greater than 0, not {speed}");
        live::check_terminal().context("--tui")?;
    }
    let bar = progress_bar(subject.prepared().runs())?;
    let results = subject.run(|done| {
        bar.set_message(done.to_owned());
        bar.inc(1);
    });
    bar.finish_and_clear();
    let results = results?;
    if let Some(file) = &args.out {
        results.write(file)?;
    }
    // After the results, which a signal that ends it must not take away.
    if args.tui {
        show::show(subject.prepared(), args.speed)?;
    }
    let (comparisons, _) = Comparison::gather(vec![(PathBuf::new(), results)]);
    let lines: Vec<Line> = comparisons
        .iter()
        .flat_map(|comparison| comparison.standings())
        .map(|standing| standing.line)
        .collect();
    let mut out = io::stdout().lock();
    match args.format {
        RunFormat::Text => {
            let description = subject.prepared().description();
            writeln!(out, "{description}\n\n{}", scenario::table(&lines))?;
        }
        RunFormat::Csv => write!(out, "{}", scenario::csv(&lines))?,
        RunFormat::Json => {
            for line in &lines {
                writeln!(out, "{}", serde_json::to_string(line)?)?;
            }
        }
    }
    Ok(())
}

/// Plays scenarios, and leaves their results in a folder.
pub fn sweep(args: &SweepArgs) -> anyhow::Result<()> {
    let selection = args.selection.selection();
    let subject =
        |file: &PathBuf| Subject::read(file, &selection, args.selection.command("sweep", file));
    let subjects: Vec<Subject> =
        args.scenarios.iter().map(subject).collect::<anyhow::Result<_>>()?;
    let bar = progress_bar(sweep::size(&subjects, args.shard))?;
    let threads = match args.jobs {
        Some(jobs) => jobs.get(),
        None => thread::available_parallelism().map_or(1, usize::from),
    };
    let progress = |file: &Path, _| {
        bar.set_message(file.file_name().unwrap_or_default().to_string_lossy().into_owned());
        bar.inc(1);
    };
    let complain = |error: &ResultsError| {
        bar.suspend(|| eprintln!("simulator: {error}; it is run again"));
    };
    let done = sweep::run(&subjects, args.shard, threads, &args.out, progress, complain);
    bar.finish_and_clear();
    let Tally { run, kept } = done?;
    let folder = args.out.display();
    writeln!(io::stdout(), "{run} runs, {kept} were there; results in {folder}")?;
    Ok(())
}

/// Makes a page, and tables, of results.
pub fn report(args: &ReportArgs) -> anyhow::Result<()> {
    let mut read = Vec::new();
    for place in &args.results {
        for file in result_files(place)? {
            match Results::read(&file) {
                Ok(results) => read.push((file, results)),
                Err(error) => eprintln!("simulator: {error}; it is left out"),
            }
        }
    }
    ensure!(!read.is_empty(), "no results to report");
    let (comparisons, conflicts) = Comparison::gather(read);
    for conflict in conflicts {
        eprintln!("simulator: {conflict}");
    }
    let command = env::args().map(|argument| word(&argument)).collect::<Vec<_>>().join(" ");
    fs::write(&args.out, report::comparisons(&comparisons, &command))
        .with_context(|| args.out.display().to_string())?;
    if let Some(folder) = &args.csv {
        results::csv::write(&comparisons, folder)?;
    }
    let mut out = io::stdout().lock();
    for comparison in &comparisons {
        let lines: Vec<Line> = comparison.standings().into_iter().map(|it| it.line).collect();
        writeln!(out, "{}\n\n{}", comparison.scenario.description(), scenario::table(&lines))?;
    }
    writeln!(out, "report: {}", args.out.display())?;
    Ok(())
}

/// A file, or the files of a folder that could hold results, in order of their names.
fn result_files(place: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let named = || place.display().to_string();
    if !fs::metadata(place).with_context(named)?.is_dir() {
        return Ok(vec![place.to_owned()]);
    }
    let entries = fs::read_dir(place).with_context(named)?;
    let files = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>();
    let mut files = files.with_context(named)?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "json"));
    files.sort();
    ensure!(!files.is_empty(), "{}: the folder has no results (*.json)", named());
    Ok(files)
}

/// Lists the built-in links.
pub fn list(args: &ListArgs) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    for (name, _) in BUILT_IN {
        let (spec, folder) = PathSpec::find(name)?;
        let config = spec.to_config(&folder, 1)?;
        let (up, down) = (config.uplink.to_string(), config.downlink.to_string());
        match args.format {
            ListFormat::Text => {
                writeln!(out, "{name}\n    {}\n    up {up}; down {down}", spec.description)?;
                writeln!(out, "    {}", spec.source)?;
            }
            ListFormat::Json => {
                let PathSpec { description, source, .. } = &spec;
                let line = json!({
                    "link": name, "description": description, "source": source,
                    "uplink": up, "downlink": down,
                });
                writeln!(out, "{line}")?;
            }
        }
    }
    Ok(())
}

/// Measures a path; writes its trace, and to standard output a link's file.
pub fn record(args: &RecordArgs) -> anyhow::Result<()> {
    let span = |option: &str, seconds: f64| {
        let span = Duration::try_from_secs_f64(seconds).ok().filter(|it| !it.is_zero());
        span.with_context(|| {
            format!("{option} must be a positive number of seconds, not {seconds}")
        })
    };
    let (duration, window) = (span("--duration", args.duration)?, span("--window", args.window)?);
    ensure!(window <= duration, "--window must not be longer than --duration");
    let trust = match (args.server_fingerprint, &args.ca) {
        (Some(fingerprint), _) => Trust::Fingerprint(fingerprint),
        (None, Some(file)) => Trust::Authorities(file.clone()),
        (None, None) => bail!("--server-fingerprint or --ca is needed"),
    };
    // Before anything is measured: a file that cannot be written must not cost a recording.
    let named = || args.out.display().to_string();
    let mut out = WholeFile::create(&args.out).with_context(named)?;
    let bar = ProgressBar::new(2 * duration.as_secs());
    bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} s  {wide_msg}")?);
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
    let (light, heavy) = measured?;
    ensure!(
        heavy.rates.iter().any(|rate| rate.as_bps() > 0),
        "{}: connected, but no probe came back: there is no rate to record",
        args.server
    );
    let trace = heavy.to_trace().context("the recording")?;
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

/// Converts a trace.
pub fn convert(args: &ConvertArgs) -> anyhow::Result<()> {
    ensure!(
        args.scale.is_finite() && args.scale > 0.0,
        "--scale must be a number greater than 0, not {}",
        args.scale
    );
    let columns = Columns {
        time: args.time_column.clone(),
        rate: args.rate_column.clone(),
        direction: args.direction,
    };
    let trace = Trace::read(&args.input, &columns)?;
    let trace = if args.scale == 1.0 { trace } else { trace.scaled(args.scale) };
    let mut out: Box<dyn Write> = match &args.out {
        Some(path) => Box::new(File::create(path).with_context(|| path.display().to_string())?),
        None => Box::new(io::stdout().lock()),
    };
    let mut buffered = BufWriter::new(&mut out);
    trace.write(args.to, &mut buffered).and_then(|()| buffered.flush())?;
    eprintln!("{:.3} s, {} in the mean", trace.duration().as_secs_f64(), trace.mean_rate());
    Ok(())
}
