//! Measures two running servers against each other: one that answers from its cache, and one that
//! was started with `--no-cache`. Rounds alternate, so that what else the machine does falls on both.
//!
//! Threads with blocking sockets and one request that is built once: the client shares the machine
//! with the servers, and what it takes is taken from them.

use std::error::Error;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;

/// Compares requests per second of a server that hits its cache and of one without a cache.
#[derive(Debug, Parser)]
struct Options {
    /// Address of the server with a cache.
    #[arg(long)]
    cached: SocketAddr,
    /// Address of the server without.
    #[arg(long)]
    uncached: SocketAddr,
    /// Texts in a request.
    #[arg(long, default_value_t = 32)]
    batch: usize,
    /// Bytes of a text; several numbers are measured one after the other.
    #[arg(long, default_value = "8000", value_delimiter = ',')]
    bytes: Vec<usize>,
    /// Connections at a time.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
    /// Rounds, in each of which both servers are measured.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(3..))]
    rounds: u32,
    /// Milliseconds of a server's part of a round.
    #[arg(long, default_value_t = 400)]
    milliseconds: u64,
    /// Fail if the ratio for the last number of bytes is less.
    #[arg(long, default_value_t = 0.0)]
    at_least: f64,
}

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(ratio) if ratio >= options.at_least => ExitCode::SUCCESS,
        Ok(ratio) => {
            eprintln!("the ratio {ratio:.2} is under {}", options.at_least);
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("compare: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<f64, Box<dyn Error + Send + Sync>> {
    println!("{:>11} {:>10} {:>10} {:>7}  rounds", "bytes", "cached/s", "uncached/s", "ratio");
    let mut last = 0.0;
    for bytes in &options.bytes {
        let request = request(options.batch, *bytes);
        // The first answer fills the cache; both servers must answer the same.
        let answers = [options.cached, options.uncached].map(|address| {
            let mut connection = Connection::open(address)?;
            connection.ask(&request)?;
            connection.ask(&request).map(<[u8]>::to_vec)
        });
        let [cached, uncached] = answers;
        if cached? != uncached? {
            return Err("the two servers answer differently".into());
        }

        let mut rates = [Vec::new(), Vec::new()];
        for round in 0..options.rounds {
            // Who goes first alternates too.
            let order = if round % 2 == 0 { [0, 1] } else { [1, 0] };
            for side in order {
                let address = [options.cached, options.uncached][side];
                rates[side].push(rate(address, &request, options)?);
            }
        }
        let ratios: Vec<f64> = rates[0].iter().zip(&rates[1]).map(|(a, b)| a / b).collect();
        let [cached, uncached] = rates.map(median);
        last = cached / uncached;
        let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
        let most = ratios.iter().copied().fold(0.0, f64::max);
        println!(
            "{bytes:>6} x {:<2} {cached:>10.0} {uncached:>10.0} {last:>7.2}  {} ({least:.2} to {most:.2})",
            options.batch, options.rounds
        );
    }
    Ok(last)
}

/// Requests per second over all connections, each with one request at a time.
fn rate(
    address: SocketAddr,
    request: &[u8],
    options: &Options,
) -> Result<f64, Box<dyn Error + Send + Sync>> {
    let began = Instant::now();
    let end = began + Duration::from_millis(options.milliseconds);
    let answered = thread::scope(|scope| {
        let connections: Vec<_> = (0..options.connections)
            .map(|_| {
                scope.spawn(|| {
                    let mut connection = Connection::open(address)?;
                    let mut answered = 0_u32;
                    while Instant::now() < end {
                        connection.ask(request)?;
                        answered += 1;
                    }
                    Ok::<u32, Box<dyn Error + Send + Sync>>(answered)
                })
            })
            .collect();
        let mut sum = 0;
        for connection in connections {
            sum += connection.join().map_err(|_| "a connection's thread panicked")??;
        }
        Ok::<u32, Box<dyn Error + Send + Sync>>(sum)
    })?;
    Ok(f64::from(answered) / began.elapsed().as_secs_f64())
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates.get(rates.len() / 2).copied().unwrap_or(0.0)
}

/// A request for `batch` texts of about `bytes` bytes, no two the same, as words of some letters.
fn request(batch: usize, bytes: usize) -> Vec<u8> {
    const WORDS: [&str; 8] =
        ["river", "stone", "of", "market", "engine", "the", "garden", "silver"];
    let mut seed = 1_usize;
    let mut texts = String::new();
    for text in 0..batch {
        let start = texts.len();
        texts.push_str(if text == 0 { "\"" } else { "\",\"" });
        while texts.len() - start < bytes {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695);
            texts.push_str(WORDS[(seed >> 33) % WORDS.len()]);
            texts.push_str(&((seed >> 40) % 1000).to_string());
            texts.push(' ');
        }
    }
    let body = format!(
        r#"{{"model":"hashed-ngrams-768@1","encoding_format":"base64","input":[{texts}"]}}"#
    );
    format!(
        "POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// A connection that is kept, and the answer that came last.
struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    fn open(address: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        Ok(Self { stream, buffer: vec![0; 1 << 20] })
    }

    /// Sends the request and reads the whole answer; returns its body.
    fn ask(&mut self, request: &[u8]) -> Result<&[u8], Box<dyn Error + Send + Sync>> {
        self.stream.write_all(request)?;
        let mut held = 0;
        let mut whole = None;
        loop {
            if whole.is_none() {
                whole = head(&self.buffer[..held])?;
            }
            if let Some((start, end)) = whole {
                if end > self.buffer.len() {
                    self.buffer.resize(end, 0);
                }
                if held >= end {
                    return Ok(&self.buffer[start..end]);
                }
            }
            match self.stream.read(&mut self.buffer[held..])? {
                0 => return Err("the server closed the connection".into()),
                read => held += read,
            }
        }
    }
}

/// Where the body begins and ends, once the head is there.
fn head(bytes: &[u8]) -> Result<Option<(usize, usize)>, Box<dyn Error + Send + Sync>> {
    let Some(blank) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
        return Ok(None);
    };
    let text = std::str::from_utf8(&bytes[..blank])?;
    let mut lines = text.split("\r\n");
    let status = lines.next().unwrap_or_default();
    if !status.contains(" 200 ") {
        return Err(format!("the server answered {status}").into());
    }
    let length = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .ok_or("an answer without a length")?;
    Ok(Some((blank + 4, blank + 4 + length.1.trim().parse::<usize>()?)))
}
