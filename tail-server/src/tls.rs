//! The server's certificate: read from files, or made by itself.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};

const IDENTITY_FILE: &str = "identity.pem";
const CERTIFICATE_FILE: &str = "certificate.pem";
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

/// A certificate chain with its key.
pub(crate) struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    pub(crate) fingerprint: Fingerprint,
}

impl Identity {
    pub(crate) fn load(config: &TlsConfig) -> Result<Self, TlsError> {
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

    /// The rustls configuration that offers `alpn`.
    pub(crate) fn server_config(&self, alpn: &[u8]) -> Result<rustls::ServerConfig, TlsError> {
        let unusable = |error: rustls::Error| TlsError::Unusable(error.to_string());
        let provider = Arc::new(ring::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(unusable)?;
        let mut config = builder
            .with_no_client_auth()
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .map_err(unusable)?;
        config.alpn_protocols = vec![alpn.to_vec()];
        Ok(config)
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
        let private = PrivateKeyDer::from_pem_slice(key.1.as_bytes())
            .map_err(|source| wrong(key.0, "private key", source))?;
        Ok(Identity { chain, key: private, fingerprint })
    }
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
        assert!(first.server_config(b"x").is_ok());
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
        let config = identity.expect("well formed").server_config(b"x");
        assert!(matches!(config, Err(TlsError::Unusable(_))));
    }
}
