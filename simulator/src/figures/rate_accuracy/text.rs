//! The results as a person reads them.

use std::fmt::Write as _;

use super::{BoxQuality, Choice, Drop, RateAccuracy};

impl RateAccuracy {
    /// The results as a person reads them.
    pub fn text(&self) -> String {
        match self.full_boxes {
            None => self.text_of_classes(),
            Some(full) => self.text_of_boxes(full),
        }
    }

    fn text_of_classes(&self) -> String {
        let mut text = format!(
            "{}, {} pictures; the full network is right about {:.2}%\n\n\
             {:<6} {:<22} {:>9} {:>9} {:>7}\n",
            self.bundle,
            self.pictures,
            100.0 * self.full,
            "",
            "scheme",
            "bytes",
            "right %",
            "drop"
        );
        for scheme in self.schemes.iter().filter(|scheme| scheme.pareto) {
            let _ = writeln!(
                text,
                "{:<6} {:<22} {:>9.1} {:>9.2} {:>7.2}",
                scheme.family.name(),
                scheme.name,
                scheme.bytes,
                100.0 * scheme.quality,
                100.0 * (self.full - scheme.quality),
            );
        }
        text += "\nOnly schemes that none of their kind beats are shown. Smallest scheme within a loss, \
                 chosen on every other picture and measured on the rest (95% interval of the loss, \
                 paired bootstrap):\n";
        text + &self.comparison()
    }

    fn text_of_boxes(&self, full: BoxQuality) -> String {
        let mut text = format!(
            "{}, {} pictures; the full network reaches {:.2}% mAP, {:.2}% AP50 and {:.2}% F1\n\n\
             {:<6} {:<22} {:>9} {:>7} {:>7} {:>7} {:>7} {:>9}\n",
            self.bundle,
            self.pictures,
            100.0 * self.full,
            100.0 * full.ap50,
            100.0 * full.f1,
            "",
            "scheme",
            "bytes",
            "mAP %",
            "AP50 %",
            "F1 %",
            "drop",
            "reply B"
        );
        for scheme in self.schemes.iter().filter(|scheme| scheme.pareto) {
            let Some(boxes) = scheme.boxes else { continue };
            let _ = writeln!(
                text,
                "{:<6} {:<22} {:>9.1} {:>7.2} {:>7.2} {:>7.2} {:>7.2} {:>9.1}",
                scheme.family.name(),
                scheme.name,
                scheme.bytes,
                100.0 * scheme.quality,
                100.0 * boxes.ap50,
                100.0 * boxes.f1,
                100.0 * (self.full - scheme.quality),
                boxes.reply_bytes,
            );
        }
        text += "\nOnly schemes that none of their kind beats in mAP are shown. Bytes are those sent; a \
                 reply's answers come beside. Smallest scheme within a loss of mAP, on all pictures (95% \
                 interval of the loss, paired bootstrap):\n";
        text + &self.comparison()
    }

    /// Sizes at losses, and BD-rates.
    fn comparison(&self) -> String {
        let mut text = String::new();
        for Drop { points, smallest, ratio } in &self.drops {
            let _ = write!(text, "  {points} points:");
            for (family, choice) in smallest {
                let Choice { name, bytes, drop, interval: (low, high) } = choice;
                let _ = write!(
                    text,
                    "  {} {name} {bytes:.0} B ({drop:.2}, {low:.2} to {high:.2});",
                    family.name()
                );
            }
            match ratio {
                Some(ratio) => _ = writeln!(text, "  {ratio:.3} of the best image codec's bytes"),
                None => text += "  nothing to compare\n",
            }
        }
        for (family, rate) in &self.bd_rate {
            let _ = writeln!(text, "BD-rate against {}: {rate:.1}%", family.name());
        }
        text
    }
}
