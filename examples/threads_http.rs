//! A small HTTP/1.1 server on plain threads that can replace itself: `kill -HUP` restarts it,
//! `kill -TERM` stops it.
//!
//! It takes its address from `ADDR`.

use std::error::Error;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process;
use std::thread;
use std::time::Duration;

use handover::threads::{self, Connection, Drain, Next};

/// How long a client may be silent between two requests.
const IDLE: Duration = Duration::from_secs(60);
/// How long it may take for a part of a request, or to take the last answer.
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let address = std::env::var("ADDR").unwrap_or_else(|_| "127.0.0.1:3000".into());

    let start = handover::threads::start()?;
    let listener = start.listen_tcp("web", address)?;
    let drain = start.drain();
    start.run(move || {
        for connection in listener.incoming() {
            let drain = drain.clone();
            // The connection counts as in flight until its thread has dropped it.
            let served = connection.and_then(|connection| {
                thread::Builder::new().spawn(move || serve(connection, &drain))
            });
            if let Err(error) = served {
                tracing::warn!(%error, "accepting failed");
                thread::sleep(Duration::from_millis(100));
            }
        }
    })?;
    Ok(())
}

fn serve(connection: Connection<TcpStream>, drain: &Drain) -> io::Result<()> {
    connection.set_read_timeout(Some(PATIENCE))?;
    let mut connection = BufReader::new(connection);
    while has_more(&connection, drain, IDLE)? && !connection.fill_buf()?.is_empty() {
        let (wants_close, status, body) = answer(&mut connection)?;
        // A client that has sent its next request already would not be told in time.
        let close =
            wants_close || drain.is_closing() && !has_more(&connection, drain, Duration::ZERO)?;
        let token = if close { "close" } else { "keep-alive" };
        let length = body.len();
        connection.get_mut().write_all(
            format!(
                "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: {token}\r\n\r\n{body}"
            )
            .as_bytes(),
        )?;
        if close {
            threads::close(connection.into_inner(), PATIENCE);
            break;
        }
    }
    Ok(())
}

/// Waits until something has come, as long as something may.
fn has_more(
    connection: &BufReader<Connection<TcpStream>>,
    drain: &Drain,
    timeout: Duration,
) -> io::Result<bool> {
    Ok(!connection.buffer().is_empty()
        || threads::wait_readable(connection.get_ref(), drain, Some(timeout))? == Next::Readable)
}

/// Reads a request: whether the client wants it to be the last, the answer's status and its body.
fn answer(
    connection: &mut BufReader<Connection<TcpStream>>,
) -> io::Result<(bool, &'static str, String)> {
    let mut request = String::new();
    let mut line = String::new();
    let (mut length, mut close, mut expects) = (0, false, false);
    // Enough for a header; a client that sends more is cut off.
    let mut head = connection.by_ref().take(1 << 16);
    head.read_line(&mut request)?;
    while head.read_line(&mut line)? > 2 {
        let (name, value) = line.split_once(':').unwrap_or_default();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse().map_err(io::Error::other)?,
            "connection" => close = value.trim().eq_ignore_ascii_case("close"),
            "expect" => expects = true,
            _ => {}
        }
        line.clear();
    }
    if expects {
        connection.get_mut().write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    let read = io::copy(&mut connection.by_ref().take(length), &mut io::sink())?;
    let mut words = request.split_whitespace();
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let body = match (method, path) {
        ("GET", "/") => format!("ok {}\n", process::id()),
        ("GET", "/slow") => {
            let ms = query.strip_prefix("ms=").and_then(|ms| ms.parse().ok());
            thread::sleep(Duration::from_millis(ms.unwrap_or(1000)));
            format!("slow {}\n", process::id())
        }
        ("POST", "/upload") => format!("got {} {read}\n", process::id()),
        _ => return Ok((close, "404 Not Found", "not found\n".into())),
    };
    Ok((close, "200 OK", body))
}
