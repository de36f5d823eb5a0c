//! Certificate requests: what is signed names who was attested, whatever the request says.
#![no_main]

use std::sync::{Arc, LazyLock};

use aegis_ca::{
    CaConfig, Directory, IdentityEvent, IdentityManager, Lifetimes, Recorder, RecorderError,
    Registration,
};
use aegis_core::AgentId;
use aegis_identity::system_clock;
use futures::future::BoxFuture;
use libfuzzer_sys::fuzz_target;

struct Unrecorded;

impl Recorder for Unrecorded {
    fn record<'a>(&'a self, _: &'a IdentityEvent) -> BoxFuture<'a, Result<(), RecorderError>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

static AGENT: LazyLock<AgentId> =
    LazyLock::new(|| "spiffe://acme.example/ns/a/sa/b/agent/c".parse().expect("legal"));
static CA: LazyLock<IdentityManager> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a folder").keep();
    let store = Directory::open(folder.join("ca")).expect("a store");
    let config = CaConfig {
        trust_domain: "acme.example".parse().expect("legal"),
        lifetimes: Lifetimes::default(),
    };
    let ca = IdentityManager::open(store, config, Arc::new(Unrecorded), system_clock());
    let ca = ca.expect("an authority");
    ca.register(vec![Registration {
        id: AGENT.clone(),
        sponsor: "ada@acme.example".parse().expect("legal"),
        capabilities: vec![],
        selectors: vec![],
        ttl: None,
    }])
    .expect("registered");
    ca
});

fuzz_target!(|bytes: &[u8]| {
    let sponsor = "ada@acme.example".parse().expect("legal");
    let signed = futures::executor::block_on(CA.sign_request(&AGENT, &sponsor, bytes));
    if let Ok(chain) = signed {
        let peer = CA.verify(&chain).expect("what was signed is believed");
        assert_eq!(peer.id.as_str(), AGENT.to_string());
    }
});
