//! Pages that can be read on their own: no script, no font and no picture from elsewhere.

mod comparison;
mod demo;
mod timeline;

use std::fmt::Write;

use crate::plot::{STYLE, escape};

pub use comparison::comparisons;
pub use demo::demo;

/// A page (HTML) around `body`.
fn page(title: &str, body: &str) -> String {
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\"><title>{}</title><style>{STYLE}\
         body{{font:15px/1.55 system-ui,sans-serif;max-width:960px;margin:2em auto;padding:0 1em;\
         color:var(--ink);background:var(--paper)}}\
         h1{{font-size:1.6em;margin:.2em 0}}h2{{margin:2.4em 0 .2em;font-size:1.3em}}\
         h3{{margin:2em 0 .5em;font-size:1.02em}}p{{margin:.4em 0}}.faint{{color:var(--faint)}}\
         .wide{{overflow-x:auto}}table{{border-collapse:collapse;width:100%;font-size:13.5px;\
         font-variant-numeric:tabular-nums}}th{{text-align:right;font-weight:600;\
         vertical-align:bottom;color:var(--faint)}}td{{text-align:right}}\
         th,td{{padding:.28em .55em;border-bottom:1px solid var(--grid)}}\
         th:first-child,td:first-child{{text-align:left;white-space:nowrap}}\
         tr.lead td{{font-weight:600}}td.bar{{background:linear-gradient(var(--grid),var(--grid)) \
         no-repeat left/var(--part) 100%}}pre,code{{font:13px/1.5 ui-monospace,monospace}}\
         pre{{background:color-mix(in srgb,var(--grid) 45%,var(--paper));padding:.8em 1em;\
         overflow:auto;border-radius:4px}}details{{margin:.6em 0}}summary{{cursor:pointer}}\
         figure{{margin:.6em 0 1.4em}}</style><body>{body}</body></html>\n",
        escape(title)
    )
}

/// A plot under what it shows.
fn figure(caption: &str, svg: &str) -> String {
    format!("<h3>{}</h3><figure>{svg}</figure>", escape(caption))
}

/// A table's cell.
enum Field {
    /// As it is.
    Text(String),
    /// With a bar behind it: a fraction of the column, 0 to 1.
    Bar(String, f64),
}

/// A table; rows of which the flag is set stand out.
fn table(head: &[&str], rows: &[(bool, Vec<Field>)]) -> String {
    let mut html = String::from("<div class=\"wide\"><table><tr>");
    for name in head {
        let _ = write!(html, "<th>{}</th>", escape(name));
    }
    for (leads, row) in rows {
        html += if *leads { "<tr class=\"lead\">" } else { "<tr>" };
        for field in row {
            let _ = match field {
                Field::Text(text) => write!(html, "<td>{}</td>", escape(text)),
                Field::Bar(text, part) => write!(
                    html,
                    "<td class=\"bar\" style=\"--part:{:.1}%\">{}</td>",
                    100.0 * part.clamp(0.0, 1.0),
                    escape(text)
                ),
            };
        }
    }
    html + "</table></div>"
}
