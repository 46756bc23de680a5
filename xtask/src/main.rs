//! `cargo xtask <command>`: every check and chore of this repository under one name.
#![forbid(unsafe_code)]

fn main() {}
