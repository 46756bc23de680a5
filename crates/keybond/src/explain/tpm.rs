//! What the TPM layer gives. Where a key store turns it into a reason of its own, that reason quotes it.

use super::{Entry, Retry, SIGNING, entry};

const fn tpm(
    code: &'static str,
    retry: Retry,
    meaning: &'static str,
    causes: &'static [&'static str],
    actions: &'static [&'static str],
) -> Entry {
    entry(code, SIGNING, retry, meaning, causes, actions)
}

const NAME_IT: &[&str] =
    &["Correct KEYBOND_TPM: `device:/dev/tpmrm0`, `unix:/path` or `tcp:host:port`."];
const AGAIN: &[&str] =
    &["Try again; if it stays, look for what else uses the TPM and at the kernel's log."];
const REPORT: &[&str] = &["Report it with the text of the error and the TPM's maker and firmware."];
const RESTORE: &[&str] =
    &["Restore the key file from where it came from, or move it away to get a new key."];

pub(super) const TABLE: &[Entry] = &[
    tpm(
        "tpm_invalid_address",
        Retry::No,
        "The address of the TPM is none.",
        &["A typo in KEYBOND_TPM."],
        NAME_IT,
    ),
    tpm(
        "tpm_off",
        Retry::No,
        "The TPM is switched off by configuration.",
        &["KEYBOND_TPM is `off`."],
        NAME_IT,
    ),
    tpm(
        "tpm_not_present",
        Retry::No,
        "There is no TPM at this address.",
        &[
            "The machine has none, or its firmware hides it.",
            "A container was not given the device.",
        ],
        &["Switch on the TPM (vTPM, Trusted Launch), or give the container /dev/tpmrm0."],
    ),
    tpm(
        "tpm_version_1_2",
        Retry::No,
        "The TPM speaks version 1.2 only, which knows none of the commands needed.",
        &["An old machine, or a firmware setting."],
        &["Have the firmware offer version 2.0, or use another key store."],
    ),
    tpm(
        "tpm_permission_denied",
        Retry::No,
        "The device is there, but this user may not open it.",
        &["The user is not in the device's group, usually `tss`."],
        &["Add the user to the group that the error names, then log in anew."],
    ),
    tpm(
        "tpm_device_busy",
        Retry::Later,
        "Another process keeps the TPM to itself.",
        &["/dev/tpm0 is used, which admits one process, instead of /dev/tpmrm0."],
        &["Use /dev/tpmrm0, or end the process that holds the device."],
    ),
    tpm(
        "tpm_connection_failed",
        Retry::Later,
        "The connection to the TPM failed in the middle. The next call makes a new one.",
        &["A software TPM was restarted.", "The device was reset."],
        AGAIN,
    ),
    tpm(
        "tpm_deadline_exceeded",
        Retry::Later,
        "The TPM did not answer in time.",
        &["Many programs use it at once.", "The chip hangs."],
        AGAIN,
    ),
    tpm(
        "tpm_malformed_answer",
        Retry::No,
        "The answer is not in the TPM's wire format. The connection is not used again.",
        &["Something else listens at the address.", "A faulty TPM."],
        REPORT,
    ),
    tpm(
        "tpm_lockout",
        Retry::Later,
        "The TPM is locked out after too many wrong authorizations.",
        &["Somebody tried PINs."],
        &["Wait for as long as the error says, or have the owner reset the lockout."],
    ),
    tpm(
        "tpm_invalid_input",
        Retry::No,
        "Something was asked of the TPM that cannot be; the error names the argument.",
        &["A digest or a name of the wrong length."],
        &["Correct the argument."],
    ),
    tpm(
        "tpm_pin_required",
        Retry::No,
        "The key asks for a PIN, and none was given.",
        &["The key was made by another program, with a PIN."],
        &["Give the PIN, or use a key of keybond's own."],
    ),
    tpm(
        "tpm_wrong_pin",
        Retry::No,
        "The PIN is wrong. Each try counts towards the lockout.",
        &["A typo, or the PIN of another key."],
        &["Give the right PIN; do not guess."],
    ),
    tpm(
        "tpm_public_mismatch",
        Retry::No,
        "What the TPM says about the key is not what the file says.",
        &["The file was changed, or belongs to another key."],
        RESTORE,
    ),
    tpm(
        "tpm_pss_unavailable",
        Retry::No,
        "This TPM and key can make no PSS signature with a salt as long as the hash.",
        &["An old TPM that knows other salts only, and no raw RSA."],
        &["Update the TPM's firmware, or use another key store."],
    ),
    tpm(
        "tpm_key_file_invalid",
        Retry::No,
        "The key file cannot be understood. It was left as it is.",
        &["It was cut off or changed.", "It is of another format."],
        RESTORE,
    ),
    tpm(
        "tpm_key_file_untrusted",
        Retry::No,
        "The key file is not this user's alone, so it is not used.",
        &["Its owner or mode was changed.", "It is a link."],
        &["Make it a regular file of this user with mode 0600."],
    ),
    tpm(
        "tpm_key_file_io",
        Retry::No,
        "The key file could not be read or written.",
        &[
            "The state directory's permissions changed.",
            "The disk is full.",
        ],
        &["Check the state directory's permissions and free space."],
    ),
    tpm(
        "tpm_local_failure",
        Retry::No,
        "Something on this side failed: a thread, or randomness.",
        &["A limit of the system was reached."],
        &["Check the system's limits."],
    ),
    tpm(
        "tpm_not_started",
        Retry::No,
        "The TPM has not been started up.",
        &["A software TPM whose user did not send TPM2_Startup."],
        &["Start it with `--flags startup-clear`, or reboot the machine."],
    ),
    tpm(
        "tpm_failure_mode",
        Retry::No,
        "The TPM's own tests failed; it does nothing until it is reset.",
        &["A faulty TPM."],
        &["Reboot the machine; if it stays, have the TPM replaced."],
    ),
    tpm(
        "tpm_out_of_memory",
        Retry::Later,
        "The TPM has no room for another object or session right now.",
        &["Programs that use /dev/tpm0 left objects behind."],
        &["Use /dev/tpmrm0, which keeps programs apart; or flush what was left behind."],
    ),
    tpm(
        "tpm_integrity",
        Retry::No,
        "The private part of the key belongs to another TPM or parent, or is damaged.",
        &[
            "The TPM was cleared.",
            "The file was copied from another machine.",
        ],
        &["Move the key file away to get a new key; the old one is lost with its TPM."],
    ),
    tpm(
        "tpm_refused",
        Retry::Depends,
        "The TPM refused a command; the error holds its response code.",
        &[
            "A policy of the TPM's owner.",
            "An algorithm that this TPM does not have.",
        ],
        &["Look up the response code (TPM 2.0 part 2, §6.6)."],
    ),
];
