//! The server's certificate: read from files, or made by itself, and read again when it changes.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

const IDENTITY_FILE: &str = "identity.pem";
const CERTIFICATE_FILE: &str = "certificate.pem";
/// A certificate that expires within this time is warned about.
const EXPIRES_SOON: Duration = Duration::from_secs(14 * 86_400);
const NAMES: [&str; 4] = ["localhost", "isthmus-tail-server", "127.0.0.1", "::1"];

/// Where the certificate comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsConfig {
    /// PEM files: a certificate chain, the server's own first, and its private key.
    Files {
        /// The chain.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
    },
    /// A self-signed certificate, made on first start and kept in this folder, so that its
    /// fingerprint stays the same.
    SelfSigned {
        /// The folder; it is made when it does not exist.
        dir: PathBuf,
    },
    /// A self-signed certificate that is gone with the process; for demonstrations and tests.
    InMemory,
}

/// Why there is no usable certificate.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file does not hold the PEM section that it should.
    #[error("{}: no usable {what}: {source}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
        /// Why it was not found.
        source: pem::Error,
    },
    /// Certificate and key do not fit each other, or TLS does not take them.
    #[error("the certificate and key cannot be used: {0}")]
    Unusable(String),
    /// A certificate could not be made.
    #[error("no self-signed certificate could be made: {0}")]
    Generate(#[from] rcgen::Error),
}

/// SHA-256 of a certificate's DER form; what a device that has no certificate authority trusts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The fingerprint of `certificate`.
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        Fingerprint(Sha256::digest(certificate).into())
    }

    /// Its 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

/// The certificate that is served now.
pub(crate) struct Certificates {
    config: TlsConfig,
    served: RwLock<Arc<Identity>>,
}

impl Certificates {
    pub(crate) fn load(config: &TlsConfig) -> Result<Arc<Self>, TlsError> {
        let served = RwLock::new(Arc::new(Identity::load(config)?));
        Ok(Arc::new(Certificates { config: config.clone(), served }))
    }

    /// Reads it again; whether it is another one. On an error the one before stays.
    pub(crate) fn reload(&self) -> Result<bool, TlsError> {
        if self.config == TlsConfig::InMemory {
            return Ok(false);
        }
        let read = Identity::load(&self.config)?;
        let changed = read.fingerprint != self.served().fingerprint;
        *self.served.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(read);
        Ok(changed)
    }

    /// The one that is served now.
    pub(crate) fn served(&self) -> Arc<Identity> {
        Arc::clone(&self.served.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The rustls configuration that offers `alpn`.
    pub(crate) fn server_config(
        self: &Arc<Self>,
        alpn: &[u8],
    ) -> Result<rustls::ServerConfig, TlsError> {
        let unusable = |error: rustls::Error| TlsError::Unusable(error.to_string());
        let builder = rustls::ServerConfig::builder_with_provider(ring::default_provider().into())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(unusable)?;
        let resolver = Resolver(Arc::clone(self));
        let mut config = builder.with_no_client_auth().with_cert_resolver(Arc::new(resolver));
        config.alpn_protocols = vec![alpn.to_vec()];
        Ok(config)
    }
}

/// Gives each new connection the certificate of the moment.
struct Resolver(Arc<Certificates>);

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resolver")
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.served().certified))
    }
}

/// A certificate chain with its key.
pub(crate) struct Identity {
    certified: Arc<CertifiedKey>,
    pub(crate) fingerprint: Fingerprint,
    /// When it expires, where it says so.
    pub(crate) expires: Option<SystemTime>,
    /// Signs stateless resets. It hangs from the private key, so that a server that was started again
    /// can tell its former connections that they are no more.
    pub(crate) reset_key: [u8; 32],
}

impl Identity {
    fn load(config: &TlsConfig) -> Result<Self, TlsError> {
        match config {
            TlsConfig::Files { cert, key } => {
                let (cert_pem, key_pem) = (read(cert)?, read(key)?);
                Identity::parse((cert, &cert_pem), (key, &key_pem))
            }
            TlsConfig::SelfSigned { dir } => {
                let path = dir.join(IDENTITY_FILE);
                let pem = match path.exists() {
                    true => read(&path)?,
                    false => keep(dir, &path, generate()?)?,
                };
                Identity::parse((&path, &pem), (&path, &pem))
            }
            TlsConfig::InMemory => {
                let Generated { certificate, key } = generate()?;
                let path = Path::new("self-signed certificate");
                Identity::parse((path, &certificate), (path, &key))
            }
        }
    }

    fn parse(cert: (&Path, &str), key: (&Path, &str)) -> Result<Self, TlsError> {
        let wrong = |path: &Path, what, source| TlsError::Pem { path: path.into(), what, source };
        let chain: Vec<_> = CertificateDer::pem_slice_iter(cert.1.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|source| wrong(cert.0, "certificate", source))?;
        let Some(first) = chain.first() else {
            return Err(wrong(cert.0, "certificate", pem::Error::NoItemsFound));
        };
        let fingerprint = Fingerprint::of(first);
        let expires = expires(first);
        let private = PrivateKeyDer::from_pem_slice(key.1.as_bytes())
            .map_err(|source| wrong(key.0, "private key", source))?;
        let reset_key = Sha256::new()
            .chain_update(b"isthmus stateless reset")
            .chain_update(private.secret_der())
            .finalize()
            .into();
        let certified = CertifiedKey::from_der(chain, private, &ring::default_provider())
            .map_err(|error| TlsError::Unusable(error.to_string()))?;
        Ok(Identity { certified: Arc::new(certified), fingerprint, expires, reset_key })
    }

    /// What whoever renews the certificate should know at `now`.
    pub(crate) fn warning(&self, now: SystemTime) -> Option<String> {
        let days = |span: Duration| span.as_secs() / 86_400;
        match self.expires?.duration_since(now) {
            Ok(left) if left >= EXPIRES_SOON => None,
            Ok(left) => Some(format!("the certificate expires in {} days", days(left))),
            Err(past) => {
                Some(format!("the certificate expired {} days ago", days(past.duration())))
            }
        }
    }
}

/// When a certificate's validity ends.
fn expires(certificate: &CertificateDer<'_>) -> Option<SystemTime> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let seconds = u64::try_from(parsed.validity().not_after.timestamp()).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// PEM texts.
struct Generated {
    certificate: String,
    key: String,
}

fn generate() -> Result<Generated, TlsError> {
    let names: Vec<String> = NAMES.iter().map(|name| (*name).to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(names)?;
    Ok(Generated { certificate: made.cert.pem(), key: made.signing_key.serialize_pem() })
}

fn read(path: &Path) -> Result<String, TlsError> {
    fs::read_to_string(path).map_err(|source| TlsError::File { path: path.into(), source })
}

/// Stores a new identity at `path`, unless another process was faster; returns what is there. The
/// file appears under its name only when it is complete.
fn keep(dir: &Path, path: &Path, generated: Generated) -> Result<String, TlsError> {
    let failed = |path: &Path, source| TlsError::File { path: path.into(), source };
    fs::create_dir_all(dir).map_err(|source| failed(dir, source))?;
    let draft = dir.join(format!("{IDENTITY_FILE}.{}", std::process::id()));
    let identity = generated.certificate.clone() + &generated.key;
    write_private(&draft, &identity).map_err(|source| {
        // A full disk is not to keep what it has of a key.
        let _ = fs::remove_file(&draft);
        failed(&draft, source)
    })?;
    let linked = fs::hard_link(&draft, path);
    fs::remove_file(&draft).map_err(|source| failed(&draft, source))?;
    match linked {
        Ok(()) => {
            // For devices that would rather trust the certificate than its fingerprint.
            let public = dir.join(CERTIFICATE_FILE);
            fs::write(&public, &generated.certificate).map_err(|source| failed(&public, source))?;
            Ok(identity)
        }
        Err(source) if source.kind() == io::ErrorKind::AlreadyExists => read(path),
        Err(source) => Err(failed(path, source)),
    }
}

fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)?.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn self_signed(dir: &Path) -> TlsConfig {
        TlsConfig::SelfSigned { dir: dir.join("tls") }
    }

    #[test]
    fn a_self_signed_certificate_is_made_once() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let first = Identity::load(&self_signed(dir.path())).expect("made");
        let second = Identity::load(&self_signed(dir.path())).expect("found");
        assert_eq!(first.fingerprint, second.fingerprint);
        assert_eq!(first.fingerprint.to_string().len(), 64);
        assert!(first.expires.is_some() && first.warning(SystemTime::now()).is_none());
        let other = Identity::load(&TlsConfig::InMemory).expect("made");
        assert_ne!(first.fingerprint, other.fingerprint);
    }

    #[cfg(unix)]
    #[test]
    fn the_key_is_readable_by_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("a temporary folder");
        Identity::load(&self_signed(dir.path())).expect("made");
        let identity = dir.path().join("tls").join(IDENTITY_FILE);
        let mode = fs::metadata(identity).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn files_are_named_when_they_are_missing_or_wrong() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
        let load = || {
            let config = TlsConfig::Files { cert: cert.clone(), key: key.clone() };
            Identity::load(&config).err().map(|error| error.to_string()).unwrap_or_default()
        };
        assert!(load().contains("cert.pem"));
        let made = generate().expect("made");
        fs::write(&cert, &made.certificate).expect("written");
        assert!(load().contains("key.pem"));
        fs::write(&key, &made.certificate).expect("written");
        assert!(load().contains("key.pem: no usable private key"));
        fs::write(&key, &made.key).expect("written");
        assert_eq!(load(), "");
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let (one, other) = (generate().expect("made"), generate().expect("made"));
        let path = Path::new("x");
        let identity = Identity::parse((path, &one.certificate), (path, &other.key));
        assert!(matches!(identity, Err(TlsError::Unusable(_))));
    }

    #[test]
    fn a_renewed_certificate_takes_the_place_of_the_one_before() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
        let write = |made: &Generated| {
            fs::write(&cert, &made.certificate).expect("written");
            fs::write(&key, &made.key).expect("written");
        };
        write(&generate().expect("made"));
        let config = TlsConfig::Files { cert: cert.clone(), key: key.clone() };
        let certificates = Certificates::load(&config).expect("good");
        let before = certificates.served().fingerprint;
        assert!(!certificates.reload().expect("as it was"));
        // Half of a renewal: the key does not fit yet.
        let renewed = generate().expect("made");
        fs::write(&cert, &renewed.certificate).expect("written");
        assert!(certificates.reload().is_err());
        assert_eq!(certificates.served().fingerprint, before);
        write(&renewed);
        assert!(certificates.reload().expect("good"));
        assert_ne!(certificates.served().fingerprint, before);
    }

    #[test]
    fn a_certificate_that_expires_is_told_in_time() {
        let mut params =
            rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        params.not_after = rcgen::date_time_ymd(2026, 5, 20);
        let key = rcgen::KeyPair::generate().expect("made");
        let made = params.self_signed(&key).expect("made");
        let path = Path::new("x");
        let pem = (made.pem(), key.serialize_pem());
        let identity = Identity::parse((path, &pem.0), (path, &pem.1)).expect("well formed");
        let end = identity.expires.expect("it says so");
        let day = Duration::from_secs(86_400);
        assert_eq!(identity.warning(end - day * 14), None);
        assert_eq!(
            identity.warning(end - day * 3 - day / 2).as_deref(),
            Some("the certificate expires in 3 days")
        );
        let told = identity.warning(end + day * 2);
        assert_eq!(told.as_deref(), Some("the certificate expired 2 days ago"));
    }
}
