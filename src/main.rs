//! `carrick`: see [`carrick::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    carrick::cli::main(std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned()))
}
