//! Each option says what an empty value means.

use crate::config::{Config, options};

/// What an empty value means to an option, wherever it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Empty {
    /// A start error that says what is allowed.
    Refused,
    /// The option's value is empty: off, none, or made of something else. The option's help says which.
    Value,
    /// The same as leaving it out; as a variable it counts as absent.
    Default,
    /// On the command line and in the file a start error; as a variable it counts as absent.
    Absent,
}

/// Every option whose value is text in some way. A new one must take a stand here.
const EMPTY: &[(&str, Empty)] = &[
    ("secret", Empty::Value),
    ("broadcast_key", Empty::Value),
    ("node_id", Empty::Value),
    ("presets", Empty::Value),
    ("broadcast_adapter", Empty::Value),
    ("history", Empty::Value),
    ("pubsub", Empty::Default),
    ("host", Empty::Refused),
    ("health-path", Empty::Refused),
    ("ready_path", Empty::Refused),
    ("allowed_origins", Empty::Value),
    ("trusted_proxies", Empty::Value),
    ("ssl_cert", Empty::Value),
    ("ssl_key", Empty::Value),
    ("port_file", Empty::Value),
    ("log_level", Empty::Absent),
    ("log_format", Empty::Absent),
    ("rpc_host", Empty::Refused),
    ("rpc_impl", Empty::Default),
    ("http_rpc_secret", Empty::Value),
    ("headers", Empty::Value),
    ("proxy-cookies", Empty::Value),
    ("rpc_tls_root_ca", Empty::Value),
    ("rpc_tls_client_cert", Empty::Value),
    ("rpc_tls_client_key", Empty::Value),
    ("broker", Empty::Default),
    ("jwt_secret", Empty::Value),
    ("jwt_param", Empty::Refused),
    ("jwt_key_file", Empty::Value),
    ("jwt_jwks_file", Empty::Value),
    ("streams_secret", Empty::Value),
    ("streams.pubsub_channel", Empty::Value),
    ("turbo_streams_secret", Empty::Value),
    ("cable_ready_secret", Empty::Value),
    ("path", Empty::Refused),
    ("nats_servers", Empty::Refused),
    ("nats_prefix", Empty::Refused),
    ("nats_placement_tags", Empty::Value),
    ("nats_user", Empty::Value),
    ("nats_password", Empty::Value),
    ("nats_token", Empty::Value),
    ("nats_creds", Empty::Value),
    ("nats_nkey", Empty::Value),
    ("nats_tls_ca", Empty::Value),
    ("nats_tls_cert", Empty::Value),
    ("nats_tls_key", Empty::Value),
    ("http_broadcast_path", Empty::Refused),
    ("nats_channel", Empty::Refused),
    ("nats_pubsub.channel", Empty::Refused),
    ("disconnect_mode", Empty::Absent),
    ("ping_timestamp_precision", Empty::Absent),
    ("shutdown_mode", Empty::Absent),
    ("metrics_http", Empty::Value),
    ("enats_addr", Empty::Absent),
    ("enats_cluster", Empty::Value),
    ("enats_cluster_name", Empty::Refused),
    ("enats_cluster_routes", Empty::Value),
    ("enats_gateway", Empty::Value),
    ("enats_gateways", Empty::Value),
    ("enats_gateway_advertise", Empty::Value),
    ("enats_store_dir", Empty::Absent),
    ("enats_server_name", Empty::Value),
    ("enats_bin", Empty::Value),
    ("enats_sync", Empty::Value),
];

#[test]
fn row_20_every_option_says_what_empty_means() {
    use crate::config::kinds::{EmptyEnv, Raw, Shown};
    let nothing = toml::Value::from("");
    for row in options::rows() {
        let defaults = Config::default();
        let read = |raw: Raw<'_>| -> Result<Shown, String> {
            let mut config = Config::default();
            (row.read)(&mut config, raw).map(|()| (row.show)(&config))
        };
        let (flag, file) = (read(Raw::Text("")), read(Raw::Toml(&nothing)));
        // Numbers, times and switches have no empty value: neither a flag nor the file may be empty.
        if matches!(row.value_name, "BOOL" | "N" | "PORT" | "BYTES" | "SECONDS" | "MILLISECONDS") {
            assert!(flag.is_err() && file.is_err(), "{}", row.name());
            let variable = if row.switch { EmptyEnv::Means("false") } else { EmptyEnv::Unset };
            assert_eq!(row.empty_env, variable, "{}", row.name());
            continue;
        }
        let stand = EMPTY.iter().find(|(name, _)| *name == row.name()).map(|(_, stand)| *stand);
        let stand = stand.unwrap_or_else(|| panic!("{} does not say what empty means: add it to EMPTY", row.name()));
        let name = row.name();
        match stand {
            Empty::Refused => {
                assert!(flag.is_err() && file.is_err(), "{name}");
                assert_eq!(row.empty_env, EmptyEnv::Means(""), "{name}");
            }
            Empty::Absent => {
                assert!(flag.is_err() && file.is_err(), "{name}");
                assert_eq!(row.empty_env, EmptyEnv::Unset, "{name}");
            }
            Empty::Value => {
                for shown in [&flag, &file] {
                    assert!(shown.as_ref().is_ok_and(|shown| shown.off), "{name}: {shown:?}");
                }
                assert_eq!(row.empty_env, EmptyEnv::Means(""), "{name}");
            }
            Empty::Default => {
                assert_eq!((&flag, &file), (&Ok((row.show)(&defaults)), &flag), "{name}");
                assert_eq!(row.empty_env, EmptyEnv::Unset, "{name}");
            }
        }
    }
    for (name, _) in EMPTY {
        assert!(options::rows().iter().any(|row| row.name() == *name), "there is no option {name}");
    }
}
