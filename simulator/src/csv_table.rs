//! Tables as CSV, quoted as RFC 4180 has it.

use csv::{QuoteStyle, Writer, WriterBuilder};

/// A table that grows row by row.
pub(crate) struct CsvTable {
    writer: Writer<Vec<u8>>,
}

impl CsvTable {
    /// A table with these columns and no row.
    pub(crate) fn new(columns: &[&str]) -> CsvTable {
        let writer =
            WriterBuilder::new().quote_style(QuoteStyle::Necessary).from_writer(Vec::new());
        let mut table = CsvTable { writer };
        table.row(columns.iter().copied());
        table
    }

    /// Adds a row, which has a field for each column.
    pub(crate) fn row(&mut self, fields: impl IntoIterator<Item = impl AsRef<[u8]>>) {
        // Writing to memory fails for a row of another length alone, which would be our own mistake.
        let written = self.writer.write_record(fields);
        debug_assert!(written.is_ok(), "{written:?}");
    }

    /// The text of the table.
    pub(crate) fn into_text(self) -> String {
        let bytes = self.writer.into_inner().unwrap_or_default();
        String::from_utf8(bytes).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_end_a_field_is_quoted() {
        let mut table = CsvTable::new(&["a", "b"]);
        table.row(["a \"b\", c", ""]);
        assert_eq!(table.into_text(), "a,b\n\"a \"\"b\"\", c\",\n");
    }
}
