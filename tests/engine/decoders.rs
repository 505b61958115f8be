//! Runs every decoder over its fuzzing corpus, and over random changes of that corpus: no decoder may panic or loop for
//! ever. `scripts/fuzz.sh` lets libFuzzer search further, and watches what the decoders allocate.

#[path = "../../fuzz/src/decoders.rs"]
#[expect(unreachable_pub, reason = "the fuzz targets are another crate")]
mod targets;

use std::fs;
use std::path::Path;

use ringkeep::random::Random;
use targets::DECODERS;

/// How many random changes of each file of the corpus are tried.
const CHANGES: u64 = 200;

#[test]
fn no_decoder_panics_on_the_corpus_and_what_is_near_it() {
    let seed = std::env::var("RINGKEEP_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(7);
    println!("RINGKEEP_SEED={seed}");
    let mut random = Random::new(seed);
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (name, decoder) in DECODERS {
        let mut inputs: Vec<_> = fs::read_dir(corpus.join(name))
            .unwrap()
            .map(|file| fs::read(file.unwrap().path()).unwrap())
            .collect();
        assert!(10 < inputs.len(), "{name} has too small a corpus");
        inputs.sort();
        for input in &inputs {
            decoder(input);
            for _ in 0..CHANGES {
                let mut changed = input.clone();
                for _ in 0..=random.below(3) {
                    change(
                        &mut changed,
                        inputs[random.below(inputs.len() as u64) as usize].as_slice(),
                        &mut random,
                    );
                }
                decoder(&changed);
            }
        }
    }
}

/// Flips a bit, inserts a byte, removes some bytes, or replaces the rest by the rest of another input.
fn change(bytes: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    let at = random.below(bytes.len() as u64 + 1) as usize;
    match random.below(4) {
        0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
        1 => bytes.insert(at, random.next_u64() as u8),
        2 => drop(bytes.drain(at..(at + random.below(9) as usize).min(bytes.len()))),
        _ => {
            bytes.truncate(at);
            bytes.extend_from_slice(&other[at.min(other.len())..]);
        }
    }
}
