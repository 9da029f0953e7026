//! The server: an axum app, a listener that a successor can take over, and `start.run`.

use std::error::Error;
use std::io::{Read, Write};
use std::pin::pin;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Query, Request, State};
use axum::http::HeaderValue;
use axum::http::header::CONNECTION;
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Router, extract::DefaultBodyLimit};
use handover::core::{Drain, RestartError, Takeover};
use handover::tokio::TcpListener;
use handover_conformance::Failure;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;

use crate::fleet;

pub(crate) fn run() -> Result<(), Failure> {
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(serve()).map_err(|error| Failure::new(error.to_string()))
}

async fn serve() -> Result<(), Box<dyn Error>> {
    let mut start = handover::tokio::start()?;
    let listener = start.listen_tcp("web", "127.0.0.1:0")?;
    let finished = Arc::new(AtomicU64::new(0));
    let app = Router::new()
        .route("/", get(async || format!("ok {}\n", process::id())))
        .route("/slow", get(slow))
        .route("/upload", post(upload).layer(DefaultBodyLimit::disable()))
        .layer(middleware::from_fn_with_state((start.drain(), Arc::clone(&finished)), close));

    // For whoever watches the demo; a server of one's own needs none of it.
    start.on_restart(tell_restart);
    stop_with_operator(start.handle())?;
    let (pid, build) = (process::id(), fleet::build_of("/proc/self/exe")?);
    tell(&format!("up pid={pid} build={build} port={}", listener.local_addr()?.port()));

    let drain = start.drain();
    let exit = start.run(accept(listener, app, drain)).await?;
    let finished = finished.load(Ordering::Relaxed);
    tell(&format!("left pid={pid} cut={} finished={finished}", exit.cut));
    Ok(())
}

/// A plain hyper loop: what any server has, with our listener in it.
async fn accept(listener: TcpListener, app: Router, drain: Drain) {
    loop {
        let Ok((connection, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let app = TowerToHyperService::new(app.clone());
        let over = drain.over();
        tokio::spawn(async move {
            let io = TokioIo::new(connection);
            let mut connection = pin!(http1::Builder::new().serve_connection(io, app));
            tokio::select! {
                _ = connection.as_mut() => return,
                () = over => connection.as_mut().graceful_shutdown(),
            }
            let _ = connection.await;
        });
    }
}

/// Tells clients of kept connections to connect anew, from the moment on when a successor has
/// taken over; and counts what was in flight at that moment.
async fn close(
    State((drain, finished)): State<(Drain, Arc<AtomicU64>)>,
    request: Request,
    next: Next,
) -> Response {
    let began_before = !drain.is_closing();
    let mut response = next.run(request).await;
    if drain.is_closing() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        finished.fetch_add(u64::from(began_before), Ordering::Relaxed);
    }
    response
}

async fn slow(Query(parameters): Query<Vec<(String, String)>>) -> String {
    let ms = parameters.iter().find(|(name, _)| name == "ms");
    let ms = ms.and_then(|(_, ms)| ms.parse().ok()).unwrap_or(1000);
    tokio::time::sleep(Duration::from_millis(ms)).await;
    format!("slow {}\n", process::id())
}

async fn upload(body: Bytes) -> String {
    format!("got {} {}\n", process::id(), body.len())
}

fn tell_restart(outcome: &Result<Takeover, RestartError>) {
    match outcome {
        Ok(takeover) => {
            let steps = &takeover.steps;
            tell(&format!(
                "restarted pid={} spawn={} hello={} ready={} switch={}",
                takeover.pid,
                (steps.prepare + steps.spawn).as_micros(),
                steps.hello.as_micros(),
                steps.ready.as_micros(),
                (steps.seal + steps.switch).as_micros(),
            ));
        }
        Err(error) => tell(&format!("failed {error}")),
    }
}

/// A line for the operator, if it is still there.
fn tell(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Ends the server when the demo's operator has gone, however that came: standard input, which all
/// generations share, is a pipe from it.
fn stop_with_operator(handle: handover::tokio::Handle) -> std::io::Result<()> {
    std::thread::Builder::new().name("lifeline".into()).spawn(move || {
        let _ = std::io::stdin().read(&mut [0]);
        handle.stop();
        handle.stop();
    })?;
    Ok(())
}
