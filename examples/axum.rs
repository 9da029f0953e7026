//! An axum server that can replace itself: `kill -HUP` restarts it, `kill -TERM` stops it.
//!
//! It takes its address from `ADDR`.

use std::error::Error;
use std::process;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use handover::tokio::{Handle, http};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let address = std::env::var("ADDR").unwrap_or_else(|_| "127.0.0.1:3000".into());

    let start = handover::tokio::start()?;
    let listener = start.listen_tcp("web", address)?;
    let app = Router::new()
        .route("/", get(async || format!("ok {}\n", process::id())))
        .route("/slow", get(slow))
        .route("/upload", post(upload).layer(DefaultBodyLimit::disable()))
        .route("/ready", get(ready).with_state(start.handle()));
    start.run(http::serve(listener, app)).await?;
    Ok(())
}

/// For load balancers: whether new clients should come here. False as soon as a stop begins, also
/// while `Policy::lame_duck` still lets them in.
async fn ready(State(handle): State<Handle>) -> StatusCode {
    if handle.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
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
