//! A client of a case's own, for a request at an exact moment.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use super::common::{SOON, uninterrupted};
use crate::{Doing, Failure};

/// A connection on which requests go out and answers come in when the case wants it.
#[derive(Debug)]
pub(crate) struct Talk {
    stream: TcpStream,
    input: Vec<u8>,
}

/// An answer of the contract.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Said {
    /// `ok`, `slow`, `got`, `PONG`
    pub(crate) word: String,
    pub(crate) pid: u32,
    pub(crate) close: bool,
}

impl Talk {
    pub(crate) fn to(address: SocketAddr) -> Result<Self, Failure> {
        let stream = TcpStream::connect_timeout(&address, SOON).doing("connecting")?;
        stream.set_read_timeout(Some(SOON)).doing("connecting")?;
        Ok(Self { stream, input: Vec::new() })
    }

    /// Sends a request and does not wait for its answer.
    pub(crate) fn ask(&mut self, path: &str) -> Result<(), Failure> {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n"))
    }

    pub(crate) fn ping(&mut self) -> Result<Said, Failure> {
        self.send("PING\n")?;
        self.hear()
    }

    pub(crate) fn send(&mut self, text: &str) -> Result<(), Failure> {
        self.stream.write_all(text.as_bytes()).doing("sending")
    }

    /// Sends a request but for its last byte: it is under way until [`finish`](Self::finish).
    pub(crate) fn begin(&mut self) -> Result<(), Failure> {
        self.send("POST /upload HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\n1")
    }

    /// Sends the rest of that request and gives its answer.
    pub(crate) fn finish(&mut self) -> Result<Said, Failure> {
        self.send("2")?;
        self.hear()
    }

    /// Sends a request and gives its answer.
    pub(crate) fn get(&mut self, path: &str) -> Result<Said, Failure> {
        self.ask(path)?;
        self.hear()
    }

    /// Waits for the next answer.
    pub(crate) fn hear(&mut self) -> Result<Said, Failure> {
        loop {
            if let Some((said, length)) = parse(&self.input) {
                self.input.drain(..length);
                return Ok(said);
            }
            let mut piece = [0; 4096];
            let length = uninterrupted(|| self.stream.read(&mut piece));
            match length.doing("waiting for an answer")? {
                0 => {
                    let text = String::from_utf8_lossy(&self.input).into_owned();
                    return Err(Failure::new(format!("closed before an answer; so far {text:?}")));
                }
                length => self.input.extend_from_slice(&piece[..length]),
            }
        }
    }

    /// Waits for the other side to close, in order or (true) by a reset.
    pub(crate) fn wait_closed(&mut self) -> Result<bool, Failure> {
        match uninterrupted(|| self.stream.read(&mut [0; 16])) {
            Ok(0) => Ok(false),
            Ok(_) => Err(Failure::new("bytes where an end was due")),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(true),
            Err(error) => Err(error).doing("waiting for the connection's end"),
        }
    }
}

/// One request on a connection of its own.
pub(crate) fn get(address: SocketAddr, path: &str) -> Result<Said, Failure> {
    Talk::to(address)?.get(path)
}

/// Whether nobody listens there any more.
pub(crate) fn is_refused(address: SocketAddr) -> bool {
    let error = TcpStream::connect_timeout(&address, SOON).err();
    error.is_some_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

fn parse(input: &[u8]) -> Option<(Said, usize)> {
    let text = std::str::from_utf8(input).ok()?;
    let (body, length, close) = if text.starts_with("PONG") {
        let end = text.find('\n')? + 1;
        (&text[..end], end, false)
    } else {
        let start = text.find("\r\n\r\n")? + 4;
        let head = &text[..start];
        let length = head.split("\r\n").find_map(|line| line.strip_prefix("Content-Length: "))?;
        let end = start + length.parse::<usize>().ok()?;
        (text.get(start..end)?, end, head.contains("Connection: close"))
    };
    let mut words = body.split_ascii_whitespace();
    let word = words.next()?.to_owned();
    Some((Said { word, pid: words.next()?.parse().ok()?, close }, length))
}
