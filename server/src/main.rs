//! Starts the server; `--help` lists what can be set.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use clap::Parser;
use embedding_cache_server::{Options, Server, StartError};
use tracing_subscriber::EnvFilter;

/// Gives memory back to the system soon after it is freed: an answer can take a hundred megabytes,
/// and the system's own allocator keeps what it once had.
#[cfg(unix)]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// As clap ends for what it finds wrong itself.
const WRONG_OPTION: u8 = 2;

/// Descriptors beside those of the clients: the upstream's connections, and what the runtime needs.
#[cfg(unix)]
const OTHER_DESCRIPTORS: u64 = 256;

fn main() -> ExitCode {
    let options = Options::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let colours = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    log.with_ansi(colours).init();
    #[cfg(unix)]
    raise_descriptors(&options);
    match run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("embedding-cache-server: {error}");
            if error.is_option() { ExitCode::from(WRONG_OPTION) } else { ExitCode::FAILURE }
        }
    }
}

/// The usual limit of 1,024 descriptors is that of the shell, not of the machine.
#[cfg(unix)]
fn raise_descriptors(options: &Options) {
    let wanted = u64::from(options.max_connections) + OTHER_DESCRIPTORS;
    let allowed = match rlimit::Resource::NOFILE.get() {
        Ok((soft, _)) if soft >= wanted => return,
        _ => rlimit::increase_nofile_limit(wanted),
    };
    if !allowed.as_ref().is_ok_and(|allowed| *allowed >= wanted) {
        tracing::warn!(?allowed, wanted, "too few descriptors for --max-connections");
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
        server.run(stop_signal()).await;
        Ok(())
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
