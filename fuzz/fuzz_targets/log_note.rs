//! Notes, checkpoints, proofs and keys as an auditor gets them: an accepted text is the only text of
//! its value, and nothing that the key did not sign opens.
#![no_main]

use aegis_audit::{Signer, TlogProof, Verifier, checkpoint};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let signer = Signer::from_seed("acme.example/log", &[3; 32]).expect("a legal name");
    let verifier: Verifier = signer.verifier();
    // The seed is fixed and its signature cannot be guessed: what opens is in the corpus, signed.
    if let Ok(opened) = checkpoint::open(&verifier, text) {
        let again = checkpoint::sign(&signer, &opened.head);
        assert_eq!(checkpoint::open(&verifier, &again).expect("ours"), opened);
    }
    let _ = checkpoint::parse(text);
    if let Ok(proof) = TlogProof::parse(text) {
        assert_eq!(proof.to_text(), text);
        let _ = proof.verify(&verifier, b"an entry");
    }
    if let Ok(key) = text.parse::<Verifier>() {
        assert_eq!(key.to_string(), text);
    }
});
