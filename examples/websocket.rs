//! An axum server with WebSockets that can replace itself: `kill -HUP` restarts it, `kill -TERM`
//! stops it. Its clients are told when to come back, which leads them to the new process.
//!
//! It takes its address from `ADDR`.

use std::error::Error;
use std::process;

use axum::Router;
use axum::extract::State;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::response::Response;
use axum::routing::get;
use handover::core::Drain;
use handover::tokio::http;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let address = std::env::var("ADDR").unwrap_or_else(|_| "127.0.0.1:3000".into());

    let start = handover::tokio::start()?;
    let listener = start.listen_tcp("web", address)?;
    let app = Router::new()
        .route("/", get(async || format!("ok {}\n", process::id())))
        .route("/echo", get(upgrade))
        .with_state(start.drain());
    start.run(http::serve(listener, app)).await?;
    Ok(())
}

async fn upgrade(State(drain): State<Drain>, upgrade: WebSocketUpgrade) -> Response {
    // The socket counts as in flight until it is dropped: the process waits for it.
    upgrade.on_upgrade(|socket| async move {
        if let Err(error) = echo(socket, drain).await {
            tracing::debug!(%error, "a client went away");
        }
    })
}

async fn echo(mut socket: WebSocket, drain: Drain) -> Result<(), axum::Error> {
    let mut closing = std::pin::pin!(drain.closing());
    let mut told = false;
    // Its own close, which answers ours, ends the loop. Messages that cross ours on their way get no
    // echo: the client knows by that which to send again. If no close comes, the drain deadline
    // ends it.
    loop {
        let message = tokio::select! {
            message = socket.recv() => message,
            () = &mut closing, if !told => {
                told = true;
                let frame = CloseFrame { code: close_code::RESTART, reason: "restart".into() };
                socket.send(Message::Close(Some(frame))).await?;
                continue;
            }
        };
        match message.transpose()? {
            Some(message @ (Message::Text(_) | Message::Binary(_))) if !told => {
                socket.send(message).await?;
            }
            Some(_) => {}
            None => return Ok(()),
        }
    }
}
