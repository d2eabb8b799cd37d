//! Parts of a sweep, for several machines.

use std::str::FromStr;

/// One part of a sweep, such as `2/3`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    pub(super) part: usize,
    pub(super) of: usize,
}

impl Default for Shard {
    fn default() -> Self {
        Shard { part: 1, of: 1 }
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('/').map(|(part, of)| (part.parse().ok(), of.parse().ok()));
        match parts {
            Some((Some(part), Some(of))) if 1 <= part && part <= of => Ok(Shard { part, of }),
            _ => {
                Err(format!("{text:?} is not a shard; expected one such as 1/4: part 1 to 4 of 4"))
            }
        }
    }
}
