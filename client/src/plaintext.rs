//! Who may speak without encryption: only who said so.
//!
//! Connections are plaintext, so every role that is reached over an address demands `--insecure`,
//! and `--insecure-network` as well where others than this machine could listen in. The embedded mode
//! has no address that anybody else could reach.

use distbuild_proto::Address;

use crate::cli::PlaintextArgs;
use crate::exit::Failure;

/// What the user allowed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Allowed {
    local: bool,
    network: bool,
}

impl From<&PlaintextArgs> for Allowed {
    fn from(args: &PlaintextArgs) -> Self {
        Self { local: args.insecure, network: args.insecure_network }
    }
}

impl Allowed {
    /// Whether plaintext may be spoken at this address.
    ///
    /// # Errors
    /// The flag that is missing.
    pub(crate) fn check(self, address: &Address) -> Result<(), Failure> {
        if !self.local {
            return Err(Failure::usage(format!(
                "connections to {address} would be plaintext, which needs --insecure"
            )));
        }
        if !address.is_local() && !self.network {
            return Err(Failure::usage(format!(
                "{address} is not a local address: plaintext there needs --insecure-network as \
                 well as --insecure"
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plaintext_needs_its_flag_and_the_network_a_second_one() {
        let ok = |local, network, address: &str| {
            Allowed { local, network }.check(&address.parse().unwrap()).is_ok()
        };
        assert!(!ok(false, false, "127.0.0.1:1"));
        assert!(!ok(false, true, "127.0.0.1:1"));
        assert!(ok(true, false, "unix:/run/d.sock"));
        assert!(!ok(true, false, "0.0.0.0:1"));
        assert!(ok(true, true, "farm.example:1"));
    }
}
