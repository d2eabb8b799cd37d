//! Decides on a connection's hello and on each frame's header, before anything is decoded.

use std::time::Duration;

use isthmus_models::{PictureError, Wanted};
use isthmus_proto::packet::MAX_BUNDLES;
use isthmus_proto::wire::{BundleStatus, Detail, Hello, Reason, Refusal, Welcome};
use isthmus_proto::{
    BundleDigest, Content, MAX_CONTROL_BYTES, OperatingPoint, PROTOCOL_VERSION, PacketHeader,
};

use crate::model::Model;
use crate::receiver::ReceiveError;
use crate::registry::Registry;

/// When to try again while the server shuts down: another one may have taken its place by then.
const DRAINING_RETRY: Duration = Duration::from_secs(1);

/// A refusal with a machine-readable reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The cause.
    pub reason: Reason,
    /// The same, for people.
    pub detail: String,
    /// Earliest useful retry from now; zero when a retry is useless or free.
    pub retry_after: Duration,
}

impl Refused {
    /// A refusal to which trying again later changes nothing.
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Refused { reason, detail: detail.into(), retry_after: Duration::ZERO }
    }

    /// A refusal because of load; worth another try in `wait`.
    pub fn overloaded(detail: impl Into<String>, wait: Duration) -> Self {
        Refused { retry_after: wait, ..Refused::new(Reason::Overloaded, detail) }
    }
}

impl From<ReceiveError> for Refused {
    fn from(error: ReceiveError) -> Self {
        Refused::new(error.reason(), error.to_string())
    }
}

impl From<PictureError> for Refused {
    fn from(error: PictureError) -> Self {
        let reason = match error {
            PictureError::Size { .. } => Reason::TooLarge,
            _ => Reason::Malformed,
        };
        Refused::new(reason, error.to_string())
    }
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        let millis = refused.retry_after.as_micros().div_ceil(1_000);
        Refusal {
            reason: refused.reason.into(),
            detail: refused.detail,
            retry_after_ms: u32::try_from(millis).unwrap_or(u32::MAX),
        }
    }
}

/// Why a connection cannot be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// Nothing came in time.
    #[error("no hello came")]
    Late,
    /// The control stream ended first.
    #[error("the control stream ended before a hello")]
    Missing,
    /// The bytes are no message.
    #[error("the first message cannot be read: {0}")]
    Malformed(String),
    /// Another message came first.
    #[error("the first message is no hello")]
    Unexpected,
    /// A protocol version not spoken here.
    #[error("protocol version {0} is not spoken here, only version {PROTOCOL_VERSION}")]
    Version(u32),
    /// More bundles than a packet can name.
    #[error("the hello names {0} bundles, at most {MAX_BUNDLES} are allowed")]
    TooManyBundles(usize),
}

/// What one connection's hello bound.
#[derive(Clone, Debug, PartialEq)]
pub struct Binding {
    bundles: Vec<Result<usize, String>>,
    wanted: Wanted,
    max_reply_bytes: usize,
}

impl Binding {
    /// Binds the bundles of `hello` to positions in `registry`; those that are not served stay in
    /// the list, so that frames for them get a reason.
    pub fn new(hello: &Hello, registry: &Registry) -> Result<Self, HelloError> {
        if hello.protocol != PROTOCOL_VERSION {
            return Err(HelloError::Version(hello.protocol));
        }
        if hello.bundles.len() > MAX_BUNDLES {
            return Err(HelloError::TooManyBundles(hello.bundles.len()));
        }
        let bind = |digest: &[u8]| {
            let digest = BundleDigest::try_from(digest).map_err(|error| error.to_string())?;
            let position = registry.position(&digest);
            position.ok_or_else(|| format!("no bundle with digest {digest} is served here"))
        };
        let bundles = hello.bundles.iter().map(|bundle| bind(&bundle.digest)).collect();
        let confidence = hello.min_confidence;
        let wanted = Wanted {
            logits: hello.detail() == Detail::Logits,
            min_confidence: (confidence > 0.0).then_some(confidence),
        };
        let max_reply_bytes = match hello.max_reply_bytes {
            0 => MAX_CONTROL_BYTES,
            most => most as usize,
        };
        Ok(Binding { bundles, wanted, max_reply_bytes })
    }

    /// The answer to the hello.
    pub fn welcome(&self, max_frame_bytes: usize, max_in_flight: usize) -> Welcome {
        let status = |bound: &Result<usize, String>| BundleStatus {
            served: bound.is_ok(),
            reason: bound.as_ref().err().cloned().unwrap_or_default(),
        };
        Welcome {
            protocol: PROTOCOL_VERSION,
            server: concat!("isthmus-tail-server ", env!("CARGO_PKG_VERSION")).into(),
            bundles: self.bundles.iter().map(status).collect(),
            max_frame_bytes: u32::try_from(max_frame_bytes).unwrap_or(u32::MAX),
            max_in_flight: u32::try_from(max_in_flight).unwrap_or(u32::MAX),
        }
    }

    /// How much an answer holds.
    pub fn wanted(&self) -> Wanted {
        self.wanted
    }

    /// Most bytes of a reply that the device takes.
    pub fn max_reply_bytes(&self) -> usize {
        self.max_reply_bytes
    }
}

/// What the server carries at this moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Accepted, unanswered frames of this connection.
    pub in_flight: usize,
    /// Most of those.
    pub max_in_flight: usize,
    /// Whether the queue before the workers is full.
    pub queue_full: bool,
    /// How long a frame that is accepted now waits for a worker.
    pub expected_wait: Duration,
    /// Whether the server is shutting down.
    pub draining: bool,
}

/// What a frame's header says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announced {
    /// The bundle's position in the hello.
    pub bundle: u8,
    /// Features or a picture.
    pub content: Content,
    /// Bytes behind the header.
    pub bytes: usize,
}

impl From<&PacketHeader> for Announced {
    fn from(header: &PacketHeader) -> Self {
        let bytes = header.packet_len() - header.header_len();
        Announced { bundle: header.bundle, content: header.content, bytes }
    }
}

/// Accepts or refuses a frame by its header; yields the bundle's position in `registry`. What is
/// wrong with the frame itself is reported before what is wrong with the moment.
pub fn admit(
    announced: &Announced,
    binding: &Binding,
    registry: &Registry,
    load: &Load,
) -> Result<usize, Refused> {
    let bundle = match binding.bundles.get(usize::from(announced.bundle)) {
        Some(Ok(bundle)) => *bundle,
        Some(Err(why)) => return Err(Refused::new(Reason::UnknownBundle, why)),
        None => {
            let detail = format!("the hello bound no bundle at position {}", announced.bundle);
            return Err(Refused::new(Reason::UnknownBundle, detail));
        }
    };
    let model = registry.model(bundle);
    match announced.content {
        Content::Features(point) => admit_point(model.as_ref(), point, announced.bytes)?,
        Content::Image(_) if model.full_network().is_none() => {
            let detail = format!("{} takes no compressed pictures", model.name());
            return Err(Refused::new(Reason::UnknownPoint, detail));
        }
        // Its bytes are within the frame's limit; its pixels are looked at before it is decoded.
        Content::Image(_) => {}
    }
    admit_load(load)?;
    Ok(bundle)
}

/// Accepts or refuses a stream of `announced` bytes for a point.
fn admit_point(model: &dyn Model, point: OperatingPoint, announced: usize) -> Result<(), Refused> {
    let Some(most) = model.max_stream_bytes(point) else {
        let detail = format!("{} has no operating point {point}", model.name());
        return Err(Refused::new(Reason::UnknownPoint, detail));
    };
    if announced > most {
        let detail =
            format!("a stream of {announced} bytes was announced, {point} has at most {most}");
        return Err(Refused::new(Reason::TooLarge, detail));
    }
    Ok(())
}

/// Accepts or refuses a frame by the moment alone, whatever its header says.
fn admit_load(load: &Load) -> Result<(), Refused> {
    if load.draining {
        let refused = Refused::new(Reason::Draining, "the server is shutting down");
        return Err(Refused { retry_after: DRAINING_RETRY, ..refused });
    }
    let wait = load.expected_wait.max(Duration::from_millis(1));
    if load.in_flight >= load.max_in_flight {
        let detail = format!("{} frames of this connection are unanswered", load.in_flight);
        return Err(Refused::overloaded(detail, wait));
    }
    if load.queue_full {
        return Err(Refused::overloaded("the queue is full", wait));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use isthmus_models::{Outputs, TailItem};
    use isthmus_proto::wire::BundleRef;
    use isthmus_proto::{Coded, ImageFormat, write_image_packet, write_packet};

    use super::*;
    use crate::model::ModelError;

    struct OnePoint;

    const POINT: OperatingPoint = OperatingPoint { split: 0, width: 0, layers: 2, bits: 6 };
    const CALM: Load = Load {
        in_flight: 0,
        max_in_flight: 4,
        queue_full: false,
        expected_wait: Duration::ZERO,
        draining: false,
    };

    impl Model for OnePoint {
        fn name(&self) -> &str {
            "one-point"
        }
        fn digest(&self) -> BundleDigest {
            BundleDigest([1; 32])
        }
        fn max_stream_bytes(&self, point: OperatingPoint) -> Option<usize> {
            (point == POINT).then_some(100)
        }
        fn decode(&self, _: OperatingPoint, _: &[u8], _: usize) -> Result<Vec<f32>, ModelError> {
            Err(ModelError::new("admission does not decode"))
        }
        fn infer(&self, _: &[TailItem<'_>]) -> Result<Vec<Outputs>, ModelError> {
            Err(ModelError::new("admission does not compute"))
        }
    }

    fn registry() -> Registry {
        Registry::new(vec![Arc::new(OnePoint)])
    }

    fn hello(digests: &[&[u8]]) -> Hello {
        let bundle = |digest: &&[u8]| BundleRef { name: "x".into(), digest: digest.to_vec() };
        Hello {
            protocol: PROTOCOL_VERSION,
            bundles: digests.iter().map(bundle).collect(),
            ..Hello::default()
        }
    }

    fn header(bundle: u8, point: OperatingPoint, bytes: usize) -> PacketHeader {
        let mut packet = Vec::new();
        let layer_ends = vec![bytes; usize::from(point.layers)];
        let coded = Coded { stream: vec![0; bytes], layer_ends };
        write_packet(&mut packet, bundle, &BundleDigest([1; 32]), point, &coded);
        PacketHeader::parse(&packet).expect("well formed").expect("whole")
    }

    fn reason(header: PacketHeader, load: Load) -> Option<Reason> {
        let registry = registry();
        let hello = hello(&[&[1; 32], &[2; 32], &[3; 5]]);
        let binding = Binding::new(&hello, &registry).expect("a good hello");
        admit(&Announced::from(&header), &binding, &registry, &load)
            .err()
            .map(|refused| refused.reason)
    }

    #[test]
    fn each_refusal_has_its_reason() {
        assert_eq!(reason(header(0, POINT, 100), CALM), None);
        assert_eq!(reason(header(1, POINT, 9), CALM), Some(Reason::UnknownBundle));
        assert_eq!(reason(header(2, POINT, 9), CALM), Some(Reason::UnknownBundle));
        assert_eq!(reason(header(3, POINT, 9), CALM), Some(Reason::UnknownBundle));
        let other = OperatingPoint { bits: 5, ..POINT };
        assert_eq!(reason(header(0, other, 9), CALM), Some(Reason::UnknownPoint));
        assert_eq!(reason(header(0, POINT, 101), CALM), Some(Reason::TooLarge));
        let mut picture = Vec::new();
        let digest = BundleDigest([1; 32]);
        write_image_packet(&mut picture, 0, &digest, ImageFormat::Jpeg, &[0; 9]);
        let picture = PacketHeader::parse(&picture).expect("well formed").expect("whole");
        assert_eq!(reason(picture, CALM), Some(Reason::UnknownPoint));
        let loads = [
            (Load { draining: true, ..CALM }, Reason::Draining),
            (Load { in_flight: 4, ..CALM }, Reason::Overloaded),
            (Load { queue_full: true, ..CALM }, Reason::Overloaded),
        ];
        for (load, expected) in loads {
            assert_eq!(reason(header(0, POINT, 9), load), Some(expected));
        }
    }

    #[test]
    fn an_overload_hints_at_the_expected_wait() {
        let wait = Duration::from_micros(20_300);
        let refusal = Refusal::from(Refused::overloaded("full", wait));
        assert_eq!((refusal.reason(), refusal.retry_after_ms), (Reason::Overloaded, 21));
    }

    #[test]
    fn a_hello_tells_which_bundles_are_served() {
        let hello = hello(&[&[1; 32], &[2; 32]]);
        let binding = Binding::new(&hello, &registry()).expect("a good hello");
        let welcome = binding.welcome(1_000, 4);
        let served: Vec<_> = welcome.bundles.iter().map(|bundle| bundle.served).collect();
        assert_eq!(served, [true, false]);
        assert!(!welcome.bundles[1].reason.is_empty());
        assert_eq!((welcome.max_frame_bytes, welcome.max_in_flight), (1_000, 4));
    }

    #[test]
    fn unusable_hellos_are_refused() {
        let other = Hello { protocol: 2, ..hello(&[]) };
        assert_eq!(Binding::new(&other, &registry()), Err(HelloError::Version(2)));
        let digests = vec![&[1u8; 32][..]; MAX_BUNDLES + 1];
        let many = Binding::new(&hello(&digests), &registry());
        assert_eq!(many, Err(HelloError::TooManyBundles(MAX_BUNDLES + 1)));
    }
}
