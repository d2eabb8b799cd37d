//! What the device has to hold: the program, and its memory while it runs.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail, ensure};
use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, ImageEncoder};
use isthmus_head_client::config::Transport;
use isthmus_models::Picture;

use super::Measurement;
use super::lab::Lab;

/// Frames that the program has answered when its memory is looked at.
const FRAMES: usize = 50;

pub(super) fn binary_bytes(_: &Lab) -> anyhow::Result<Measurement> {
    let Some(program) = program()? else { return Ok(not_built()) };
    let size = fs::metadata(&program).with_context(|| program.display().to_string())?.len();
    let detail = format!(
        "{}, all transports and the engine linked in, symbols stripped",
        program.file_name().map_or_else(Default::default, |name| name.to_string_lossy())
    );
    Ok(Measurement::of(size as f64, detail))
}

pub(super) fn resident_bytes(lab: &Lab) -> anyhow::Result<Measurement> {
    let Some(program) = program()? else { return Ok(not_built()) };
    if !PathBuf::from("/proc/self/status").exists() {
        return Ok(Measurement::skipped("memory is read from /proc, which this system lacks"));
    }
    let serving = lab.serve()?;
    let (server, fingerprint) = serving.address(Transport::Quic)?;
    let mut command = Command::new(program);
    // The user's own settings must not reach in.
    for (name, _) in env::vars().filter(|(name, _)| name.starts_with("ISTHMUS_")) {
        command.env_remove(name);
    }
    command.arg("run").arg("--bundle").arg(lab.bundle().dir());
    command.args(["--server", &server.to_string(), "--server-fingerprint", &fingerprint]);
    command.args(["--input", "-", "--every-frame", "--deadline-ms", "10000", "--format", "json"]);
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let memory = Running(child).watch(&lab.pictures()?)?;
    let detail = format!(
        "peak (VmHWM) of head-client after {FRAMES} frames with every width of the bundle loaded; \
         {} resident at that moment",
        memory.resident
    );
    Ok(Measurement::of(memory.peak as f64, detail))
}

/// The client's program beside this one.
fn program() -> anyhow::Result<Option<PathBuf>> {
    let name = format!("head-client{}", env::consts::EXE_SUFFIX);
    let program = env::current_exe()?.with_file_name(name);
    Ok(program.is_file().then_some(program))
}

fn not_built() -> Measurement {
    Measurement::skipped("there is no head-client beside this program: build it first")
}

/// Memory of a process (bytes).
struct Memory {
    peak: u64,
    resident: u64,
}

/// A process that ends when this is dropped.
struct Running(Child);

impl Running {
    /// Feeds pictures, one after the other's answer, and reads the memory after the last.
    fn watch(mut self, pictures: &[Picture]) -> anyhow::Result<Memory> {
        let mut input = self.0.stdin.take().context("its input is not piped")?;
        let output = self.0.stdout.take().context("its output is not piped")?;
        let mut lines = BufReader::new(output).lines();
        for picture in pictures.iter().cycle().take(FRAMES) {
            input.write_all(&jpeg(picture)?).context("head-client takes no more pictures")?;
            let line = lines.next().context("head-client has ended")??;
            let frame: serde_json::Value = serde_json::from_str(&line)?;
            ensure!(frame["arm"] == "split", "the server did not answer: {line}");
        }
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let memory = Memory {
            peak: status_field(&status, "VmHWM")?,
            resident: status_field(&status, "VmRSS")?,
        };
        drop(input);
        let ended = self.0.wait()?;
        ensure!(ended.success(), "head-client: {ended}");
        Ok(memory)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail when it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn jpeg(picture: &Picture) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let (width, height) = (picture.width(), picture.height());
    let encoder = JpegEncoder::new_with_quality(&mut bytes, 90);
    encoder.write_image(&picture.rgb(), width, height, ExtendedColorType::Rgb8)?;
    Ok(bytes)
}

/// A field of `/proc/PID/status` (bytes).
pub(super) fn status_field(status: &str, name: &str) -> anyhow::Result<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let mut words = line.with_context(|| format!("no {name}"))?.split_whitespace();
    match (words.next().and_then(|number| number.parse::<u64>().ok()), words.next()) {
        (Some(kibibytes), Some("kB")) => Ok(kibibytes * 1024),
        _ => bail!("{name} is not a size"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_from_a_status() {
        let status = "Name:\thead-client\nVmHWM:\t  123456 kB\nVmRSS:\t  1000 kB\n";
        assert_eq!(status_field(status, "VmHWM").expect("there"), 123_456 * 1024);
        assert_eq!(status_field(status, "VmRSS").expect("there"), 1000 * 1024);
        assert!(status_field(status, "VmSwap").is_err() && status_field(status, "Name").is_err());
    }
}
