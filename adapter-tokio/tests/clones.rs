//! Several tasks that accept on clones of one listener, each serving inline.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use handover_tokio::Policy;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

const TASKS: usize = 8;

/// Whether a connection is served while others hold `busy` of the tasks.
async fn round(address: std::net::SocketAddr, busy: usize, serving: &AtomicUsize) {
    let mut held = Vec::new();
    for _ in 0..busy {
        held.push(TcpStream::connect(address).await.unwrap());
    }
    while serving.load(Ordering::SeqCst) < busy {
        tokio::task::yield_now().await;
    }
    for _ in 0..4 {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"x").await.unwrap();
        let answer = timeout(Duration::from_secs(60), client.read_u8()).await;
        assert_eq!(answer.expect("a connection waits while a task is idle").unwrap(), b'x');
    }
    for mut client in held {
        client.write_all(b"y").await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), b'y');
    }
    while serving.load(Ordering::SeqCst) > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_connection_waits_while_a_task_is_idle() {
    let policy = Policy::new().without_signals().instance("clones");
    let start = handover_tokio::start_with(policy).unwrap();
    let listener = start.listen_tcp("web", "127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let handle = start.handle();
    let serving = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..TASKS {
        let (listener, serving) = (listener.clone(), Arc::clone(&serving));
        tasks.spawn(async move {
            loop {
                let (mut connection, _) = listener.accept().await.unwrap();
                serving.fetch_add(1, Ordering::SeqCst);
                if let Ok(byte) = connection.read_u8().await {
                    connection.write_u8(byte).await.unwrap();
                }
                serving.fetch_sub(1, Ordering::SeqCst);
            }
        });
    }
    let clients = async {
        for at in 0..200 {
            round(address, at % TASKS, &serving).await;
        }
        handle.stop();
    };
    let (exit, ()) = tokio::join!(start.run(std::future::pending::<()>()), clients);
    exit.unwrap();
}
