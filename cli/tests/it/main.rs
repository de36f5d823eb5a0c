//! The real binary, as people and scripts meet it: what needs no daemon, and what reads a ledger
//! over its socket; and the real daemon.

#[cfg(test)]
mod check;
#[cfg(test)]
mod cluster;
#[cfg(test)]
mod compliance;
#[cfg(test)]
mod console;
#[cfg(test)]
mod daemon;
#[cfg(test)]
mod domain;
#[cfg(test)]
mod evidence;
#[cfg(test)]
mod fixture;
#[cfg(test)]
mod gates;
#[cfg(test)]
mod import;
#[cfg(test)]
mod ledger;
#[cfg(test)]
mod limits;
#[cfg(test)]
mod live;
#[cfg(test)]
mod notices;
#[cfg(test)]
mod ocsf;
#[cfg(test)]
mod policy;
#[cfg(test)]
mod replay;
#[cfg(test)]
mod service;
#[cfg(test)]
mod telemetry;
#[cfg(test)]
mod told;
#[cfg(test)]
mod tune;
#[cfg(test)]
mod usage;
