//! Composition root: configuration → parts → listeners → drain.

use crate::config::Config;

/// Runs the server until it is told to stop.
pub async fn run(_config: Config) -> anyhow::Result<()> {
    anyhow::bail!("the server is not built yet")
}
