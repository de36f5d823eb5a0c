//! The real binary, as people and scripts meet it: what needs no daemon, and what reads a ledger
//! over its socket.

mod daemon;
mod evidence;
mod fixture;
mod ledger;
mod policy;
mod usage;
