//! With the user's application: a stub that is a real gRPC or HTTP server. Each test runs over both.
//!
//! * `scenarios`: what the conformance suite of Action Cable servers asks for, and what comes with it
//! * `tokens`: JWT before the application
//! * `faults`: an application that dies, hangs, answers nonsense
//! * `callbacks`: who is told of leaving and restored clients, and how often
//! * `remote_disconnect`: clients that an application throws out

mod callbacks;
mod faults;
mod remote_disconnect;
mod scenarios;
mod tokens;
