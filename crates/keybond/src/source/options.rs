//! What a client is told about its surroundings.

use std::path::{Path, PathBuf};

use super::{
    Source, SourceProblem,
    cache::SourceCache,
    places::{self, Place},
};
use crate::{
    bearer::cache::BearerCache,
    client::{ManagedIdentityBuilder, Shared},
    error::Error,
    leg::Leg,
    switch::FileSwitch,
};

/// Settings and state of the sources.
pub(crate) struct Surroundings {
    /// Whether the program itself named the metadata service: then the environment is not asked for others.
    pub(crate) imds_named: bool,
    /// Where the file system begins; other than `/` in tests alone.
    pub(crate) root: PathBuf,
    pub(crate) switch: FileSwitch,
    pub(crate) sources: SourceCache,
    pub(crate) bearers: BearerCache,
}

impl Default for Surroundings {
    fn default() -> Self {
        Self {
            imds_named: false,
            root: PathBuf::from("/"),
            switch: FileSwitch::default(),
            sources: SourceCache::default(),
            bearers: BearerCache::new(),
        }
    }
}

impl ManagedIdentityBuilder {
    /// keybond's directory of its own. Certificates are kept in it, unless
    /// [`ManagedIdentityBuilder::certificate_store`] says otherwise; and an operator may put a file
    /// `disable-imds-v2` in it to switch bound tokens off at once, for every process that was told of the
    /// directory. The file is looked at before every leg to the network; what is cached stays. Neither if not
    /// set.
    pub fn state_directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.surroundings.switch.directory = Some(directory.into());
        self
    }

    /// Where the file system begins, for tests: the files of the Azure Arc agent are looked for below it.
    #[doc(hidden)]
    pub fn filesystem_root(mut self, root: impl AsRef<Path>) -> Self {
        root.as_ref().clone_into(&mut self.surroundings.root);
        self
    }
}

impl Shared {
    /// The source that the environment names and by which sign, unless the program named the metadata
    /// service itself.
    pub(crate) fn detected(&self) -> Option<(Source, &'static str)> {
        let around = &self.surroundings;
        (!around.imds_named)
            .then(|| places::detect(&*self.environment, &around.root))
            .flatten()
    }

    /// The source that the environment names, with everything that is needed to ask it.
    pub(crate) fn place(&self) -> Result<Option<Place>, Error> {
        let around = &self.surroundings;
        if around.imds_named {
            return Ok(None);
        }
        places::place(&*self.environment, &around.root)
    }

    /// A bound token cannot be had from a source that knows bearer tokens only, and is never replaced by one.
    pub(crate) fn refuse_unbound(&self, leg: Leg) -> Result<(), Error> {
        match self.detected() {
            None => Ok(()),
            Some((place, _)) => Err(Error::Source {
                leg,
                place,
                problem: SourceProblem::PopNotSupported,
            }),
        }
    }
}
