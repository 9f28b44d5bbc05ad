//! The store as an operator's commands reach it, beside running nodes or without any.

use super::store::{broker_config, cluster_secret, nats_client, start_embedded};
use crate::broker::nats::Admin;
use crate::config::{self, BrokerKind, Config};
use crate::nats::embedded::{Credentials, EmbeddedServer};
use crate::secret::Secret;
use anyhow::Context;
use std::time::Duration;

/// An operator's hands on the store, and the server that runs for them alone, if there is one.
pub struct Operator {
    pub admin: Admin,
    embedded: Option<EmbeddedServer>,
}

/// For stopping a server that nobody else uses.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

impl Operator {
    /// Reaches the store of this configuration while nodes run on it or not. An embedded server whose password only its
    /// own node knows must be stopped first: it is started for the operator then.
    ///
    /// # Errors
    /// There is no such store, or it cannot be reached.
    pub async fn new(config: &Config) -> anyhow::Result<Self> {
        anyhow::ensure!(
            config.broker.adapter == BrokerKind::Nats,
            "policies and epochs are kept in the store of broker nats: set broker and what else the nodes are started with"
        );
        let mut client = nats_client(config)?;
        let mut embedded = None;
        if config.embedded_nats.enabled {
            let (credentials, addr) = match known_credentials(config)? {
                Some(credentials) => (credentials, config.embedded_nats.service_addr.to_string()),
                None => {
                    let started = start_embedded(config).await.context(
                        "the embedded server's password is known to its node alone: stop the node, or give enats_addr a \
                         user and a password",
                    )?;
                    let found = (started.credentials().clone(), started.addr().to_string());
                    embedded = Some(started);
                    found
                }
            };
            let addr = addr.rsplit(['@', '/']).next().unwrap_or_default().to_owned();
            client.servers = vec![Secret::from(format!("nats://{addr}"))];
            client.user = Some(credentials.user);
            client.password = Some(credentials.password);
        }
        let node = format!("operator {}", crate::protocol::names::random_text(8));
        match Admin::connect(broker_config(config, client, node)).await {
            Ok(admin) => Ok(Self { admin, embedded }),
            Err(error) => {
                if let Some(embedded) = embedded {
                    embedded.stop(STOP_PATIENCE).await;
                }
                Err(error.into())
            }
        }
    }

    pub async fn close(self) {
        self.admin.close().await;
        if let Some(embedded) = self.embedded {
            embedded.stop(STOP_PATIENCE).await;
        }
    }
}

/// Credentials of the embedded server that others than its own node can know: given ones, or those of its cluster.
fn known_credentials(config: &Config) -> anyhow::Result<Option<Credentials>> {
    let enats = &config.embedded_nats;
    if let Some(config::Credentials { user, password: Some(password) }) = &enats.service_addr.credentials {
        return Ok(Some(Credentials { user: user.clone(), password: password.clone() }));
    }
    let clustered = enats.cluster_addr.is_some() || enats.gateway_addr.is_some();
    clustered.then(|| cluster_secret(config).map(|secret| Credentials::of_cluster(&secret))).transpose()
}
