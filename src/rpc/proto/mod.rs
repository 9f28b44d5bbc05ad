//! The messages of both wire forms, and gRPC's client and server halves (the server half serves tests).
//!
//! `generated.rs` comes from `rpc.proto`, `health.rs` from `health.proto`; they are committed, so that nobody needs a
//! compiler of protocol buffers. After a change: `UPDATE_PROTO=1 cargo test --lib proto`.

#[expect(clippy::all, clippy::doc_markdown, missing_docs, reason = "generated")]
#[rustfmt::skip]
mod generated;

#[expect(clippy::all, clippy::doc_markdown, missing_docs, reason = "generated")]
#[rustfmt::skip]
pub mod health;

pub use generated::*;

use serde::{Deserialize, Deserializer};

/// Fields at their default are left out of the JSON form.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// `null` stands for a field that is not there.
fn null_is_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(from).map(Option::unwrap_or_default)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::{Path, PathBuf};

    fn directory() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("src/rpc/proto")
    }

    /// The generated code of a definition with this package, regenerated in memory.
    fn generate(definition: &str, package: &str, json: bool) -> String {
        let descriptors = protox::compile([definition], [directory()]).unwrap();
        let out = tempfile::tempdir().unwrap();
        let mut builder = tonic_prost_build::configure().build_transport(false).btree_map(".");
        if json {
            builder = builder.message_attribute(".", "#[derive(serde::Serialize, serde::Deserialize)]");
        }
        // By name, because the variants of an enum would be meant, too.
        for message in descriptors.file.iter().flat_map(|file| &file.message_type).filter(|_| json) {
            builder = builder.field_attribute(
                format!(".anycable.{}", message.name()),
                "#[serde(default, skip_serializing_if = \"super::is_default\", deserialize_with = \"super::null_is_default\")]",
            );
        }
        builder.emit_rerun_if_changed(false).out_dir(out.path()).compile_fds(descriptors).unwrap();
        std::fs::read_to_string(out.path().join(format!("{package}.rs"))).unwrap()
    }

    #[test]
    fn the_generated_code_is_that_of_the_definitions() {
        for (definition, package, json, file) in
            [("rpc.proto", "anycable", true, "generated.rs"), ("health.proto", "grpc.health.v1", false, "health.rs")]
        {
            let committed = directory().join(file);
            let current = generate(definition, package, json);
            if std::env::var_os("UPDATE_PROTO").is_some() {
                std::fs::write(&committed, &current).unwrap();
            }
            let stale = std::fs::read_to_string(&committed).unwrap_or_default() != current;
            assert!(!stale, "{file} is not what {definition} gives: run UPDATE_PROTO=1 cargo test --lib proto");
        }
    }

    #[test]
    fn json_leaves_defaults_out_and_reads_null_missing_and_unknown() {
        let request = CommandMessage { command: "message".into(), data: "{}".into(), ..CommandMessage::default() };
        assert_eq!(serde_json::to_string(&request).unwrap(), r#"{"command":"message","data":"{}"}"#);

        let text =
            r#"{"status":1,"streams":null,"presence":{"type":"join","id":"5"},"env":{"istate":{"a":"1"}},"new":[1]}"#;
        let response: CommandResponse = serde_json::from_str(text).unwrap();
        assert_eq!((response.status, response.streams.len()), (Status::Success as i32, 0));
        assert_eq!(response.presence.unwrap().r#type, "join");
        assert_eq!(response.env.unwrap().istate["a"], "1");
        assert!(serde_json::from_str::<CommandResponse>(r#"{"status":"SUCCESS"}"#).is_err());
    }
}
