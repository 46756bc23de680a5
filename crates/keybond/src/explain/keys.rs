//! What the held key and proofs with it give.

use super::{Entry, Retry, SIGNING, entry};
use crate::leg::Leg;

const KEY: &[Leg] = &[Leg::Key];

pub(super) const TABLE: &[Entry] = &[
    entry(
        "min_strength_not_met",
        KEY,
        Retry::Depends,
        "The strongest key of this machine was shown to be weaker than the floor. Nothing was sent.",
        &[
            "The machine has neither KeyGuard nor a TPM, or they are off.",
            "The user may not open the TPM.",
            "The TPM was busy, and a weaker key took its place for now.",
        ],
        &[
            "Run `keybond doctor`: it says of every store why it was passed over.",
            "Switch on vTPM or Trusted Launch, or let the user open the device.",
            "Lower the floor only if software keys are good enough.",
        ],
    )
    .shared(),
    entry(
        "no_key_store",
        KEY,
        Retry::Depends,
        "No store gave a key.",
        &["Every store was refused by policy, is absent or failed."],
        &["Run `keybond doctor`, and read the reason of each store."],
    ),
    entry(
        "key_store_refused",
        SIGNING,
        Retry::Depends,
        "A store refused an operation with its key; the error holds its reason.",
        &[
            "The device is busy or was reset.",
            "The TPM was cleared, or the key was made by another one.",
            "Permissions changed.",
        ],
        &["Follow the remedy in the error; it is the store's own."],
    ),
    entry(
        "signature_scheme_not_supported",
        SIGNING,
        Retry::No,
        "The key cannot sign in this way.",
        &["An old TPM without usable PSS.", "A scheme of another kind of key."],
        &["Ask for one of the schemes the key offers."],
    ),
    entry(
        "invalid_digest_length",
        SIGNING,
        Retry::No,
        "The digest has not the length that belongs to the scheme.",
        &["A digest of another hash was passed."],
        &["Pass the digest that belongs to the scheme."],
    ),
    entry(
        "key_deadline_exceeded",
        SIGNING,
        Retry::Later,
        "The key's device did not answer in time.",
        &["The TPM is busy with other programs.", "The device hangs."],
        &["Try again; if it stays, run `keybond doctor` to see whether the device answers."],
    ),
    entry(
        "key_local_failure",
        SIGNING,
        Retry::No,
        "This machine failed the key: files, threads or randomness.",
        &["The state directory cannot be written.", "A limit of the system was reached."],
        &["Check the state directory's permissions and the system's limits."],
    ),
    entry(
        "pop_invalid_url",
        &[],
        Retry::No,
        "A proof of possession cannot be made for this URL.",
        &["The URL is relative, or has no host."],
        &["Pass the URL exactly as it will be requested."],
    ),
    entry(
        "pop_invalid_argument",
        &[],
        Retry::No,
        "An argument of a proof of possession cannot be used; the error names it.",
        &["An empty nonce or token, or characters that must not be in one."],
        &["Correct the argument."],
    ),
    entry(
        "pop_no_randomness",
        &[],
        Retry::No,
        "The operating system gave no random bytes.",
        &["A sandbox without a random number generator."],
        &["Check the operating system's random number generator."],
    ),
];
