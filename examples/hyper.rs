//! A hyper server with an accept loop of its own that can replace itself: `kill -HUP` restarts it,
//! `kill -TERM` stops it.
//!
//! It takes its address from `ADDR`.

use std::error::Error;
use std::process;
use std::time::Duration;

use handover::tokio::http::Server;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let address = std::env::var("ADDR").unwrap_or_else(|_| "127.0.0.1:3000".into());

    let start = handover::tokio::start()?;
    let listener = start.listen_tcp("web", address)?;
    let server = Server::new(TokioExecutor::new(), TokioTimer::new(), start.drain());
    let accepting = async {
        loop {
            match listener.accept().await {
                // The connection counts as in flight until the task has ended.
                Ok((connection, _)) => {
                    let io = TokioIo::new(connection);
                    tokio::spawn(server.serve_connection(io, service_fn(answer)));
                }
                Err(error) => {
                    tracing::warn!(%error, "accepting failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    };
    start.run(accepting).await?;
    Ok(())
}

async fn answer(request: Request<Incoming>) -> Result<Response<String>, hyper::Error> {
    let mut answer = Response::new(String::new());
    *answer.body_mut() = match (request.method(), request.uri().path()) {
        (&Method::GET, "/") => format!("ok {}\n", process::id()),
        (&Method::GET, "/slow") => {
            let ms =
                request.uri().query().and_then(|query| query.strip_prefix("ms=")?.parse().ok());
            tokio::time::sleep(Duration::from_millis(ms.unwrap_or(1000))).await;
            format!("slow {}\n", process::id())
        }
        (&Method::POST, "/upload") => {
            let mut body = request.into_body();
            let mut length = 0;
            while let Some(frame) = body.frame().await {
                length += frame?.data_ref().map_or(0, |data| data.len());
            }
            format!("got {} {length}\n", process::id())
        }
        _ => {
            *answer.status_mut() = StatusCode::NOT_FOUND;
            "not found\n".into()
        }
    };
    Ok(answer)
}
