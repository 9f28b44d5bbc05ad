//! The hard cases of the design, one test per ruling, named after it. `docs/testing.md` lists which ruling is tested
//! where.

mod delivery;
mod log;
mod publishing;
mod sessions;
