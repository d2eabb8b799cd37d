//! The way of one frame through the server, the same for every transport.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use isthmus_models::top_k;
use isthmus_proto::wire::reply;
use isthmus_proto::wire::{Answer, Detail, Echo, Feedback, Hello, Reply, Score, Welcome};
use isthmus_proto::{Content, TraceContext, TraceIds};
use isthmus_telemetry::spans::Spans;
use prost::Message;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::admission::{self, Binding, HelloError, Load, Refused};
use crate::batcher::Lane;
use crate::config::Transport;
use crate::counters::{Cause, Counters, Verdict};
use crate::metrics::Metrics;
use crate::receiver::{Receiver, ReceiverConfig};
use crate::registry::Registry;
use crate::spans;
use crate::worker::{Clock, Computed, Dispatcher, NoAnswer, Outcome, Ticket, micros};

/// Classes that an answer names.
const TOP: usize = 5;

/// What all connections share.
pub(crate) struct Gate {
    pub(crate) registry: Registry,
    pub(crate) dispatcher: Arc<Dispatcher>,
    pub(crate) clock: Clock,
    pub(crate) limits: Limits,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) spans: Option<Spans>,
    counters: Mutex<Counters>,
    draining: watch::Sender<bool>,
    connections: Mutex<BTreeMap<Transport, usize>>,
    /// Accepted frames whose reply has not left.
    accepted: watch::Sender<usize>,
}

/// Limits of a [`Gate`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) receiver: ReceiverConfig,
    pub(crate) max_in_flight: usize,
    pub(crate) max_connections: usize,
}

impl Gate {
    pub(crate) fn new(
        registry: Registry,
        dispatcher: Arc<Dispatcher>,
        clock: Clock,
        limits: Limits,
        metrics: Arc<Metrics>,
        spans: Option<Spans>,
    ) -> Self {
        Gate {
            registry,
            dispatcher,
            clock,
            limits,
            metrics,
            spans,
            counters: Mutex::default(),
            draining: watch::Sender::new(false),
            connections: Mutex::default(),
            accepted: watch::Sender::new(0),
        }
    }

    /// A place for one more connection, if there is one.
    pub(crate) fn enter(self: &Arc<Self>, transport: Transport) -> Option<Place> {
        let mut connections = lock(&self.connections);
        let open: usize = connections.values().sum();
        (open < self.limits.max_connections).then(|| {
            *connections.entry(transport).or_default() += 1;
            Place { gate: Arc::clone(self), transport }
        })
    }

    /// Connections that are open over a transport.
    pub(crate) fn connections(&self, transport: Transport) -> usize {
        lock(&self.connections).get(&transport).copied().unwrap_or(0)
    }

    /// Whether more than half of the places are taken.
    pub(crate) fn is_crowded(&self) -> bool {
        lock(&self.connections).values().sum::<usize>() > self.limits.max_connections / 2
    }

    /// Opens a connection.
    pub(crate) fn greet(&self, hello: &Hello) -> Result<(Arc<Peer>, Welcome), HelloError> {
        let binding = Binding::new(hello, &self.registry)?;
        let Limits { receiver, max_in_flight, .. } = self.limits;
        let welcome = binding.welcome(receiver.max_frame_bytes, max_in_flight);
        let traces = hello.tracing.map(TraceIds::from).filter(|_| self.spans.is_some());
        Ok((Arc::new(Peer { binding, traces, in_flight: AtomicUsize::new(0) }), welcome))
    }

    /// From now on new frames are refused.
    pub(crate) fn drain(&self) {
        self.draining.send_replace(true);
    }

    pub(crate) fn is_draining(&self) -> bool {
        *self.draining.borrow()
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

    pub(crate) fn counters(&self) -> MutexGuard<'_, Counters> {
        lock(&self.counters)
    }
}

/// Holds one connection's place.
pub(crate) struct Place {
    gate: Arc<Gate>,
    transport: Transport,
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(open) = lock(&self.gate.connections).get_mut(&self.transport) {
            *open -= 1;
        }
    }
}

/// What the frames of one connection share.
pub(crate) struct Peer {
    binding: Binding,
    /// Names for its frames, where both ends trace.
    traces: Option<TraceIds>,
    in_flight: AtomicUsize,
}

/// One frame, from its first byte to its verdict. It is counted on arrival and, exactly once, when
/// its reply is made, or as cancelled when it is let go without one.
pub(crate) struct Frame {
    gate: Arc<Gate>,
    peer: Arc<Peer>,
    receiver: Receiver,
    /// There if the frame is sampled.
    trace: Option<TraceContext>,
    /// The bundle's position, once the header was accepted.
    bundle: Option<usize>,
    counted: bool,
}

impl Frame {
    /// A frame begins, which has this ordinal on its connection.
    pub(crate) fn open(gate: &Arc<Gate>, peer: &Arc<Peer>, ordinal: u64) -> Self {
        gate.counters().on_arrival();
        Frame {
            gate: Arc::clone(gate),
            peer: Arc::clone(peer),
            receiver: Receiver::new(gate.clock.now(), gate.limits.receiver),
            trace: peer.traces.and_then(|traces| traces.context(ordinal)),
            bundle: None,
            counted: false,
        }
    }

    /// Takes the next bytes, and decides on the header when it is complete.
    pub(crate) fn handle_bytes(&mut self, bytes: &[u8]) -> Result<(), Refused> {
        self.gate.metrics.on_received(bytes.len());
        self.receiver.handle_bytes(self.gate.clock.now(), bytes)?;
        match self.bundle {
            None => self.admit(),
            Some(_) => Ok(()),
        }
    }

    /// Whether nothing of the frame is missing.
    pub(crate) fn is_whole(&self) -> bool {
        self.receiver.is_whole()
    }

    /// How long to wait for more bytes.
    pub(crate) fn patience(&self) -> Duration {
        self.receiver.poll_timeout().map_or(Duration::ZERO, |cutoff| self.gate.clock.until(cutoff))
    }

    /// The envelope's frame id; 0 before it arrived.
    pub(crate) fn id(&self) -> u64 {
        self.receiver.envelope().map_or(0, |envelope| envelope.frame.into())
    }

    /// Queues what arrived of the frame; `None` for a probe, of which nothing is to be computed.
    pub(crate) fn submit(&mut self) -> Result<Option<Ticket>, Refused> {
        let now = self.gate.clock.now();
        if self.receiver.is_probe() && self.receiver.is_whole() {
            return Ok(None);
        }
        let (Some(bundle), Some(header)) = (self.bundle, self.receiver.packet()) else {
            return Err(self.receiver.missing(now).into());
        };
        let split = match header.content {
            Content::Features(point) => Some(point.split),
            Content::Image(_) => None,
        };
        let lane = Lane { bundle, split };
        let digest = self.gate.registry.model(bundle).digest();
        let received = self.receiver.finish(now, &digest)?;
        let ticket = self.gate.dispatcher.submit(lane, received).ok_or_else(|| {
            let (_, wait, _) = self.gate.dispatcher.load();
            Refused::overloaded("the queue is full", wait)
        })?;
        Ok(Some(ticket))
    }

    /// The reply to a probe.
    pub(crate) fn echo(&mut self) -> Reply {
        self.reply(Verdict::Echoed, reply::Outcome::Echo(Echo {}), self.received_only())
    }

    /// Waits for the outcome of a queued frame; `gone` ends when nobody wants it any more.
    pub(crate) async fn answer(&mut self, ticket: Ticket, gone: impl Future<Output = ()>) -> Reply {
        let deadline = ticket.deadline;
        match self.outcome(ticket, gone).await {
            Ok(computed) => self.reply_computed(computed, self.gate.clock.now() > deadline),
            Err(NoAnswer::Refused(refused)) => self.refuse(refused),
            Err(NoAnswer::Dropped(cause)) => {
                let detail = match cause {
                    Cause::Expired => "the time left ran out in the queue",
                    Cause::Cancelled => "the device cancelled the frame",
                    Cause::Failed => "the server failed; its log says how",
                };
                let refused = Refused::new(cause.reason(), detail);
                self.reply(Verdict::Dropped(cause), refused_outcome(refused), self.received_only())
            }
        }
    }

    /// The reply to a frame that is not accepted, or whose picture is none.
    pub(crate) fn refuse(&mut self, refused: Refused) -> Reply {
        tracing::debug!(frame = self.id(), reason = ?refused.reason, "refused: {}", refused.detail);
        let verdict = Verdict::Refused(refused.reason);
        self.reply(verdict, refused_outcome(refused), self.received_only())
    }

    fn admit(&mut self) -> Result<(), Refused> {
        let Some(header) = self.receiver.packet() else { return Ok(()) };
        let (queue_full, wait, run) = self.gate.dispatcher.load();
        let load = Load {
            in_flight: self.peer.in_flight.load(Ordering::Relaxed),
            max_in_flight: self.gate.limits.max_in_flight,
            queue_full,
            expected_wait: wait,
            draining: self.gate.is_draining(),
        };
        let bundle = admission::admit(header, &self.peer.binding, &self.gate.registry, &load)?;
        self.receiver.handle_expected_compute(wait + run);
        self.bundle = Some(bundle);
        self.peer.in_flight.fetch_add(1, Ordering::Relaxed);
        self.gate.accepted.send_modify(|accepted| *accepted += 1);
        Ok(())
    }

    async fn outcome(&self, ticket: Ticket, gone: impl Future<Output = ()>) -> Outcome {
        let Ticket { id, deadline, mut outcome } = ticket;
        let dispatcher = &self.gate.dispatcher;
        let mut gone = pin!(gone);
        let mut expiry = pin!(sleep(self.gate.clock.until(deadline)));
        let (mut left, mut expired) = (false, false);
        loop {
            tokio::select! {
                biased;
                outcome = &mut outcome => return match outcome {
                    Ok(Ok(_)) if left => Err(NoAnswer::Dropped(Cause::Cancelled)),
                    Ok(outcome) => outcome,
                    // The worker panicked.
                    Err(_) => Err(NoAnswer::Dropped(Cause::Failed)),
                },
                () = &mut gone, if !left => {
                    left = true;
                    dispatcher.cancel(id);
                }
                () = &mut expiry, if !expired => {
                    expired = true;
                    dispatcher.expire();
                }
            }
        }
    }

    fn reply_computed(&mut self, computed: Computed, late: bool) -> Reply {
        let Computed { logits, layers, feedback } = computed;
        let score = |(class, probability)| Score {
            class: u32::try_from(class).unwrap_or(u32::MAX),
            probability,
        };
        let answer = Answer {
            top: top_k(&logits, TOP).into_iter().map(score).collect(),
            layers_used: u32::try_from(layers).unwrap_or(u32::MAX),
            logits: match self.peer.binding.detail() {
                Detail::Logits => logits,
                Detail::Top => Vec::new(),
            },
        };
        self.gate.metrics.on_answer(&feedback);
        self.reply(Verdict::Answered { late }, reply::Outcome::Answer(answer), feedback)
    }

    fn reply(&mut self, verdict: Verdict, outcome: reply::Outcome, feedback: Feedback) -> Reply {
        self.count(verdict);
        if let (Some(spans), Some(context)) = (&self.gate.spans, self.trace) {
            spans.send(spans::of_frame(context, &feedback, verdict, SystemTime::now()));
        }
        let reply = Reply { frame: self.id(), outcome: Some(outcome), feedback: Some(feedback) };
        self.gate.metrics.on_sent(reply.encoded_len());
        reply
    }

    /// Counts the frame, and makes room for the connection's next one before the reply that
    /// invites it is sent.
    fn count(&mut self, verdict: Verdict) {
        if !std::mem::replace(&mut self.counted, true) {
            self.gate.counters().on_verdict(verdict);
            if self.bundle.is_some() {
                self.peer.in_flight.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    fn received_only(&self) -> Feedback {
        let receive_span_us = micros(self.receiver.receive_span());
        Feedback { receive_span_us, ..Feedback::default() }
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        self.count(Verdict::Dropped(Cause::Cancelled));
        if self.bundle.is_some() {
            self.gate.accepted.send_modify(|accepted| *accepted -= 1);
        }
    }
}

fn lock<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code that may panic runs while it is held.
    value.lock().unwrap_or_else(PoisonError::into_inner)
}

fn refused_outcome(refused: Refused) -> reply::Outcome {
    reply::Outcome::Refusal(refused.into())
}
