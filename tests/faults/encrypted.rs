//! The checker over TLS, with an authority of one's own.

use crate::checker::{Checked, Checker};
use crate::harness::{BROADCAST_KEY, Backend};
use std::path::Path;
use std::time::Duration;

fn file(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/tls").join(name).display().to_string()
}

#[test]
fn clients_and_publishers_speak_tls() {
    let server = Backend::Memory.builder().option("history_limit", 10_000).option("ssl_cert", file("cert.pem"));
    // Readiness is asked for in plain text; what is kept in memory is ready at once.
    let server = server.option("ssl_key", file("key.pem")).start_unready();
    let (client, publisher) = (server.address(), server.broadcast_address());
    let verify = |more: &[String]| -> Checked {
        let mut arguments = vec![
            format!("--url=wss://{client}/cable"),
            format!("--publish-url=https://{publisher}/_broadcast"),
            format!("--key={BROADCAST_KEY}"),
            "--public-streams".to_owned(),
            "--duration=3".to_owned(),
            "--clients=10".to_owned(),
            "--away=0.1-0.5".to_owned(),
        ];
        arguments.extend_from_slice(more);
        Checker::with(&arguments).wait(Duration::from_secs(60))
    };
    let checked = verify(&[format!("--ca-file={}", file("cert.pem"))]);
    assert_eq!(checked.status, Some(0), "{checked:?}");
    assert!(checked.count("delivered") > 100 && checked.count("restored") > 0, "{checked:?}");

    let distrusting = verify(&[]);
    assert_eq!(distrusting.status, Some(2), "{distrusting:?}");
    assert!(distrusting.errors.contains("--ca-file"), "{distrusting:?}");

    let wrong = verify(&[format!("--ca-file={}", file("key.pem"))]);
    assert_eq!(wrong.status, Some(2), "{wrong:?}");
    assert!(wrong.errors.contains("no authority's certificate in"), "{wrong:?}");
}
