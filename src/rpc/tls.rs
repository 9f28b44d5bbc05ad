//! TLS towards the application: whom to trust, how to prove who we are.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// TLS as it is configured.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// Use TLS over gRPC; a root CA implies it. Over HTTP the URL decides.
    pub enabled: bool,
    /// Check the server's certificate.
    pub verify: bool,
    /// Authorities to trust in place of the system's: PEM text, or the path of a PEM file.
    pub root_ca: Option<String>,
    /// PEM files of our own certificate chain and key; both or none.
    pub client_cert: Option<PathBuf>,
    pub client_key: Option<PathBuf>,
}

impl Default for TlsFiles {
    fn default() -> Self {
        Self { enabled: false, verify: true, root_ca: None, client_cert: None, client_key: None }
    }
}

/// Why TLS cannot be used as it is configured.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("no authority's certificate in rpc_tls_root_ca: it must be PEM text or the path of a PEM file ({0})")]
    RootCa(String),
    #[error("the system has no trusted certificates: give rpc_tls_root_ca{0}")]
    NoSystemRoots(String),
    #[error("cannot read {option} from {path}: {reason}; it must be a PEM file, a key not encrypted", path = path.display())]
    Client { option: &'static str, path: PathBuf, reason: String },
    #[error("rpc_tls_client_cert and rpc_tls_client_key belong together: give both or neither")]
    Half,
    #[error("client certificate and key cannot be used: {0}")]
    Pair(#[source] rustls::Error),
}

impl TlsFiles {
    /// Reads the files, once. `alpn` is the one protocol that is spoken.
    pub fn client(&self, alpn: &[u8]) -> Result<Arc<ClientConfig>, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(TlsError::Pair)?;
        let builder = if self.verify {
            builder.with_root_certificates(self.roots()?)
        } else {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Anyone(provider)))
        };
        let mut config = match (&self.client_cert, &self.client_key) {
            (Some(cert), Some(key)) => {
                builder.with_client_auth_cert(chain(cert)?, private_key(key)?).map_err(TlsError::Pair)?
            }
            (None, None) => builder.with_no_client_auth(),
            _ => return Err(TlsError::Half),
        };
        config.alpn_protocols = vec![alpn.to_vec()];
        Ok(Arc::new(config))
    }

    fn roots(&self) -> Result<RootCertStore, TlsError> {
        let mut roots = RootCertStore::empty();
        let Some(given) = &self.root_ca else {
            let system = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(system.certs);
            let errors: String = system.errors.iter().map(|error| format!("; {error}")).collect();
            return if roots.is_empty() { Err(TlsError::NoSystemRoots(errors)) } else { Ok(roots) };
        };
        let certificates: Result<Vec<_>, _> = if is_inline(given) {
            CertificateDer::pem_slice_iter(given.as_bytes()).collect()
        } else {
            CertificateDer::pem_file_iter(given).and_then(Iterator::collect)
        };
        for certificate in certificates.map_err(|error| TlsError::RootCa(error.to_string()))? {
            roots.add(certificate).map_err(|error| TlsError::RootCa(error.to_string()))?;
        }
        if roots.is_empty() { Err(TlsError::RootCa("nothing found".to_owned())) } else { Ok(roots) }
    }
}

/// Whether the text is a certificate itself, and not a path.
pub fn is_inline(text: &str) -> bool {
    text.trim_start().starts_with("-----BEGIN")
}

fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let fault = |reason: String| TlsError::Client { option: "rpc_tls_client_cert", path: path.to_owned(), reason };
    let chain: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error: rustls::pki_types::pem::Error| fault(error.to_string()))?;
    if chain.is_empty() { Err(fault("no certificate found".to_owned())) } else { Ok(chain) }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| TlsError::Client {
        option: "rpc_tls_client_key",
        path: path.to_owned(),
        reason: error.to_string(),
    })
}

/// Takes any certificate (`rpc_tls_verify=false`). The connection is encrypted, with whomever.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
