//! Several tasks that accept from one listener.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed test is to panic")]

use std::future::poll_fn;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::{AsyncReadExt, AsyncWriteExt};
use handover_smol::{Policy, start_with};

#[test]
fn they_neither_starve_nor_keep_each_other_busy() {
    smol::block_on(async {
        let start = start_with(Policy::new().without_signals()).unwrap();
        let listener = start.listen_tcp("web", "127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let polls = Arc::new(AtomicUsize::new(0));
        for _ in 0..4 {
            let (listener, polls) = (listener.clone(), Arc::clone(&polls));
            smol::spawn(async move {
                loop {
                    let accepted = poll_fn(|context| {
                        polls.fetch_add(1, Ordering::Relaxed);
                        listener.poll_accept(context)
                    });
                    let Some((mut connection, _)) = accepted.await.unwrap() else { break };
                    let mut bytes = [0; 2];
                    connection.read_exact(&mut bytes).await.unwrap();
                    connection.write_all(&bytes).await.unwrap();
                }
            })
            .detach();
        }
        let handle = start.handle();
        let idle = Arc::clone(&polls);
        let clients = std::thread::spawn(move || {
            for _ in 0..50 {
                let mut clients: Vec<_> =
                    (0..4).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
                for client in &mut clients {
                    client.write_all(b"hi").unwrap();
                    client.read_exact(&mut [0; 2]).unwrap();
                }
            }
            // Tasks that are late have still to see the last connections. After that nothing polls.
            let quiet = (0..300).any(|_| {
                let before = idle.load(Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(200));
                idle.load(Ordering::Relaxed) == before
            });
            handle.stop();
            quiet
        });
        start.run(std::future::pending::<()>()).await.unwrap();
        assert!(clients.join().unwrap(), "they poll although nothing happens");
        assert!(polls.load(Ordering::Relaxed) < 4 * 1000, "{polls:?} polls");
    });
}
