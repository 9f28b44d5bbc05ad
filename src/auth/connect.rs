//! How a new connection becomes somebody. Tokens and the application join as further authenticators.

use crate::protocol::Sid;

/// Who a connection is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Connection identifiers: opaque text, compared byte for byte by remote disconnects.
    pub identifiers: String,
}

/// The connection is refused: `disconnect` with this reason, then the socket is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    pub reason: &'static str,
    pub reconnect: bool,
}

/// The way connections are authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authenticator {
    /// Everybody is welcome.
    NoAuth,
    /// Nobody is: nothing is configured that could tell who a connection is.
    Refuse,
}

impl Authenticator {
    /// The identity of a new connection. Without authentication that is its session id, so that a single connection
    /// can still be disconnected from outside.
    pub fn authenticate(self, sid: &Sid) -> Result<Identity, Refused> {
        match self {
            Self::NoAuth => {
                #[derive(serde::Serialize)]
                struct Anonymous<'a> {
                    sid: &'a str,
                }
                let identifiers =
                    serde_json::to_string(&Anonymous { sid: sid.expose() }).expect("a string is always JSON");
                Ok(Identity { identifiers })
            }
            Self::Refuse => Err(Refused { reason: "unauthorized", reconnect: false }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_authentication_the_sid_identifies() {
        let identity = Authenticator::NoAuth.authenticate(&"k3Jq_-".into()).unwrap();
        assert_eq!(identity.identifiers, r#"{"sid":"k3Jq_-"}"#);
    }

    #[test]
    fn with_nothing_configured_everybody_is_refused_for_good() {
        let refused = Authenticator::Refuse.authenticate(&"k3Jq".into()).unwrap_err();
        assert_eq!(refused, Refused { reason: "unauthorized", reconnect: false });
    }
}
