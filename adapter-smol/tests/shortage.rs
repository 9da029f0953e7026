//! `http::serve` while there are no descriptors. Alone in its process, whose limit it changes.
#![cfg(feature = "http")]
#![allow(clippy::unwrap_used, reason = "a test")]

use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::net;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::channel::mpsc::{UnboundedSender, unbounded};
use futures::future::join;
use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use handover_smol::{Connection, Drain, Policy, TcpListener, http, start_with};
use hyper::Response;
use hyper::service::service_fn;
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use smol::Async;

/// A listener that tells of each accept that fails, and when.
struct Telling(TcpListener, UnboundedSender<(Option<Errno>, Instant)>);

impl http::Accept for Telling {
    type Stream = Connection<async_net::TcpStream>;
    type Peer = net::SocketAddr;

    fn poll_accept(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<Option<(Self::Stream, Self::Peer)>>> {
        let accepted = self.0.poll_accept(context);
        if let Poll::Ready(Err(error)) = &accepted {
            let _ = self.1.unbounded_send((Errno::from_io_error(error), Instant::now()));
        }
        accepted
    }

    fn drain(&self) -> Drain {
        self.0.drain().clone()
    }
}

async fn ask(client: net::TcpStream) {
    let mut client = Async::new(client).unwrap();
    let request = b"GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n";
    client.write_all(request).await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("\r\n\r\nhello\n"), "{answer}");
}

#[test]
fn what_waits_is_served_when_there_are_descriptors_again() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(128), maximum }).unwrap();
    smol::block_on(async {
        let start = start_with(Policy::new().without_signals()).unwrap();
        let listener = start.listen_tcp("web", "127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let handle = start.handle();
        let (failed, mut failures) = unbounded();
        let service = http::HyperToTower::new(service_fn(async |_| {
            Ok::<_, Infallible>(Response::new(String::from("hello\n")))
        }));
        let server =
            http::serve(Telling(listener, failed), service, |task| smol::spawn(task).detach());
        let client = async {
            ask(net::TcpStream::connect(address).unwrap()).await;

            // Nothing is accepted until this task waits for something.
            let waiting = net::TcpStream::connect(address).unwrap();
            let all: Vec<_> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
            let mut last = None;
            for _ in 0..3 {
                let (error, at) = failures.next().await.unwrap();
                assert_eq!(error, Some(Errno::MFILE));
                let waited = last.replace(at).map_or(Duration::MAX, |last| at - last);
                assert!(waited >= Duration::from_millis(100), "two within {waited:?}");
            }
            drop(all);
            ask(waiting).await;
            handle.stop();
        };
        let (exit, ()) = join(start.run(server), client).await;
        assert_eq!(exit.unwrap().cut, 0);
    });
}
