pub mod health;
pub mod metrics_page;
pub mod shutdown;
