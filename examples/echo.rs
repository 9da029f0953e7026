//! An echo server on plain tokio that can replace itself: `kill -HUP` restarts it.

use std::error::Error;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let address = std::env::var("ADDR").unwrap_or_else(|_| "127.0.0.1:3000".into());

    let start = handover::tokio::start()?;
    let listener = start.listen_tcp("echo", address)?;

    let server = async {
        loop {
            let Ok((mut connection, _)) = listener.accept().await else {
                // Out of descriptors: until some connection has ended.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            // The connection counts as in flight until the task drops it.
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while let Ok(length @ 1..) = connection.read(&mut buffer).await {
                    if connection.write_all(&buffer[..length]).await.is_err() {
                        break;
                    }
                }
            });
        }
    };
    start.run(server).await?;
    Ok(())
}
