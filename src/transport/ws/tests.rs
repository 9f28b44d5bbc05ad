use super::*;
use crate::protocol::Encoding;
use crate::transport::connections::{ConnectionLimits, Connections};
use crate::transport::tls::acceptor;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use std::path::Path;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// A connection with TLS, the server's side first.
async fn tls_pair() -> (Socket, tokio_rustls::client::TlsStream<TcpStream>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/tls");
    let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&cert).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let client = Arc::new(client.with_root_certificates(roots).with_no_client_auth());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    let tcp = socket.connect(listener.local_addr().unwrap()).await.unwrap();
    let (accepted, _) = listener.accept().await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(client);
    let (server, client) = tokio::join!(
        acceptor(&cert, &key).unwrap().accept(accepted),
        connector.connect("localhost".try_into().unwrap(), tcp)
    );
    let share = Connections::new(ConnectionLimits::NONE).door().admit(None).unwrap().share;
    (Socket::tls(server.unwrap(), share), client.unwrap())
}

/// A connection with TLS whose client takes nothing, and what is queued for it: 1,000 frames of 1,000 bytes.
async fn unread(
    patience: Duration,
    counter: &'static metrics::Counter,
    limit: usize,
) -> (WriteHalf<Socket>, Outbox, impl Sized) {
    let (mut socket, silent) = tls_pair().await;
    unsent::bound(socket.tcp().as_fd());
    socket.give_up_after(patience, counter);
    let (read, write) = tokio::io::split(socket);
    let outbox = Outbox::new(Encoding::Json, limit);
    for _ in 0..1_000 {
        outbox.push(Bytes::from(vec![b'x'; 1_000]));
    }
    (write, outbox, (silent, read))
}

/// What it is sent fits into what the TLS session keeps: nothing is left to be written, only to be flushed.
#[tokio::test]
async fn a_tls_client_that_takes_nothing_is_given_up_while_its_session_is_flushed() {
    let (mut write, outbox, _silent) = unread(Duration::from_millis(500), &metrics::WRITE_TIMEOUTS, 0).await;
    let writing = write_out(&mut write, &outbox, Duration::from_millis(50));
    let outcome = tokio::time::timeout(Duration::from_secs(20), writing).await.expect("it is given up");
    assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::TimedOut);
    let end = tokio::time::timeout(Duration::from_secs(5), write.shutdown()).await;
    end.expect("nobody waits for the end of the session").unwrap_err();
}

/// The same client is too slow when more than its limit waits.
#[tokio::test]
async fn a_tls_client_is_too_slow_while_its_session_is_flushed() {
    let (mut write, outbox, _silent) = unread(Duration::from_secs(60), &metrics::WRITE_TIMEOUTS, 200_000).await;
    let writing = write_out(&mut write, &outbox, Duration::from_millis(200));
    let _ = tokio::time::timeout(Duration::from_secs(20), writing).await.expect("it is closed and given up");
    assert_eq!(outbox.closing(), Some(Close::TooSlow));
}

/// It holds its place among the connections until then, also while its socket may take something yet.
#[tokio::test]
async fn a_tls_client_that_was_closed_and_does_not_read_has_no_more_than_the_time_for_that() {
    static TAKES_NOTHING: metrics::Counter = metrics::Counter::at_zero();
    let (mut write, outbox, _silent) = unread(Duration::from_secs(60), &TAKES_NOTHING, 0).await;
    outbox.close(Close::Remote { reconnect: true });
    let written = write_out(&mut write, &outbox, Duration::from_millis(50)).await;
    assert_eq!(written.as_ref().unwrap_err().kind(), io::ErrorKind::TimedOut, "its time is over, which was counted");
    let in_order = settle(written, &outbox);
    tokio::time::timeout(Duration::from_secs(20), hang_up(&mut write, in_order)).await.expect("it is left");
    assert_eq!(TAKES_NOTHING.get(), 0, "it is not counted again");
}

/// All is written, and the kernel has no room for the farewell of the session.
#[tokio::test]
async fn nobody_waits_for_the_end_of_a_session_for_which_the_client_makes_no_room() {
    let (mut socket, _silent) = tls_pair().await;
    unsent::bound(socket.tcp().as_fd());
    socket.give_up_after(Duration::from_secs(60), &metrics::WRITE_TIMEOUTS);
    let (_read, mut write) = tokio::io::split(socket);
    let block = vec![b'x'; 16 << 10];
    while tokio::time::timeout(Duration::from_millis(200), write.write_all(&block)).await.is_ok() {}
    tokio::time::timeout(CLOSE_WAIT * 10, hang_up(&mut write, true)).await.expect("it is left");
}
