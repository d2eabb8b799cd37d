//! Who the simulated server is, and where its and the devices' chance comes from.
//!
//! What is exchanged is real. Key shares and signatures come from the operating system's chance all
//! the same, but are always as long, and nothing of a run hangs from what they are.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use isthmus_head_client::quic::client_config;
use isthmus_head_client::tls::{Fingerprint, Trust, verifier};
use isthmus_proto::{ALPN, DEFAULT_MAX_FRAME_BYTES, Timestamp};
use isthmus_tail_server::transport_config;
use quinn_proto::crypto::rustls::QuicServerConfig;
use quinn_proto::{
    ClientConfig, ConnectionId, EndpointConfig, HashedConnectionIdGenerator, ServerConfig,
    TimeSource,
};
use rand::Rng as _;
use rand_pcg::Pcg64;
use rcgen::{CertificateParams, KeyPair, PKCS_ED25519};
use ring::{hkdf, hmac};
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::{CryptoProvider, GetRandomFailed, SecureRandom};
use rustls::pki_types::PrivatePkcs8KeyDer;

use crate::link::chance::scattered;

/// The name under which devices know the server.
pub(super) const HOST: &str = "localhost";

/// An Ed25519 key in PKCS #8 (RFC 8410), but for the key itself.
const PKCS8: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// When virtual time begins, for those who ask for a date: 2024 (s since 1970).
const EPOCH: Duration = Duration::from_secs(1_704_067_200);

/// What makes both ends, always the same from one seed.
pub(super) struct Identity {
    seed: u64,
    provider: Arc<CryptoProvider>,
    verifier: Arc<dyn ServerCertVerifier>,
    server: Arc<ServerConfig>,
    date: Date,
}

/// The date in virtual time.
#[derive(Clone, Default)]
pub(super) struct Date(Arc<AtomicU64>);

impl Date {
    pub(super) fn set(&self, now: Timestamp) {
        self.0.store(now.as_micros(), Ordering::Relaxed);
    }
}

impl TimeSource for Date {
    fn now(&self) -> SystemTime {
        UNIX_EPOCH + EPOCH + Duration::from_micros(self.0.load(Ordering::Relaxed))
    }
}

impl Identity {
    /// An Ed25519 certificate, whose signatures are all equally long, and the server's
    /// configuration.
    ///
    /// # Panics
    ///
    /// If the cryptography cannot do what it says: nothing here comes from outside.
    pub(super) fn new(seed: u64, max_in_flight: usize) -> Self {
        SEEDED.with_borrow_mut(|dice| *dice = dice_of(seed, 0));
        let provider = rustls::crypto::ring::default_provider();
        let provider = Arc::new(CryptoProvider { secure_random: &Seeded, ..provider });
        let key = [&PKCS8[..], &bytes::<32>(seed, 1)].concat();
        let key = PrivatePkcs8KeyDer::from(key);
        let pair = KeyPair::from_pkcs8_der_and_sign_algo(&key, &PKCS_ED25519)
            .expect("any 32 bytes are an Ed25519 key");
        let certificate = CertificateParams::new(vec![HOST.to_owned()])
            .and_then(|params| params.self_signed(&pair))
            .expect("a host's name can be certified")
            .der()
            .clone();
        let trust = Trust::Fingerprints(vec![Fingerprint::of(&certificate)]);
        let verifier = verifier(&trust).expect("a fingerprint needs no file");
        let mut tls = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .and_then(|tls| {
                tls.with_no_client_auth().with_single_cert(vec![certificate], key.into())
            })
            .expect("TLS 1.3 takes Ed25519");
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let crypto = QuicServerConfig::try_from(tls).expect("ring has QUIC's first cipher");
        let token = hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(&bytes::<64>(seed, 2));
        let date = Date::default();
        let mut server = ServerConfig::new(Arc::new(crypto), Arc::new(token));
        server.transport_config(Arc::new(transport_config(DEFAULT_MAX_FRAME_BYTES, max_in_flight)));
        server.time_source(Arc::new(date.clone()));
        Identity { seed, provider, verifier, server: Arc::new(server), date }
    }

    pub(super) fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }

    pub(super) fn date(&self) -> &Date {
        &self.date
    }

    /// The configuration of the `number`-th endpoint.
    pub(super) fn endpoint(&self, number: u64) -> Arc<EndpointConfig> {
        let seed = scattered(self.seed ^ scattered(number));
        let reset = hmac::Key::new(hmac::HMAC_SHA256, &bytes::<64>(seed, 3));
        let mut endpoint = EndpointConfig::new(Arc::new(reset));
        let ids = scattered(seed);
        endpoint.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(ids)));
        endpoint.rng_seed(Some(bytes::<32>(seed, 4)));
        Arc::new(endpoint)
    }

    /// The configuration of the `number`-th endpoint's one connection.
    pub(super) fn client(&self, number: u64) -> ClientConfig {
        let mut client = client_config(Arc::clone(&self.provider), Arc::clone(&self.verifier))
            .expect("ring has TLS 1.3 and QUIC's first cipher");
        let id = bytes::<20>(scattered(self.seed ^ scattered(number)), 5);
        client.initial_dst_cid_provider(Arc::new(move || ConnectionId::new(&id)));
        client
    }
}

fn dice_of(seed: u64, purpose: u64) -> Pcg64 {
    let wide = |value: u64| u128::from(scattered(value)) << 64 | u128::from(scattered(!value));
    Pcg64::new(wide(seed), wide(purpose))
}

fn bytes<const N: usize>(seed: u64, purpose: u64) -> [u8; N] {
    let mut bytes = [0; N];
    dice_of(seed, purpose).fill_bytes(&mut bytes);
    bytes
}

thread_local! {
    /// A provider's chance lives as long as the program; a world runs on one thread.
    static SEEDED: RefCell<Pcg64> = RefCell::new(dice_of(0, 0));
}

/// Chance for TLS that is none, for a server that is none.
#[derive(Debug)]
struct Seeded;

impl SecureRandom for Seeded {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), GetRandomFailed> {
        SEEDED.with_borrow_mut(|dice| dice.fill_bytes(bytes));
        Ok(())
    }
}
