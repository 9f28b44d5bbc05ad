//! What the server says of itself on its metrics page.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// The option that switches the page on.
pub const OPTION: &str = "--metrics_http=/metrics";

/// Value of the metric with this name, whatever stands before it.
pub fn metric(address: &str, name: &str) -> Result<i64, String> {
    let page = page(address).map_err(|error| format!("the metrics page cannot be read: {error}"))?;
    let mut lines = page.lines().filter(|line| !line.starts_with('#'));
    let value = lines.find_map(|line| {
        let (full, value) = line.split_once(' ')?;
        full.ends_with(name).then(|| value.trim().parse().ok())?
    });
    value.ok_or_else(|| format!("there is no metric {name}"))
}

/// Whether the server says that it is ready.
pub fn is_ready(address: &str) -> bool {
    get(address, "/ready").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

fn page(address: &str) -> std::io::Result<String> {
    get(address, "/metrics")
}

fn get(address: &str, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
