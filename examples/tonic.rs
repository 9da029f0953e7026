//! A gRPC server that can replace itself: `kill -HUP` restarts it, `kill -TERM` stops it.
//!
//! It takes its address from `ADDR`, and serves gRPC's health service: `Check` is a unary call,
//! `Watch` a stream without an end of its own.

use std::error::Error;
use std::pin::pin;
use std::process;

use axum::Router;
use axum::routing::get;
use futures::StreamExt;
use handover::core::State;
use handover::tokio::{Handle, http};
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::{HealthReporter, health_reporter};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let address = std::env::var("ADDR").unwrap_or_else(|_| "127.0.0.1:3000".into());
    let (reporter, health) = health_reporter();
    // tonic's services as an axum router, instead of tonic's own server.
    let app = Routes::new(health).into_axum_router();
    let app = app.merge(Router::new().route("/", get(async || format!("ok {}\n", process::id()))));

    let start = handover::tokio::start()?;
    let listener = start.listen_tcp("grpc", address)?;
    tokio::spawn(report(reporter, start.handle()));
    start.run(http::serve(listener, app)).await?;
    Ok(())
}

/// Streams are told when draining starts, and ended when it is over. Calls end by themselves.
async fn report(mut reporter: HealthReporter, handle: Handle) {
    let mut states = pin!(handle.states().take_until(handle.drain().over()));
    while let Some(state) = states.next().await {
        let status = match state {
            State::Draining => ServingStatus::NotServing,
            _ => ServingStatus::Serving,
        };
        reporter.set_service_status("", status).await;
    }
    reporter.clear_service_status("").await;
}
