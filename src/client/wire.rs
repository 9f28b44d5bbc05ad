//! The bytes below a connection: TCP, or TLS over it.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// An open connection, encrypted or not. Dropping it cuts the TCP connection.
pub(super) type Wire = Box<dyn Io>;

pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Whose certificates a client believes.
#[derive(Clone, Debug)]
pub struct Trust(Arc<ClientConfig>);

/// Why certificates cannot be checked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TrustError {
    #[error("no authority's certificate in {}: {reason}; it must be a PEM file", path.display())]
    File { path: PathBuf, reason: String },
    #[error("the system has no trusted certificates: give a file with the authority's{0}")]
    NoSystemRoots(String),
    #[error("TLS cannot be used: {0}")]
    Tls(String),
}

impl Trust {
    /// The authorities in this PEM file, and nobody else.
    ///
    /// # Errors
    /// The file cannot be read, or holds no certificate.
    pub fn file(path: &Path) -> Result<Self, TrustError> {
        let fault = |reason: String| TrustError::File { path: path.to_owned(), reason };
        let mut roots = RootCertStore::empty();
        let certificates = CertificateDer::pem_file_iter(path).map_err(|error| fault(error.to_string()))?;
        for certificate in certificates {
            let certificate = certificate.map_err(|error| fault(error.to_string()))?;
            roots.add(certificate).map_err(|error| fault(error.to_string()))?;
        }
        if roots.is_empty() { Err(fault("nothing found".to_owned())) } else { Self::of(roots) }
    }

    /// The system's authorities, read once.
    ///
    /// # Errors
    /// It has none.
    pub fn system() -> Result<Self, TrustError> {
        static SYSTEM: OnceLock<Result<Trust, TrustError>> = OnceLock::new();
        let read = || {
            let system = rustls_native_certs::load_native_certs();
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(system.certs);
            let errors: String = system.errors.iter().map(|error| format!("; {error}")).collect();
            if roots.is_empty() { Err(TrustError::NoSystemRoots(errors)) } else { Self::of(roots) }
        };
        SYSTEM.get_or_init(read).clone()
    }

    fn of(roots: RootCertStore) -> Result<Self, TrustError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(|error| TrustError::Tls(error.to_string()))?;
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        // Both WebSocket and publishing are HTTP/1.1.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(Arc::new(config)))
    }
}

/// How to reach a server.
pub(super) struct Route<'a> {
    /// Name or address, as in a URL.
    pub host: &'a str,
    pub port: u16,
    pub encrypted: bool,
    /// `None`: the system's authorities.
    pub trust: Option<&'a Trust>,
}

/// Connects, and shakes hands where the connection is encrypted.
///
/// # Errors
/// Nobody listens, or the certificate is not to be trusted.
pub(super) async fn dial(route: Route<'_>) -> io::Result<Wire> {
    let Route { host, port, encrypted, trust } = route;
    let tcp = TcpStream::connect(format!("{host}:{port}")).await?;
    // Requests are small and wait for their answer: waiting to fill a packet only adds delay.
    let _ = tcp.set_nodelay(true);
    if !encrypted {
        return Ok(Box::new(tcp));
    }
    let trust = match trust {
        Some(trust) => trust.clone(),
        None => Trust::system().map_err(io::Error::other)?,
    };
    // A URL writes an IPv6 address in brackets, a certificate does not.
    let name = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let name = ServerName::try_from(name).map_err(io::Error::other)?;
    Ok(Box::new(TlsConnector::from(trust.0).connect(name, tcp).await?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_certificates_is_an_error_that_names_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Trust::file(file.path()).unwrap_err().to_string();
        assert!(error.contains("nothing found") && error.contains("PEM"), "{error}");
        assert!(Trust::file(Path::new("/nowhere.pem")).is_err());
    }
}
