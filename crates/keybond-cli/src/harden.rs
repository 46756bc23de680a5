//! What this process can do to keep its memory to itself.

/// Makes the process non-dumpable and forbids core files: other processes of this user can then neither attach
/// to it nor read its memory, and a crash leaves no copy of it (prctl(2) PR_SET_DUMPABLE, getrlimit(2)).
/// Elsewhere than on Linux this does nothing.
pub(crate) fn protect_memory() {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{
            DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit,
        };

        let none = Rlimit {
            current: Some(0),
            maximum: Some(0),
        };
        let done = set_dumpable_behavior(DumpableBehavior::NotDumpable)
            .and_then(|()| setrlimit(Resource::Core, none));
        if let Err(error) = done {
            tracing::warn!(%error, "this process could not be made non-dumpable");
        }
    }
}
