//! What identities must prove before they are believed.

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod grant;
#[cfg(test)]
mod jwt;
#[cfg(test)]
mod manifest;
#[cfg(test)]
mod tls;
#[cfg(test)]
mod verify;
