//! The ledger of a cluster as a process: who ships to it, who writes, who takes over.

#[cfg(test)]
mod ca;
#[cfg(test)]
#[path = "../../../crates/aegis-mesh/tests/it/fixture.rs"]
mod fixture;
#[cfg(test)]
mod process;
#[cfg(test)]
mod replicas;
#[cfg(test)]
#[path = "../../../crates/aegis-audit/tests/it/server.rs"]
mod server;
#[cfg(test)]
mod shipping;
#[cfg(test)]
mod trust;
#[cfg(test)]
mod verify;
