//! What the end-to-end tests of Aegis are made of: programs that stand on the other side of it.
//!
//! Nothing here is part of Aegis, and nothing of Aegis is used here: a fixture that shared its
//! parser could not find fault with it.

pub mod fixture;
