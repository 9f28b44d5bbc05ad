//! What a running server says of itself: its ports, and whether JetStream answers.

use super::config::Credentials;
use std::path::Path;
use std::time::Duration;

/// How often an unready server is asked again.
const PERIOD: Duration = Duration::from_millis(50);
/// A frozen server must not hold up a question for long.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(serde::Deserialize)]
struct Ports {
    #[serde(default)]
    nats: Vec<String>,
}

/// The client port, as the server wrote it down (`ports_file_dir`) once its listeners were up; `None` until then.
pub(super) fn client_port(directory: &Path, pid: u32) -> std::io::Result<Option<u16>> {
    let suffix = format!("_{pid}.ports");
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().ends_with(&suffix) {
            continue;
        }
        // Half a file is read again; one port stands for all addresses of the listener.
        let text = std::fs::read(entry.path())?;
        let ports: Option<Ports> = serde_json::from_slice(&text).ok();
        return Ok(ports.and_then(|ports| ports.nats.first()?.rsplit_once(':')?.1.trim_end_matches('/').parse().ok()));
    }
    Ok(None)
}

/// Returns when JetStream answers. In a cluster that is when a leader was elected: `$JS.API.INFO` stays unanswered
/// before. Asked over the client port rather than a monitoring port, which every local user could read.
pub(super) async fn jetstream_ready(port_url: &str, credentials: &Credentials) {
    loop {
        if ask(port_url, credentials).await.is_some() {
            return;
        }
        tokio::time::sleep(PERIOD).await;
    }
}

async fn connect(url: &str, credentials: &Credentials) -> Option<async_nats::Client> {
    let options = async_nats::ConnectOptions::new()
        .user_and_password(credentials.user.clone(), credentials.password.expose().to_owned())
        .name("carrick supervisor")
        .connection_timeout(PATIENCE)
        .max_reconnects(1);
    options.connect(url).await.ok()
}

async fn ask(url: &str, credentials: &Credentials) -> Option<()> {
    let client = connect(url, credentials).await?;
    let answer = tokio::time::timeout(PATIENCE, client.request("$JS.API.INFO", "".into())).await;
    // Closing may fail where the server has just died; the question is answered by then.
    let _ = client.drain().await;
    let answer: serde_json::Value = serde_json::from_slice(&answer.ok()?.ok()?.payload).ok()?;
    answer.get("error").is_none().then_some(())
}
