//! `http::serve` in a real instance without signals.
#![cfg(feature = "http")]
#![allow(clippy::unwrap_used, reason = "a test")]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use handover_tokio::{Handle, Policy, http};
use hyper::body::Incoming;
use hyper::{Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: h\r\n\r\n";

/// A tower service that says who asks.
#[derive(Clone)]
struct Who;

impl tower_service::Service<Request<Incoming>> for Who {
    type Response = Response<String>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Response<String>, Infallible>>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let who = request.extensions().get::<SocketAddr>();
        std::future::ready(Ok(Response::new(format!("{}\n", who.unwrap()))))
    }
}

struct Instance {
    address: SocketAddr,
    handle: Handle,
    connections: http::Connections,
    exit: JoinHandle<handover_tokio::Exit>,
}

fn instance(name: &str, stop_linger: Duration, stop_drain: Duration) -> Instance {
    let policy = Policy::new()
        .without_signals()
        .instance(name)
        .stop_linger(stop_linger)
        .stop_drain(stop_drain);
    let start = handover_tokio::start_with(policy).unwrap();
    let listener = start.listen_tcp("web", "127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let handle = start.handle();
    let server = http::serve(listener, Who)
        .prepare(|request, peer| {
            request.extensions_mut().insert(*peer);
        })
        .handshake(async |connection: handover_tokio::Connection<TcpStream>| {
            connection.set_nodelay(true)?;
            Ok(connection)
        });
    let connections = server.connections();
    let exit = tokio::task::spawn_local(async { start.run(server).await.unwrap() });
    Instance { address, handle, connections, exit }
}

async fn ask(client: &mut TcpStream) -> String {
    client.write_all(REQUEST).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\n") || answer.ends_with(b"\r\n") {
        answer.push(client.read_u8().await.unwrap());
    }
    String::from_utf8(answer).unwrap()
}

#[tokio::test(flavor = "local")]
async fn a_stop_lets_idle_connections_ask_once_more() {
    let Instance { address, handle, connections, exit } =
        instance("linger", Duration::from_millis(500), Duration::from_secs(5));
    let mut client = TcpStream::connect(address).await.unwrap();
    let answer = ask(&mut client).await;
    assert!(answer.ends_with(&format!("\r\n\r\n{}\n", client.local_addr().unwrap())), "{answer}");
    assert!(!answer.contains("connection: close"), "{answer}");
    assert_eq!(connections.open(), 1);

    handle.stop();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let answer = ask(&mut client).await;
    assert!(answer.contains("connection: close"), "{answer}");
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    drop(client);
    let exit = exit.await.unwrap();
    assert_eq!((exit.cut, connections.open()), (0, 0));
}

#[tokio::test(flavor = "local")]
async fn connections_that_outlive_run_end_with_it() {
    let Instance { address, handle, connections, exit } =
        instance("cut", Duration::ZERO, Duration::from_millis(300));
    let mut client = TcpStream::connect(address).await.unwrap();
    ask(&mut client).await;
    // Half a request is waited for, up to the deadline.
    client.write_all(&REQUEST[..10]).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    handle.stop();
    assert_eq!(exit.await.unwrap().cut, 1);
    assert_eq!(client.read(&mut [0]).await.unwrap_or(0), 0);
    assert_eq!(connections.open(), 0);
}
