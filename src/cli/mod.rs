//! Subcommands, one file each.

pub mod publish;
pub mod tail;
