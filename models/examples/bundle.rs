//! Opens a bundle, runs its head and tail and prints how long each takes.
//!
//! `cargo run --release -p isthmus-models --example bundle -- models/bundles/photos [head]`

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use isthmus_models::{Bundle, Head, Profile, Tail, TailItem, Timing, Tract};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let dir = arguments.next().ok_or("which bundle?")?;
    let (bundle, opened) = timed(|| Bundle::open(Path::new(&dir)).map(Arc::new))?;
    println!("{} {} opened in {opened:.1?}", bundle.name(), bundle.digest());
    let (_head, loaded) = timed(|| Head::load(Arc::clone(&bundle), &Tract))?;
    println!("heads loaded in {loaded:.1?}{}", resident());
    print!("{}", toml::to_string(&Profile::measure(&bundle, &Tract, 50)?)?);
    println!("profiled{}", resident());
    if arguments.next().is_some_and(|what| what == "head") {
        return Ok(());
    }
    let (tail, loaded) = timed(|| Tail::load(Arc::clone(&bundle), &Tract))?;
    println!("tail loaded in {loaded:.1?}{}", resident());
    for (s, split) in bundle.manifest().splits.iter().enumerate() {
        let latents = vec![0.5; split.latent_shape().iter().product()];
        for count in [1, 2, 4, 8] {
            let item = TailItem { split: s as u8, width: 0, latents: &latents };
            let runs = (0..15).map(|_| Ok(timed(|| tail.run(&vec![item; count]))?.1));
            let runs = runs.collect::<Result<Vec<_>, isthmus_models::RunError>>()?;
            println!("{} batch of {count}: {:.2?}", split.name, Timing::of(runs));
        }
    }
    Ok(())
}

fn timed<T, E>(work: impl FnOnce() -> Result<T, E>) -> Result<(T, Duration), E> {
    let start = Instant::now();
    Ok((work()?, start.elapsed()))
}

/// Memory in use and at most in use, where the system tells.
fn resident() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let lines =
        status.lines().filter(|line| line.starts_with("VmRSS") || line.starts_with("VmHWM"));
    lines
        .map(|line| format!(", {}", line.split_whitespace().collect::<Vec<_>>().join(" ")))
        .collect()
}
