//! With the user's application: a stub that is a real gRPC or HTTP server. Each test runs over both.
//!
//! * `scenarios`: what the conformance suite of Action Cable servers asks for, and what comes with it
//! * `tokens`: JWT before the application
//! * `faults`: an application that dies, hangs, answers nonsense

mod faults;
mod scenarios;
mod tokens;
