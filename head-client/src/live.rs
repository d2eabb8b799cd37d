//! A run as it goes, on a terminal.
//!
//! [`Live`] keeps what is shown and draws it; [`Screen`] is the terminal that it is drawn on.

mod terminal;
mod view;

pub use self::terminal::{Screen, ScreenError, check_terminal};
pub use self::view::{Live, Seen};
