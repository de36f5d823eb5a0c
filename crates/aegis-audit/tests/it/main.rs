//! The log from outside: appending, reading, breaking it, and what others verify.

#[cfg(test)]
mod append;
#[cfg(test)]
mod corruption;
#[cfg(test)]
mod crash;
#[cfg(test)]
mod disk;
#[cfg(test)]
mod fixture;
#[cfg(test)]
mod go;
#[cfg(test)]
mod import;
#[cfg(test)]
mod postgres;
#[cfg(test)]
mod query;
#[cfg(test)]
mod redo;
#[cfg(test)]
mod server;
#[cfg(test)]
mod stranger;
