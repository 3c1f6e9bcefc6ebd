//! Policies that no peer offers, replayed for reference: what is known of them is what their papers
//! say, and they need not be fast. Each is a function from a trace of dense ids and a capacity to hits.

mod clock2q_plus;
mod lirs;
mod list;
mod multi_queue;
mod w_tiny_lfu;

/// Hits of a trace under a capacity.
type Replay = fn(&[u32], usize) -> usize;

/// All of them, by the names that the tables show.
pub(super) const ALL: [(&str, Replay); 4] = [
    ("W-TinyLFU (adaptive)", w_tiny_lfu::hits),
    ("LIRS", lirs::hits),
    ("MQ", multi_queue::hits),
    ("Clock2Q+", clock2q_plus::hits),
];

fn ids(requests: &[u32]) -> usize {
    requests.iter().max().map_or(0, |&most| most as usize + 1)
}

#[cfg(test)]
mod tests {
    use super::super::bounds;
    use super::*;

    fn mixed(many: u64, keys: u64) -> Vec<u32> {
        let word = |at: u64| crate::keys::mix(at);
        // Half from a tenth of the keys, half from all.
        (0..many)
            .map(|at| (word(at) % if word(at) & (1 << 40) == 0 { keys } else { keys / 10 }) as u32)
            .collect()
    }

    #[test]
    fn all_is_a_hit_where_all_fits() {
        for (name, hits) in ALL {
            let requests = mixed(2_000, 100);
            // LIRS and the queues keep a part of their room for newcomers.
            assert_eq!(hits(&requests, 150), 1_900, "{name}");
        }
    }

    #[test]
    fn none_beats_the_optimum_and_each_beats_fifo_where_some_keys_are_popular() {
        let requests = mixed(50_000, 1_000);
        for (name, hits) in ALL {
            let found = hits(&requests, 100);
            assert!(found <= bounds::optimum(&requests, 100), "{name}");
            assert!(found > bounds::fifo(&requests, 100), "{name}: {found}");
        }
    }

    #[test]
    fn a_loop_is_kept_in_part_by_lirs_and_not_at_all_by_lru() {
        let requests: Vec<u32> = (0..20_000).map(|at| at % 200).collect();
        assert_eq!(bounds::lru(&requests, 100), 0);
        assert!(lirs::hits(&requests, 100) > 9_000);
    }

    #[test]
    fn a_scan_does_not_flush_what_is_used_often() {
        let mut requests = mixed(20_000, 100);
        let scan_at = requests.len();
        requests.extend(1_000..3_000);
        requests.extend(mixed(2_000, 100));
        for (name, hits) in ALL {
            let before = hits(&requests[..scan_at + 2_000], 60);
            let after = hits(&requests, 60) - before;
            let alone = bounds::lru(&requests[scan_at + 2_000..], 60);
            assert!(after >= alone, "{name}: {after} beside {alone} of an empty LRU");
        }
    }
}
