//! What happens when things go wrong: outages, refusals, lies, operators. The acceptance stories bear their
//! numbers.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod capabilities;
mod cloud;
mod downgrade;
mod matrix;
mod remedies;
mod story_06;
mod story_07;
mod story_10;
mod story_14;
mod story_15;
mod witness;
