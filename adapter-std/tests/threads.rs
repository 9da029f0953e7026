//! What is different about threads.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed test is to panic")]

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use futures::StreamExt;
use handover_std::threads::{
    Address, Drain, Event, Next, Policy, Stage, Start, block_on, close, start_with, wait_readable,
};

fn start() -> Start {
    let policy = Policy::new().without_signals().stop_linger(Duration::ZERO);
    start_with(policy).unwrap()
}

#[test]
fn who_waits_for_a_connection_is_told_when_none_will_come() {
    let start = start();
    let listener = start.listen_tcp("web", "127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let waiting: Vec<_> = (0..8)
        .map(|_| {
            let listener = listener.clone();
            thread::spawn(move || {
                let mut accepted = 0;
                loop {
                    match listener.accept() {
                        Ok((mut connection, _)) => {
                            // It blocks: nothing has been sent yet.
                            connection.read_exact(&mut [0; 2]).unwrap();
                            (&connection).write_all(b"hi").unwrap();
                            accepted += 1;
                        }
                        Err(error) => return (accepted, error.kind()),
                    }
                }
            })
        })
        .collect();
    let handle = start.handle();
    let clients = thread::spawn(move || {
        for _ in 0..100 {
            let mut client = TcpStream::connect(address).unwrap();
            thread::sleep(Duration::from_millis(1));
            client.write_all(b"hi").unwrap();
            client.read_exact(&mut [0; 2]).unwrap();
        }
        handle.stop();
    });
    let drain = start.drain();
    start.run(move || drop(block_on(drain.cut()))).unwrap();
    clients.join().unwrap();
    let told: Vec<_> = waiting.into_iter().map(|thread| thread.join().unwrap()).collect();
    assert!(told.iter().all(|(_, kind)| *kind == ErrorKind::NotConnected), "{told:?}");
}

#[test]
fn a_listener_that_is_closed_ends_its_loop_and_so_the_server() {
    let start = start();
    let listener = start.listen_tcp("web", "127.0.0.1:0").unwrap();
    let handle = start.handle();
    let (sender, loops) = mpsc::channel();
    thread::spawn(move || {
        thread::sleep(Duration::from_millis(50));
        assert!(handle.close("web"));
    });
    start
        .run(move || {
            for _ in listener.incoming() {}
            sender.send(listener.local_addr().unwrap_err().kind()).unwrap();
        })
        .unwrap();
    assert_eq!(loops.recv().unwrap(), ErrorKind::NotConnected);
}

#[test]
fn a_server_s_error_and_its_panic_come_out_of_run() {
    let error = start().run(|| Err::<(), _>("broken")).unwrap_err();
    assert!(error.to_string().ends_with("broken"), "{error}");
    let start = start();
    let panic = catch_unwind(AssertUnwindSafe(|| start.run(|| -> () { panic!("on purpose") })));
    assert_eq!(panic.unwrap_err().downcast_ref(), Some(&"on purpose"));
}

#[test]
fn a_thread_that_is_stuck_is_left_behind_at_the_deadline() {
    let policy = Policy::new()
        .without_signals()
        .stop_linger(Duration::ZERO)
        .stop_drain(Duration::from_millis(300));
    let start = start_with(policy).unwrap();
    let (handle, guard) = (start.handle(), start.guard());
    let exit = start
        .run(move || {
            let _guard = guard;
            block_on(pin!(handle.states()).next()).unwrap();
            handle.stop();
            // For ever: to come back from `run` is not to have waited for it.
            loop {
                thread::park();
            }
        })
        .unwrap();
    assert_eq!(exit.cut, 1);
}

#[test]
fn futures_are_waited_for_and_hooks_run() {
    let mut start = start();
    let (sender, begun) = mpsc::channel();
    start.before(Event::Accept, move || {
        let sender = sender.clone();
        async move { Ok(sender.send(thread::current().id())?) }
    });
    let (handle, drain) = (start.handle(), start.drain());
    let here = thread::current().id();
    start
        .run(move || {
            assert_eq!(begun.recv().unwrap(), here);
            block_on(pin!(handle.states()).next()).unwrap();
            handle.stop();
            block_on(drain.closing()).unwrap();
        })
        .unwrap();
}

#[test]
fn datagrams_block_and_are_answered() {
    let start = start();
    let socket = start.udp("echo", "127.0.0.1:0").unwrap();
    let Some(Address::Ip(address)) = start.address("echo") else { panic!("no address") };
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    let handle = start.handle();
    let asking = thread::spawn(move || {
        thread::sleep(Duration::from_millis(50));
        client.send_to(b"hello", address).unwrap();
        let mut buffer = [0; 16];
        let length = client.recv(&mut buffer).unwrap();
        handle.stop();
        buffer[..length].to_vec()
    });
    start
        .run(move || {
            let mut buffer = [0; 16];
            loop {
                match socket.recv_from(&mut buffer) {
                    Ok((length, from)) => _ = socket.try_send_to(&buffer[..length], &from),
                    Err(error) => return assert_eq!(error.kind(), ErrorKind::NotConnected),
                }
            }
        })
        .unwrap();
    assert_eq!(asking.join().unwrap(), b"hello");
}

#[test]
fn a_shared_listener_stays_non_blocking_and_its_connections_block() {
    let start = start();
    let listener = start.listen_tcp("web", "127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let handle = start.handle();
    thread::spawn(move || {
        let mut client = TcpStream::connect(address).unwrap();
        let _ = client.read(&mut [0; 1]);
    });
    start
        .run(move || {
            let (connection, _) = listener.accept().unwrap();
            let flags = rustix::fs::fcntl_getfl(connection.as_fd()).unwrap();
            assert!(!flags.contains(rustix::fs::OFlags::NONBLOCK));
            handle.stop();
        })
        .unwrap();
}

#[test]
fn an_idle_connection_stays_until_it_is_over() {
    const CLIENTS: usize = 30;
    // The clients must have asked before it is over.
    let policy = Policy::new().without_signals().stop_linger(Duration::from_secs(10));
    let start = start_with(policy).unwrap();
    let listener = start.listen_tcp("web", "127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (handle, drain) = (start.handle(), start.drain());
    let clients = thread::spawn({
        let drain = drain.clone();
        move || {
            let ask = |mut client: &TcpStream| {
                client.write_all(b"ping").unwrap();
                client.read_exact(&mut [0; 4]).unwrap();
            };
            let clients: Vec<_> =
                (0..CLIENTS).map(|_| TcpStream::connect(address).unwrap()).collect();
            clients.iter().for_each(ask);
            handle.stop();
            block_on(drain.closing()).unwrap();
            // Nobody has told them yet.
            clients.iter().for_each(ask);
            for mut client in &clients {
                assert_eq!(client.read(&mut [0]).unwrap(), 0);
            }
            assert!(drain.stage() >= Stage::Over);
        }
    });
    let (sender, ended) = mpsc::channel();
    start
        .run(move || {
            for connection in listener.incoming() {
                let (connection, drain, sender) =
                    (connection.unwrap(), drain.clone(), sender.clone());
                thread::spawn(move || {
                    let end = loop {
                        match wait_readable(&connection, &drain, None).unwrap() {
                            Next::Readable => {
                                (&connection).read_exact(&mut [0; 4]).unwrap();
                                (&connection).write_all(b"pong").unwrap();
                            }
                            end => break end,
                        }
                    };
                    sender.send(end).unwrap();
                });
            }
        })
        .unwrap();
    clients.join().unwrap();
    assert_eq!(ended.iter().collect::<Vec<_>>(), [Next::Over; CLIENTS]);
}

fn connected() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (listener.accept().unwrap().0, client)
}

#[test]
fn a_rollback_ends_no_wait() {
    let (drain, set) = Drain::manual();
    let (server, _client) = connected();
    let (sender, ended) = mpsc::channel();
    let waiting = drain.clone();
    thread::spawn(move || sender.send(wait_readable(&server, &waiting, None).unwrap()));
    for stage in [Stage::Closing, Stage::Open, Stage::Closing] {
        set(stage);
        let patience = Duration::from_millis(30);
        assert_eq!(ended.recv_timeout(patience), Err(mpsc::RecvTimeoutError::Timeout));
    }
    set(Stage::Over);
    assert_eq!(ended.recv().unwrap(), Next::Over);
}

#[test]
fn what_has_come_is_served_also_when_it_is_over() {
    let (drain, set) = Drain::manual();
    let (server, mut client) = connected();
    let look = |timeout| wait_readable(&server, &drain, Some(timeout)).unwrap();
    assert_eq!(look(Duration::ZERO), Next::Nothing);
    let began = Instant::now();
    assert_eq!(look(Duration::from_millis(20)), Next::Nothing);
    assert!(began.elapsed() >= Duration::from_millis(20));

    client.write_all(b"half a re").unwrap();
    // What is sent is not there at once.
    server.peek(&mut [0]).unwrap();
    set(Stage::Over);
    assert_eq!(look(Duration::MAX), Next::Readable);
    let mut reader = BufReader::new(&server);
    assert_eq!(reader.fill_buf().unwrap(), b"half a re");
    // The server has it in its buffer, and reads on.
    assert_eq!(look(Duration::MAX), Next::Over);
    let rest = thread::spawn(move || {
        thread::sleep(Duration::from_millis(20));
        client.write_all(b"quest\n").unwrap();
        client
    });
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert_eq!(line, "half a request\n");
    assert_eq!(look(Duration::MAX), Next::Over);
    // The client's end is something to read.
    drop(rest.join().unwrap());
    assert_eq!(server.peek(&mut [0]).unwrap(), 0);
    assert_eq!(look(Duration::MAX), Next::Readable);
}

#[test]
fn all_wait_for_one_descriptor_and_nobody_takes_it_from_the_others() {
    let (drain, set) = Drain::manual();
    let number = drain.over_descriptor().unwrap().as_raw_fd();
    assert_eq!(drain.clone().over_descriptor().unwrap().as_raw_fd(), number);
    set(Stage::Over);
    rustix::io::read(drain.over_descriptor().unwrap(), &mut [0; 8]).unwrap();
    let (late, set) = Drain::manual();
    set(Stage::Cut);
    for drain in [drain, late] {
        let (server, _client) = connected();
        assert_eq!(wait_readable(&server, &drain, None).unwrap(), Next::Over);
    }
}

#[test]
fn the_last_answer_is_not_lost_to_a_reset() {
    let (mut server, mut client) = connected();
    // The client has sent more than the server has read, and goes on.
    client.write_all(&[b'x'; 100_000]).unwrap();
    server.write_all(b"the last answer").unwrap();
    let began = Instant::now();
    let closing = thread::spawn(move || close(server, Duration::from_secs(60)));
    client.write_all(&[b'x'; 100_000]).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "the last answer");
    drop(client);
    closing.join().unwrap();
    assert!(began.elapsed() < Duration::from_secs(30));
}

#[test]
fn nobody_keeps_a_close_waiting() {
    let (server, silent) = connected();
    close(server, Duration::from_millis(50));
    let (server, mut busy) = connected();
    let sending = thread::spawn(move || while busy.write_all(&[b'x'; 4096]).is_ok() {});
    close(server, Duration::from_millis(50));
    sending.join().unwrap();
    drop(silent);
}
