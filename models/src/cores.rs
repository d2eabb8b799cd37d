//! A map over items that all cores compute.

use std::panic::resume_unwind;
use std::sync::{Mutex, PoisonError};
use std::thread;

/// What `work` makes of each item, in their order. Each core takes the next item when it is done with
/// one; the first error of a thread ends that thread and is what comes back.
///
/// ```
/// let halves = isthmus_models::on_all_cores([4, 6].into_iter(), |number: u8| match number % 2 {
///     0 => Ok(number / 2),
///     _ => Err("odd"),
/// });
/// assert_eq!(halves, Ok(vec![2, 3]));
/// ```
pub fn on_all_cores<I, T: Send, E: Send>(
    items: impl Iterator<Item = I> + Send,
    work: impl Fn(I) -> Result<T, E> + Sync,
) -> Result<Vec<T>, E> {
    on_threads(thread::available_parallelism().map_or(1, usize::from), items, work)
}

/// [`on_all_cores`], on so many threads.
pub fn on_threads<I, T: Send, E: Send>(
    threads: usize,
    items: impl Iterator<Item = I> + Send,
    work: impl Fn(I) -> Result<T, E> + Sync,
) -> Result<Vec<T>, E> {
    let items = Mutex::new(items.enumerate());
    let run = || {
        let mut done = Vec::new();
        loop {
            let next = items.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((at, item)) = next else { return Ok(done) };
            done.push((at, work(item)?));
        }
    };
    let mut done = thread::scope(|scope| {
        let started: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        started.into_iter().try_fold(Vec::new(), |mut all, thread| {
            all.extend(thread.join().unwrap_or_else(|panic| resume_unwind(panic))?);
            Ok(all)
        })
    })?;
    done.sort_by_key(|&(at, _)| at);
    Ok(done.into_iter().map(|(_, result)| result).collect())
}
