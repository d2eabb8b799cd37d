//! What is said before frames: the hello, and the check of the server's welcome.

use std::time::Duration;

use isthmus_proto::framer::write_message;
use isthmus_proto::wire::{Hello, ToDevice, ToServer, Welcome, to_device, to_server};
use isthmus_proto::{
    Framer, FramerError, MAX_CONTROL_BYTES, MAX_REPLY_BYTES, PROTOCOL_VERSION, Timestamp,
};

/// What a server allows on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most frames that may be unanswered at a time.
    pub max_in_flight: usize,
    /// Largest frame (bytes).
    pub max_frame_bytes: usize,
}

/// Why a connection cannot be used although there is one.
#[derive(Debug, thiserror::Error)]
pub enum WelcomeError {
    /// Nothing came in time.
    #[error("no answer within {0:?}")]
    Silent(Duration),
    /// The server ended the control stream first.
    #[error("the control stream ended before a welcome")]
    Ended,
    /// Bytes that are no message.
    #[error("unreadable welcome: {0}")]
    Unreadable(#[from] FramerError),
    /// Another message came first.
    #[error("the first message is not a welcome")]
    NotWelcome,
    /// The server speaks another version.
    #[error("the server speaks version {0} of the protocol; expected {PROTOCOL_VERSION}")]
    Version(u32),
    /// It answers another hello than this one.
    #[error("the welcome is about {welcomed} bundles; expected {asked}, as in the hello")]
    Bundles {
        /// Bundles in the welcome.
        welcomed: usize,
        /// Bundles in the hello.
        asked: usize,
    },
    /// The server does not serve a bundle of the hello.
    #[error("bundle {bundle} is not served: {reason}")]
    NotServed {
        /// The bundle's name.
        bundle: String,
        /// What the server says.
        reason: String,
    },
}

/// Opens a connection: write the hello, and feed what comes until there are [`Limits`].
///
/// Over QUIC it speaks on the connection's first stream, which stays open; what the server writes
/// there after its welcome is ignored. Over gRPC it is the first message each way.
///
/// ```
/// use std::time::Duration;
/// use isthmus_head_client::exchange::Handshake;
/// use isthmus_proto::framer::write_message;
/// use isthmus_proto::wire::{Hello, ToDevice, Welcome, to_device::Message};
/// use isthmus_proto::Timestamp;
///
/// let hello = Hello::default();
/// let mut handshake = Handshake::new(hello, Timestamp::ZERO, Duration::from_secs(5));
/// assert_eq!(handshake.poll_timeout(), Some(Timestamp::from_micros(5_000_000)));
///
/// let welcome = Welcome { protocol: 1, max_in_flight: 8, ..Welcome::default() };
/// let mut bytes = Vec::new();
/// write_message(&mut bytes, &ToDevice { message: Some(Message::Welcome(welcome)) });
///
/// assert_eq!(handshake.handle_bytes(&bytes[..3])?, None);
/// let limits = handshake.handle_bytes(&bytes[3..])?;
/// assert_eq!(limits.map(|limits| limits.max_in_flight), Some(8));
/// assert_eq!(handshake.poll_timeout(), None);
/// # Ok::<(), isthmus_head_client::exchange::WelcomeError>(())
/// ```
#[derive(Debug)]
pub struct Handshake {
    hello: Hello,
    framer: Framer,
    timeout: Duration,
    /// When the welcome has to be there; none once it is.
    welcome_by: Option<Timestamp>,
}

impl Handshake {
    /// A handshake for an attempt to connect that begins `now` and may take `timeout`. The hello's
    /// protocol and the size of replies are set here: there is one of each.
    pub fn new(hello: Hello, now: Timestamp, timeout: Duration) -> Self {
        let max_reply_bytes = MAX_REPLY_BYTES as u32;
        let hello = Hello { protocol: PROTOCOL_VERSION, max_reply_bytes, ..hello };
        let framer = Framer::new(MAX_CONTROL_BYTES);
        Handshake { hello, framer, timeout, welcome_by: Some(now + timeout) }
    }

    /// The first message of the connection.
    pub fn hello(&self) -> ToServer {
        ToServer { message: Some(to_server::Message::Hello(self.hello.clone())) }
    }

    /// The first bytes of the control stream.
    pub fn hello_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        write_message(&mut bytes, &self.hello());
        bytes
    }

    /// Takes bytes of the control stream; what the server allows, as soon as they end a welcome that
    /// passes.
    pub fn handle_bytes(&mut self, bytes: &[u8]) -> Result<Option<Limits>, WelcomeError> {
        if self.is_welcomed() {
            return Ok(None);
        }
        self.framer.push(bytes);
        match self.framer.next_message()? {
            Some(message) => self.handle_message(message).map(Some),
            None => Ok(None),
        }
    }

    /// Takes the server's first message.
    pub fn handle_message(&mut self, message: ToDevice) -> Result<Limits, WelcomeError> {
        let Some(to_device::Message::Welcome(welcome)) = message.message else {
            return Err(WelcomeError::NotWelcome);
        };
        let limits = self.check(welcome)?;
        self.welcome_by = None;
        Ok(limits)
    }

    /// The control stream ended.
    pub fn handle_end(&mut self) -> Result<(), WelcomeError> {
        if self.is_welcomed() { Ok(()) } else { Err(WelcomeError::Ended) }
    }

    /// It is `now`: why to give the connection up, if the instant of
    /// [`poll_timeout`](Self::poll_timeout) has come.
    pub fn handle_timeout(&mut self, now: Timestamp) -> Result<(), WelcomeError> {
        let silent = self.welcome_by.is_some_and(|due| due <= now);
        if silent { Err(WelcomeError::Silent(self.timeout)) } else { Ok(()) }
    }

    /// When to give the connection up; none once the server has welcomed.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        self.welcome_by
    }

    /// Whether the server has welcomed.
    pub fn is_welcomed(&self) -> bool {
        self.welcome_by.is_none()
    }

    fn check(&self, welcome: Welcome) -> Result<Limits, WelcomeError> {
        if welcome.protocol != PROTOCOL_VERSION {
            return Err(WelcomeError::Version(welcome.protocol));
        }
        let (welcomed, asked) = (welcome.bundles.len(), self.hello.bundles.len());
        if welcomed != asked {
            return Err(WelcomeError::Bundles { welcomed, asked });
        }
        for (bundle, status) in self.hello.bundles.iter().zip(welcome.bundles) {
            if !status.served {
                let (bundle, reason) = (bundle.name.clone(), status.reason);
                return Err(WelcomeError::NotServed { bundle, reason });
            }
        }
        Ok(Limits {
            max_in_flight: usize::try_from(welcome.max_in_flight).unwrap_or(usize::MAX),
            max_frame_bytes: usize::try_from(welcome.max_frame_bytes).unwrap_or(usize::MAX),
        })
    }
}

#[cfg(test)]
mod tests {
    use isthmus_proto::wire::{BundleRef, BundleStatus, Reply};
    use proptest::prelude::*;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(5);

    fn handshake() -> Handshake {
        let bundle = |name: &str| BundleRef { name: name.into(), digest: vec![1; 32] };
        let bundles = vec![bundle("street"), bundle("yard")];
        let hello = Hello { bundles, ..Hello::default() };
        Handshake::new(hello, Timestamp::from_micros(40), TIMEOUT)
    }

    fn welcome() -> Welcome {
        let served = BundleStatus { served: true, reason: String::new() };
        Welcome {
            protocol: PROTOCOL_VERSION,
            server: "test".into(),
            bundles: vec![served.clone(), served],
            max_frame_bytes: 1_000,
            max_in_flight: 4,
        }
    }

    const LIMITS: Limits = Limits { max_in_flight: 4, max_frame_bytes: 1_000 };

    fn framed(welcome: Welcome) -> Vec<u8> {
        let mut bytes = Vec::new();
        let message = Some(to_device::Message::Welcome(welcome));
        write_message(&mut bytes, &ToDevice { message });
        bytes
    }

    fn refused(bytes: &[u8]) -> String {
        handshake().handle_bytes(bytes).expect_err("refused").to_string()
    }

    #[test]
    fn the_hello_is_what_a_server_reads() {
        let mut framer = Framer::new(MAX_CONTROL_BYTES);
        framer.push(&handshake().hello_bytes());
        assert_eq!(framer.next_message().expect("whole"), Some(handshake().hello()));
    }

    #[test]
    fn what_breaks_the_protocol_is_named() {
        let unserved = BundleStatus { served: false, reason: "never heard of it".into() };
        let bundles = vec![welcome().bundles[0].clone(), unserved];
        let reply = ToDevice { message: Some(to_device::Message::Reply(Reply::default())) };
        let mut replied = Vec::new();
        write_message(&mut replied, &reply);
        let mut empty = Vec::new();
        write_message(&mut empty, &ToDevice { message: None });
        let cases = [
            (framed(Welcome { protocol: 2, ..welcome() }), "version 2 of the protocol; expected 1"),
            (framed(Welcome { bundles: vec![], ..welcome() }), "0 bundles; expected 2"),
            (framed(Welcome { bundles, ..welcome() }), "yard is not served: never heard of it"),
            (replied, "not a welcome"),
            (empty, "not a welcome"),
            (b"\x05abcde".to_vec(), "malformed message"),
            (vec![0x80, 0xff, 0xff, 0xff], "at most 65536 are allowed"),
        ];
        for (bytes, words) in cases {
            let said = refused(&bytes);
            assert!(said.contains(words), "{said}");
        }
    }

    #[test]
    fn a_server_that_says_nothing_is_given_up_when_the_time_is_over() {
        let mut handshake = handshake();
        assert_eq!(handshake.poll_timeout(), Some(Timestamp::from_micros(5_000_040)));
        assert!(handshake.handle_timeout(Timestamp::ZERO).is_ok());
        let silent = handshake.handle_timeout(Timestamp::from_micros(5_000_040)).err();
        assert_eq!(silent.map(|error| error.to_string()), Some("no answer within 5s".into()));
        assert!(matches!(handshake.handle_end(), Err(WelcomeError::Ended)));
    }

    #[test]
    fn what_follows_the_welcome_on_its_stream_is_ignored() {
        let mut handshake = handshake();
        let mut bytes = framed(welcome());
        bytes.extend([0xff; 40]);
        assert_eq!(handshake.handle_bytes(&bytes).expect("a welcome"), Some(LIMITS));
        assert!(handshake.is_welcomed() && handshake.poll_timeout().is_none());
        assert_eq!(handshake.handle_bytes(&framed(welcome())).expect("ignored"), None);
        assert_eq!(handshake.handle_bytes(&[0xff; 100]).expect("ignored"), None);
        assert!(handshake.handle_end().is_ok());
    }

    proptest! {
        #[test]
        fn a_welcome_is_the_same_however_it_is_cut(step in 1usize..40) {
            let (mut handshake, mut limits) = (handshake(), Vec::new());
            for bytes in framed(welcome()).chunks(step) {
                limits.extend(handshake.handle_bytes(bytes).expect("a welcome"));
            }
            prop_assert_eq!(limits, [LIMITS]);
        }

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = handshake().handle_bytes(&bytes);
        }
    }
}
