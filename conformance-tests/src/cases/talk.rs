//! A client of a case's own, for a request at an exact moment.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use super::common::{SOON, uninterrupted};
use crate::http::filling;
use crate::{Doing, Failure, ensure};

/// A connection on which requests go out and answers come in when the case wants it.
#[derive(Debug)]
pub(crate) struct Talk<S = TcpStream> {
    stream: S,
    input: Vec<u8>,
}

/// An answer of the contract.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Said {
    /// `ok`, `slow`, `got`, `down`, `PONG`
    pub(crate) word: String,
    pub(crate) pid: u32,
    /// How much was uploaded.
    pub(crate) bytes: Option<usize>,
    pub(crate) close: bool,
}

impl Talk {
    pub(crate) fn to(address: SocketAddr) -> Result<Self, Failure> {
        let stream = TcpStream::connect_timeout(&address, SOON).doing("connecting")?;
        stream.set_read_timeout(Some(SOON)).doing("connecting")?;
        Ok(Self::over(stream))
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

impl<S: Read + Write> Talk<S> {
    /// The same over a connection of another kind.
    pub(crate) fn over(stream: S) -> Self {
        Self { stream, input: Vec::new() }
    }

    /// The connection itself.
    #[cfg(feature = "tls")]
    pub(crate) fn stream(&self) -> &S {
        &self.stream
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
            if let Some((said, length)) = parse(&self.input)? {
                self.input.drain(..length);
                return Ok(said);
            }
            self.more()?;
        }
    }

    /// Waits for the answer to `GET /download?bytes=N`, all but the bytes.
    pub(crate) fn hear_download(&mut self) -> Result<Said, Failure> {
        loop {
            if let Some(head) = Head::parse(&self.input)?
                && let Some(end) = self.input[head.bytes..].iter().position(|byte| *byte == b'\n')
            {
                let line: Vec<u8> = self.input.drain(..=head.bytes + end).collect();
                return said(&line[head.bytes..], head.close)
                    .ok_or_else(|| Failure::new("no process in the answer to a download"));
            }
            self.more()?;
        }
    }

    /// Reads the bytes from `place` to `end` of a download.
    pub(crate) fn hear_filling(&mut self, place: usize, end: usize) -> Result<(), Failure> {
        let mut next = place;
        for piece in filling(place, end) {
            while self.input.len() < piece.len() {
                self.more().map_err(|failure| {
                    failure.while_doing(format!("byte {next} of {end} of a download"))
                })?;
            }
            ensure!(self.input.starts_with(&piece), "other bytes from {next} on in a download");
            self.input.drain(..piece.len());
            next += piece.len();
        }
        Ok(())
    }

    /// Waits for the word that a request's body is wanted.
    pub(crate) fn hear_continue(&mut self) -> Result<(), Failure> {
        loop {
            if let Some(head) = Head::parse(&self.input)? {
                ensure!(head.status == 100, "status {} where 100 was due", head.status);
                self.input.drain(..head.bytes);
                return Ok(());
            }
            self.more()?;
        }
    }

    fn more(&mut self) -> Result<(), Failure> {
        let mut piece = [0; 16 * 1024];
        let closed = match uninterrupted(|| self.stream.read(&mut piece)) {
            Ok(0) => "closed",
            // By who has not read all of the request: whether he has is a matter of chance.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => "reset, and so closed",
            length => {
                let length = length.doing("waiting for an answer")?;
                self.input.extend_from_slice(&piece[..length]);
                return Ok(());
            }
        };
        let text = String::from_utf8_lossy(&self.input).into_owned();
        Err(Failure::new(format!("{closed} before an answer; so far {text:?}")))
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

/// An answer's head.
struct Head {
    /// How much of the input it is.
    bytes: usize,
    status: u16,
    length: usize,
    close: bool,
}

impl Head {
    /// None if some of it is missing.
    fn parse(input: &[u8]) -> Result<Option<Self>, Failure> {
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut answer = httparse::Response::new(&mut headers);
        let httparse::Status::Complete(bytes) = answer.parse(input)? else { return Ok(None) };
        let value = |name: &str| {
            let mut headers = answer.headers.iter();
            let header = headers.find(|header| header.name.eq_ignore_ascii_case(name));
            header.map(|header| String::from_utf8_lossy(header.value).to_ascii_lowercase())
        };
        let length = value("content-length").map_or(Ok(0), |length| length.parse())?;
        let close = value("connection").is_some_and(|value| value == "close");
        Ok(Some(Self { bytes, status: answer.code.unwrap_or(0), length, close }))
    }
}

/// The first answer of the input, and its length. None if some of it is missing.
fn parse(input: &[u8]) -> Result<Option<(Said, usize)>, Failure> {
    let (body, end, close) = if input.starts_with(b"P") {
        let Some(end) = input.iter().position(|byte| *byte == b'\n') else { return Ok(None) };
        (&input[..=end], end + 1, false)
    } else {
        let Some(head) = Head::parse(input)? else { return Ok(None) };
        let end = head.bytes + head.length;
        let Some(body) = input.get(head.bytes..end) else { return Ok(None) };
        (body, end, head.close)
    };
    match said(body, close) {
        Some(said) => Ok(Some((said, end))),
        None => {
            let text = String::from_utf8_lossy(&input[..end]).into_owned();
            Err(Failure::new(format!("no answer of the contract: {text:?}")))
        }
    }
}

fn said(body: &[u8], close: bool) -> Option<Said> {
    let mut words = std::str::from_utf8(body).ok()?.split_ascii_whitespace();
    let (word, pid) = (words.next()?.to_owned(), words.next()?.parse().ok()?);
    let bytes = words.next().and_then(|bytes| bytes.parse().ok());
    Some(Said { word, pid, bytes, close })
}
