//! Who a new connection is: asked in order of the token, the configuration, the application.

use super::save::unix_ms;
use super::{Hello, Node};
use crate::auth::jwt::{Claims, Jwt, TokenFault};
use crate::hub::Outbox;
use crate::log_limit::limited;
use crate::metrics;
use crate::protocol::{Close, Sid};
use crate::rpc::{Connected, Env, Outcome, State};
use crate::session::SavedSession;
use std::future::poll_fn;

/// A connection that was let in, before it has a session.
pub struct Admitted {
    pub identifiers: String,
    /// When its token expires, Unix seconds.
    pub exp: Option<u64>,
    pub cstate: State,
    /// What the application says instead of our `welcome`.
    pub transmissions: Option<Vec<String>>,
}

impl Admitted {
    fn by_us(identifiers: String, exp: Option<u64>) -> Self {
        Self { identifiers, exp, cstate: State::new(), transmissions: None }
    }
}

/// Lets a connection in, or closes it. `None`: it was closed, or went away meanwhile.
pub async fn admit(node: &Node, hello: &Hello, sid: &Sid, outbox: &Outbox) -> Option<Admitted> {
    match identify(node, hello, sid, outbox).await {
        Ok(admitted) => Some(admitted),
        Err(close) => {
            if matches!(close, Close::Unauthorized | Close::TokenExpired | Close::Refused) {
                metrics::FAILED_AUTHS.inc();
            }
            outbox.close(close);
            None
        }
    }
}

async fn identify(node: &Node, hello: &Hello, sid: &Sid, outbox: &Outbox) -> Result<Admitted, Close> {
    if let Some(jwt) = &node.jwt {
        match verified(jwt, hello) {
            Some(Ok(claims)) => return Ok(Admitted::by_us(claims.ext, claims.exp)),
            Some(Err(fault)) => {
                let token = hello.asked.as_ref().and_then(|asked| asked.token.as_ref()).map(tracing::field::display);
                tracing::debug!(context = "jwt", %sid, token, %fault, "token refused");
                return Err(match fault {
                    TokenFault::Expired => Close::TokenExpired,
                    TokenFault::Unauthorized(_) => Close::Unauthorized,
                    TokenFault::NoIdentifiers => Close::AuthError,
                });
            }
            None if jwt.is_enforced() => return Err(Close::Unauthorized),
            None => {}
        }
    }
    if let Ok(identity) = node.authenticator.authenticate(sid) {
        return Ok(Admitted::by_us(identity.identifiers, None));
    }
    by_application(node, hello, sid, outbox).await
}

/// What the connection's token says; `None` without one.
fn verified(jwt: &Jwt, hello: &Hello) -> Option<Result<Claims, TokenFault>> {
    let token = hello.asked.as_ref()?.token.as_ref()?;
    Some(jwt.verify(token.expose(), unix_ms() / 1_000))
}

/// Whether a saved session may go on, and until when: not after its token has expired, and not for somebody who proves
/// to be another one. A fresh token for the same one gives the session its own life.
pub fn may_go_on(node: &Node, hello: &Hello, saved: &mut SavedSession) -> bool {
    let Some(jwt) = &node.jwt else { return true };
    match verified(jwt, hello) {
        Some(Ok(claims)) if claims.ext != saved.identifiers() => return false,
        Some(Ok(claims)) => saved.set_exp(claims.exp),
        Some(Err(_)) | None => {}
    }
    jwt.may_restore(saved.exp(), unix_ms() / 1_000)
}

async fn by_application(node: &Node, hello: &Hello, sid: &Sid, outbox: &Outbox) -> Result<Admitted, Close> {
    let Some(application) = &node.application else { return Err(Close::Unauthorized) };
    let env = hello.asked.as_ref().map_or_else(Env::default, |asked| asked.env());
    let answer = tokio::select! {
        biased;
        // Nobody waits for the answer any more: the call is given up.
        () = poll_fn(|cx| outbox.poll_over(cx)) => return Err(Close::ClientClosed),
        answer = application.connect(sid, env) => answer,
    };
    let Connected { outcome, identifiers, transmissions, cstate } = answer.map_err(|error| {
        limited!(WARN, AuthenticationFailed, %sid, %error, "a client could not be authenticated");
        Close::AuthError
    })?;
    match outcome {
        Outcome::Success => Ok(Admitted { identifiers, exp: None, cstate, transmissions: Some(transmissions) }),
        Outcome::Failure => {
            for transmission in &transmissions {
                outbox.push(outbox.encoding().text(transmission));
            }
            Err(Close::Refused)
        }
    }
}
