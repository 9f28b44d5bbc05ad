//! What is printed loads back, and shows no secrets.

use super::*;

/// What is left to compare when the file's own traces are gone.
fn settings(mut config: Config) -> Config {
    config.loaded.file = None;
    config.node_id.clear();
    config
}

fn reloads(args: &str) {
    let printed = with(&format!("{args} --print-config --print-secrets")).printed();
    let original = with(args).config();
    let reloaded = with("").toml(&printed).config();
    assert_eq!(settings(reloaded), settings(original), "{args}\n{printed}");
}

#[test]
fn printed_defaults_load_back() {
    reloads("");
    reloads("--presets broker");
    reloads("--public");
}

#[test]
fn printed_settings_load_back() {
    reloads(
        "--host 0.0.0.0 --port 0x1F90 --path /cable,/t/{tenant}/cable/* --health-path /h --ready_path /r --max-conn 7 \
         --allowed_origins *.acme.test,localhost:3000 --secret s3\"c'r\\3t --streams_secret none --public_streams \
         --streams_presence=false --streams_whisper",
    );
    reloads(
        "--broker nats --history_limit 5 --history_ttl 0 --sessions_ttl 250ms --dedup_window 2m --history_hold 0 \
         --snapshot_budget 1 --embed_nats --enats_addr nats://127.0.0.1:-1 --enats_cluster nats://u:p@0.0.0.0:5222 \
         --enats_cluster_routes nats://u:p@a:5222,nats://b:5222 --enats_gateway nats://0.0.0.0:7222 \
         --enats_gateways east:nats://a:7222,nats://b:7222;west:nats://c:7222 --enats_gateway_advertise h:7222 \
         --enats_server_name one --nats_placement_tags eu,ssd --enats_sync always --enats_store_dir /tmp/x --enats_max_payload 2097152",
    );
    reloads(
        "--nats_servers nats://u:p@h:4222,tls://i:4222 --nats_token t --nats_prefix p --nats_replicas 3 \
         --broadcast_key k --http_broadcast_port 9 --broadcast_adapter= --pubsub none --presets none --log_level warn \
         --log_format json --debug --enable_native_pings --ping_timestamp_precision ns --shutdown_delay 1 \
         --shutdown_mode resume --shutdown_slowdrain --pong_timeout 1500ms --http_broadcast_cors --turbo_streams",
    );
}

#[test]
fn every_option_is_printed_so_that_it_loads_back() {
    // One option at a time, each with a value that is not its default.
    for row in options::rows() {
        let Some(flag) = row.flag else { continue };
        let value = match (row.value_name, row.default) {
            ("PATH", "") => continue, // must exist: tested above
            ("BOOL", default) => (default != "true").to_string(),
            ("PATH" | "PATHS", _) => "/other".to_owned(),
            ("PORT" | "BYTES", _) => "4097".to_owned(),
            ("N", _) => "3".to_owned(),
            ("SECONDS", _) => "1234ms".to_owned(),
            ("MILLISECONDS", _) => "1234".to_owned(),
            ("PEM", _) => "-----BEGIN".to_owned(), // a path must exist
            ("URL", _) => "nats://u:p@h:1".to_owned(),
            ("URLS", _) => "nats://u:p@h:1,nats://i:2".to_owned(),
            ("GATEWAYS", _) => "a:nats://h:1,nats://i:2;b:nats://j:3".to_owned(),
            ("POLICY", _) => "pattern=chat/*,limit=5,ttl=1234ms;pattern=b,storage=memory,replicas=1".to_owned(),
            ("SYNC", _) => "250ms".to_owned(),
            ("HOST:PORT", _) => "h:1".to_owned(),
            ("NAME", default) if !row.values.is_empty() => {
                (*row.values.iter().find(|value| **value != default).unwrap()).to_owned()
            }
            ("NETWORKS", _) => "10.0.0.0/8,::1".to_owned(),
            ("NAMES", _) => row.values.first().unwrap_or(&"other").to_string(),
            _ => "other".to_owned(),
        };
        let extra = match flag {
            "nats_user" => "--nats_password p",
            "nats_password" => "--nats_user u",
            "enforce_jwt" => "--jwt_secret s",
            "http_broadcast_max_pending" => "--http_broadcast_max_body 4096",
            _ => "",
        };
        reloads(&format!("--{flag}={value} {extra}"));
    }
}

#[test]
fn printed_settings_hide_secrets_unless_asked() {
    let args = "--secret aaaa --broadcast_key bbbb --streams_secret cccc --turbo_streams_secret dddd \
                --cable_ready_secret eeee --nats_user u --nats_password ffff --nats_servers nats://u:gggg@h:1 \
                --enats_cluster_routes nats://u:hhhh@h:1 --enats_gateways x:nats://u:iiii@h:1 --print-config";
    let hidden = with(args).printed();
    let shown = with(&format!("{args} --print-secrets")).printed();
    for secret in ["aaaa", "bbbb", "cccc", "dddd", "eeee", "ffff", "gggg", "hhhh", "iiii"] {
        assert!(!hidden.contains(secret), "{secret}: {hidden}");
        assert!(shown.contains(secret), "{secret}: {shown}");
    }
    assert!(hidden.contains("\n# secret = \"***\"\n"), "{hidden}");
    hidden.parse::<toml::Table>().expect("still a file");
}

#[test]
fn missing_secrets_are_printed_as_none() {
    let printed = with("--print-config").printed();
    assert!(printed.contains("\nsecret = \"none\"\n") && printed.contains("\nbroadcast_key = \"none\"\n"), "{printed}");
    let printed = with("--secret a --print-config --print-secrets").printed();
    assert!(printed.contains("\nsecret = \"a\"\n") && printed.contains("\n# broadcast_key = \"\"\n"), "{printed}");
}

#[test]
fn a_configuration_hides_its_secrets_from_debug_output() {
    let args = "--secret aaaa --nats_servers nats://u:gggg@h:1 --enats_gateways x:nats://u:iiii@h:1 --nats_token ffff";
    let text = format!("{:?}", with(args).config());
    assert!(!["aaaa", "gggg", "iiii", "ffff"].iter().any(|secret| text.contains(secret)), "{text}");
    assert!(text.contains("history_limit: 100"), "{text}");
}
