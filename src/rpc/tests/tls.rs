//! TLS in both directions, over both wires.

use super::grpc::Stub;
use super::server::{Handler, Server, Version, answer};
use super::*;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use std::sync::Arc;
use tokio_rustls::TlsAcceptor;

const CERT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/tls/cert.pem");
const KEY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/tls/key.pem");

/// The test certificate's server; `mutual`: it wants to see the same certificate of its clients.
fn acceptor(alpn: &str, mutual: bool) -> TlsAcceptor {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain: Vec<_> = CertificateDer::pem_file_iter(CERT).unwrap().collect::<Result<_, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_file(KEY).unwrap();
    let builder = rustls::ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    let builder = match mutual {
        false => builder.unwrap().with_no_client_auth(),
        true => {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(chain[0].clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
            builder.unwrap().with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_single_cert(chain, key).unwrap();
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

async fn grpc(mutual: bool) -> Server {
    let any = "127.0.0.1:0".parse().unwrap();
    Server::start_at(any, Version::Http2, Stub::default().handler(), Some(acceptor("h2", mutual))).await
}

async fn command(server: &Server, change: impl FnOnce(&mut TlsFiles)) -> Result<CommandEffects, RpcError> {
    let app = application(&server.address.to_string(), |config| change(&mut config.tls));
    app.command(&"s1".into(), message("")).await
}

#[tokio::test]
async fn grpc_checks_the_certificate_unless_told_otherwise() {
    let server = grpc(false).await;
    command(&server, |tls| tls.root_ca = Some(CERT.into())).await.expect("a root implies TLS");
    let inline = std::fs::read_to_string(CERT).unwrap();
    command(&server, |tls| tls.root_ca = Some(inline)).await.expect("a root as text");
    command(&server, |tls| (tls.enabled, tls.verify) = (true, false)).await.expect("unchecked");

    let plain = command(&server, |_| {}).await.unwrap_err();
    assert!(matches!(plain, RpcError::Unreachable(_)), "{plain}");
    let system = start(RpcConfig {
        host: server.address.to_string(),
        tls: TlsFiles { enabled: true, ..TlsFiles::default() },
        ..RpcConfig::default()
    });
    // A machine without any roots refuses to start, one with roots refuses the certificate.
    if let Ok(app) = system {
        let error = app.unwrap().command(&"s1".into(), message("")).await.unwrap_err();
        assert!(error.to_string().contains("no TLS with"), "{error}");
    }
}

#[tokio::test]
async fn mutual_tls_shows_our_certificate() {
    let server = grpc(true).await;
    let with_root = |tls: &mut TlsFiles| tls.root_ca = Some(CERT.into());
    command(&server, |tls| {
        with_root(tls);
        (tls.client_cert, tls.client_key) = (Some(CERT.into()), Some(KEY.into()));
    })
    .await
    .expect("both know each other");
    let unknown = command(&server, with_root).await.unwrap_err();
    assert!(matches!(unknown, RpcError::Unreachable(_) | RpcError::Timeout), "{unknown}");
}

#[tokio::test]
async fn https_checks_the_certificate_and_gives_up_at_once() {
    let handler: Handler = Arc::new(|_| Box::pin(async { answer(200, "{\"status\":1}") }));
    // The certificate holds for 127.0.0.1, and not for 127.0.0.2.
    let on = async |ip: &str| {
        let address = format!("{ip}:0").parse().unwrap();
        let tls = Some(acceptor("http/1.1", false));
        let server = Server::start_at(address, Version::Http1, handler.clone(), tls).await;
        let app =
            application(&format!("https://{}/rpc", server.address), |config| config.tls.root_ca = Some(CERT.into()));
        (server, app)
    };
    let (_server, app) = on("127.0.0.1").await;
    app.command(&"s1".into(), message("")).await.unwrap();
    let (server, app) = on("127.0.0.2").await;
    let error = app.command(&"s1".into(), message("")).await.unwrap_err();
    assert!(error.to_string().contains("no TLS with"), "{error}");
    assert_eq!(server.connections(), 1, "another attempt would bring the same");
}

#[tokio::test]
async fn unusable_files_are_errors_at_start() {
    let dir = tempfile::tempdir().unwrap();
    let junk = dir.path().join("junk.pem");
    std::fs::write(&junk, "junk").unwrap();
    let junk = || junk.clone();
    let cert = || Some(std::path::PathBuf::from(CERT));
    let faults = [
        (TlsFiles { root_ca: Some("/no/such/file".into()), ..TlsFiles::default() }, "rpc_tls_root_ca"),
        (TlsFiles { root_ca: Some(junk().display().to_string()), ..TlsFiles::default() }, "rpc_tls_root_ca"),
        (TlsFiles { root_ca: Some("-----BEGIN junk".into()), ..TlsFiles::default() }, "rpc_tls_root_ca"),
        (TlsFiles { client_cert: cert(), ..with_root() }, "belong together"),
        (TlsFiles { client_cert: Some(junk()), client_key: Some(KEY.into()), ..with_root() }, "rpc_tls_client_cert"),
        (TlsFiles { client_cert: cert(), client_key: Some(junk()), ..with_root() }, "rpc_tls_client_key"),
    ];
    for (tls, expected) in faults {
        for host in ["localhost:1", "https://localhost:1"] {
            let config = RpcConfig { host: host.into(), tls: tls.clone(), ..RpcConfig::default() };
            let error = start(config).err().unwrap_or_else(|| panic!("{tls:?}")).to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}

fn with_root() -> TlsFiles {
    TlsFiles { root_ca: Some(CERT.into()), ..TlsFiles::default() }
}
