//! HTTP/2: no call that has reached the server fails, and what was never sent may be sent again.

use std::collections::BTreeMap;
use std::error::Error;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use bytes::Bytes;
use futures::channel::mpsc;
use futures::{SinkExt, StreamExt};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Method, Request, Response};
use hyper_util::client::legacy::{self, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::common::{SOON, load, number, restart, start, stop};
use super::http::{all_left, case, over_a_stack};
use crate::http::filling;
use crate::{Case, Context, Doing, Failure, ensure};

pub(super) const CASES: &[Case] = &[
    case(
        "hyper::http2_calls_survive_restarts",
        "HTTP/2 with a client that retries unsent requests: 0 failed",
        calls,
    ),
    case(
        "hyper::http2_streams_cross_a_restart",
        "a streaming upload and a streaming download across a restart, over HTTP/2",
        streams,
    ),
];

/// How many connections there are at once, and calls on each.
const CONNECTIONS: usize = 4;
const CALLS: usize = 100;

fn calls(case: &Context) -> Result<(), Failure> {
    let first = start(case, &over_a_stack())?;
    let calls = Calls::start(first.address()?)?;
    let (mut pid, mut all) = (first.pid, vec![first.pid]);
    calls.wait_for_answers_of(pid)?;
    for _ in 0..6 {
        pid = restart(case, pid)?.pid;
        all.push(pid);
        calls.wait_for_answers_of(pid)?;
    }
    let seen = calls.stop()?;
    case.note(&format!("the calls: {seen:?}"));
    ensure!(seen.failed.is_empty(), "calls have failed: {seen:?}");
    all_left(case, &all[..all.len() - 1])?;
    stop(case, pid)?;
    // What was sent again had not come as far as the program: else its effect would be there twice.
    let mut served = 0;
    for pid in all {
        served += number(&case.wait_for_from(pid, "served", SOON)?, "requests")?;
    }
    let answered: u64 = seen.answered.values().sum();
    ensure!(served == answered, "{served} calls were served, and {answered} answered: {seen:?}");
    Ok(())
}

const DOWNLOAD: usize = 12 << 20;
const PIECE: usize = 64 * 1024;

fn streams(case: &Context) -> Result<(), Failure> {
    let first = start(case, &over_a_stack())?;
    let address = first.address()?;
    let load = load(case, address)?;
    // Nothing on this connection goes on while the case does something else.
    let runtime = runtime()?;
    let client = client();
    let (mut body, pieces) = mpsc::channel::<Bytes>(0);
    let frames = pieces.map(|piece| Ok(Frame::data(piece)));
    let upload = Request::builder().method(Method::POST).uri(uri(address, "/upload"));
    let upload = upload.body(StreamBody::new(frames).boxed_unsync())?;
    let uploading = runtime.spawn(client.request(upload));
    let mut download = runtime.block_on(async {
        body.send(vec![0; PIECE].into()).await?;
        let mut answer =
            client.request(get(address, &format!("/download?bytes={DOWNLOAD}"))?).await?;
        ensure!(answer.status() == 200, "{answer:?}");
        let begun = next_piece(&mut answer).await?;
        Ok::<_, Failure>((answer, begun))
    })?;

    let second = restart(case, first.pid)?;
    load.wait_for_successor(first.pid, SOON)?;
    runtime.block_on(async {
        // The next call goes to the new process, on another connection: this one was told.
        body.send(vec![0; PIECE].into()).await?;
        drop(body);
        let answer = timeout(SOON, uploading).await???;
        let said = text(answer).await?;
        let expected = format!("got {} {}\n", first.pid, 2 * PIECE);
        ensure!(said == expected, "{said:?} where {expected:?} was due");
        let (answer, begun) = &mut download;
        while let Ok(piece) = next_piece(answer).await
            && !piece.is_empty()
        {
            begun.extend(piece);
        }
        let line = format!("down {}\n", first.pid).into_bytes();
        let rest = begun.strip_prefix(&line[..]);
        let rest = rest.ok_or_else(|| Failure::new("a download of another process"))?;
        ensure!(rest.len() == DOWNLOAD, "{} bytes of {DOWNLOAD} have come", rest.len());
        ensure!(rest == filling(0, DOWNLOAD).collect::<Vec<_>>().concat(), "other bytes have come");
        let said = text(client.request(get(address, "/")?).await?).await?;
        ensure!(said == format!("ok {}\n", second.pid), "{said:?}");
        Ok::<_, Failure>(())
    })?;
    drop((client, runtime));
    case.nothing_lost(&load.stop())?;
    all_left(case, &[first.pid])?;
    stop(case, second.pid)
}

/// The next bytes of an answer's body; none at its end.
async fn next_piece(answer: &mut Response<Incoming>) -> Result<Vec<u8>, Failure> {
    match timeout(SOON, answer.frame()).await? {
        None => Ok(Vec::new()),
        Some(frame) => Ok(frame?.into_data().map(Vec::from).unwrap_or_default()),
    }
}

type Body = UnsyncBoxBody<Bytes, std::convert::Infallible>;
type Client = legacy::Client<HttpConnector, Body>;

fn runtime() -> Result<Runtime, Failure> {
    Builder::new_current_thread().enable_all().build().doing("starting a runtime for clients")
}

/// One connection at a time. It sends nothing again by itself: that is to be counted.
fn client() -> Client {
    let mut builder = legacy::Client::builder(TokioExecutor::new());
    builder.http2_only(true).retry_canceled_requests(false).build_http()
}

fn uri(address: SocketAddr, path: &str) -> String {
    format!("http://{address}{path}")
}

fn get(address: SocketAddr, path: &str) -> Result<Request<Body>, Failure> {
    Ok(Request::get(uri(address, path)).body(Body::default())?)
}

async fn text(answer: Response<Incoming>) -> Result<String, Failure> {
    let body = answer.into_body().collect().await?.to_bytes();
    Ok(String::from_utf8_lossy(&body).into_owned())
}

/// Calls that go out one after another, many at once.
struct Calls {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    seen: Mutex<Seen>,
    changed: Condvar,
    stops: AtomicBool,
}

/// What the callers saw.
#[derive(Debug, Clone, Default)]
struct Seen {
    /// By the process that answered.
    answered: BTreeMap<u32, u64>,
    /// Sent again, since they were not sent when the connection was about to end.
    unsent: u64,
    /// Sent again, since the server has said that it will not begin with them.
    unprocessed: u64,
    failed: Vec<String>,
}

impl Calls {
    fn start(address: SocketAddr) -> Result<Self, Failure> {
        let runtime = runtime()?;
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let calling = move || {
            runtime.block_on(async {
                let mut callers = JoinSet::new();
                for _ in 0..CONNECTIONS {
                    let client = client();
                    for number in 0..CALLS {
                        let caller = Caller {
                            client: client.clone(),
                            shared: Arc::clone(&theirs),
                            address,
                            number,
                        };
                        callers.spawn(caller.call_again_and_again());
                    }
                }
                while callers.join_next().await.is_some() {}
            });
        };
        let thread = std::thread::Builder::new().name("calls".into());
        let thread = thread.spawn(calling).doing("starting the calls")?;
        Ok(Self { shared, thread: Some(thread) })
    }
}

impl Calls {
    /// Waits until that process has answered about as many calls as are under way at once.
    fn wait_for_answers_of(&self, pid: u32) -> Result<(), Failure> {
        let answered = |seen: &mut Seen| {
            let by = seen.answered.get(&pid).copied().unwrap_or_default();
            by < (CONNECTIONS * CALLS) as u64 && seen.failed.is_empty()
        };
        let seen = self.shared.lock();
        let waited = self.shared.changed.wait_timeout_while(seen, SOON, answered);
        let (seen, timed) = waited.unwrap_or_else(PoisonError::into_inner);
        ensure!(seen.failed.is_empty(), "calls have failed: {:?}", *seen);
        ensure!(!timed.timed_out(), "process {pid} has not answered enough: {:?}", *seen);
        Ok(())
    }

    /// What was seen, when all calls under way have ended.
    fn stop(mut self) -> Result<Seen, Failure> {
        self.end()?;
        Ok(self.shared.lock().clone())
    }

    fn end(&mut self) -> Result<(), Failure> {
        self.shared.stops.store(true, Ordering::Relaxed);
        let Some(thread) = self.thread.take() else { return Ok(()) };
        thread.join().map_err(|_| Failure::new("the calls have panicked"))
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        // A panic was printed by its thread.
        let _ = self.end();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of many that share a connection.
struct Caller {
    client: Client,
    shared: Arc<Shared>,
    address: SocketAddr,
    number: usize,
}

impl Caller {
    async fn call_again_and_again(self) {
        while !self.shared.stops.load(Ordering::Relaxed) {
            let called = timeout(SOON, self.call()).await;
            let called = called.unwrap_or_else(|_| Err(Failure::new("no answer")));
            let mut seen = self.shared.lock();
            match called {
                Ok(pid) => *seen.answered.entry(pid).or_default() += 1,
                Err(failure) => seen.failed.push(failure.to_string()),
            }
            drop(seen);
            self.shared.changed.notify_all();
        }
    }

    /// One call, sent again for as long as it was not sent. The process that has answered.
    async fn call(&self) -> Result<u32, Failure> {
        loop {
            let (word, request) = self.request()?;
            let answer = match self.client.request(request).await {
                Ok(answer) => answer,
                Err(error) => {
                    let mut seen = self.shared.lock();
                    match Safe::of(&error) {
                        Some(Safe::Unsent) => seen.unsent += 1,
                        Some(Safe::Unprocessed) => seen.unprocessed += 1,
                        None => return Err(error.into()),
                    }
                    continue;
                }
            };
            let said = text(answer).await?;
            let pid = said.strip_prefix(word).and_then(|rest| rest.split_whitespace().next());
            let pid = pid.and_then(|pid| pid.parse().ok());
            return pid.ok_or_else(|| Failure::new(format!("{word} was due: {said:?}")));
        }
    }

    fn request(&self) -> Result<(&'static str, Request<Body>), Failure> {
        Ok(match self.number % 3 {
            0 => ("ok ", get(self.address, "/")?),
            1 => ("slow ", get(self.address, "/slow?ms=50")?),
            _ => {
                let body = Full::from(vec![0; 1_000]).boxed_unsync();
                let uri = uri(self.address, "/upload");
                ("got ", Request::post(uri).body(body)?)
            }
        })
    }
}

/// Why a call may be sent again. Any other may have had its effect.
enum Safe {
    /// It has never left the client.
    Unsent,
    /// Its number is above the last that the server will process (RFC 9113, 6.8). A client library
    /// that answers the server's PING before it sends what it has queued comes too late with that.
    Unprocessed,
}

impl Safe {
    fn of(error: &legacy::Error) -> Option<Self> {
        let mut refused = false;
        let mut source = error.source();
        while let Some(cause) = source {
            refused |= cause.is::<std::io::Error>();
            if cause.downcast_ref().is_some_and(hyper::Error::is_canceled) {
                return Some(Self::Unsent);
            }
            let goes = |error: &h2::Error| error.is_remote() && error.is_go_away();
            if let Some(error) = cause.downcast_ref::<h2::Error>()
                && goes(error)
                && error.reason() == Some(h2::Reason::NO_ERROR)
            {
                return Some(Self::Unprocessed);
            }
            source = cause.source();
        }
        // The connection that it was to go out on has ended meanwhile. Where there is an error of
        // the system there was none.
        (error.is_connect() && !refused).then_some(Self::Unsent)
    }
}
