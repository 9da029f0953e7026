//! A small HTTP/1.1 server on async-std that can replace itself: `kill -HUP` restarts it,
//! `kill -TERM` stops it.
//!
//! It takes its address from `ADDR`. async-std is discontinued: see `smol_http.rs`, which
//! does the same with hyper, for what to move to.

use std::error::Error;
use std::io;
use std::pin::pin;
use std::process;
use std::time::Duration;

use async_std::io::timeout;
use async_std::net::TcpStream;
use async_std::task;
use futures::FutureExt;
use futures::future::{Either, select};
use futures::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, copy, sink};
use handover::async_std::{Connection, Drain};

/// How long a client may be silent between two requests.
const IDLE: Duration = Duration::from_secs(60);
/// How long it may take to read the last answer.
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    task::block_on(accept())
}

async fn accept() -> Result<(), Box<dyn Error + Send + Sync>> {
    let address = std::env::var("ADDR").unwrap_or_else(|_| "127.0.0.1:3000".into());

    let start = handover::async_std::start()?;
    let listener = start.listen_tcp("web", address)?;
    let drain = start.drain();
    let accepting = async {
        loop {
            match listener.accept().await {
                // The connection counts as in flight until its task has dropped it.
                Ok((connection, _)) => {
                    task::spawn(serve(connection, drain.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "accepting failed");
                    task::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    };
    start.run(accepting).await?;
    Ok(())
}

async fn serve(connection: Connection<TcpStream>, drain: Drain) -> io::Result<()> {
    let mut connection = BufReader::new(connection);
    while has_request(&mut connection, &drain).await? {
        let (wants_close, status, body) = answer(&mut connection).await?;
        // A client that has sent its next request already would not be told in time.
        let close =
            wants_close || drain.is_closing() && connection.fill_buf().now_or_never().is_none();
        let token = if close { "close" } else { "keep-alive" };
        let length = body.len();
        let head =
            format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: {token}\r\n\r\n");
        connection.get_mut().write_all((head + &body).as_bytes()).await?;
        if close {
            // Ends this side, and takes what still comes: a close at once would reset the
            // connection if there is something, and the answer could be lost.
            connection.close().await?;
            timeout(PATIENCE, copy(&mut connection, &mut sink())).await?;
            break;
        }
    }
    Ok(())
}

/// Waits for the next request, as long as one may come.
async fn has_request(
    connection: &mut BufReader<Connection<TcpStream>>,
    drain: &Drain,
) -> io::Result<bool> {
    // If both have come, the request is served.
    match select(connection.fill_buf(), pin!(timeout(IDLE, drain.over().map(Ok)))).await {
        Either::Left((bytes, _)) => bytes.map(|bytes| !bytes.is_empty()),
        Either::Right(_) => Ok(false),
    }
}

/// Reads a request: whether the client wants it to be the last, the answer's status and its body.
async fn answer(
    connection: &mut BufReader<Connection<TcpStream>>,
) -> io::Result<(bool, &'static str, String)> {
    let mut request = String::new();
    let mut line = String::new();
    let (mut length, mut close, mut expects) = (0, false, false);
    // Enough for a header; a client that sends more is cut off.
    let mut head = connection.take(1 << 16);
    head.read_line(&mut request).await?;
    while head.read_line(&mut line).await? > 2 {
        let (name, value) = line.split_once(':').unwrap_or_default();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse().map_err(io::Error::other)?,
            "connection" => close = value.trim().eq_ignore_ascii_case("close"),
            "expect" => expects = true,
            _ => {}
        }
        line.clear();
    }
    let connection = head.into_inner();
    if expects {
        connection.get_mut().write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
    }
    let read = copy(&mut connection.take(length), &mut sink()).await?;
    let mut words = request.split_whitespace();
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let body = match (method, path) {
        ("GET", "/") => format!("ok {}\n", process::id()),
        ("GET", "/slow") => {
            let ms = query.strip_prefix("ms=").and_then(|ms| ms.parse().ok());
            task::sleep(Duration::from_millis(ms.unwrap_or(1000))).await;
            format!("slow {}\n", process::id())
        }
        ("POST", "/upload") => format!("got {} {read}\n", process::id()),
        _ => return Ok((close, "404 Not Found", "not found\n".into())),
    };
    Ok((close, "200 OK", body))
}
