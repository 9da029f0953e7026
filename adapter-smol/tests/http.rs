//! `http::serve` in a real instance without signals.
#![cfg(feature = "http")]
#![allow(clippy::unwrap_used, reason = "a test")]

use std::convert::Infallible;
use std::future::ready;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_net::TcpStream;
use futures::future::join;
use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use handover_smol::{Connection, Policy, Start, http, start_with};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http2;
use hyper::service::service_fn;
use hyper::{Request, Response, Version};
use smol::Executor;
use smol_hyper::rt::{FuturesIo, SmolExecutor};

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: h\r\n\r\n";

/// A tower service that says who asks.
#[derive(Clone)]
struct Who;

impl tower_service::Service<Request<Incoming>> for Who {
    type Response = Response<String>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Response<String>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let who = request.extensions().get::<SocketAddr>();
        ready(Ok(Response::new(format!("{}\n", who.unwrap()))))
    }
}

fn start(name: &str) -> Start {
    // Only clients end it, however late they are.
    let long = Duration::from_secs(600);
    let policy = Policy::new().without_signals().instance(name).stop_linger(long).stop_drain(long);
    start_with(policy).unwrap()
}

async fn ask(client: &mut TcpStream) -> String {
    client.write_all(REQUEST).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\n") || answer.ends_with(b"\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte).await.unwrap();
        answer.push(byte[0]);
    }
    String::from_utf8(answer).unwrap()
}

#[test]
fn a_tower_service_after_a_handshake_loses_nothing_at_a_stop() {
    smol::block_on(async {
        let start = start("tower");
        let listener = start.listen_tcp("web", "127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let handle = start.handle();
        let server = http::serve(listener, Who, |task| smol::spawn(task).detach())
            .prepare(|request, peer| {
                request.extensions_mut().insert(*peer);
            })
            .handshake(async |mut connection: Connection<TcpStream>| {
                let mut hello = [0; 5];
                connection.read_exact(&mut hello).await?;
                connection.write_all(&hello).await?;
                Ok(connection)
            });
        let connections = server.connections();
        let client = async {
            let mut idle = TcpStream::connect(address).await.unwrap();
            let mut shaking = TcpStream::connect(address).await.unwrap();
            idle.write_all(b"hello").await.unwrap();
            idle.read_exact(&mut [0; 5]).await.unwrap();
            let answer = ask(&mut idle).await;
            assert!(answer.ends_with(&format!("{}\n", idle.local_addr().unwrap())), "{answer}");
            assert!(!answer.contains("connection: close"), "{answer}");

            handle.stop();
            handle.drain().closing().await;
            assert!(ask(&mut idle).await.contains("connection: close"));
            // A handshake under way is completed.
            shaking.write_all(b"hello").await.unwrap();
            shaking.read_exact(&mut [0; 5]).await.unwrap();
            assert!(ask(&mut shaking).await.contains("connection: close"));
            assert_eq!(shaking.read(&mut [0]).await.unwrap(), 0);
            drop((idle, shaking));
            let mut changes = pin!(connections.changes().filter(|now| ready(now.open == 0)));
            changes.next().await
        };
        let (exit, _) = join(start.run(server), client).await;
        assert_eq!(exit.unwrap().cut, 0);
    });
}

#[test]
fn a_hyper_service_on_an_executor_of_ones_own() {
    async fn answer(request: Request<Incoming>) -> Result<Response<String>, Infallible> {
        Ok(Response::new(format!("{:?}\n", request.version())))
    }

    let executor = Arc::new(Executor::new());
    smol::block_on(executor.run(async {
        let start = start("hyper");
        let listener = start.listen_tcp("web", "127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let handle = start.handle();
        let tasks = Arc::clone(&executor);
        let service = http::HyperToTower::new(service_fn(answer));
        let server = http::serve(listener, service, move |task| tasks.spawn(task).detach());
        let client = async {
            let mut client = TcpStream::connect(address).await.unwrap();
            assert!(ask(&mut client).await.ends_with("HTTP/1.1\n"));
            drop(client);

            // Its streams are tasks as well.
            let stream = FuturesIo::new(TcpStream::connect(address).await.unwrap());
            let tasks = SmolExecutor::new(Arc::clone(&executor));
            let (mut sender, connection) = http2::handshake(tasks, stream).await.unwrap();
            let connection = executor.spawn(connection);
            let request = Request::get("http://h/").body(String::new()).unwrap();
            let answer = sender.send_request(request).await.unwrap();
            assert_eq!(answer.version(), Version::HTTP_2);
            assert_eq!(answer.body().size_hint().exact(), Some("HTTP/2.0\n".len() as u64));
            handle.stop();
            drop(answer);
            connection.await.unwrap();
        };
        let (exit, ()) = join(start.run(server), client).await;
        assert_eq!(exit.unwrap().cut, 0);
    }));
}
