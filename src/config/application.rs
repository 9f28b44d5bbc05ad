//! Rules that join options of the application's side: calls, the token, telling who left.

use super::load::{Fault, Given};
use super::{BrokerKind, Config, DisconnectMode, Rpc, RpcKind};
use crate::auth::Secrets;
use crate::auth::keys::{Purpose, derive_list};
use std::time::Duration;

/// How much longer than the grace what is noted of a session must live: another node finds the calls of a dead one within
/// 5 s, gives it 10 s more than the grace, and as long again if it had begun the call.
const GRACE_MARGIN: Duration = Duration::from_secs(30);

/// Values that contradict each other.
pub(super) fn faults(given: &Given) -> Vec<Fault> {
    let Config { rpc, disconnector, broker, .. } = &given.config;
    let mut faults = Vec::new();
    let Rpc { concurrency_initial: initial, concurrency_min: min, concurrency_max: max, .. } = rpc;
    if rpc.concurrency == 0 && !(min <= initial && initial <= max) {
        let allowed = format!("a number from rpc_concurrency_min ({min}) to rpc_concurrency_max ({max})");
        faults.push(given.fault("rpc.concurrency_initial", allowed));
    }
    if !given.config.norpc && rpc.implementation != RpcKind::None && rpc.host.contains('@') {
        let allowed = "an address without user and password, which are not sent: http_rpc_secret is, as a bearer token";
        faults.push(given.fault("rpc.host", allowed));
    }
    let (grace, ttl) = (disconnector.grace, broker.sessions_ttl);
    if !grace.is_zero() && saves_sessions(&given.config) && grace + GRACE_MARGIN > ttl {
        let margin = GRACE_MARGIN.as_secs();
        let advice = match ttl.checked_sub(GRACE_MARGIN).filter(|most| !most.is_zero()) {
            Some(most) => format!("at most {}, or a longer sessions_ttl", shown(most)),
            None => format!("0, or a sessions_ttl above {margin}s"),
        };
        let allowed = format!(
            "{advice} (sessions_ttl is {}: that a session was restored must be remembered {margin}s longer than the grace)",
            shown(ttl)
        );
        faults.push(given.fault("disconnector.grace", allowed));
    }
    faults
}

fn shown(time: Duration) -> String {
    if time.subsec_millis() == 0 { format!("{}s", time.as_secs()) } else { format!("{}ms", time.as_millis()) }
}

fn saves_sessions(config: &Config) -> bool {
    config.broker.adapter != BrokerKind::None && !config.broker.sessions_ttl.is_zero()
}

/// Turns what was given into what it means. Takes place when the application secret is resolved.
pub(super) fn resolve(config: &mut Config) {
    let no_token_wanted = config.rpc.secret.as_ref().is_some_and(|secret| Secrets::parse(secret.expose()).is_empty());
    let derived = config.secret.as_ref().and_then(|secrets| derive_list(secrets, Purpose::Rpc));
    let rpc = &mut config.rpc;
    // Of a list the first is sent; the application accepts all of them.
    let keys = if rpc.secret.is_some() { rpc.secret.take() } else { derived };
    rpc.secret = keys.and_then(|keys| Secrets::parse(keys.expose()).first().cloned());
    for name in &mut rpc.proxy_headers {
        name.make_ascii_lowercase();
    }
    if config.norpc {
        rpc.implementation = RpcKind::None;
    }
    if rpc.implementation == RpcKind::ByScheme {
        let is_url = rpc.host.starts_with("http://") || rpc.host.starts_with("https://");
        rpc.implementation = if is_url { RpcKind::Http } else { RpcKind::Grpc };
    }
    if rpc.implementation == RpcKind::Http && !rpc.http_request_timeout.is_zero() {
        rpc.request_timeout = rpc.http_request_timeout;
    }
    let warnings = warnings(config, no_token_wanted);
    config.loaded.warnings.extend(warnings);
}

/// What has no effect, and what is less safe than it may seem.
fn warnings(config: &Config, no_token_wanted: bool) -> Vec<String> {
    let Config { rpc, app, disconnector, .. } = config;
    let none = rpc.implementation == RpcKind::None;
    let http = rpc.implementation == RpcKind::Http;
    let https = http && rpc.host.starts_with("https://");
    let wants_tls = rpc.enable_tls || rpc.tls_root_ca.is_some();
    let tls = if http { https } else { !none && wants_tls };
    let grace = !disconnector.grace.is_zero();
    let always = app.disconnect_mode == DisconnectMode::Always;
    let never = app.disconnect_mode == DisconnectMode::Never;
    let checks = [
        (none && rpc.restore, "rpc_restore has no effect without an application (norpc)"),
        (none && always, "disconnect_mode=always has no effect without an application (norpc)"),
        (none && grace, "disconnect_grace has no effect without an application (norpc)"),
        (!none && never && grace, "disconnect_grace has no effect with disconnect_mode=never"),
        (
            !none && grace && !saves_sessions(config),
            "disconnect_grace has no effect: sessions are not saved, so no client comes back; set broker and sessions_ttl",
        ),
        (
            !none && rpc.restore && !saves_sessions(config),
            "rpc_restore has no effect: sessions are not saved, so none is restored; set broker and sessions_ttl",
        ),
        (
            tls && !rpc.tls_verify,
            "rpc_tls_verify is off: whoever stands between can pose as the application; give its authority by rpc_tls_root_ca",
        ),
        (
            http && !https && wants_tls,
            "calls to the application are not encrypted: rpc_host begins with http://, use https:// in place of rpc_enable_tls",
        ),
        (
            !none && !tls && rpc.tls_client_cert.is_some(),
            "rpc_tls_client_cert has no effect without TLS: set rpc_enable_tls, or https:// in rpc_host",
        ),
        (
            http && rpc.secret.is_none() && !no_token_wanted,
            "calls to the application carry no token, so it cannot tell them from others: set secret or http_rpc_secret \
             (none if that is meant)",
        ),
    ];
    checks.into_iter().filter(|(applies, _)| *applies).map(|(_, text)| text.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_with_their_unit() {
        assert_eq!(shown(Duration::from_secs(270)), "270s");
        assert_eq!(shown(Duration::from_millis(1_500)), "1500ms");
    }
}
