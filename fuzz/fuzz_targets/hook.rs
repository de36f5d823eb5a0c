//! What a coding agent tells its hook (the first byte says which agent): one answer for the same bytes, never a
//! panic; what is read names what is about to happen; a refusal has a sentence.
#![no_main]

use aegis_protocol::{
    hooks::{Agent, answer, read},
    json::Limits,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((which, payload)) = bytes.split_first() else { return };
    let agent = Agent::ALL[usize::from(*which) % Agent::ALL.len()];
    let hook = read(agent, payload, Limits::default());
    assert_eq!(hook, read(agent, payload, Limits::default()));
    match hook {
        Ok(hook) => {
            assert!(!hook.actions.is_empty());
            let _ = answer::allowed(agent, hook.event);
            let _ = answer::denied(agent, Some(hook.event), "refused");
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            let _ = answer::denied(agent, None, &error.to_string());
        }
    }
});
