//! The client against servers that do one thing wrong, each by its own way.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketType, bind, getsockname, socket, sockopt};

use super::{Class, Load, Lost, Report, Target};

const MOMENT: Duration = Duration::from_millis(500);
/// Longer than any machine stands still.
const SOON: Duration = Duration::from_secs(60);
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nok 7\n";

/// A server that treats every connection the same way, for as long as the test runs.
fn server(serve: impl Fn(TcpStream) + Clone + Send + 'static) -> Target {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = Target::Tcp(listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let serve = serve.clone();
            std::thread::spawn(move || serve(stream.unwrap()));
        }
    });
    target
}

/// Reads one request's head; false at the connection's end.
fn request(stream: &mut TcpStream) -> bool {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => bytes.push(byte[0]),
            _ => return false,
        }
    }
    true
}

fn reset(stream: TcpStream) {
    sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
}

/// A load of fresh requests until some of them have ended, whichever way.
fn fresh(target: Target) -> Report {
    let load = Load::builder(target).fresh(100.0).patience(SOON).late_after(SOON);
    let load = load.start().unwrap();
    load.wait_until(SOON, |report| report.ok() + report.lost() >= 5).unwrap();
    load.stop()
}

/// Asserts that all that was lost was lost in one way.
#[track_caller]
fn only(report: &Report, class: Class, phase: &str) {
    let n = report.lost();
    assert!(n > 0, "nothing was lost:\n{report}");
    let mut expected = Lost::default();
    *match class {
        Class::Refused => &mut expected.refused,
        Class::Reset => &mut expected.reset,
        Class::Closed => &mut expected.closed,
        Class::Truncated => &mut expected.truncated,
        Class::Wrong => &mut expected.wrong,
        Class::TimedOut => &mut expected.timed_out,
        Class::Unsent | Class::Race => unreachable!(),
    } = n;
    assert_eq!(report.groups[0].lost, expected, "{report}");
    assert_eq!(report.samples[0].phase, phase, "{report}");
    assert_eq!(report.in_flight, 0);
}

#[test]
fn a_right_answer_is_ok() {
    let report = fresh(server(|mut stream| {
        request(&mut stream);
        stream.write_all(OK).unwrap();
    }));
    assert_eq!((report.lost(), report.races(), report.late()), (0, 0, 0), "{report}");
    assert!(report.ok() >= 5);
    assert_eq!(report.serving(), Some(7));
    assert_eq!(report.answered(7).unwrap().answers, report.ok());
    assert_eq!(report.groups[0].latency().count(), report.ok());
}

#[test]
fn nobody_listening_is_refused() {
    // Bound, so that nobody else is given the port, and not listening.
    let bound = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&bound, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let address = getsockname(&bound).unwrap().try_into().unwrap();
    only(&fresh(Target::Tcp(address)), Class::Refused, "connecting");
    only(&fresh(Target::Unix("/nonexistent/socket".into())), Class::Refused, "connecting");
    only(&fresh(Target::Abstract(b"handover-nobody".into())), Class::Refused, "connecting");
}

#[test]
fn a_reset_before_the_answer_is_reset() {
    let report = fresh(server(|mut stream| {
        request(&mut stream);
        reset(stream);
    }));
    only(&report, Class::Reset, "waiting");
}

#[test]
fn a_reset_within_the_answer_is_reset() {
    let report = fresh(server(|mut stream| {
        request(&mut stream);
        stream.write_all(&OK[..20]).unwrap();
        reset(stream);
    }));
    only(&report, Class::Reset, "reading");
}

#[test]
fn a_close_before_the_answer_is_closed() {
    let report = fresh(server(|mut stream| {
        request(&mut stream);
    }));
    only(&report, Class::Closed, "waiting");
}

#[test]
fn a_close_within_the_answer_is_truncated() {
    for end in [20, OK.len() - 1] {
        let report = fresh(server(move |mut stream| {
            request(&mut stream);
            stream.write_all(&OK[..end]).unwrap();
        }));
        only(&report, Class::Truncated, "reading");
    }
}

#[test]
fn a_status_a_body_and_a_length_can_be_wrong() {
    for answer in [
        "HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nko 7\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nok 7\n",
    ] {
        let report = fresh(server(move |mut stream| {
            request(&mut stream);
            stream.write_all(answer.as_bytes()).unwrap();
        }));
        only(&report, Class::Wrong, "reading");
    }
}

#[test]
fn a_server_that_hangs_is_timed_out() {
    let hangs = server(|mut stream| {
        request(&mut stream);
        request(&mut stream); // until the client goes
    });
    // Nobody is so late that it has not sent its request by then.
    let load = Load::builder(hangs).fresh(5.0).patience(MOMENT * 20).late_after(SOON);
    let load = load.start().unwrap();
    load.wait_until(SOON, |report| report.lost() >= 5).unwrap();
    only(&load.stop(), Class::TimedOut, "waiting");
}

#[test]
fn a_stall_makes_all_due_requests_late() {
    static STALL: AtomicUsize = AtomicUsize::new(0);
    let (answer, answered) = std::sync::mpsc::channel();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // Room for all that come meanwhile: who finds none is not late but tries again for seconds.
    rustix::net::listen(&listener, 4096).unwrap();
    let target = Target::Tcp(listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            request(&mut stream);
            if STALL.fetch_add(1, Ordering::Relaxed) == 20 {
                // The answers before this one have been seen.
                let seen = answered.recv_timeout(SOON);
                std::thread::sleep(Duration::from_millis(400));
                seen.unwrap();
            }
            let _ = stream.write_all(OK);
        }
    });
    let load =
        Load::builder(target).fresh(500.0).late_after(Duration::from_millis(100)).start().unwrap();
    load.wait_until(SOON, |report| report.ok() == 20).unwrap();
    answer.send(()).unwrap();
    load.wait_for_answers(500, SOON).unwrap();
    let report = load.stop();
    assert_eq!(report.lost(), 0, "{report}");
    // 400 ms at 500/s are 200 requests, of which three quarters wait for longer than 100 ms: at
    // least, since a machine that is busy makes more of them late.
    assert!(report.late() >= 100, "{report}");
    assert!(report.longest_gap.length >= Duration::from_millis(400), "{report}");
}

#[test]
fn a_kept_connection_carries_many_requests() {
    let connections: &'static AtomicUsize = Box::leak(Box::default());
    let target = server(|mut stream| {
        connections.fetch_add(1, Ordering::Relaxed);
        while request(&mut stream) {
            stream.write_all(OK).unwrap();
        }
    });
    let load = Load::builder(target).kept(4, Duration::ZERO..MOMENT / 100).start().unwrap();
    load.wait_for_answers(100, SOON).unwrap();
    let report = load.stop();
    assert_eq!((report.lost(), report.races()), (0, 0), "{report}");
    assert_eq!(connections.load(Ordering::Relaxed), 4);
}

#[test]
fn a_close_that_was_announced_is_no_race() {
    let target = server(|mut stream| {
        request(&mut stream);
        stream.write_all(OK).unwrap();
        request(&mut stream);
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nok 7\n")
            .unwrap();
    });
    let load = Load::builder(target).kept(2, Duration::ZERO..Duration::ZERO).start().unwrap();
    load.wait_for_answers(50, SOON).unwrap();
    let report = load.stop();
    assert_eq!((report.lost(), report.races()), (0, 0), "{report}");
}

#[test]
fn a_close_between_requests_is_seen_and_no_race() {
    let target = server(|mut stream| {
        request(&mut stream);
        stream.write_all(OK).unwrap();
    });
    // However late the close is, the next request is later.
    let load = Load::builder(target).kept(8, SOON..SOON * 2).start().unwrap();
    load.wait_until(SOON, |report| report.ok() == 8).unwrap();
    let closed = || load.snapshot().groups[0].idle_closes;
    crate::poll_until(SOON, "the closes", || (closed() == 8).then_some(())).unwrap();
    let report = load.stop();
    assert_eq!((report.ok(), report.lost(), report.races()), (8, 0, 0), "{report}");
}

#[test]
fn a_close_under_a_request_on_a_kept_connection_is_a_race() {
    for by_reset in [false, true] {
        let target = server(move |mut stream| {
            request(&mut stream);
            stream.write_all(OK).unwrap();
            request(&mut stream);
            if by_reset {
                reset(stream);
            }
        });
        let load = Load::builder(target).kept(2, Duration::ZERO..Duration::ZERO).start().unwrap();
        load.wait_until(SOON, |report| report.races() >= 5).unwrap();
        let report = load.stop();
        assert_eq!(report.lost(), 0, "{report}");
        assert_eq!(report.samples[0].pid, Some(7), "{report}");
    }
}

#[test]
fn a_close_under_the_first_request_is_no_race_but_a_loss() {
    let target = server(|mut stream| {
        request(&mut stream);
    });
    let load = Load::builder(target).kept_late(2, Duration::ZERO..MOMENT / 100).start().unwrap();
    load.wait_until(SOON, |report| report.lost() >= 5).unwrap();
    let report = load.stop();
    assert_eq!(report.races(), 0, "{report}");
    only(&report, Class::Closed, "waiting");
}

#[test]
fn a_body_goes_out_in_pieces_and_is_counted() {
    let target = server(|mut stream| {
        let mut bytes = vec![0; 1 << 16];
        request(&mut stream);
        let mut left = 100_000;
        while left > 0 {
            left -= stream.read(&mut bytes).unwrap();
        }
        let body = "got 7 100000\n";
        let length = body.len();
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}").unwrap();
    });
    let load = Load::builder(target).upload(1, 100_000, MOMENT / 5).start().unwrap();
    load.wait_for_answers(2, SOON).unwrap();
    let report = load.stop();
    assert_eq!(report.lost(), 0, "{report}");
    // The server may find several of them at once, but the client has sent one after another.
    let shortest = report.groups[0].latency().quantile(0.0);
    assert!(shortest >= MOMENT / 5 * 9 / 10, "the body went out at once: {report}");
}

#[test]
fn a_ping_connection_must_not_be_closed() {
    fn pong(stream: &mut TcpStream) -> bool {
        let mut line = [0; 5];
        let is_there = stream.read_exact(&mut line).is_ok();
        assert!(!is_there || &line == b"PING\n");
        is_there && stream.write_all(b"PONG 7\n").is_ok()
    }
    let stays = server(|mut stream| while pong(&mut stream) {});
    let load = Load::builder(stays).ping(1, MOMENT / 50).start().unwrap();
    load.wait_for_answers(6, SOON).unwrap();
    let report = load.stop();
    assert_eq!((report.lost(), report.races()), (0, 0), "{report}");

    let closes = server(|mut stream| _ = pong(&mut stream));
    // However late the close is, the next line is later.
    let load = Load::builder(closes).ping(2, SOON).start().unwrap();
    load.wait_until(SOON, |report| report.lost() >= 2).unwrap();
    let report = load.stop();
    assert_eq!((report.groups[0].lost.closed, report.races()), (report.lost(), 0), "{report}");
    assert!(report.ok() >= 2, "{report}");
}

#[test]
fn windows_divide_latencies() {
    let target = server(|mut stream| {
        request(&mut stream);
        stream.write_all(OK).unwrap();
    });
    let load = Load::builder(target).fresh(500.0).start().unwrap();
    load.wait_for_answers(20, SOON).unwrap();
    let mark = load.mark("here");
    load.wait_for_answers(20, SOON).unwrap();
    drop(mark);
    load.wait_for_answers(20, SOON).unwrap();
    let report = load.stop();
    let (group, window) = (&report.groups[0], &report.windows[0]);
    assert_eq!(group.inside.count() + group.outside.count(), group.ok);
    assert_eq!(group.inside.count(), window.ok);
    assert!(window.ok >= 20 && group.outside.count() >= 20, "{report}");
    assert!(window.end.is_some() && window.max >= group.inside.quantile(0.5));
}

#[test]
fn a_load_ends_by_itself() {
    let target = server(|mut stream| {
        request(&mut stream);
        std::thread::sleep(MOMENT / 5);
        stream.write_all(OK).unwrap();
    });
    let load = Load::builder(target).fresh(20.0).slow(1, Duration::ZERO).any_answer();
    // Long enough for the load to have begun by then.
    let report = load.for_at_most(MOMENT * 10).start().unwrap().wait();
    // None before it is due, and none that is due after the end.
    assert!((1..=101).contains(&report.group("fresh").unwrap().sent), "{report}");
    assert_eq!((report.lost(), report.in_flight), (0, 0), "{report}");
}

#[test]
fn a_stopped_load_waits_for_what_is_on_its_way() {
    let target = server(|mut stream| {
        request(&mut stream);
        std::thread::sleep(MOMENT);
        let _ = stream.shutdown(Shutdown::Read);
        let _ = stream.write_all(OK);
    });
    let load = Load::builder(target).fresh(20.0).start().unwrap();
    load.wait_until(SOON, |report| report.groups[0].sent >= 3).unwrap();
    let report = load.stop();
    assert!(report.ok() >= 3 && report.lost() == 0 && report.in_flight == 0, "{report}");
}

#[test]
fn a_full_queue_of_a_unix_listener_is_waited_for() {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener};
    let name = format!("handover-queue-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let listener = UnixListener::bind_addr(&address).unwrap();
    rustix::net::listen(&listener, 1).unwrap();
    let load = Load::builder(Target::Abstract(name.into())).fresh(100.0).start().unwrap();
    // Two fit in the queue. More than that are due before anybody accepts.
    std::thread::sleep(MOMENT / 5);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut bytes = [0; 1024];
            let _ = stream.read(&mut bytes);
            let _ = stream.write_all(OK);
        }
    });
    load.wait_for_answers(20, SOON).unwrap();
    let report = load.stop();
    assert_eq!(report.lost(), 0, "{report}");
}
