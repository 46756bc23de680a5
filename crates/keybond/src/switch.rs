//! The kill switch: an operator switches bound tokens off, for one process by a variable or for all by a file.
//! Both are read anew before every leg to the network. Nothing that is cached is forgotten.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
};

use crate::environment::{DISABLE_IMDS_V2, Environment, non_empty};

/// The file that switches bound tokens off by being there, whatever is in it.
const FILE: &str = "disable-imds-v2";

/// What the switch is called where it is the file.
const FILE_SWITCH: &str = "disable-imds-v2 in the state directory";

/// The file switch, and whether a typo has been told.
#[derive(Default)]
pub(crate) struct FileSwitch {
    pub(crate) directory: Option<PathBuf>,
    typo_told: AtomicBool,
}

impl FileSwitch {
    /// The switch that is on *now*, if one is.
    pub(crate) fn thrown(&self, environment: &dyn Environment) -> Option<&'static str> {
        match read(environment) {
            Variable::On => return Some(DISABLE_IMDS_V2),
            Variable::Typo => self.tell_typo(),
            Variable::Off => {}
        }
        let file = self.directory.as_ref()?.join(FILE);
        // A directory that cannot be read may hold the file: an operator's word counts, a fault does not.
        file.symlink_metadata().is_ok().then_some(FILE_SWITCH)
    }

    /// Once per client: the value is not printed, for it may be anything.
    fn tell_typo(&self) {
        if !self.typo_told.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                target: "keybond", variable = DISABLE_IMDS_V2,
                "the variable is neither `true` nor `1`, `false` nor `0`: it is ignored"
            );
        }
    }
}

/// What the variable says.
#[derive(Debug, PartialEq, Eq)]
enum Variable {
    On,
    Off,
    Typo,
}

/// Only `true` (in any case) and `1` switch bound tokens off: a typo switches nothing.
fn read(environment: &dyn Environment) -> Variable {
    let value = non_empty(environment, DISABLE_IMDS_V2).map(|value| value.to_ascii_lowercase());
    match value.as_deref() {
        Some("true" | "1") => Variable::On,
        None | Some("false" | "0") => Variable::Off,
        Some(_) => Variable::Typo,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct One(&'static str);

    impl Environment for One {
        fn get(&self, name: &str) -> Option<String> {
            (name == DISABLE_IMDS_V2).then(|| self.0.to_owned())
        }
    }

    #[test]
    fn only_true_and_one_disable() {
        for (value, expected) in [
            ("true", Variable::On),
            ("True", Variable::On),
            (" 1 ", Variable::On),
            ("yes", Variable::Typo),
            ("tru", Variable::Typo),
            ("0", Variable::Off),
            ("FALSE", Variable::Off),
            ("", Variable::Off),
        ] {
            assert_eq!(read(&One(value)), expected, "{value:?}");
        }
    }

    #[test]
    fn a_file_switches_live() {
        let state = tempfile::tempdir().unwrap();
        let switch = FileSwitch {
            directory: Some(state.path().into()),
            ..FileSwitch::default()
        };
        assert_eq!(switch.thrown(&One("")), None);
        std::fs::write(state.path().join(FILE), "").unwrap();
        assert_eq!(switch.thrown(&One("")), Some(FILE_SWITCH));
        assert_eq!(switch.thrown(&One("1")), Some(DISABLE_IMDS_V2));
        std::fs::remove_file(state.path().join(FILE)).unwrap();
        assert_eq!(switch.thrown(&One("tru")), None);
    }
}
