//! An axum router on smol, in a server that can replace itself: `kill -HUP` restarts it,
//! `kill -TERM` stops it.
//!
//! It takes its address from `ADDR`. Of axum there is the router alone; a service of hyper's is
//! served as `http::HyperToTower::new(service_fn(answer))`.

use std::error::Error;
use std::process;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Query};
use axum::routing::{get, post};
use handover::smol::http;

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    smol::block_on(serve())
}

async fn serve() -> Result<(), Box<dyn Error + Send + Sync>> {
    let address = std::env::var("ADDR").unwrap_or_else(|_| "127.0.0.1:3000".into());

    let start = handover::smol::start()?;
    let listener = start.listen_tcp("web", address)?;
    let app = Router::new()
        .route("/", get(async || format!("ok {}\n", process::id())))
        .route("/slow", get(slow))
        .route("/upload", post(upload).layer(DefaultBodyLimit::disable()));
    start.run(http::serve(listener, app, |task| smol::spawn(task).detach())).await?;
    Ok(())
}

async fn slow(Query(parameters): Query<Vec<(String, String)>>) -> String {
    let ms = parameters.iter().find(|(name, _)| name == "ms");
    let ms = ms.and_then(|(_, ms)| ms.parse().ok()).unwrap_or(1000);
    smol::Timer::after(Duration::from_millis(ms)).await;
    format!("slow {}\n", process::id())
}

async fn upload(body: Bytes) -> String {
    format!("got {} {}\n", process::id(), body.len())
}
