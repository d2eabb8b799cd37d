//! The link in real time, between real programs: a relay of datagrams and streams through one
//! [`Link`](crate::Link) in each direction.
//!
//! All proxies of a relay share its two links, as what passes one bottleneck does. Its pure part
//! takes the time as an argument, as links do; one thread and the tasks of the sockets drive that.

pub mod api;
mod driver;
mod flows;
mod forward;
mod lane;
mod tcp;
#[cfg(test)]
mod tests;
mod toxic;
mod udp;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use tokio::net::{TcpListener, lookup_host};
use tokio::task::JoinHandle;

pub use forward::{Forward, ForwardError};
pub use lane::LaneCounters;
pub use toxic::{Effect, Stream, Toxic, ToxicError};

use crate::link::Tally;
use crate::profile::PathConfig;
use driver::Driver;
use tcp::TcpProxy;
use toxic::poisoned;
use udp::UdpProxy;

/// What to relay.
#[derive(Clone, Debug)]
pub struct RelayConfig {
    /// The links of both directions.
    pub path: PathConfig,
    /// From which everything random in them hangs.
    pub seed: u64,
    /// Where to relay datagrams from and to.
    pub udp: Vec<Forward>,
    /// Where to relay streams from and to.
    pub tcp: Vec<Forward>,
}

/// Why a relay cannot start.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// A port in use, or an address that is not this machine's.
    #[error("{proxy} cannot listen on {address}: {cause}")]
    Listen {
        /// Name of the proxy.
        proxy: String,
        /// Where it should.
        address: SocketAddr,
        /// What the system says.
        cause: io::Error,
    },
    /// The upstream's name is unknown.
    #[error("{proxy}: no address of {upstream}: {cause}")]
    Upstream {
        /// Name of the proxy.
        proxy: String,
        /// As it was given.
        upstream: String,
        /// What the system says.
        cause: io::Error,
    },
    /// The system gives no thread.
    #[error("no thread for the link: {0}")]
    Thread(io::Error),
}

/// Why a running relay does not change.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// There is no proxy of this name.
    #[error("proxy not found: {0}")]
    UnknownProxy(String),
    /// The proxy has no toxic of this name.
    #[error("toxic not found: {0}")]
    UnknownToxic(String),
    /// The proxy has one already.
    #[error("toxic already exists: {0}")]
    ToxicExists(String),
    /// It cannot be what was asked for.
    #[error(transparent)]
    Toxic(#[from] ToxicError),
    /// Its address is taken meanwhile.
    #[error(transparent)]
    Listen(#[from] RelayError),
}

/// A running relay; it stops when dropped.
pub struct Relay {
    driver: Arc<Driver>,
    path: PathConfig,
    proxies: Vec<Proxy>,
    /// By proxy.
    toxics: Mutex<Vec<Vec<Toxic>>>,
}

struct Proxy {
    name: String,
    listen: SocketAddr,
    upstream: String,
    socket: Socket,
    counts: Arc<FlowCounts>,
    /// None while the proxy is down.
    task: tokio::sync::Mutex<Option<Task>>,
}

enum Socket {
    Udp(UdpProxy),
    Tcp(TcpProxy),
}

/// A proxy as others see it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProxyState {
    /// `udp-1`, `tcp-1` and so on.
    pub name: String,
    /// Where clients find it.
    pub listen: SocketAddr,
    /// Where it relays to, as it was given.
    pub upstream: String,
    /// Whether it listens.
    pub enabled: bool,
    /// What was added to the link in its name.
    pub toxics: Vec<Toxic>,
}

/// Counters of everything that entered a relay.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// From clients to upstreams.
    pub uplink: LaneCounters,
    /// From upstreams to clients.
    pub downlink: LaneCounters,
    /// Flows by proxy.
    pub flows: BTreeMap<String, Flows>,
}

/// A proxy's flows: clients' addresses of datagrams, connections of streams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Flows {
    /// Opened, refused ones apart.
    pub opened: u64,
    /// Forgotten after they were idle; of datagrams alone.
    pub expired: u64,
    /// Given another socket towards the server; of datagrams alone.
    pub rebound: u64,
    /// Not opened, because the system or a limit did not allow it; of datagrams, each is counted.
    pub refused: u64,
}

#[derive(Debug, Default)]
struct FlowCounts {
    opened: AtomicU64,
    expired: AtomicU64,
    rebound: AtomicU64,
    refused: AtomicU64,
}

impl Relay {
    /// Listens, and relays until dropped.
    pub async fn start(config: RelayConfig) -> Result<Relay, RelayError> {
        let RelayConfig { path, seed, udp, tcp } = config;
        let driver = Driver::start(path.clone(), seed).map_err(RelayError::Thread)?;
        let mut relay = Relay { driver, path, proxies: Vec::new(), toxics: Mutex::new(Vec::new()) };
        for (at, forward) in udp.into_iter().enumerate() {
            let name = format!("udp-{}", at + 1);
            let upstream = resolve(&name, &forward).await?;
            let counts = Arc::new(FlowCounts::default());
            let driver = Arc::clone(&relay.driver);
            let rebindings = relay.path.rebindings.clone();
            let bound =
                UdpProxy::bind(forward.listen, upstream, driver, Arc::clone(&counts), rebindings)
                    .and_then(|proxy| Ok((proxy.front.local_addr()?, proxy.run()?, proxy)));
            let (listen, task, proxy) = bound.map_err(|cause| RelayError::Listen {
                proxy: name.clone(),
                address: forward.listen,
                cause,
            })?;
            relay.push(Proxy {
                name,
                listen,
                upstream: forward.upstream,
                socket: Socket::Udp(proxy),
                counts,
                task: tokio::sync::Mutex::new(Some(task)),
            });
        }
        for (at, forward) in tcp.into_iter().enumerate() {
            let name = format!("tcp-{}", at + 1);
            let upstream = resolve(&name, &forward).await?;
            let counts = Arc::new(FlowCounts::default());
            let driver = Arc::clone(&relay.driver);
            let proxy = TcpProxy { upstream, driver, counts: Arc::clone(&counts) };
            let bound = listen_on(forward.listen)
                .and_then(|listener| Ok((listener.local_addr()?, listener)));
            let (listen, listener) = bound.map_err(|cause| RelayError::Listen {
                proxy: name.clone(),
                address: forward.listen,
                cause,
            })?;
            let task = proxy.run(listener);
            relay.push(Proxy {
                name,
                listen,
                upstream: forward.upstream,
                socket: Socket::Tcp(proxy),
                counts,
                task: tokio::sync::Mutex::new(Some(task)),
            });
        }
        Ok(relay)
    }

    fn push(&mut self, proxy: Proxy) {
        self.proxies.push(proxy);
        self.lock_toxics().push(Vec::new());
    }

    /// Takes a proxy up or down. What is down closes its connections and forgets its flows; nobody
    /// listens there until it is up again.
    pub async fn set_enabled(&self, proxy: &str, enabled: bool) -> Result<(), ChangeError> {
        let proxy = &self.proxies[self.position(proxy)?];
        let mut task = proxy.task.lock().await;
        match (task.take(), enabled) {
            (None, true) => *task = Some(proxy.run()?),
            (Some(running), true) => *task = Some(running),
            (Some(running), false) => running.stop().await,
            (None, false) => {}
        }
        Ok(())
    }

    /// Adds a toxic. It changes the link, and so what passes any proxy.
    pub fn add_toxic(&self, proxy: &str, toxic: Toxic) -> Result<(), ChangeError> {
        let at = self.position(proxy)?;
        let mut toxics = self.lock_toxics();
        if toxics[at].iter().any(|other| other.name == toxic.name) {
            return Err(ChangeError::ToxicExists(toxic.name));
        }
        toxics[at].push(toxic);
        self.reconfigure(&toxics);
        Ok(())
    }

    /// Gives a toxic the attributes in a request's body, and returns it.
    pub fn update_toxic(&self, proxy: &str, name: &str, body: &[u8]) -> Result<Toxic, ChangeError> {
        let at = self.position(proxy)?;
        let mut toxics = self.lock_toxics();
        let toxic = toxics[at].iter_mut().find(|toxic| toxic.name == name);
        let toxic = toxic.ok_or_else(|| ChangeError::UnknownToxic(name.to_owned()))?;
        *toxic = toxic.updated(body)?;
        let updated = toxic.clone();
        self.reconfigure(&toxics);
        Ok(updated)
    }

    /// Removes a toxic.
    pub fn remove_toxic(&self, proxy: &str, name: &str) -> Result<(), ChangeError> {
        let at = self.position(proxy)?;
        let mut toxics = self.lock_toxics();
        let before = toxics[at].len();
        toxics[at].retain(|toxic| toxic.name != name);
        if toxics[at].len() == before {
            return Err(ChangeError::UnknownToxic(name.to_owned()));
        }
        self.reconfigure(&toxics);
        Ok(())
    }

    /// Takes all proxies up and removes all toxics.
    pub async fn reset(&self) -> Result<(), ChangeError> {
        for proxy in &self.proxies {
            self.set_enabled(&proxy.name, true).await?;
        }
        let mut toxics = self.lock_toxics();
        toxics.iter_mut().for_each(Vec::clear);
        self.reconfigure(&toxics);
        Ok(())
    }

    /// Where clients find each proxy, by name, in the order they were given.
    pub fn addresses(&self) -> impl Iterator<Item = (&str, SocketAddr)> {
        self.proxies.iter().map(|proxy| (proxy.name.as_str(), proxy.listen))
    }

    /// A proxy by name.
    pub async fn proxy(&self, name: &str) -> Result<ProxyState, ChangeError> {
        let at = self.position(name)?;
        let Proxy { name, listen, upstream, task, .. } = &self.proxies[at];
        let enabled = task.lock().await.is_some();
        let (name, upstream) = (name.clone(), upstream.clone());
        let toxics = self.lock_toxics()[at].clone();
        Ok(ProxyState { name, listen: *listen, upstream, enabled, toxics })
    }

    /// The counters so far.
    pub fn counters(&self) -> Counters {
        let (uplink, downlink) = self.driver.counters();
        let flows = self.proxies.iter().map(|proxy| (proxy.name.clone(), proxy.counts.flows()));
        Counters { uplink, downlink, flows: flows.collect() }
    }

    fn position(&self, name: &str) -> Result<usize, ChangeError> {
        let found = self.proxies.iter().position(|proxy| proxy.name == name);
        found.ok_or_else(|| ChangeError::UnknownProxy(name.to_owned()))
    }

    fn reconfigure(&self, toxics: &[Vec<Toxic>]) {
        let link = |config, stream| poisoned(config, stream, toxics.iter().flatten());
        let uplink = link(&self.path.uplink, Stream::Upstream);
        self.driver.reconfigure(uplink, link(&self.path.downlink, Stream::Downstream));
    }

    fn lock_toxics(&self) -> MutexGuard<'_, Vec<Vec<Toxic>>> {
        self.toxics.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.driver.stop();
    }
}

impl Proxy {
    fn run(&self) -> Result<Task, RelayError> {
        let task = match &self.socket {
            Socket::Udp(proxy) => proxy.run(),
            Socket::Tcp(proxy) => listen_on(self.listen).map(|listener| proxy.run(listener)),
        };
        let (proxy, address) = (self.name.clone(), self.listen);
        task.map_err(|cause| RelayError::Listen { proxy, address, cause })
    }
}

impl FlowCounts {
    fn flows(&self) -> Flows {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Flows {
            opened: read(&self.opened),
            expired: read(&self.expired),
            rebound: read(&self.rebound),
            refused: read(&self.refused),
        }
    }
}

impl fmt::Display for Counters {
    /// A table of packets and bytes by direction and cause.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counters { uplink, downlink, flows } = self;
        writeln!(f, "{:24}{:>22}{:>22}", "packets (bytes)", "uplink", "downlink")?;
        let mut row = |name: &str, of: &dyn Fn(&LaneCounters) -> Tally| {
            let cell = |Tally { packets, bytes }: Tally| format!("{packets} ({bytes})");
            writeln!(f, "{name:24}{:>22}{:>22}", cell(of(uplink)), cell(of(downlink)))
        };
        row("in", &|lane| lane.link.offered)?;
        row("  sent again", &|lane| lane.sent_again)?;
        row("copied by the link", &|lane| lane.link.duplicated)?;
        row("delivered", &|lane| lane.link.delivered)?;
        row("  damaged", &|lane| lane.link.corrupted)?;
        row("dropped by the queue", &|lane| lane.link.dropped)?;
        row("lost on the way", &|lane| lane.link.lost)?;
        row("inside", &|lane| lane.inside)?;
        row("waiting before the link", &|lane| lane.waiting)?;
        for (name, Flows { opened, expired, rebound, refused }) in flows {
            writeln!(
                f,
                "{name}: {opened} flows opened, {expired} expired, {rebound} rebound, {refused} refused"
            )?;
        }
        Ok(())
    }
}

/// A running task that ends when dropped.
struct Task(JoinHandle<()>);

impl Task {
    fn spawn(future: impl Future<Output = ()> + Send + 'static) -> Task {
        Task(tokio::spawn(future))
    }

    /// Returns when its sockets are closed.
    async fn stop(mut self) {
        self.0.abort();
        // It was cancelled, or had ended.
        let _ = (&mut self.0).await;
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn resolve(proxy: &str, forward: &Forward) -> Result<SocketAddr, RelayError> {
    let unknown = |cause| RelayError::Upstream {
        proxy: proxy.to_owned(),
        upstream: forward.upstream.clone(),
        cause,
    };
    let mut found = lookup_host(&forward.upstream).await.map_err(unknown)?;
    found.next().ok_or_else(|| unknown(io::ErrorKind::NotFound.into()))
}

fn listen_on(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = StdTcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// Bytes of the IP header of a packet from or to `peer`.
fn header(peer: SocketAddr) -> usize {
    if peer.is_ipv4() { 20 } else { 40 }
}
