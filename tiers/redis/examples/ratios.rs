//! The second tier beside the client alone: `cargo run --release -p embedding-cache-redis --example
//! ratios`. Begins a `redis-server` of its own, on a free port.
//!
//! Reads: 32 vectors of 768 components that only the second tier has, and one `MGET` of 32 keys of the
//! same store. Stores: vectors put and flushed, and the same number of bytes in pipelines of 64 `SET`.
//! Requests: ten texts that nobody has, without a second tier, with one that is well, frozen, gone, and
//! left alone. What is compared is measured in turns, in the same run.

use std::error::Error;
use std::hint::black_box;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use embedding_cache::tier::SecondTier;
use embedding_cache::{ContentKey, EmbeddingCache, EmbeddingCacheBuilder};
use embedding_cache_redis::RedisTier;
use redis::aio::MultiplexedConnection;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;
type Cache = EmbeddingCache<ContentKey>;

const COMPONENTS: usize = 768;
const ENTRIES: usize = 20_000;
const KEYS: usize = 32;
const ROUNDS: usize = 21;

struct Server {
    child: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Server {
    async fn start() -> Outcome<Self> {
        let folder = tempfile::tempdir()?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let child = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--dir"])
            .arg(folder.path())
            .stdout(Stdio::null())
            .spawn()?;
        let server = Self { child, port, _folder: folder };
        for _ in 0..200 {
            if server.raw().await.is_ok() {
                return Ok(server);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err("redis-server does not start".into())
    }

    fn address(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    async fn raw(&self) -> redis::RedisResult<MultiplexedConnection> {
        redis::Client::open(self.address())?.get_multiplexed_async_connection().await
    }

    fn signal(&self, signal: &str) -> Outcome {
        Command::new("kill").args([signal, &self.child.id().to_string()]).status()?;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn key(number: usize) -> ContentKey {
    ContentKey::for_model("ratios").text(&number.to_string())
}

fn vector(number: usize) -> Vec<f32> {
    (0..COMPONENTS).map(|i| (number * 31 + i) as f32).collect()
}

/// The same numbers each time.
fn mix(number: usize) -> usize {
    let mixed = (number as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    ((mixed ^ (mixed >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 33) as usize
}

async fn cache(server: &Server, entries: usize, soft: Duration) -> Outcome<Cache> {
    let tier = SecondTier::new(RedisTier::builder(server.address()).connect().await?);
    Ok(EmbeddingCacheBuilder::new().max_entries(entries).tier(tier.soft_deadline(soft)).build()?)
}

fn median(times: &mut [Duration]) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e6
}

async fn stores(server: &Server) -> Outcome {
    const STORED: usize = 6_400;
    let (mut raw, mut tiered) = (Vec::new(), Vec::new());
    let mut connection = server.raw().await?;
    for round in 0..7 {
        let value = vec![0xEC_u8; 48 + 4 * COMPONENTS];
        let started = Instant::now();
        for from in (0..STORED).step_by(64) {
            let mut pipeline = redis::pipe();
            for number in from..from + 64 {
                let key = format!("raw:{:041}", round * STORED + number);
                pipeline.cmd("SET").arg(key).arg(&value[..]).arg("PX").arg(3_600_000).ignore();
            }
            let () = pipeline.query_async(&mut connection).await?;
        }
        raw.push(started.elapsed());

        let life = Duration::from_secs(3600);
        let cache = cache(server, 2 * STORED, Duration::from_secs(1)).await?;
        let vectors: Vec<Vec<f32>> = (0..STORED).map(vector).collect();
        let started = Instant::now();
        for (number, vector) in vectors.into_iter().enumerate() {
            cache.put_with_ttl(key(1_000_000 + round * STORED + number), vector, life).await?;
        }
        let left = cache.tier_flush(Duration::from_secs(60)).await;
        tiered.push(started.elapsed());
        let stats = cache.stats().tier;
        if left > 0 || stats.writes != STORED as u64 {
            return Err(format!("{left} are left: {stats:?}").into());
        }
    }
    let (raw, tiered) = (median(&mut raw), median(&mut tiered));
    let speed = |micros: f64| STORED as f64 / micros * 1e6;
    println!(
        "stores in pipelines of 64: client {:.0}/s, cache {:.0}/s, {:.2} of it",
        speed(raw),
        speed(tiered),
        raw / tiered
    );
    Ok(())
}

async fn reads(server: &Server) -> Outcome {
    let writer = cache(server, 2 * ENTRIES, Duration::from_secs(1)).await?;
    for number in 0..ENTRIES {
        writer.put(key(number), vector(number)).await?;
        if number % 4096 == 0 {
            writer.tier_flush(Duration::from_secs(60)).await;
        }
    }
    writer.tier_flush(Duration::from_secs(60)).await;
    let mut connection = server.raw().await?;
    let names: Vec<Vec<u8>> =
        redis::cmd("KEYS").arg("emb:ec1:*").query_async(&mut connection).await?;
    let names: Vec<Vec<u8>> = names.into_iter().filter(|name| name.len() > 40).collect();
    // So few that nearly every read is one of the second tier.
    let cache = cache(server, 256, Duration::from_secs(1)).await?;
    let (mut raw, mut tiered) = (Vec::new(), Vec::new());
    let mut draws = 0;
    for _ in 0..ROUNDS {
        let (mut raw_round, mut tiered_round) = (Vec::new(), Vec::new());
        for _ in 0..100 {
            let numbers: Vec<usize> = (0..KEYS).map(|place| mix(draws + place)).collect();
            draws += KEYS;
            let mut command = redis::cmd("MGET");
            for number in &numbers {
                command.arg(&names[number % names.len()]);
            }
            let started = Instant::now();
            let found: Vec<Vec<u8>> = command.query_async(&mut connection).await?;
            raw_round.push(started.elapsed());
            black_box(found);

            let keys: Vec<ContentKey> =
                numbers.iter().map(|number| key(number % ENTRIES)).collect();
            let started = Instant::now();
            let found = cache.get_through_many(&keys).await;
            tiered_round.push(started.elapsed());
            if found.iter().any(Option::is_none) {
                return Err(format!("a miss: {:?}", cache.stats().tier).into());
            }
        }
        raw_round.sort_unstable();
        tiered_round.sort_unstable();
        raw.push(raw_round[50]);
        tiered.push(tiered_round[50]);
    }
    let (raw, tiered) = (median(&mut raw), median(&mut tiered));
    println!("32 reads: client {raw:.0} µs, cache {tiered:.0} µs, {:.2} times", tiered / raw);
    Ok(())
}

/// Requests for ten texts that nobody has; sorted.
async fn requests(cache: &Cache, from: usize, times: usize) -> Outcome<Vec<Duration>> {
    let mut took = Vec::with_capacity(times);
    for time in 0..times {
        let keys: Vec<ContentKey> = (0..10).map(|place| key(from + time * 10 + place)).collect();
        let started = Instant::now();
        let answers = cache
            .get_or_embed_many(&keys, |missing| {
                let vectors = vec![vec![1.0_f32; 8]; missing.len()];
                async move { vectors }
            })
            .await;
        took.push(started.elapsed());
        if answers.iter().any(Result::is_err) {
            return Err("a request failed".into());
        }
    }
    took.sort_unstable();
    Ok(took)
}

async fn faults() -> Outcome {
    let none: Cache = EmbeddingCacheBuilder::new().max_entries(1_000_000).build()?;
    let mut from = 10_000_000;
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    for fault in ["well", "frozen", "killed"] {
        let server = Server::start().await?;
        let cache = cache(&server, 1_000_000, Duration::from_millis(10)).await?;
        requests(&cache, from, 20).await?;
        match fault {
            "frozen" => server.signal("-STOP")?,
            "killed" => server.signal("-KILL")?,
            _ => {}
        }
        // In turns, so that what else the machine does is in both.
        let (mut with, mut without) = (Vec::new(), Vec::new());
        for round in 0..if fault == "well" { 400 } else { 100 } {
            let from = from + 1000 + round * 100;
            with.extend(requests(&cache, from, 5).await?);
            without.extend(requests(&none, from, 5).await?);
        }
        with.sort_unstable();
        without.sort_unstable();
        let at = |sorted: &[Duration], part: f64| {
            micros(sorted[((sorted.len() - 1) as f64 * part) as usize])
        };
        println!(
            "ten texts, {fault}: p50 {:.0}, p99 {:.0}, longest {:.0} µs; without a tier {:.0}, {:.0}, {:.0} µs",
            at(&with, 0.5),
            at(&with, 0.99),
            at(&with, 1.0),
            at(&without, 0.5),
            at(&without, 0.99),
            at(&without, 1.0),
        );
        if fault != "well" {
            // It has been opened by now; its pause is a second and more.
            let opened = cache.stats().tier.opened;
            let (mut with, mut without) = (Vec::new(), Vec::new());
            for round in 0..20 {
                let from = from + 100_000 + round * 1000;
                with.extend(requests(&cache, from, 20).await?);
                without.extend(requests(&none, from, 20).await?);
            }
            let more = median(&mut with) - median(&mut without);
            println!(
                "  left alone (opened {opened} times): {more:.1} µs more for a request of ten"
            );
        }
        from += 1_000_000;
    }
    Ok(())
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Outcome {
    let server = Server::start().await?;
    for _ in 0..3 {
        reads(&server).await?;
        stores(&server).await?;
    }
    drop(server);
    faults().await
}
