//! What a client sees of one connection while its server drains.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::convert::Infallible;
use std::error::Error;
use std::future::ready;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use handover_core::{Drain, Stage};
use handover_http::{Connections, Server};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

const SOON: Duration = Duration::from_millis(50);

struct Under {
    client: DuplexStream,
    served: JoinHandle<Result<(), Box<dyn Error + Send + Sync>>>,
    connections: Connections,
}

/// A connection of a server on which `/slow` takes 100 ms and the rest nothing.
fn connect(drain: &Drain) -> Under {
    let (client, server) = duplex(64 * 1024);
    let http = Server::new(TokioExecutor::new(), TokioTimer::new(), drain.clone());
    let connections = http.connections();
    let served = http.serve_connection(TokioIo::new(server), service_fn(answer));
    Under { client, served: tokio::spawn(served), connections }
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

async fn answer(mut request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let body = match request.uri().path() {
        "/slow" => {
            sleep(Duration::from_millis(100)).await;
            Bytes::from("slow")
        }
        "/upgrade" => {
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let mut upgraded = TokioIo::new(upgrade.await.unwrap());
                let mut line = [0; 4];
                while upgraded.read_exact(&mut line).await.is_ok() {
                    upgraded.write_all(&line).await.unwrap();
                }
            });
            let mut answer = Response::new(Body::default());
            *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            answer.headers_mut().insert("connection", "upgrade".parse().unwrap());
            answer.headers_mut().insert("upgrade", "echo".parse().unwrap());
            return Ok(answer);
        }
        "/stream" => {
            let pieces = futures::stream::unfold(0, async |count| {
                sleep(Duration::from_millis(50)).await;
                let piece = Ok(Frame::data(Bytes::from("piece\n")));
                (count < 4).then_some((piece, count + 1))
            });
            return Ok(Response::new(StreamBody::new(pieces).boxed_unsync()));
        }
        _ => {
            let body = request.into_body().collect().await;
            Bytes::from(format!("got {}", body.unwrap().to_bytes().len()))
        }
    };
    Ok(Response::new(Full::new(body).boxed_unsync()))
}

fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: h\r\n\r\n").into_bytes()
}

impl Under {
    async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.client.write_all(bytes.as_ref()).await.unwrap();
    }

    /// The next answer: its body, and whether it says `close`.
    async fn answer(&mut self) -> (String, bool) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.client.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        let header = |name: &str| {
            let line = head.lines().find_map(|line| line.strip_prefix(name));
            line.map(|value| value.trim().to_owned())
        };
        let length = header("content-length:").map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        self.client.read_exact(&mut body).await.unwrap();
        let close = header("connection:").is_some_and(|value| value == "close");
        (String::from_utf8(body).unwrap(), close)
    }

    async fn is_open(&mut self) -> bool {
        timeout(SOON, self.client.read_u8()).await.is_err()
    }

    async fn has_ended(&mut self) -> bool {
        let mut rest = Vec::new();
        let ended = timeout(SOON, self.client.read_to_end(&mut rest)).await.is_ok();
        assert_eq!(String::from_utf8_lossy(&rest), "");
        ended
    }
}

fn says(body: &str, close: bool) -> (String, bool) {
    (body.into(), close)
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_stays_until_its_next_answer_says_close() {
    let (drain, set) = Drain::manual();
    let mut under = connect(&drain);
    under.send(get("/")).await;
    assert_eq!(under.answer().await, says("got 0", false));

    set(Stage::Closing);
    assert!(under.is_open().await);
    under.send(get("/")).await;
    assert_eq!(under.answer().await, says("got 0", true));
    assert!(under.has_ended().await);
}

#[tokio::test(start_paused = true)]
async fn a_connection_without_a_request_stays_until_it_is_over() {
    let (drain, set) = Drain::manual();
    let (mut early, mut late) = (connect(&drain), connect(&drain));
    set(Stage::Closing);
    assert!(early.is_open().await && late.is_open().await);

    early.send(get("/")).await;
    assert_eq!(early.answer().await, says("got 0", true));
    set(Stage::Over);
    assert!(late.has_ended().await);
}

#[tokio::test(start_paused = true)]
async fn after_a_rollback_connections_are_kept_alive_again() {
    let (drain, set) = Drain::manual();
    let mut under = connect(&drain);
    under.send(get("/slow")).await;
    sleep(Duration::from_millis(10)).await;
    set(Stage::Closing);
    sleep(Duration::from_millis(10)).await;
    set(Stage::Open);
    assert_eq!(under.answer().await, says("slow", false));
    under.send(get("/")).await;
    assert_eq!(under.answer().await, says("got 0", false));

    // And the next drain is heard as the first was.
    set(Stage::Closing);
    sleep(Duration::from_millis(10)).await;
    set(Stage::Over);
    assert!(under.has_ended().await);
}

#[tokio::test(start_paused = true)]
async fn an_answer_under_way_says_close_if_its_head_was_not_sent() {
    let (drain, set) = Drain::manual();
    let mut under = connect(&drain);
    under.send(get("/slow")).await;
    sleep(Duration::from_millis(10)).await;
    set(Stage::Closing);
    assert_eq!(under.answer().await, says("slow", true));
}

#[tokio::test(start_paused = true)]
async fn of_pipelined_requests_the_last_answer_says_close() {
    for stage in [Stage::Closing, Stage::Over] {
        let (drain, set) = Drain::manual();
        let mut under = connect(&drain);
        under.send([get("/slow"), get("/"), get("/slow"), get("/")].concat()).await;
        sleep(Duration::from_millis(10)).await;
        set(stage);
        assert_eq!(under.answer().await, says("slow", false));
        assert_eq!(under.answer().await, says("got 0", false));
        assert_eq!(under.answer().await, says("slow", false));
        assert_eq!(under.answer().await, says("got 0", true));
        assert!(under.has_ended().await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_comes_during_another_is_answered() {
    let (drain, set) = Drain::manual();
    set(Stage::Closing);
    let mut under = connect(&drain);
    under.send(get("/slow")).await;
    sleep(Duration::from_millis(50)).await;
    under.send("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 4\r\n\r\nab").await;
    sleep(Duration::from_millis(100)).await;
    under.send("cd").await;
    assert_eq!(under.answer().await, says("slow", false));
    assert_eq!(under.answer().await, says("got 4", true));
}

#[tokio::test(start_paused = true)]
async fn a_body_in_any_pieces_is_followed_by_close() {
    let head = "POST / HTTP/1.1\r\nhost: h\r\n";
    let (drain, set) = Drain::manual();
    set(Stage::Closing);
    for (pieces, length) in [
        (&["content-length: 2\r\n\r\nab"][..], 2),
        (&["content-length: 2\r\n\r\n", "a", "b"], 2),
        (&["transfer-encoding: chunked\r\n\r\n", "1\r\na\r\n", "1\r\nb\r\n0\r\n\r\n"], 2),
        (&["transfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"], 1),
    ] {
        let mut under = connect(&drain);
        under.send(head).await;
        for piece in pieces {
            sleep(Duration::from_millis(10)).await;
            under.send(piece).await;
        }
        assert_eq!(under.answer().await, says(&format!("got {length}"), true), "{pieces:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn expect_continue_works_while_closing() {
    let (drain, set) = Drain::manual();
    set(Stage::Closing);
    let mut under = connect(&drain);
    let head = "POST / HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n";
    under.send(head).await;
    let mut line = [0; 25];
    under.client.read_exact(&mut line).await.unwrap();
    assert_eq!(&line, b"HTTP/1.1 100 Continue\r\n\r\n");
    under.send("ab").await;
    assert_eq!(under.answer().await, says("got 2", true));
}

#[tokio::test(start_paused = true)]
async fn half_a_request_is_waited_for_when_it_is_over() {
    for requests_before in [0, 1] {
        let (drain, set) = Drain::manual();
        let mut under = connect(&drain);
        for _ in 0..requests_before {
            under.send(get("/")).await;
            under.answer().await;
        }
        under.send("GET / HTT").await;
        sleep(Duration::from_millis(10)).await;
        set(Stage::Over);
        assert!(under.is_open().await);
        under.send("P/1.1\r\nhost: h\r\n\r\n").await;
        assert_eq!(under.answer().await, says("got 0", true));
        assert!(under.has_ended().await);
    }
}

#[tokio::test(start_paused = true)]
async fn the_client_may_close_after_the_last_answer() {
    let (drain, set) = Drain::manual();
    set(Stage::Closing);
    let mut under = connect(&drain);
    under.send(get("/")).await;
    assert_eq!(under.answer().await, says("got 0", true));
    assert!(under.has_ended().await);
    // Our side is closed. What still comes must find an open socket, or a reset would answer it.
    under.send(get("/")).await;
    assert!(!under.served.is_finished());
    let Under { client, served, .. } = under;
    drop(client);
    timeout(SOON, served).await.unwrap().unwrap().unwrap();

    let mut under = connect(&drain);
    under.send(get("/")).await;
    under.answer().await;
    let before = Instant::now();
    under.served.await.unwrap().unwrap();
    assert_eq!(before.elapsed().as_secs(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_download_goes_on_to_its_end() {
    for stage in [Stage::Closing, Stage::Over] {
        let (drain, set) = Drain::manual();
        let mut under = connect(&drain);
        under.send(get("/stream")).await;
        sleep(Duration::from_millis(120)).await;
        set(stage);
        assert_eq!(under.connections.busy(), 1);
        let mut read = Vec::new();
        while !read.ends_with(b"\r\n0\r\n\r\n") {
            read.push(under.client.read_u8().await.unwrap());
        }
        let read = String::from_utf8(read).unwrap();
        assert_eq!(read.matches("piece").count(), 4);
        // Its head had promised that the connection stays.
        if stage == Stage::Closing {
            assert!(under.is_open().await);
            under.send(get("/")).await;
            assert_eq!(under.answer().await, says("got 0", true));
        }
        assert!(under.has_ended().await);
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_waited_for_after_the_deadline() {
    let (drain, set) = Drain::manual();
    let mut under = connect(&drain);
    under.send(get("/slow")).await;
    sleep(Duration::from_millis(10)).await;
    set(Stage::Over);
    set(Stage::Cut);
    assert!(under.has_ended().await);
    under.served.await.unwrap().unwrap();
    assert_eq!((under.connections.open(), under.connections.busy()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn connections_are_counted_also_after_an_upgrade() {
    let (drain, set) = Drain::manual();
    let mut under = connect(&drain);
    let counts = |under: &Under| (under.connections.open(), under.connections.busy());
    assert_eq!(counts(&under), (1, 0));
    under.send(get("/slow")).await;
    sleep(Duration::from_millis(10)).await;
    assert_eq!(counts(&under), (1, 1));
    under.answer().await;
    sleep(Duration::from_millis(10)).await;
    assert_eq!(counts(&under), (1, 0));

    set(Stage::Closing);
    under
        .send("GET /upgrade HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n")
        .await;
    assert_eq!(under.answer().await, says("", false));
    set(Stage::Over);
    under.send("ping").await;
    let mut pong = [0; 4];
    under.client.read_exact(&mut pong).await.unwrap();
    assert!(under.served.is_finished());
    assert_eq!(counts(&under), (1, 1));
    let connections = under.connections.clone();
    drop(under);
    sleep(Duration::from_millis(10)).await;
    assert_eq!((connections.open(), connections.busy()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn the_counts_can_be_watched() {
    let (drain, set) = Drain::manual();
    let mut under = connect(&drain);
    let connections = under.connections.clone();
    let watched = tokio::spawn(async move {
        let changes = connections.changes().map(|counts| (counts.open, counts.busy));
        changes.take_while(|counts| ready(*counts != (0, 0))).collect::<Vec<_>>().await
    });
    under.send(get("/slow")).await;
    assert_eq!(under.answer().await, says("slow", false));
    assert!(under.is_open().await);
    under
        .send("GET /upgrade HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n")
        .await;
    under.answer().await;
    set(Stage::Closing);
    drop(under);
    // Upgraded, it is one busy connection to its end.
    assert_eq!(watched.await.unwrap(), [(1, 1), (1, 0), (1, 1)]);
}

#[tokio::test(start_paused = true)]
async fn http2_hears_of_the_drain_at_once_and_loses_nothing() {
    let (drain, set) = Drain::manual();
    let Under { client, served, connections } = connect(&drain);
    let handshake =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(client));
    let (mut sender, connection) = handshake.await.unwrap();
    let connection = tokio::spawn(connection);
    let request = |path| {
        Request::builder().uri(format!("http://h{path}")).body(Empty::<Bytes>::new()).unwrap()
    };
    sender.send_request(request("/")).await.unwrap();

    let done = Arc::new(AtomicUsize::new(0));
    for _ in 0..8 {
        let (answer, done) = (sender.send_request(request("/slow")), Arc::clone(&done));
        tokio::spawn(async move {
            let body = answer.await.unwrap().into_body().collect().await.unwrap();
            assert_eq!(body.to_bytes(), "slow");
            done.fetch_add(1, Ordering::SeqCst);
        });
    }
    sleep(Duration::from_millis(10)).await;
    assert_eq!((connections.open(), connections.busy()), (1, 1));
    set(Stage::Closing);
    timeout(Duration::from_secs(1), served).await.unwrap().unwrap().unwrap();
    assert_eq!(done.load(Ordering::SeqCst), 8);
    connection.await.unwrap().unwrap();
    assert!(sender.ready().await.is_err());
}

/// HTTP/2 by hand, for clients of another make.
mod frames {
    use tokio::io::{AsyncReadExt, DuplexStream};

    pub(crate) const HEADERS: u8 = 1;
    pub(crate) const SETTINGS: u8 = 4;
    pub(crate) const PING: u8 = 6;
    pub(crate) const GOAWAY: u8 = 7;

    pub(crate) fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
        let length = payload.len() as u8;
        [&[0, 0, length, kind, flags, 0, 0, 0, stream], payload].concat()
    }

    /// How a connection begins, up to its first request.
    pub(crate) fn hello() -> Vec<u8> {
        let settings = frame(SETTINGS, 0, 0, b"");
        [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &settings[..], &request(1)].concat()
    }

    /// GET http://h/ as HPACK has it, complete.
    pub(crate) fn request(stream: u8) -> Vec<u8> {
        frame(HEADERS, 5, stream, b"\x82\x86\x84\x41\x01h")
    }

    pub(crate) fn answer(ping: &[u8]) -> Vec<u8> {
        frame(PING, 1, 0, ping)
    }

    /// The kind, the stream and the payload of the next.
    pub(crate) async fn read(client: &mut DuplexStream) -> (u8, u8, Vec<u8>) {
        let mut head = [0; 9];
        client.read_exact(&mut head).await.unwrap();
        let mut payload = vec![0; u16::from_be_bytes([head[1], head[2]]).into()];
        client.read_exact(&mut payload).await.unwrap();
        (head[3], head[8], payload)
    }

    /// The stream and the payload of the next of this kind.
    pub(crate) async fn read_until(client: &mut DuplexStream, kind: u8) -> (u8, Vec<u8>) {
        loop {
            if let (found, stream, payload) = read(client).await
                && found == kind
            {
                return (stream, payload);
            }
        }
    }
}

/// A client that has been answered on its first stream.
async fn served_once() -> (Under, impl Fn(Stage)) {
    let (drain, set) = Drain::manual();
    let mut under = connect(&drain);
    under.send(frames::hello()).await;
    assert_eq!(frames::read_until(&mut under.client, frames::HEADERS).await.0, 1);
    (under, set)
}

/// After the first word: this stream was the last.
async fn takes_leave(mut under: Under, stream: u8) {
    let (_, ping) = frames::read_until(&mut under.client, frames::PING).await;
    under.send(frames::answer(&ping)).await;
    let (_, last) = frames::read_until(&mut under.client, frames::GOAWAY).await;
    assert_eq!(last[..4], [0, 0, 0, stream]);
    under.served.await.unwrap().unwrap();
}

/// The first word of the farewell.
const NO_STREAM: [u8; 4] = [0x7f, 0xff, 0xff, 0xff];

#[tokio::test(start_paused = true)]
async fn http2_parts_its_first_word_from_the_answers_before() {
    use frames::*;
    let (mut under, set) = served_once().await;
    set(Stage::Closing);
    let (_, question) = read_until(&mut under.client, PING).await;
    // An answer that was read together with the first word would make the client ask for something,
    // and take that back.
    under.send(request(3)).await;
    let early = timeout(Duration::from_millis(50), read(&mut under.client)).await;
    assert!(early.is_err(), "{early:?} before the client has read everything");
    under.send(answer(&question)).await;
    let (kind, _, first) = read(&mut under.client).await;
    assert_eq!((kind, &first[..4]), (GOAWAY, &NO_STREAM[..]));
    assert_eq!(read_until(&mut under.client, HEADERS).await.0, 3);
    takes_leave(under, 3).await;
}

#[tokio::test(start_paused = true)]
async fn http2_serves_what_its_client_had_queued_when_it_heard_of_the_drain() {
    use frames::*;
    let (mut under, set) = served_once().await;
    set(Stage::Closing);
    // A client that does not answer hears of it nevertheless.
    let (_, first) = read_until(&mut under.client, GOAWAY).await;
    assert_eq!(first[..4], NO_STREAM);
    // As a client does it that answers whatever it has read before it sends what it has queued.
    let early = timeout(SOON, read_until(&mut under.client, PING)).await;
    assert!(early.is_err(), "a PING right behind the first word");
    under.send(request(3)).await;
    assert_eq!(read_until(&mut under.client, HEADERS).await.0, 3);
    takes_leave(under, 3).await;
}

#[tokio::test(start_paused = true)]
async fn an_http2_connection_without_a_request_hears_of_it_too() {
    let (drain, set) = Drain::manual();
    set(Stage::Closing);
    let Under { client, served, .. } = connect(&drain);
    let handshake = hyper::client::conn::http2::handshake::<_, _, Empty<Bytes>>;
    let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(client)).await.unwrap();
    timeout(Duration::from_secs(1), connection).await.unwrap().unwrap();
    // It may find that the client has gone already.
    let _ = served.await.unwrap();
    drop(sender);
}

#[tokio::test(start_paused = true)]
async fn what_looks_like_http2_at_first_is_http1() {
    let (drain, set) = Drain::manual();
    let mut under = connect(&drain);
    under.send("P").await;
    sleep(Duration::from_millis(10)).await;
    set(Stage::Closing);
    assert!(under.is_open().await);
    under.send("OST / HTTP/1.1\r\nhost: h\r\ncontent-length: 1\r\n\r\nx").await;
    assert_eq!(under.answer().await, says("got 1", true));
}
