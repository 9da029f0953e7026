//! The accept loop, over a listener that does what a test says.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::convert::Infallible;
use std::future::{Future, pending};
use std::io::{self, ErrorKind};
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures::StreamExt;
use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use futures::future::select;
use handover_core::{Drain, Stage};
use handover_http::{Accept, Adapt, HyperToTower, Serve, Spawn};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::Instant;

/// The other end is only a number.
type Accepted = io::Result<(DuplexStream, u8)>;

struct Listener {
    accepted: UnboundedReceiver<Accepted>,
    drain: Drain,
}

impl Accept for Listener {
    type Stream = DuplexStream;
    type Peer = u8;

    fn poll_accept(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<Option<(DuplexStream, u8)>>> {
        self.accepted.poll_next_unpin(context).map(Option::transpose)
    }

    fn drain(&self) -> Drain {
        self.drain.clone()
    }
}

#[derive(Clone)]
struct Tokio;

impl Spawn for Tokio {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        tokio::spawn(task);
    }
}

impl Adapt<DuplexStream> for Tokio {
    type Io = TokioIo<DuplexStream>;

    fn adapt(stream: DuplexStream) -> Self::Io {
        TokioIo::new(stream)
    }
}

fn listener(drain: &Drain) -> (UnboundedSender<Accepted>, Listener) {
    let (queue, accepted) = unbounded();
    (queue, Listener { accepted, drain: drain.clone() })
}

/// Says which peer asks.
macro_rules! serve {
    ($listener:expr) => {
        Serve::new(
            Tokio,
            TokioTimer::new(),
            $listener,
            HyperToTower::new(service_fn(async |request: Request<_>| {
                let peer = request.extensions().get::<u8>().unwrap();
                Ok::<_, Infallible>(Response::new(format!("peer {peer}\n")))
            })),
        )
        .prepare(|request, peer| {
            request.extensions_mut().insert(*peer);
        })
    };
}

fn connect(queue: &UnboundedSender<Accepted>, peer: u8) -> DuplexStream {
    let (client, server) = duplex(64 * 1024);
    queue.unbounded_send(Ok((server, peer))).unwrap();
    client
}

async fn ask(mut client: DuplexStream) -> String {
    client.write_all(b"GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test(start_paused = true)]
async fn a_failed_accept_is_not_the_end() {
    let (drain, _) = Drain::manual();
    let (queue, listener) = listener(&drain);
    tokio::spawn(serve!(listener));
    for (error, waits) in [
        (ErrorKind::ConnectionAborted.into(), 0),
        (ErrorKind::ConnectionReset.into(), 0),
        (io::Error::from_raw_os_error(24), 100),
        (ErrorKind::OutOfMemory.into(), 100),
    ] {
        let before = Instant::now();
        queue.unbounded_send(Err(error)).unwrap();
        let answer = ask(connect(&queue, 7)).await;
        assert!(answer.ends_with("peer 7\n"), "{answer}");
        // tokio's clock goes by whole milliseconds.
        let waited = before.elapsed().as_millis();
        assert!((waits..=waits + 1).contains(&waited), "{waited} ms");
    }
}

#[tokio::test(start_paused = true)]
async fn a_handshake_has_a_deadline_and_others_do_not_wait_for_it() {
    let (drain, _) = Drain::manual();
    let (queue, listener) = listener(&drain);
    let server = serve!(listener).handshake(async |mut stream: DuplexStream| {
        stream.read_u8().await?;
        Ok(stream)
    });
    let connections = server.connections();
    tokio::spawn(server);

    let before = Instant::now();
    let mut silent = connect(&queue, 1);
    let mut client = connect(&queue, 2);
    client.write_all(b"!").await.unwrap();
    assert!(ask(client).await.ends_with("peer 2\n"));
    assert_eq!(before.elapsed(), Duration::ZERO);

    assert_eq!(silent.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(before.elapsed().as_secs(), 30);
    assert_eq!(connections.open(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_handshake_ends_at_the_drain_deadline() {
    let (drain, set) = Drain::manual();
    let (queue, listener) = listener(&drain);
    let server = serve!(listener).handshake(async |_| pending::<io::Result<DuplexStream>>().await);
    tokio::spawn(server);
    let mut client = connect(&queue, 1);
    tokio::task::yield_now().await;
    set(Stage::Over);
    let before = Instant::now();
    set(Stage::Cut);
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(before.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn others_have_their_turn_in_a_flood() {
    let (drain, _) = Drain::manual();
    let (queue, listener) = listener(&drain);
    let clients: Vec<_> = (0..200).map(|peer| connect(&queue, peer)).collect();
    let server = serve!(listener);
    let connections = server.connections();
    let mut server = pin!(server);
    let context = &mut Context::from_waker(Waker::noop());
    assert!(server.as_mut().poll(context).is_pending());
    tokio::task::yield_now().await;
    let first = connections.open();
    assert!((1..200).contains(&first), "{first} at once");

    // It asks for the next turn itself.
    let all = connections.changes().filter(|now| std::future::ready(now.open == 200));
    select(server, pin!(all).next()).await;
    assert_eq!(connections.open(), 200);
    drop(clients);
}

#[tokio::test(start_paused = true)]
async fn a_listener_that_was_given_up_leaves_its_connections_alone() {
    let (drain, _) = Drain::manual();
    let (queue, listener) = listener(&drain);
    let mut server = pin!(serve!(listener));
    let client = connect(&queue, 3);
    drop(queue);
    let context = &mut Context::from_waker(Waker::noop());
    assert!(server.as_mut().poll(context).is_pending());
    assert!(ask(client).await.ends_with("peer 3\n"));
}
