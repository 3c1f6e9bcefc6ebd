//! The forms of an option's value.

use std::str::FromStr;
use std::time::Duration;

/// A model that is served, and the dimensions of its vectors if they are known.
///
/// ```
/// use embedding_cache_server::Model;
///
/// let model: Model = "text-embedding-3-small=1536".parse()?;
/// assert_eq!((model.name.as_str(), model.dimensions), ("text-embedding-3-small", Some(1536)));
/// # Ok::<(), String>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Model {
    /// The name that requests call it by.
    pub name: String,
    /// The dimensions of a vector when a request asks for none.
    pub dimensions: Option<usize>,
}

/// The most dimensions that a vector may have here: several times what models have.
pub(crate) const MOST_DIMENSIONS: usize = 65_536;

impl FromStr for Model {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, dimensions) = match text.split_once('=') {
            None => (text, None),
            Some((name, digits)) => {
                let number = digits.parse().ok().filter(|n| (1..=MOST_DIMENSIONS).contains(n));
                let complaint = || format!("{digits:?} is no number from 1 to {MOST_DIMENSIONS}");
                (name, Some(number.ok_or_else(complaint)?))
            }
        };
        if name.is_empty() {
            return Err("the name of a model is empty".into());
        }
        Ok(Self { name: name.into(), dimensions })
    }
}

/// Another name of a model.
///
/// ```
/// use embedding_cache_server::Alias;
///
/// let alias: Alias = "embed=BAAI/bge-m3".parse()?;
/// assert_eq!((alias.alias.as_str(), alias.model.as_str()), ("embed", "BAAI/bge-m3"));
/// # Ok::<(), String>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Alias {
    /// The name that requests may use too.
    pub alias: String,
    /// The name that it stands for.
    pub model: String,
}

impl FromStr for Alias {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((alias, model)) if !alias.is_empty() && !model.is_empty() => {
                Ok(Self { alias: alias.into(), model: model.into() })
            }
            _ => Err("an alias is ALIAS=NAME".into()),
        }
    }
}

/// A number with a unit: ms, s, m or h; seconds without one.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let milliseconds = match &text[digits.len()..] {
        "ms" => 1.0,
        "" | "s" => 1e3,
        "m" => 60e3,
        "h" => 3600e3,
        unit => return Err(format!("{unit:?} is none of the units ms, s, m, h")),
    };
    let number = digits.parse::<f64>().map_err(|_| format!("{digits:?} is no number"))?;
    // A century: no sensible setting is longer, and timers cannot count much further.
    const LONGEST: f64 = 100.0 * 365.0 * 24.0 * 3600.0;
    let seconds = number * milliseconds / 1e3;
    if !(0.0..=LONGEST).contains(&seconds) {
        return Err(format!("{text:?} is not between 0 and a hundred years"));
    }
    Ok(Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units_and_bounds() {
        assert_eq!(duration("250ms").unwrap(), Duration::from_millis(250));
        assert_eq!(duration("1.5").unwrap(), Duration::from_millis(1500));
        assert_eq!(duration("2m").unwrap(), Duration::from_secs(120));
        for wrong in ["", "s", "-1s", "1d", "NaN", "inf", "1e300h", "1 s"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn models_have_names_and_dimensions_in_range() {
        for wrong in ["", "=1", "m=0", "m=x", "m=65537"] {
            assert!(wrong.parse::<Model>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn aliases_have_two_names() {
        for wrong in ["", "a", "=b", "a="] {
            assert!(wrong.parse::<Alias>().is_err(), "{wrong}");
        }
    }
}
