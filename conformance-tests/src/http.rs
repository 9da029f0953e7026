//! A server's side of the contract of [`client`](crate::client), for any runtime.
//!
//! Not a web server: it knows a handful of requests and a line. It exists so that the
//! subject of every adapter answers alike, and so that what a case sees was done
//! by the adapter's listeners, timers and drain, and not by somebody's HTTP stack.
//!
//! An adapter's subject accepts connections, and gives each to
//! [`serve_connection`] with its runtime's timer and its drain state as a
//! [`Service`]; a subject made of threads gives them to [`serve_blocking`].

use std::future::{Future, pending};
use std::io;
use std::pin::pin;
use std::time::Duration;

use futures::future::{Either, FutureExt, select};
use futures::io::{AllowStdIo, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// What the answers need of the runtime and of the handover.
pub trait Service {
    /// A timer of the runtime.
    fn sleep(&self, time: Duration) -> impl Future<Output = ()> + Send;

    /// Whether answers are to say `Connection: close` by now, since this process drains.
    fn closing(&self) -> bool {
        false
    }

    /// Resolves when connections without a request are to be closed.
    fn over(&self) -> impl Future<Output = ()> + Send {
        pending()
    }

    /// The process that answers.
    fn pid(&self) -> u32 {
        std::process::id()
    }

    /// The name of the listener through which the connection came.
    fn name(&self) -> &str {
        "unnamed"
    }
}

/// Why a connection has ended.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The client closed it between two requests.
    Client,
    /// The client closed it within a request.
    ClientWithinRequest,
    /// An answer said `Connection: close`, since the client or the service wanted so.
    Said,
    /// [`Service::over`] resolved while there was no request.
    Over,
    /// The client's bytes were no request, and it was told so.
    NotARequest,
}

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// `GET /`
    Root,
    /// `GET /slow?ms=N`
    Slow(Duration),
    /// `GET /name`
    Name,
    /// `POST /upload`
    Upload,
    /// `GET /download?bytes=N`
    Download(usize),
    /// The line `PING`, without HTTP.
    Ping,
    /// Any other method or path.
    Unknown,
}

/// A request without its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What it asks for.
    pub ask: Ask,
    /// How many bytes of the input it is.
    pub head: usize,
    /// How many bytes of a body follow.
    pub body: usize,
    /// Whether the client wants another request on this connection.
    pub keep_alive: bool,
    /// Whether the client waits to be told to send the body.
    pub expects_continue: bool,
}

const MAX_HEAD: usize = 16 * 1024;

impl Ask {
    /// What a method and a path ask for.
    #[must_use]
    pub fn of(method: &str, path: &str) -> Self {
        let number =
            |prefix| path.strip_prefix(prefix).and_then(|number| number.parse::<usize>().ok());
        match (method, path) {
            ("GET", "/") => Self::Root,
            ("GET", "/name") => Self::Name,
            ("POST", "/upload") => Self::Upload,
            ("GET", _) => match (number("/slow?ms="), number("/download?bytes=")) {
                (Some(millis), _) => Self::Slow(Duration::from_millis(millis as u64)),
                (_, Some(bytes)) => Self::Download(bytes),
                _ => Self::Unknown,
            },
            _ => Self::Unknown,
        }
    }
}

/// Answers the requests on a connection until it ends.
///
/// It does not spawn and may be dropped at any point, which cuts the connection.
///
/// # Errors
///
/// What the connection reports.
pub async fn serve_connection<C, S>(mut connection: C, service: &S) -> io::Result<End>
where
    C: AsyncRead + AsyncWrite + Unpin,
    S: Service,
{
    let mut input = Vec::new();
    let mut over = pin!(service.over().fuse());
    // What has left HTTP has no end between two requests.
    let mut upgraded = false;
    loop {
        let request = loop {
            match parse(&input) {
                Ok(Some(request)) => break request,
                Ok(None) if input.len() <= MAX_HEAD => {}
                Ok(None) | Err(_) => {
                    let answer = answer(400, "not a request\n", true);
                    connection.write_all(answer.as_bytes()).await?;
                    connection.close().await?;
                    return Ok(End::NotARequest);
                }
            }
            // Half a request is a request: the end of the drain must not cut it.
            let idle = input.is_empty();
            let mut piece = [0; 4096];
            let read = connection.read(&mut piece);
            let len = if idle && !upgraded {
                // The bytes first: a request that has arrived is to be answered.
                match select(read, over.as_mut()).await {
                    Either::Left((len, _)) => len?,
                    Either::Right(((), _)) => {
                        connection.close().await?;
                        return Ok(End::Over);
                    }
                }
            } else {
                read.await?
            };
            if len == 0 {
                return Ok(if idle { End::Client } else { End::ClientWithinRequest });
            }
            input.extend_from_slice(&piece[..len]);
        };
        input.drain(..request.head);
        if request.expects_continue {
            connection.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        if !read_body(&mut connection, &mut input, request.body).await? {
            return Ok(End::ClientWithinRequest);
        }
        let pid = service.pid();
        let (status, body) = match request.ask {
            Ask::Ping => {
                upgraded = true;
                connection.write_all(format!("PONG {pid}\n").as_bytes()).await?;
                continue;
            }
            Ask::Root => (200, format!("ok {pid}\n")),
            Ask::Name => (200, format!("{} {pid}\n", service.name())),
            Ask::Slow(time) => {
                service.sleep(time).await;
                (200, format!("slow {pid}\n"))
            }
            Ask::Upload => (200, format!("got {pid} {}\n", request.body)),
            Ask::Download(_) => (200, format!("down {pid}\n")),
            Ask::Unknown => (404, "not found\n".to_owned()),
        };
        // A client that has sent its next request already was not told in time:
        // only the last answer may say so.
        let close = !request.keep_alive || (service.closing() && input.is_empty());
        match request.ask {
            Ask::Download(bytes) => {
                let head = head(status, body.len() + bytes, close) + &body;
                connection.write_all(head.as_bytes()).await?;
                for piece in filling(0, bytes) {
                    connection.write_all(&piece).await?;
                }
            }
            _ => connection.write_all(answer(status, &body, close).as_bytes()).await?,
        }
        connection.flush().await?;
        if close {
            connection.close().await?;
            return Ok(End::Said);
        }
    }
}

/// [`serve_connection`] for a thread that may block.
///
/// Nothing interrupts a read but the connection itself (its end, a timeout set
/// on it, `shutdown` from another thread), so there is no `over`.
///
/// # Errors
///
/// What the connection reports.
pub fn serve_blocking<C: io::Read + io::Write>(
    connection: C,
    closing: impl Fn() -> bool + Sync,
) -> io::Result<End> {
    serve_blocking_as("unnamed", connection, closing)
}

/// The same for a connection through the listener of that name.
///
/// # Errors
///
/// What the connection reports.
pub fn serve_blocking_as<C: io::Read + io::Write>(
    name: &str,
    connection: C,
    closing: impl Fn() -> bool + Sync,
) -> io::Result<End> {
    struct Blocking<'a, F>(&'a str, F);
    impl<F: Fn() -> bool + Sync> Service for Blocking<'_, F> {
        async fn sleep(&self, time: Duration) {
            std::thread::sleep(time);
        }

        fn closing(&self) -> bool {
            (self.1)()
        }

        fn name(&self) -> &str {
            self.0
        }
    }
    let service = Blocking(name, closing);
    let serving = serve_connection(AllowStdIo::new(connection), &service);
    // Everything in it blocks instead of being pending, so one poll is all of it.
    serving.now_or_never().unwrap_or_else(|| Err(io::ErrorKind::WouldBlock.into()))
}

/// Reads a request off the front of `input`. None if some of it is missing.
///
/// # Errors
///
/// If it can never become one.
pub fn parse(input: &[u8]) -> Result<Option<Request>, httparse::Error> {
    const PING: &[u8] = b"PING\n";
    if input.starts_with(PING) {
        return Ok(Some(Request {
            ask: Ask::Ping,
            head: PING.len(),
            body: 0,
            keep_alive: true,
            expects_continue: false,
        }));
    }
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    let head = match request.parse(input)? {
        httparse::Status::Complete(head) => head,
        httparse::Status::Partial => return Ok(None),
    };
    let (mut body, mut expects_continue) = (0, false);
    let mut keep_alive = request.version == Some(1);
    for header in request.headers.iter() {
        let value = header.value.trim_ascii();
        if header.name.eq_ignore_ascii_case("content-length") {
            let text = std::str::from_utf8(value).ok();
            body = text.and_then(|text| text.parse().ok()).ok_or(httparse::Error::HeaderValue)?;
        } else if header.name.eq_ignore_ascii_case("connection") {
            keep_alive = value.eq_ignore_ascii_case(b"keep-alive")
                || (keep_alive && !value.eq_ignore_ascii_case(b"close"));
        } else if header.name.eq_ignore_ascii_case("expect") {
            expects_continue = value.eq_ignore_ascii_case(b"100-continue");
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(httparse::Error::HeaderValue);
        }
    }
    let ask = Ask::of(request.method.unwrap_or_default(), request.path.unwrap_or_default());
    Ok(Some(Request { ask, head, body, keep_alive, expects_continue }))
}

/// An HTTP answer.
#[must_use]
pub fn answer(status: u16, body: &str, close: bool) -> String {
    head(status, body.len(), close) + body
}

fn head(status: u16, length: usize, close: bool) -> String {
    let reason = if status == 200 { "OK" } else { "Error" };
    let close = if close { "Connection: close\r\n" } else { "" };
    format!("HTTP/1.1 {status} {reason}\r\nContent-Length: {length}\r\n{close}\r\n")
}

/// The bytes from one place to another of what a download has after its first line, in pieces. They
/// tell their place, so that a piece which is missing or twice there is noticed.
pub fn filling(from: usize, to: usize) -> impl Iterator<Item = Vec<u8>> {
    const PIECE: usize = 16 * 1024;
    // No divisor of a piece: whole pieces cannot be exchanged either.
    const CYCLE: usize = 251;
    let cycle: Vec<u8> = (0..CYCLE as u8).collect();
    let tape = cycle.repeat(PIECE / CYCLE + 2);
    (from..to).step_by(PIECE).map(move |start| {
        let length = PIECE.min(to - start);
        tape[start % CYCLE..][..length].to_vec()
    })
}

/// Takes a body from what has come and then from the connection. False if it ends before.
async fn read_body<C: AsyncRead + Unpin>(
    connection: &mut C,
    input: &mut Vec<u8>,
    body: usize,
) -> io::Result<bool> {
    let mut left = body;
    loop {
        let here = left.min(input.len());
        input.drain(..here);
        left -= here;
        if left == 0 {
            return Ok(true);
        }
        // What comes behind it is read along: whether there is another request is to be known
        // when this one is answered.
        let mut piece = [0; 4096];
        match connection.read(&mut piece).await? {
            0 => return Ok(false),
            len => input.extend_from_slice(&piece[..len]),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Read, Write};

    use super::*;

    /// A connection that has everything to read at once.
    struct Script {
        input: Cursor<Vec<u8>>,
        output: Vec<u8>,
    }

    impl Read for Script {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.input.read(buffer)
        }
    }

    impl Write for Script {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Write::write(&mut self.output, bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn serve(input: &str, closing: bool) -> (String, End) {
        let mut script = Script { input: Cursor::new(input.into()), output: Vec::new() };
        let end = serve_blocking(&mut script, || closing).unwrap();
        (String::from_utf8(script.output).unwrap(), end)
    }

    /// The answer with this process's number for `PID`.
    fn told(status: u16, body: &str, close: bool) -> String {
        answer(status, &body.replace("PID", &std::process::id().to_string()), close)
    }

    fn ok(body: &str) -> String {
        told(200, body, false)
    }

    #[test]
    fn each_request_has_its_answer() {
        let get = |path: &str| format!("GET {path} HTTP/1.1\r\n\r\n");
        assert_eq!(serve(&get("/"), false), (ok("ok PID\n"), End::Client));
        assert_eq!(serve(&get("/slow?ms=1"), false), (ok("slow PID\n"), End::Client));
        let upload = "POST /upload HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc";
        assert_eq!(serve(upload, false), (ok("got PID 3\n"), End::Client));
        let download = told(200, "down PID\n\0\u{1}\u{2}", false);
        assert_eq!(serve(&get("/download?bytes=3"), false), (download, End::Client));
        let pongs = format!("PONG {}\n", std::process::id()).repeat(2);
        assert_eq!(serve("PING\nPING\n", true), (pongs, End::Client));
        assert_eq!(serve(&get("/x"), false).0, told(404, "not found\n", false));
    }

    #[test]
    fn a_large_body_comes_in_pieces() {
        let upload =
            format!("POST /upload HTTP/1.1\r\nContent-Length: 50000\r\n\r\n{}", "x".repeat(50_000));
        assert_eq!(serve(&upload, false), (ok("got PID 50000\n"), End::Client));
    }

    #[test]
    fn only_the_last_of_pipelined_answers_says_close() {
        let three = "GET / HTTP/1.1\r\n\r\n".repeat(3);
        let expected = ok("ok PID\n") + &ok("ok PID\n") + &told(200, "ok PID\n", true);
        assert_eq!(serve(&three, true), (expected, End::Said));
    }

    #[test]
    fn a_request_behind_a_body_is_seen_in_time() {
        let upload = "POST /upload HTTP/1.1\r\nContent-Length: 5000\r\n\r\n";
        let input = format!("{upload}{}GET / HTTP/1.1\r\n\r\n", "x".repeat(5_000));
        let expected = ok("got PID 5000\n") + &told(200, "ok PID\n", true);
        assert_eq!(serve(&input, true), (expected, End::Said));
    }

    #[test]
    fn close_is_answered_with_close() {
        let once = "GET / HTTP/1.1\r\nConnection: close\r\n\r\nGET / HTTP/1.1\r\n\r\n";
        assert_eq!(serve(once, false), (told(200, "ok PID\n", true), End::Said));
        let old = "GET / HTTP/1.0\r\n\r\n";
        assert_eq!(serve(old, false).1, End::Said);
    }

    #[test]
    fn a_body_is_asked_for_where_the_client_waits() {
        let upload = "POST /upload HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx";
        let expected = format!("HTTP/1.1 100 Continue\r\n\r\n{}", ok("got PID 1\n"));
        assert_eq!(serve(upload, false), (expected, End::Client));
    }

    #[test]
    fn an_end_within_a_request_is_told_apart() {
        assert_eq!(serve("GET / HTT", false).1, End::ClientWithinRequest);
        let upload = "POST /upload HTTP/1.1\r\nContent-Length: 3\r\n\r\nab";
        assert_eq!(serve(upload, false).1, End::ClientWithinRequest);
        assert_eq!(serve("", false).1, End::Client);
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let endless = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(2 * MAX_HEAD));
        for input in ["\0\u{1}\r\n\r\n", &endless, "POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n"] {
            assert_eq!(serve(input, false).1, End::NotARequest, "{input}");
        }
    }

    #[test]
    fn an_idle_connection_ends_with_the_drain_and_a_begun_request_does_not() {
        struct Draining;
        impl Service for Draining {
            async fn sleep(&self, _: Duration) {}

            async fn over(&self) {}
        }
        /// Has bytes first, and then nothing for ever.
        struct Quiet(Cursor<Vec<u8>>, Vec<u8>);
        impl AsyncRead for Quiet {
            fn poll_read(
                mut self: std::pin::Pin<&mut Self>,
                _: &mut std::task::Context<'_>,
                buffer: &mut [u8],
            ) -> std::task::Poll<io::Result<usize>> {
                match self.0.read(buffer) {
                    Ok(0) => std::task::Poll::Pending,
                    result => std::task::Poll::Ready(result),
                }
            }
        }
        impl AsyncWrite for Quiet {
            fn poll_write(
                mut self: std::pin::Pin<&mut Self>,
                _: &mut std::task::Context<'_>,
                bytes: &[u8],
            ) -> std::task::Poll<io::Result<usize>> {
                std::task::Poll::Ready(Write::write(&mut self.1, bytes))
            }

            fn poll_flush(
                self: std::pin::Pin<&mut Self>,
                _: &mut std::task::Context<'_>,
            ) -> std::task::Poll<io::Result<()>> {
                std::task::Poll::Ready(Ok(()))
            }

            fn poll_close(
                self: std::pin::Pin<&mut Self>,
                _: &mut std::task::Context<'_>,
            ) -> std::task::Poll<io::Result<()>> {
                std::task::Poll::Ready(Ok(()))
            }
        }
        let serve = |input: &str| {
            let quiet = Quiet(Cursor::new(input.into()), Vec::new());
            serve_connection(quiet, &Draining).now_or_never().map(Result::unwrap)
        };
        assert_eq!(serve(""), Some(End::Over));
        assert_eq!(serve("GET / HTTP/1.1\r\n\r\n"), Some(End::Over));
        assert_eq!(serve("GET / HT"), None);
    }
}
