//! What the command line prints, word for word. `TRYCMD=overwrite cargo test -p keybond-cli` renews the files.

#[test]
fn command_line() {
    trycmd::TestCases::new()
        .default_bin_name("keybond")
        .env("HOME", "/nonexistent")
        .env("KEYBOND_TPM", "off")
        .case("tests/cmd/*.trycmd");
}
