//! What an operator sees.

pub mod logging;
