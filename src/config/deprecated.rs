//! Names that options had once, and what they mean now.

use super::kinds::{Hidden, Kind, Millis, Raw, Switch};
use super::options::{Config, WORD};
use super::values::DisconnectMode;

/// A name that is still understood. Using it leaves a warning.
pub struct Deprecated {
    pub flag: &'static str,
    /// Dotted key in the file, if it had one.
    pub key: Option<&'static str>,
    pub switch: bool,
    /// What to use now, as the end of a warning.
    pub instead: &'static str,
    pub apply: fn(&mut Config, Raw<'_>) -> Result<(), String>,
}

/// Old names of options. They win over the new ones.
pub const DEPRECATED: &[Deprecated] = &[
    Deprecated {
        flag: "http_broadcast_secret",
        key: Some("http_broadcast.secret"),
        switch: false,
        instead: "use broadcast_key",
        apply: |config, raw| {
            // Empty is the old default and overrides nothing.
            config.broadcast_key = Hidden.read(raw)?.or(config.broadcast_key.take());
            Ok(())
        },
    },
    Deprecated {
        flag: "http_rpc_timeout",
        key: Some("rpc.http_request_timeout"),
        switch: false,
        instead: "use rpc_request_timeout",
        apply: |config, raw| {
            config.rpc.http_request_timeout = Millis.read(raw)?;
            Ok(())
        },
    },
    Deprecated {
        flag: "disable_disconnect",
        key: None,
        switch: true,
        instead: "use disconnect_mode=never",
        apply: |config, raw| {
            if Switch.read(raw)? {
                config.app.disconnect_mode = DisconnectMode::Never;
            }
            Ok(())
        },
    },
    Deprecated {
        flag: "disconnect_timeout",
        key: None,
        switch: false,
        instead: "it has no effect",
        apply: |_, _| Ok(()),
    },
    Deprecated {
        flag: "turbo_rails_key",
        key: None,
        switch: false,
        instead: "use turbo_streams and turbo_streams_secret",
        apply: |config, raw| {
            if let Some(key) = Hidden.read(raw)? {
                config.streams.turbo = true;
                config.streams.turbo_secret = Some(key);
            }
            Ok(())
        },
    },
    Deprecated {
        flag: "cable_ready_key",
        key: None,
        switch: false,
        instead: "use cable_ready and cable_ready_secret",
        apply: |config, raw| {
            if let Some(key) = Hidden.read(raw)? {
                config.streams.cable_ready = true;
                config.streams.cable_ready_secret = Some(key);
            }
            Ok(())
        },
    },
    Deprecated {
        flag: "turbo_rails_cleartext",
        key: None,
        switch: true,
        instead: "it has no effect, use public_streams for unsigned names",
        apply: |_, raw| Switch.read(raw).map(|_| ()),
    },
    Deprecated {
        flag: "cable_ready_cleartext",
        key: None,
        switch: true,
        instead: "it has no effect, use public_streams for unsigned names",
        apply: |_, raw| Switch.read(raw).map(|_| ()),
    },
    Deprecated {
        flag: "jwt_id_key",
        key: None,
        switch: false,
        instead: "use jwt_secret",
        apply: |config, raw| {
            config.jwt.secret = Hidden.read(raw)?.or(config.jwt.secret.take());
            Ok(())
        },
    },
    Deprecated {
        flag: "jwt_id_param",
        key: None,
        switch: false,
        instead: "use jwt_param",
        apply: |config, raw| {
            if raw.text() != Some("") {
                config.jwt.param = WORD.read(raw)?;
            }
            Ok(())
        },
    },
    Deprecated {
        flag: "jwt_id_enforce",
        key: None,
        switch: true,
        instead: "use enforce_jwt",
        apply: |config, raw| {
            config.jwt.force = Switch.read(raw)?;
            Ok(())
        },
    },
    Deprecated {
        flag: "netpoll_enabled",
        key: None,
        switch: true,
        instead: "it has no effect",
        apply: |_, raw| Switch.read(raw).map(|_| ()),
    },
];
