//! The clock and the thread behind both directions.

use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use isthmus_proto::{DataSize, Timestamp};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::lane::{Lane, LaneCounters};
use super::toxic::Stream;
use crate::link::{Delivered, LinkConfig};
use crate::profile::PathConfig;

/// Runs both directions in real time. A thread of its own waits for the next arrival, because the
/// runtime's timers count in whole milliseconds, and the system's do not.
pub(super) struct Driver {
    zero: Instant,
    state: Mutex<State>,
    /// Something may be due earlier than the thread thinks.
    changed: Condvar,
}

struct State {
    uplink: Lane<Parcel>,
    downlink: Lane<Parcel>,
    stopped: bool,
}

/// What a packet carries, and where it comes out.
#[derive(Clone)]
pub(super) enum Parcel {
    /// To `to`, or to the socket's peer.
    Datagram { bytes: Bytes, socket: Arc<UdpSocket>, to: Option<SocketAddr> },
    /// To the task that writes a stream.
    Piece { piece: Piece, writer: mpsc::UnboundedSender<Piece> },
}

/// A piece of a stream.
#[derive(Clone)]
pub(super) enum Piece {
    /// It opens.
    Start,
    /// Its bytes; who reads waits while too many are on their way.
    Bytes { bytes: Bytes, _room: Arc<OwnedSemaphorePermit> },
    /// It ends.
    End,
}

impl Driver {
    /// Starts the thread, which runs until [`Driver::stop`].
    pub(super) fn start(path: PathConfig, seed: u64) -> std::io::Result<Arc<Driver>> {
        let PathConfig { uplink, downlink, .. } = path;
        let (there, back) = (uplink.delay.base, downlink.delay.base);
        let state = State {
            uplink: Lane::new(uplink, back, seed),
            downlink: Lane::new(downlink, there, !seed),
            stopped: false,
        };
        let driver = Arc::new(Driver {
            zero: Instant::now(),
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        let thread = Arc::clone(&driver);
        thread::Builder::new().name("link".to_owned()).spawn(move || thread.run())?;
        Ok(driver)
    }

    pub(super) fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_one();
    }

    /// Time since the start: the links' time.
    pub(super) fn now(&self) -> Timestamp {
        Timestamp::ZERO + self.zero.elapsed()
    }

    pub(super) fn datagram(&self, direction: Stream, size: DataSize, parcel: Parcel) {
        self.change(direction, |lane, now| lane.handle_datagram(now, size, parcel));
    }

    pub(super) fn segment(&self, direction: Stream, stream: u64, size: DataSize, parcel: Parcel) {
        self.change(direction, |lane, now| lane.handle_segment(now, stream, size, parcel));
    }

    pub(super) fn forget(&self, stream: u64) {
        let mut state = self.lock();
        state.uplink.forget(stream);
        state.downlink.forget(stream);
    }

    pub(super) fn reconfigure(&self, uplink: LinkConfig, downlink: LinkConfig) {
        let (there, back) = (uplink.delay.base, downlink.delay.base);
        self.change(Stream::Upstream, |lane, now| lane.reconfigure(now, uplink, back));
        self.change(Stream::Downstream, |lane, now| lane.reconfigure(now, downlink, there));
    }

    /// Counters of uplink and downlink.
    pub(super) fn counters(&self) -> (LaneCounters, LaneCounters) {
        let state = self.lock();
        (state.uplink.counters(), state.downlink.counters())
    }

    /// Does something to a lane, and wakes the thread if that changes what is due next.
    fn change(&self, direction: Stream, change: impl FnOnce(&mut Lane<Parcel>, Timestamp)) {
        let mut state = self.lock();
        let lane = match direction {
            Stream::Upstream => &mut state.uplink,
            Stream::Downstream => &mut state.downlink,
        };
        let before = lane.poll_timeout();
        // Read under the lock, so that a lane's instants never decrease.
        change(lane, self.now());
        if lane.poll_timeout() != before {
            self.changed.notify_one();
        }
    }

    fn run(&self) {
        let mut state = self.lock();
        let mut arrived = Vec::new();
        while !state.stopped {
            let now = self.now();
            let State { uplink, downlink, .. } = &mut *state;
            for lane in [uplink, downlink] {
                arrived.extend(std::iter::from_fn(|| lane.poll_delivered(now)));
            }
            if !arrived.is_empty() {
                drop(state);
                arrived.drain(..).for_each(hand_over);
                state = self.lock();
                continue;
            }
            let next = [state.uplink.poll_timeout(), state.downlink.poll_timeout()];
            state = match next.into_iter().flatten().min() {
                Some(next) => {
                    let span = next.saturating_since(self.now()).min(LONGEST_WAIT);
                    let woken = self.changed.wait_timeout(state, span);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Some systems refuse to wait much longer.
const LONGEST_WAIT: Duration = Duration::from_secs(3_600);

/// Lets a packet out. A datagram that the system refuses is lost, as on any network; one bit flips
/// in one that was damaged.
fn hand_over(Delivered { content, corrupted }: Delivered<Parcel>) {
    match content {
        Parcel::Datagram { bytes, socket, to } => {
            let mut bytes = bytes.to_vec();
            let middle = bytes.len() / 2;
            if let Some(byte) = bytes.get_mut(middle).filter(|_| corrupted) {
                *byte ^= 1;
            }
            let _ = match to {
                Some(to) => socket.send_to(&bytes, to),
                None => socket.send(&bytes),
            };
        }
        Parcel::Piece { piece, writer } => {
            // Nobody writes a stream that was given up.
            let _ = writer.send(piece);
        }
    }
}
