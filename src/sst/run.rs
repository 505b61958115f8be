//! Disjoint files in key order, as one source of a merge; each is opened when its turn comes.

use std::collections::VecDeque;
use std::rc::Rc;

use super::SstMeta;
use super::reader::{Scanner, Sst};
use crate::error::Result;
use crate::key::Entry;
use crate::merge::Source;
use crate::storage::File;

/// Opens files for a run.
#[expect(async_fn_in_trait, reason = "all futures of this crate stay on their thread")]
pub trait OpenSst {
    /// An open file of the storage.
    type File: File;

    /// Opens the file.
    async fn open(&self, meta: &SstMeta) -> Result<Rc<Sst<Self::File>>>;
}

/// The run.
pub struct Run<'a, O: OpenSst> {
    opener: &'a O,
    files: VecDeque<Rc<SstMeta>>,
    current: Option<Scanner<O::File>>,
    /// The file that was opened last.
    file: Option<Rc<SstMeta>>,
}

impl<'a, O: OpenSst> Run<'a, O> {
    /// A run before its first entry.
    pub fn new(opener: &'a O, files: impl IntoIterator<Item = Rc<SstMeta>>) -> Self {
        Self { opener, files: files.into_iter().collect(), current: None, file: None }
    }

    /// The file of the current entry.
    pub fn file(&self) -> Option<&SstMeta> {
        self.file.as_deref()
    }
}

impl<O: OpenSst> Source for Run<'_, O> {
    async fn advance(&mut self) -> Result<()> {
        loop {
            if let Some(scanner) = &mut self.current {
                scanner.advance().await?;
                if scanner.entry().is_some() {
                    return Ok(());
                }
            }
            let Some(file) = self.files.pop_front() else {
                self.current = None;
                return Ok(());
            };
            self.current = Some(Scanner::new(self.opener.open(&file).await?));
            self.file = Some(file);
        }
    }

    fn entry(&self) -> Option<Entry<'_>> {
        self.current.as_ref()?.entry()
    }
}
