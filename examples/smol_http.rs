//! A hyper server on smol that can replace itself: `kill -HUP` restarts it, `kill -TERM` stops it.
//!
//! It takes its address from `ADDR`.

use std::error::Error;
use std::future::Future;
use std::process;
use std::time::Duration;

use handover::smol::http::Server;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use smol::Timer;
use smol_hyper::rt::{FuturesIo, SmolTimer};

/// smol's global executor, for hyper.
#[derive(Clone)]
struct Global;

impl<F: Future<Output: Send> + Send + 'static> Executor<F> for Global {
    fn execute(&self, future: F) {
        smol::spawn(future).detach();
    }
}

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    smol::block_on(serve())
}

async fn serve() -> Result<(), Box<dyn Error + Send + Sync>> {
    let address = std::env::var("ADDR").unwrap_or_else(|_| "127.0.0.1:3000".into());

    let start = handover::smol::start()?;
    let listener = start.listen_tcp("web", address)?;
    let server = Server::new(Global, SmolTimer::new(), start.drain());
    let accepting = async {
        loop {
            match listener.accept().await {
                // The connection counts as in flight until the task has ended.
                Ok((connection, _)) => {
                    let io = FuturesIo::new(connection);
                    smol::spawn(server.serve_connection(io, service_fn(answer))).detach();
                }
                Err(error) => {
                    tracing::warn!(%error, "accepting failed");
                    Timer::after(Duration::from_millis(100)).await;
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
            Timer::after(Duration::from_millis(ms.unwrap_or(1000))).await;
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
