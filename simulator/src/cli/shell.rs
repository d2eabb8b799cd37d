//! Commands as text, so that results say how they are made again.

use std::env;

/// The command that was given, as a shell takes it.
pub fn command_line() -> String {
    env::args().map(|argument| word(&argument)).collect::<Vec<_>>().join(" ")
}

/// A word as a shell takes it: quoted where it has to be.
pub fn word(text: &str) -> String {
    let plain = |letter: char| letter.is_alphanumeric() || "/._-,=+".contains(letter);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_quoted_where_a_shell_would_split_it() {
        assert_eq!(word("configs/scenarios/outage.toml"), "configs/scenarios/outage.toml");
        assert_eq!(word("it's here"), "'it'\\''s here'");
        assert_eq!(word(""), "''");
    }
}
