//! Work shared out to all cores.

use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::anyhow;

/// What `work` makes of each item, in their order. Each core takes the next item when it is done with
/// one; the first error of a thread ends that thread and is what comes back.
pub(crate) fn on_all_cores<I, T: Send>(
    items: impl Iterator<Item = I> + Send,
    work: impl Fn(I) -> anyhow::Result<T> + Sync,
) -> anyhow::Result<Vec<T>> {
    on_threads(thread::available_parallelism().map_or(1, usize::from), items, work)
}

/// The same on so many threads.
pub(crate) fn on_threads<I, T: Send>(
    threads: usize,
    items: impl Iterator<Item = I> + Send,
    work: impl Fn(I) -> anyhow::Result<T> + Sync,
) -> anyhow::Result<Vec<T>> {
    let items = Mutex::new(items.enumerate());
    let run = || {
        let mut done = Vec::new();
        loop {
            let next = items.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((at, item)) = next else { return anyhow::Ok(done) };
            done.push((at, work(item)?));
        }
    };
    let mut done = thread::scope(|scope| {
        let started: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        started.into_iter().try_fold(Vec::new(), |mut all, thread| {
            all.extend(thread.join().map_err(|_| anyhow!("a thread panicked"))??);
            anyhow::Ok(all)
        })
    })?;
    done.sort_by_key(|&(at, _)| at);
    Ok(done.into_iter().map(|(_, result)| result).collect())
}
