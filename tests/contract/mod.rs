//! What every broker must do. Each test runs on memory, embedded NATS and external NATS.

mod history_by_position;
mod history_by_time;
mod history_command;
mod ordering;
mod publications;
mod remote_disconnect;
mod restore;
mod saved_sessions;
mod subscriptions;
mod whispers;
