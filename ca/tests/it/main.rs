//! The CA and its Workload API, from outside.

#[cfg(test)]
mod authority;
#[cfg(test)]
mod fixture;
#[cfg(test)]
mod go_spiffe;
#[cfg(test)]
mod journals;
#[cfg(test)]
mod kubernetes;
#[cfg(test)]
mod protocol;
#[cfg(test)]
mod replicas;
#[cfg(test)]
mod workload_api;
