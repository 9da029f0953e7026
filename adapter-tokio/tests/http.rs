//! `http::serve` in a real instance without signals.
#![cfg(feature = "http")]
#![allow(clippy::unwrap_used, reason = "a test")]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use handover_tokio::{Handle, Policy, http};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
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

/// Waits until the other end has read what was sent to it.
async fn until_read(client: &TcpStream) {
    let theirs = format!(":{:04X}", client.peer_addr().unwrap().port());
    let ours = format!(":{:04X}", client.local_addr().unwrap().port());
    // Before the colon: what has not arrived there yet; after it: what waits to be read. The list
    // may miss one while others come and go.
    for (near, far, queues) in
        [(&ours, &theirs, "00000000:00000000"), (&theirs, &ours, ":00000000")]
    {
        loop {
            let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
            let rows = table.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
            let mut found = rows.filter(|row| row[1].ends_with(near) && row[2].ends_with(far));
            if found.next().is_some_and(|row| row[4].ends_with(queues)) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

#[tokio::test(flavor = "local")]
async fn a_stop_lets_idle_connections_ask_once_more() {
    let Instance { address, handle, connections, exit } =
        instance("linger", Duration::from_secs(600), Duration::from_secs(600));
    let mut client = TcpStream::connect(address).await.unwrap();
    let answer = ask(&mut client).await;
    assert!(answer.ends_with(&format!("\r\n\r\n{}\n", client.local_addr().unwrap())), "{answer}");
    assert!(!answer.contains("connection: close"), "{answer}");
    assert_eq!(connections.open(), 1);

    handle.stop();
    handle.drain().closing().await;
    let answer = ask(&mut client).await;
    assert!(answer.contains("connection: close"), "{answer}");
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    drop(client);
    let exit = exit.await.unwrap();
    assert_eq!((exit.cut, connections.open()), (0, 0));
}

#[tokio::test(flavor = "local")]
async fn a_lame_duck_lets_clients_in_and_tells_load_balancers_that_it_goes() {
    let policy = Policy::new()
        .without_signals()
        .instance("duck")
        .stop_linger(Duration::ZERO)
        .lame_duck(Duration::from_secs(600));
    let start = handover_tokio::start_with(policy).unwrap();
    let listener = start.listen_tcp("web", "127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (handle, asked) = (start.handle(), start.handle());
    // A hyper service: what a health endpoint says.
    let ready = http::HyperToTower::new(service_fn(move |_| {
        let mut answer = Response::new(String::from("\n"));
        if !asked.is_ready() {
            *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        }
        std::future::ready(Ok::<_, Infallible>(answer))
    }));
    let server = http::serve(listener, ready);
    let exit = tokio::task::spawn_local(async { start.run(server).await.unwrap() });
    let look = async || ask(&mut TcpStream::connect(address).await.unwrap()).await;
    assert!(look().await.starts_with("HTTP/1.1 200 "));

    handle.stop();
    while handle.is_ready() {
        tokio::task::yield_now().await;
    }
    assert!(look().await.starts_with("HTTP/1.1 503 "));
    // Told twice, it does not wait any more.
    handle.stop();
    assert_eq!(exit.await.unwrap().cut, 0);
}

#[tokio::test(flavor = "local")]
async fn connections_that_outlive_run_end_with_it() {
    let Instance { address, handle, connections, exit } =
        instance("cut", Duration::ZERO, Duration::from_millis(300));
    let mut client = TcpStream::connect(address).await.unwrap();
    ask(&mut client).await;
    // Half a request is waited for, up to the deadline.
    client.write_all(&REQUEST[..10]).await.unwrap();
    until_read(&client).await;
    handle.stop();
    assert_eq!(exit.await.unwrap().cut, 1);
    assert_eq!(client.read(&mut [0]).await.unwrap_or(0), 0);
    assert_eq!(connections.open(), 0);
}
