//! Colours that follow the reader's preference for light or dark.

/// Colours and type, for a page's `<style>`: series differ by hue and by lightness, and both
/// follow the reader's preference for light or dark.
pub const STYLE: &str = "\
:root{--paper:#fff;--ink:#1d2327;--faint:#5d666d;--grid:#e3e6e8;--blue:#0b6fb0;--orange:#cf5b00;\
--green:#00875f;--violet:#7a4fa3;--yellow:#c08a00;--sky:#4aa5dc;--red:#c62f2f;--grey:#9aa3a9;\
--pink:#c2588f;--brown:#8a6a3a}\
@media(prefers-color-scheme:dark){:root{--paper:#15191c;--ink:#e8ecee;--faint:#a3adb3;\
--grid:#2d3439;--blue:#58b0ec;--orange:#ff9a52;--green:#43c99b;--violet:#b99ae0;--yellow:#e8bd4a;\
--sky:#9ad6f7;--red:#ff7a72;--grey:#7d878d;--pink:#ea9cc6;--brown:#c9a876}}\
svg.plot{display:block;width:100%;height:auto;font:12px system-ui,sans-serif}\
svg.plot text{fill:var(--faint)}";

/// A colour of [`STYLE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Colour(pub(super) &'static str);

#[allow(missing_docs)]
impl Colour {
    pub const INK: Colour = Colour("--ink");
    pub const BLUE: Colour = Colour("--blue");
    pub const ORANGE: Colour = Colour("--orange");
    pub const GREEN: Colour = Colour("--green");
    pub const VIOLET: Colour = Colour("--violet");
    pub const YELLOW: Colour = Colour("--yellow");
    pub const SKY: Colour = Colour("--sky");
    pub const RED: Colour = Colour("--red");
    pub const GREY: Colour = Colour("--grey");
    pub const PINK: Colour = Colour("--pink");
    pub const BROWN: Colour = Colour("--brown");

    /// The `at`th of a row of colours that are easy to distinguish; it begins again after its end.
    pub fn nth(at: usize) -> Colour {
        const ROW: [Colour; 8] = [
            Colour::BLUE,
            Colour::ORANGE,
            Colour::GREEN,
            Colour::VIOLET,
            Colour::YELLOW,
            Colour::PINK,
            Colour::SKY,
            Colour::BROWN,
        ];
        ROW[at % ROW.len()]
    }
}
