//! Checks that the server is the one it should be.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Mutex};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};
use sha2::{Digest, Sha256};

/// What makes a server the right one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Its certificate has one of these fingerprints; name and dates of the certificate do not matter.
    Fingerprints(Vec<Fingerprint>),
    /// Its certificate is for the name in the server's URL and was issued by a certificate
    /// authority of this PEM file.
    Authorities(PathBuf),
}

/// SHA-256 of a certificate in DER form; written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

/// Text that is no fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint is the SHA-256 of the server's certificate: 64 hexadecimal digits")]
pub struct FingerprintError;

/// Why the check could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The file of certificate authorities cannot be read.
    #[error("{path}: {reason}", path = .path.display())]
    Authorities {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// Checks what `trust` says.
pub fn verifier(trust: &Trust) -> Result<Arc<dyn ServerCertVerifier>, TrustError> {
    Ok(Verifier::new(trust)?)
}

/// A verifier that remembers why it refused, because transports report a refused certificate in
/// words of their own.
#[derive(Debug)]
pub(crate) struct Verifier {
    check: Check,
    provider: Arc<CryptoProvider>,
    refusal: Mutex<Option<String>>,
}

#[derive(Debug)]
enum Check {
    Fingerprints(Vec<Fingerprint>),
    Authorities(Arc<WebPkiServerVerifier>),
}

impl Fingerprint {
    /// The fingerprint of a certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        Fingerprint(Sha256::digest(certificate).into())
    }
}

impl FromStr for Fingerprint {
    type Err = FingerprintError;

    /// Colons between the digits are allowed, as other tools print them.
    fn from_str(text: &str) -> Result<Self, FingerprintError> {
        let nibbles: Option<Vec<u8>> = text
            .chars()
            .filter(|&c| c != ':')
            .map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
            .collect();
        let nibbles = nibbles.filter(|nibbles| nibbles.len() == 64).ok_or(FingerprintError)?;
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(nibbles.chunks_exact(2)) {
            *byte = pair[0] << 4 | pair[1];
        }
        Ok(Fingerprint(bytes))
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

impl Verifier {
    pub(crate) fn new(trust: &Trust) -> Result<Arc<Self>, TrustError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let check = match trust {
            Trust::Fingerprints(fingerprints) => Check::Fingerprints(fingerprints.clone()),
            Trust::Authorities(path) => {
                let fail = |reason: String| TrustError::Authorities { path: path.clone(), reason };
                let mut roots = RootCertStore::empty();
                let certificates =
                    CertificateDer::pem_file_iter(path).map_err(|error| fail(error.to_string()))?;
                for certificate in certificates {
                    let certificate = certificate.map_err(|error| fail(error.to_string()))?;
                    roots.add(certificate).map_err(|error| fail(error.to_string()))?;
                }
                let webpki = WebPkiServerVerifier::builder_with_provider(
                    Arc::new(roots),
                    Arc::clone(&provider),
                );
                Check::Authorities(webpki.build().map_err(|error| fail(error.to_string()))?)
            }
        };
        Ok(Arc::new(Verifier { check, provider, refusal: Mutex::new(None) }))
    }

    pub(crate) fn provider(&self) -> Arc<CryptoProvider> {
        Arc::clone(&self.provider)
    }

    /// Why the last certificate was refused, once.
    pub(crate) fn take_refusal(&self) -> Option<String> {
        self.refusal.lock().ok()?.take()
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let refusal = match &self.check {
            Check::Fingerprints(expected) => {
                let actual = Fingerprint::of(end_entity);
                if expected.contains(&actual) {
                    return Ok(ServerCertVerified::assertion());
                }
                let expected: Vec<_> = expected.iter().map(ToString::to_string).collect();
                let words = format!(
                    "its certificate has fingerprint {actual}, expected {}",
                    expected.join(" or ")
                );
                let cause = rustls::CertificateError::ApplicationVerificationFailure;
                (words, rustls::Error::InvalidCertificate(cause))
            }
            Check::Authorities(webpki) => {
                let verified = webpki.verify_server_cert(
                    end_entity,
                    intermediates,
                    server_name,
                    ocsp_response,
                    now,
                );
                match verified {
                    Ok(verified) => return Ok(verified),
                    Err(error) => (error.to_string(), error),
                }
            }
        };
        let (words, error) = refusal;
        if let Ok(mut last) = self.refusal.lock() {
            *last = Some(words);
        }
        Err(error)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_survive_text_with_and_without_colons() {
        let fingerprint = Fingerprint::of(&CertificateDer::from(vec![1, 2, 3]));
        let text = fingerprint.to_string();
        assert_eq!(text.parse(), Ok(fingerprint));
        let colons: Vec<_> =
            text.as_bytes().chunks(2).map(|pair| pair.escape_ascii().to_string()).collect();
        assert_eq!(colons.join(":").to_uppercase().parse(), Ok(fingerprint));
        for bad in ["", "ab", &"x".repeat(64), &"a".repeat(66)] {
            assert_eq!(bad.parse::<Fingerprint>(), Err(FingerprintError));
        }
    }

    #[test]
    fn a_file_without_authorities_is_refused_by_name() {
        for content in ["", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            let file = tempfile::NamedTempFile::new().expect("a temporary file");
            std::fs::write(file.path(), content).expect("written");
            let trust = Trust::Authorities(file.path().to_owned());
            let error = Verifier::new(&trust).expect_err("refused").to_string();
            assert!(error.starts_with(&file.path().display().to_string()), "{error}");
        }
    }
}
