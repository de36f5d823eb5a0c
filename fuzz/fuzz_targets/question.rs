//! Questions to the kernel API, as AuthZEN and as OPA spell them: never a panic, a refusal has a sentence.
#![no_main]

use aegis_protocol::{
    json::Limits,
    kernel::{evaluation, evaluations, query},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let limits = Limits::default();
    for refused in [
        evaluation(bytes, limits).err().map(|error| error.to_string()),
        evaluations(bytes, limits).err().map(|error| error.to_string()),
        query(bytes, limits).err().map(|error| error.to_string()),
    ]
    .into_iter()
    .flatten()
    {
        assert!(!refused.is_empty());
    }
});
