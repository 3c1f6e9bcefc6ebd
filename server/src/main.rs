//! Starts the server; `--help` lists what can be set.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser;
use embedding_cache_server::{Options, Server, StartError};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let options = Options::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("embedding-cache-server: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: Options) -> Result<(), StartError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(StartError::Runtime)?;
    runtime.block_on(async {
        let server = Server::bind(options).await?;
        // On standard output and flushed: with port 0 a script reads the address from here. One that
        // no longer listens is no reason to stop serving.
        let mut out = std::io::stdout();
        let _ = writeln!(out, "listening on http://{}", server.local_addr());
        let _ = out.flush();
        server.run(stop_signal()).await
    })
}

/// Ends on Ctrl-C, and on the signal that a service manager sends.
async fn stop_signal() {
    let interrupt = async {
        if let Err(error) = tokio::signal::ctrl_c().await {
            tracing::warn!(%error, "Ctrl-C cannot be listened for");
            std::future::pending::<()>().await;
        }
    };
    #[cfg(unix)]
    let terminate = async {
        use tokio::signal::unix::{SignalKind, signal};
        match signal(SignalKind::terminate()) {
            Ok(mut signal) => drop(signal.recv().await),
            Err(error) => {
                tracing::warn!(%error, "SIGTERM cannot be listened for");
                std::future::pending::<()>().await;
            }
        }
    };
    #[cfg(not(unix))]
    let terminate = std::future::pending::<()>();
    tokio::select! {
        () = interrupt => {}
        () = terminate => {}
    }
}
