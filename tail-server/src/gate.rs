//! Drives the exchange: connections and workers share one behind a lock, and what it orders is
//! carried out here.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use isthmus_proto::Timestamp;
use isthmus_proto::wire::{Hello, Reply, Welcome, reply};
use isthmus_telemetry::spans::Spans;
use prost::Message;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::sleep;

use crate::admission::HelloError;
use crate::batcher::Batch;
use crate::counters::Counters;
use crate::exchange::{
    Action, Carrier, ConnectionId, Ended, Exchange, ExchangeConfig, FrameKey, Origin, Output, Work,
};
use crate::metrics::Metrics;
use crate::registry::Registry;
use crate::spans;

/// A batch that has run for so long hangs; the slowest networks take seconds.
const HANGS: Duration = Duration::from_secs(30);

/// Microseconds since the server started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Self {
        Clock(Instant::now())
    }

    pub(crate) fn now(&self) -> Timestamp {
        Timestamp::ZERO + self.0.elapsed()
    }

    /// Time from now to `instant`; zero if it passed.
    pub(crate) fn until(&self, instant: Timestamp) -> Duration {
        instant.saturating_since(self.now())
    }
}

/// Where a transport takes what is ordered for its frames.
pub(crate) type Orders = mpsc::UnboundedSender<(FrameKey, Order)>;

/// What a transport has to do for a frame. After the last two it drops the frame's [`Open`].
#[derive(Debug)]
pub(crate) enum Order {
    StopReading,
    Reply(Box<Reply>),
    LetGo,
}

/// What all connections and workers share.
pub(crate) struct Gate {
    state: Mutex<State>,
    /// Wakes an idle worker for a frame that waits.
    wake: Condvar,
    /// Wakes the timer for an earlier timeout.
    timer: Notify,
    pub(crate) registry: Arc<Registry>,
    pub(crate) config: ExchangeConfig,
    pub(crate) clock: Clock,
    pub(crate) metrics: Metrics,
    pub(crate) spans: Option<Spans>,
    draining: watch::Sender<bool>,
    /// Accepted frames whose reply has not left.
    accepted: watch::Sender<usize>,
}

struct State {
    exchange: Exchange<Orders>,
    /// Tells a connection that it has to leave.
    leave: BTreeMap<ConnectionId, Arc<Notify>>,
    /// When the timer will fire; it may fire early, never late.
    armed: Option<Timestamp>,
    /// Workers end when nothing waits.
    stopping: bool,
}

impl Gate {
    pub(crate) fn new(config: ExchangeConfig, registry: Registry, spans: Option<Spans>) -> Self {
        let registry = Arc::new(registry);
        let exchange = Exchange::new(config, Arc::clone(&registry));
        Gate {
            state: Mutex::new(State {
                exchange,
                leave: BTreeMap::new(),
                armed: None,
                stopping: false,
            }),
            wake: Condvar::new(),
            timer: Notify::new(),
            registry,
            config,
            clock: Clock::start(),
            metrics: Metrics::new(),
            spans,
            draining: watch::Sender::new(false),
            accepted: watch::Sender::new(0),
        }
    }

    /// A place for one more connection, if there is one.
    pub(crate) fn enter(self: &Arc<Self>, carrier: Carrier, origin: Origin) -> Option<Place> {
        let leave = Arc::new(Notify::new());
        let mut state = self.lock();
        let connection = state.exchange.connect(self.clock.now(), carrier, origin);
        if let Some(connection) = connection {
            state.leave.insert(connection, Arc::clone(&leave));
        }
        self.settle(&mut state);
        Some(Place { gate: Arc::clone(self), connection: connection?, leave })
    }

    /// Hands the exchange an input, and carries out what it orders.
    pub(crate) fn tell<T>(&self, input: impl FnOnce(&mut Exchange<Orders>, Timestamp) -> T) -> T {
        let mut state = self.lock();
        let result = input(&mut state.exchange, self.clock.now());
        self.settle(&mut state);
        result
    }

    /// Asks the exchange something.
    pub(crate) fn ask<T>(&self, question: impl FnOnce(&Exchange<Orders>) -> T) -> T {
        question(&self.lock().exchange)
    }

    /// Waits for the next batch to run; `None` once the workers are to end and nothing waits.
    pub(crate) fn next_batch(&self) -> Option<Batch<Work<Orders>>> {
        let mut state = self.lock();
        loop {
            let batch = state.exchange.poll_batch(self.clock.now());
            self.settle(&mut state);
            if batch.is_some() || state.stopping {
                return batch;
            }
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lets the workers end when nothing waits.
    pub(crate) fn stop_workers(&self) {
        self.lock().stopping = true;
        self.wake.notify_all();
    }

    /// Ends what is due, for as long as it runs.
    pub(crate) async fn keep_time(&self) {
        loop {
            let armed = self.lock().armed;
            let due = async {
                match armed {
                    Some(armed) => sleep(self.clock.until(armed)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.timer.notified() => {}
                () = due => {
                    let mut state = self.lock();
                    state.exchange.handle_timeout(self.clock.now());
                    state.armed = state.exchange.poll_timeout();
                    self.settle(&mut state);
                }
            }
        }
    }

    /// From now on new frames are refused.
    pub(crate) fn drain(&self) {
        self.tell(|exchange, _| exchange.handle_drain());
        self.draining.send_replace(true);
    }

    pub(crate) fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    /// Whether a worker has been at the same batch for so long that it will hardly finish.
    pub(crate) fn hangs(&self) -> bool {
        let began = self.ask(Exchange::longest_running);
        began.is_some_and(|began| self.clock.now().saturating_since(began) >= HANGS)
    }

    /// Returns when new frames are refused.
    pub(crate) async fn draining(&self) {
        // The sender is `self`'s own, so the channel is open.
        let _ = self.draining.subscribe().wait_for(|draining| *draining).await;
    }

    /// Returns when no accepted frame waits for its reply to leave.
    pub(crate) async fn drained(&self) {
        // The sender is `self`'s own, so the channel is open.
        let _ = self.accepted.subscribe().wait_for(|accepted| *accepted == 0).await;
    }

    pub(crate) fn counters(&self) -> Counters {
        self.ask(|exchange| exchange.counters().clone())
    }

    fn settle(&self, state: &mut State) {
        while let Some(Output { frame, to, action }) = state.exchange.poll_output() {
            let order = match action {
                Action::StopReading => Order::StopReading,
                Action::LetGo => Order::LetGo,
                Action::Reply(ended) => Order::Reply(Box::new(self.note(*ended))),
            };
            // Fails when the frame's transport is gone, and then nobody wants it.
            let _ = to.send((frame, order));
        }
        while let Some(evicted) = state.exchange.poll_evicted() {
            if let Some(leave) = state.leave.remove(&evicted) {
                leave.notify_one();
            }
        }
        if state.exchange.queued() > 0 {
            self.wake.notify_one();
        }
        let next = state.exchange.poll_timeout();
        if next.is_some_and(|next| state.armed.is_none_or(|armed| next < armed)) {
            state.armed = next;
            self.timer.notify_one();
        }
        let accepted = state.exchange.accepted();
        self.accepted.send_if_modified(|it| std::mem::replace(it, accepted) != accepted);
    }

    /// Notes how a frame ended, in metrics, log and spans.
    fn note(&self, Ended { reply, verdict, trace }: Ended) -> Reply {
        let feedback = reply.feedback.unwrap_or_default();
        match &reply.outcome {
            Some(reply::Outcome::Answer(_)) => self.metrics.on_answer(&feedback),
            Some(reply::Outcome::Refusal(refusal)) => {
                let (frame, reason) = (reply.frame, refusal.reason());
                tracing::debug!(frame, ?reason, "refused: {}", refusal.detail);
            }
            Some(reply::Outcome::Echo(_)) | None => {}
        }
        if let (Some(spans), Some(context)) = (&self.spans, trace) {
            spans.send(spans::of_frame(context, &feedback, verdict, SystemTime::now()));
        }
        self.metrics.on_sent(reply.encoded_len());
        reply
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that may panic runs while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's place. When it is dropped the connection brings no more frames.
pub(crate) struct Place {
    gate: Arc<Gate>,
    connection: ConnectionId,
    leave: Arc<Notify>,
}

impl Place {
    /// Answers the connection's hello.
    pub(crate) fn greet(&self, hello: &Hello) -> Result<Welcome, HelloError> {
        let traced = self.gate.spans.is_some();
        self.gate.tell(|exchange, _| exchange.handle_hello(self.connection, hello, traced))
    }

    /// A frame begins, which has this ordinal on the connection.
    pub(crate) fn open(&self, ordinal: u64, orders: Orders) -> Open {
        let begin = |exchange: &mut Exchange<Orders>, now| {
            exchange.begin(now, self.connection, ordinal, orders)
        };
        Open { gate: Arc::clone(&self.gate), key: self.gate.tell(begin) }
    }

    /// The device cancels the frame with this id.
    pub(crate) fn cancel(&self, id: u64) {
        self.gate.tell(|exchange, _| exchange.handle_cancel(self.connection, id));
    }

    /// The connection has to be closed.
    pub(crate) fn give_up(&self) {
        self.leave.notify_one();
    }

    /// Returns when the connection has to be closed.
    pub(crate) async fn evicted(&self) {
        self.leave.notified().await;
    }

    /// Nobody is there any more to take replies.
    pub(crate) fn lose(&self) {
        self.gate.tell(|exchange, _| exchange.handle_lost(self.connection));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.gate.lock();
        state.leave.remove(&self.connection);
        state.exchange.handle_closed(self.connection);
        self.gate.settle(&mut state);
    }
}

/// A frame that has begun. When it is dropped its reply has left, or never will.
pub(crate) struct Open {
    gate: Arc<Gate>,
    pub(crate) key: FrameKey,
}

impl Open {
    /// Takes the next bytes; whether more are wanted.
    pub(crate) fn handle_bytes(&self, bytes: &[u8]) -> bool {
        self.gate.metrics.on_received(bytes.len());
        self.gate.tell(|exchange, now| exchange.handle_bytes(now, self.key, bytes))
    }

    /// What came is what there is.
    pub(crate) fn handle_ended(&self) {
        self.gate.tell(|exchange, now| exchange.handle_ended(now, self.key));
    }

    /// Nobody wants the reply.
    pub(crate) fn handle_unwanted(&self) {
        self.gate.tell(|exchange, _| exchange.handle_unwanted(self.key));
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.gate.tell(|exchange, now| exchange.handle_left(now, self.key));
    }
}
