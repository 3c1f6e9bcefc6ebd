//! Which models are served, and under which names.

use std::sync::Arc;

use crate::backend::{DIMENSIONS, MODEL};
use crate::error::ApiError;
use crate::options::Options;
use crate::server::StartError;

/// The longest name of a model that is passed on to an upstream.
const LONGEST_NAME: usize = 256;

/// A model that requests may name.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    /// As the backend calls it.
    pub(crate) name: Arc<str>,
    pub(crate) dimensions: Option<usize>,
}

#[derive(Debug)]
pub(crate) struct Catalog {
    models: Vec<Known>,
    /// Other names, with the names that they stand for.
    aliases: Vec<(Arc<str>, Arc<str>)>,
    /// Whether models that are not listed are the upstream's to know.
    any: bool,
}

impl Catalog {
    /// # Errors
    ///
    /// A name is listed twice, an alias stands for nothing, or the built-in embedder cannot do it.
    pub(crate) fn new(options: &Options) -> Result<Self, StartError> {
        let built_in = options.upstream.is_none();
        let mut models: Vec<Known> = Vec::new();
        for model in &options.models {
            if models.iter().any(|known| *known.name == model.name) {
                return Err(StartError::ModelTwice(model.name.clone()));
            }
            let dimensions = match model.dimensions {
                Some(asked) if built_in && asked > DIMENSIONS => {
                    return Err(StartError::Dimensions { asked, limit: DIMENSIONS });
                }
                None if built_in => Some(DIMENSIONS),
                dimensions => dimensions,
            };
            models.push(Known { name: model.name.as_str().into(), dimensions });
        }
        if built_in && models.is_empty() {
            models.push(Known { name: MODEL.into(), dimensions: Some(DIMENSIONS) });
        }
        let any = models.is_empty();
        let mut aliases: Vec<(Arc<str>, Arc<str>)> = Vec::new();
        for alias in &options.aliases {
            let taken = models.iter().any(|known| *known.name == alias.alias)
                || aliases.iter().any(|(name, _)| **name == alias.alias);
            if taken {
                return Err(StartError::ModelTwice(alias.alias.clone()));
            }
            if !any && !models.iter().any(|known| *known.name == alias.model) {
                return Err(StartError::AliasOfNothing {
                    alias: alias.alias.clone(),
                    model: alias.model.clone(),
                });
            }
            aliases.push((alias.alias.as_str().into(), alias.model.as_str().into()));
        }
        Ok(Self { models, aliases, any })
    }

    /// Whether only one model can ever be asked for.
    pub(crate) fn is_single(&self) -> bool {
        self.models.len() == 1
    }

    /// Whether models that are not listed are passed on.
    pub(crate) fn is_open(&self) -> bool {
        self.any
    }

    /// The names that are listed, aliases included.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        let aliases = self.aliases.iter().map(|(alias, _)| &**alias);
        self.models.iter().map(|known| &*known.name).chain(aliases)
    }

    /// What the backend calls a model, whether it is served or not.
    pub(crate) fn resolve<'a>(&'a self, name: &'a str) -> &'a str {
        let alias = self.aliases.iter().find(|(alias, _)| **alias == *name);
        alias.map_or(name, |(_, model)| model)
    }

    /// # Errors
    ///
    /// The model is not served.
    pub(crate) fn find(&self, name: &str) -> Result<Known, ApiError> {
        let resolved = self.resolve(name);
        if let Some(known) = self.models.iter().find(|known| *known.name == *resolved) {
            return Ok(known.clone());
        }
        if self.any && (1..=LONGEST_NAME).contains(&resolved.len()) {
            return Ok(Known { name: resolved.into(), dimensions: None });
        }
        if self.any {
            let message = format!("the name of a model has 1 to {LONGEST_NAME} bytes");
            return Err(ApiError::invalid("model", message));
        }
        let served: Vec<&str> = self.names().collect();
        // The name comes from outside and goes into an answer: not more of it than helps.
        let model = name.chars().take(LONGEST_NAME).collect();
        Err(ApiError::ModelNotFound { model, served: served.join(", ") })
    }
}
