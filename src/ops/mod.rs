//! What an operator sees: logs, health, metrics, shutdown.

pub mod files;
pub mod health;
pub mod logging;
pub mod machine;
pub mod memory;
pub mod metrics_page;
pub mod panics;
pub mod shutdown;
