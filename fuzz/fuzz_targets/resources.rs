//! Resources in YAML, and the Rego of the policies among them: refused with a sentence, or read.
#![no_main]

use aegis_policy::translate::translate;
use aegis_resources::{Loaded, parse_documents};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = str::from_utf8(bytes) else { return };
    for document in parse_documents("fuzz.yaml", text) {
        match document {
            Ok(Loaded::Policy(policy) | Loaded::ClusterPolicy(policy)) => {
                let _ = translate(&policy.spec);
            }
            Ok(_) => {}
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
});
