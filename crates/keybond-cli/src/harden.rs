//! What this process can do to keep its memory to itself.

/// Keeps memory out of core files and out of swap, and other processes of this user out of memory:
///
/// - no core file is written, and one that a debugger takes holds no anonymous memory (getrlimit(2)
///   `RLIMIT_CORE`, core(5) `coredump_filter`);
/// - other processes of this user can neither attach nor read memory (prctl(2) `PR_SET_DUMPABLE`);
/// - pages are locked where the system sets no limit to that (mlockall(2)): with a limit, memory would run out
///   at some later allocation.
///
/// Elsewhere than on Linux this does nothing.
pub(crate) fn protect_memory() {
    #[cfg(target_os = "linux")]
    linux::protect_memory();
}

#[cfg(target_os = "linux")]
mod linux {
    use std::{fs, io};

    use rustix::{
        mm::{MlockAllFlags, mlockall},
        process::{
            DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit,
        },
    };

    /// capabilities(7); its bit in `CapEff`.
    const CAP_IPC_LOCK: u32 = 14;

    pub(super) fn protect_memory() {
        for (what, done) in [
            // In this order: the files of a process that is not dumpable are no longer its own.
            ("locked", lock_memory()),
            ("kept out of core files", keep_out_of_cores()),
            ("made non-dumpable", make_non_dumpable()),
        ] {
            if let Err(error) = done {
                tracing::warn!(%error, "the memory of this process could not be {what}");
            }
        }
    }

    fn lock_memory() -> io::Result<()> {
        if getrlimit(Resource::Memlock).current.is_some() && !may_lock_anything() {
            tracing::debug!("memory is not locked: there is a limit (RLIMIT_MEMLOCK)");
            return Ok(());
        }
        Ok(mlockall(
            MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT,
        )?)
    }

    fn may_lock_anything() -> bool {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let effective = status
            .lines()
            .find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok());
        effective.is_some_and(|set| set >> CAP_IPC_LOCK & 1 == 1)
    }

    fn keep_out_of_cores() -> io::Result<()> {
        let none = Rlimit {
            current: Some(0),
            maximum: Some(0),
        };
        setrlimit(Resource::Core, none)?;
        fs::write("/proc/self/coredump_filter", "0")
    }

    fn make_non_dumpable() -> io::Result<()> {
        Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
    }
}
