//! The built-in embedder: hashed word n-grams, the one of `examples/embed_corpus`.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::{Content, EmbedError, Failed, Job, Vectors};

/// The very file of the other example: one embedder in this repository, not two that drift apart.
#[path = "../../../examples/embed_corpus/src/embedder.rs"]
mod embedder;

pub(crate) use embedder::{DIMENSIONS, MODEL};

/// Runs the embedder beside the executor, on as many threads as there are processors.
#[derive(Debug)]
pub(crate) struct Hashing {
    processors: Arc<Semaphore>,
}

impl Hashing {
    pub(crate) fn new() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self { processors: Arc::new(Semaphore::new(processors)) }
    }

    pub(super) async fn embed(&self, jobs: Vec<Job>) -> Vectors {
        let count = jobs.len();
        // Never closed. The permit goes along: a caller that gives up does not stop the thread.
        let permit = Arc::clone(&self.processors).acquire_owned().await;
        let work = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            jobs.iter().map(|job| Ok(vector(job))).collect()
        });
        work.await.unwrap_or_else(|_| vec![Err(Failed::alone(EmbedError::Panicked)); count])
    }
}

fn vector(job: &Job) -> Vec<f32> {
    let whole = match &job.content {
        Content::Text(text) => embedder::embed(text),
        // There is no tokenizer to turn ids into words again, so an id is itself a word.
        Content::Tokens(tokens) => {
            let words: Vec<String> = tokens.iter().map(u32::to_string).collect();
            embedder::embed(&words.join(" "))
        }
    };
    match job.kind.asked {
        Some(dimensions) if dimensions < whole.len() => fold(&whole, dimensions),
        _ => whole,
    }
}

/// The same vector in fewer dimensions, of length 1 again. Components are folded, not cut off: where
/// a feature lands is a matter of chance, so the leading components of a short text's vector may all
/// be zero, and a zero vector cannot be scaled.
fn fold(whole: &[f32], dimensions: usize) -> Vec<f32> {
    let mut folded = vec![0.0_f32; dimensions];
    for chunk in whole.chunks(dimensions) {
        for (sum, x) in folded.iter_mut().zip(chunk) {
            *sum += x;
        }
    }
    let length = folded.iter().map(|x| x * x).sum::<f32>().sqrt();
    if length > 1e-6 {
        folded.iter_mut().for_each(|x| *x /= length);
        return folded;
    }
    // Everything cancelled out: the largest component alone then.
    let largest = whole.iter().enumerate().max_by(|a, b| a.1.abs().total_cmp(&b.1.abs()));
    folded.fill(0.0);
    if let Some((place, x)) = largest {
        folded[place % dimensions] = x.signum();
    }
    folded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(text: &str, asked: Option<usize>) -> Job {
        let kind =
            super::super::BatchKind { asked, ..super::super::BatchKind::plain(MODEL.into()) };
        Job {
            kind: Arc::new(kind),
            origin: super::super::Origin::new(1),
            content: Content::Text(text.into()),
            tokens: Arc::default(),
        }
    }

    #[test]
    fn every_dimension_gives_a_vector_of_length_one() {
        for text in ["word", "a b", "a longer text, with some words of more than one kind"] {
            for dimensions in [1, 2, 3, 256, 767, 768] {
                let vector = vector(&job(text, Some(dimensions)));
                assert_eq!(vector.len(), dimensions);
                let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
                assert!((length - 1.0).abs() < 1e-5, "{text} {dimensions}: {length}");
            }
        }
    }

    #[test]
    fn what_cancels_out_is_not_divided_by_zero() {
        assert_eq!(fold(&[0.5, -0.5], 1).len(), 1);
        assert_eq!(fold(&[0.5, -0.5], 1)[0].abs(), 1.0);
    }
}
