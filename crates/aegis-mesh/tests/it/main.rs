//! Membership in the mesh, against a small CA and a small ledger.

#[cfg(test)]
mod authority;
#[cfg(test)]
mod fixture;
#[cfg(test)]
mod serving;
#[cfg(test)]
mod shipping;
#[cfg(test)]
mod workload;
