//! Several instances in one process leave each other alone.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::time::Duration;

use handover_tokio::{Exit, Failure, Handle, Policy, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

struct Instance {
    handle: Handle,
    address: std::net::SocketAddr,
    run: JoinHandle<Result<Exit>>,
}

fn instance(name: &str) -> Result<Instance> {
    let policy = Policy::new().without_signals().instance(name).executable("/nowhere/server");
    let start = handover_tokio::start_with(policy)?;
    let listener = start.listen_tcp("web", "127.0.0.1:0")?;
    let address = listener.local_addr().expect("an address");
    let handle = start.handle();
    let run = tokio::spawn(start.run(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            tokio::spawn(async move { connection.write_all(b"ok").await });
        }
    }));
    Ok(Instance { handle, address, run })
}

async fn answer(instance: &Instance) -> std::io::Result<String> {
    let mut answer = String::new();
    TcpStream::connect(instance.address).await?.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[tokio::test]
async fn one_may_fail_to_restart_and_stop_without_the_other() {
    let (first, second) = (instance("first").unwrap(), instance("second").unwrap());
    for instance in [&first, &second] {
        assert_eq!(answer(instance).await.unwrap(), "ok");
    }
    let refused = first.handle.restart().await.unwrap_err();
    assert_eq!(refused.failure(), Failure::Spawn);
    for instance in [&first, &second] {
        assert_eq!(answer(instance).await.unwrap(), "ok");
    }
    first.handle.stop();
    let exit = tokio::time::timeout(Duration::from_secs(60), first.run).await.unwrap();
    assert_eq!(exit.unwrap().unwrap().cut, 0);
    assert_eq!(answer(&second).await.unwrap(), "ok");
    second.handle.stop();
    second.run.await.unwrap().unwrap();
}
