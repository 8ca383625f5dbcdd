//! Takes surveys of the running kernel.

use crate::survey::{Survey, SurveyOptions};

/// Why no survey can be taken on this host, with the remedy.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Placeholder until the kernel side is in.
    #[error("not built yet")]
    NotBuilt,
}

/// Why a survey that could be started did not end.
#[derive(Debug, thiserror::Error)]
pub enum SurveyError {
    /// Placeholder until the kernel side is in.
    #[error("not built yet")]
    NotBuilt,
}

/// Everything a survey needs, loaded: it can be asked again and again.
#[derive(Debug)]
pub struct Surveyor {}

impl Surveyor {
    /// Reads the kernel's symbols and types and loads the survey's programs.
    /// Attaches nothing.
    ///
    /// # Errors
    /// When a privilege or a kernel feature is missing, naming it and the remedy.
    pub fn open() -> Result<Self, OpenError> {
        Err(OpenError::NotBuilt)
    }

    /// Takes one survey: two looks, and what both agree on.
    ///
    /// # Errors
    /// When the kernel stops answering.
    pub fn survey(&mut self, _options: &SurveyOptions) -> Result<Survey, SurveyError> {
        Err(SurveyError::NotBuilt)
    }
}
