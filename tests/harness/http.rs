//! A small HTTP client: one request, one connection.

use super::PATIENCE;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[derive(Debug)]
pub struct Response {
    pub status: u16,
    head: String,
    pub body: String,
}

impl Response {
    /// Value of a header; names in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("not JSON ({error}): {self:?}"))
    }

    fn parse(answer: &[u8]) -> Self {
        let answer = String::from_utf8_lossy(answer);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("not an HTTP answer: {answer:?}"));
        Self { status: status(head), head: head.to_owned(), body: body.to_owned() }
    }
}

/// Value of a header in the head of an HTTP message.
pub fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut fields = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    fields.find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

/// Status code in the head of an HTTP answer.
pub fn status(head: &str) -> u16 {
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    code.unwrap_or_else(|| panic!("no status in {head:?}"))
}

fn head(method: &str, path: &str, headers: &[(&str, &str)], length: usize) -> String {
    let mut head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {length}\r\n");
    // A request names one.
    if headers.iter().all(|(name, _)| !name.eq_ignore_ascii_case("host")) {
        head += "Host: localhost\r\n";
    }
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    head + "\r\n"
}

/// Sends one request; an error means that there was no answer.
pub async fn try_request(
    to: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> std::io::Result<Response> {
    let mut answer = Vec::new();
    let exchange = async {
        let mut connection = TcpStream::connect(to).await?;
        connection.write_all(head(method, path, headers, body.len()).as_bytes()).await?;
        // A server may answer and close before it has read everything.
        let sent = connection.write_all(body).await;
        match connection.read_to_end(&mut answer).await {
            Err(error) if answer.is_empty() => Err(error),
            _ if answer.is_empty() => sent.and(Err(std::io::ErrorKind::UnexpectedEof.into())),
            _ => Ok(()),
        }
    };
    tokio::time::timeout(PATIENCE, exchange)
        .await
        .map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
    Ok(Response::parse(&answer))
}

/// Sends one request and wants an answer.
pub async fn request(to: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
    let answer = try_request(to, method, path, headers, body).await;
    answer.unwrap_or_else(|error| panic!("{method} {path} got no answer: {error}"))
}

/// Status of a GET, blocking: for readiness while a server starts.
pub fn status_of(to: SocketAddr, path: &str) -> Result<u16, String> {
    let mut answer = Vec::new();
    let mut exchange = || {
        let mut connection = std::net::TcpStream::connect(to)?;
        connection.set_read_timeout(Some(Duration::from_secs(2)))?;
        connection.write_all(head("GET", path, &[], 0).as_bytes())?;
        connection.read_to_end(&mut answer)
    };
    exchange().map_err(|error| format!("GET {path}: {error}"))?;
    if answer.is_empty() { Err(format!("GET {path}: empty answer")) } else { Ok(Response::parse(&answer).status) }
}
