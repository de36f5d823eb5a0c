//! A report as one HTML page that needs nothing else: no script, no font, no image, no network.
//!
//! Names and arguments come from agents and servers. All text is escaped, control characters and
//! bidirectional overrides are shown as such, and the page's own policy forbids scripts and requests.

use std::fmt::Write as _;

use aegis_audit::Entry;
use aegis_core::Timestamp;
use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::report::{Cited, Finding, Report, Row, Section, Status};
use crate::output::clean;

const STYLE: &str = include_str!("report.css");

/// The page.
pub(crate) fn page(report: &Report) -> String {
    let mut page = Page::default();
    page.raw("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    page.raw("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
    page.raw("<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n");
    page.raw("<title>");
    page.text(&format!("Compliance evidence of {}", report.log.origin));
    page.raw("</title>\n<style>\n");
    page.raw(STYLE);
    page.raw("</style>\n</head>\n<body>\n");
    head(&mut page, report);
    for section in &report.frameworks {
        framework(&mut page, section);
    }
    entries(&mut page, report);
    page.raw("</body>\n</html>\n");
    page.html
}

/// HTML, built piece by piece.
#[derive(Default)]
struct Page {
    html: String,
}

impl Page {
    /// Markup of our own.
    fn raw(&mut self, markup: &str) {
        self.html.push_str(markup);
    }

    /// Anybody's text.
    fn text(&mut self, text: &str) {
        for c in clean(text).chars() {
            match c {
                '&' => self.html.push_str("&amp;"),
                '<' => self.html.push_str("&lt;"),
                '>' => self.html.push_str("&gt;"),
                '"' => self.html.push_str("&quot;"),
                '\'' => self.html.push_str("&#39;"),
                other => self.html.push(other),
            }
        }
    }

    /// A sentence of our own lists, where backticks mark code.
    fn prose(&mut self, text: &str) {
        for (number, part) in text.split('`').enumerate() {
            let code = number % 2 == 1;
            self.raw(if code { "<code>" } else { "" });
            self.text(part);
            self.raw(if code { "</code>" } else { "" });
        }
    }

    /// A text within an element; `open` is its start tag.
    fn element(&mut self, open: &str, text: &str) {
        let name = open.split(' ').next().unwrap_or(open);
        let _ = write!(self.html, "<{open}>");
        self.text(text);
        let _ = writeln!(self.html, "</{name}>");
    }

    /// A term and what it is.
    fn term(&mut self, name: &str, value: &str) {
        self.element("dt", name);
        self.element("dd class=\"hash\"", value);
    }

    /// Lines of text as they are.
    fn lines(&mut self, text: &str) {
        self.raw("<pre>");
        for line in text.lines() {
            self.text(line);
            self.raw("\n");
        }
        self.raw("</pre>\n");
    }

    /// A link by which the browser saves these bytes.
    fn download(&mut self, name: &str, bytes: &[u8]) {
        let _ = write!(
            self.html,
            "<a download=\"{name}\" href=\"data:application/octet-stream;base64,{}\">{name}</a>",
            STANDARD.encode(bytes)
        );
    }
}

fn head(page: &mut Page, report: &Report) {
    let log = &report.log;
    page.element("h1", "Compliance evidence");
    page.element(
        "p class=\"quiet\"",
        "What the ledger records, counted by control. Evidence is counted, not judged: that a control is met is for a person to say, with what is shown elsewhere.",
    );
    page.raw("<div class=\"panel\">\n<dl>\n");
    let end = |at: Option<Timestamp>, open: &str| at.map_or(open.to_owned(), |at| at.to_string());
    page.term(
        "Period",
        &format!(
            "{} to {}",
            end(report.since, "the beginning"),
            end(report.until, "the checkpoint")
        ),
    );
    let span = match (log.first, log.last) {
        (Some(first), Some(last)) => format!("{}, from {first} to {last}", log.entries),
        _ => "none".to_owned(),
    };
    page.term("Entries in it", &span);
    page.term("Log", &log.origin);
    page.term("Checkpoint", &format!("{} entries, root {}", log.size, log.root));
    page.term("Key", &log.key);
    page.term("Made", &report.made.to_string());
    page.raw("</dl>\n");
    page.element(
        "p class=\"small\"",
        "Every entry under this checkpoint was hashed while it was counted, and they lead to its root. Each entry that is cited below has a proof against the same checkpoint.",
    );
    if !log.key_given {
        page.element(
            "p class=\"small against\"",
            "The key was read from the log itself. Compare it with the one that you have from somebody you trust, or make the report with --key.",
        );
    }
    page.raw("<details><summary class=\"small\">The signed checkpoint</summary>\n");
    page.lines(&log.checkpoint);
    page.raw("</details>\n</div>\n<nav class=\"panel\">\n<table>\n<tr><th>Framework</th>");
    let statuses = [Status::Evidence, Status::Against, Status::NoEvidence, Status::CannotBeShown];
    for status in statuses {
        page.element("th class=\"number\"", status.words());
    }
    page.raw("</tr>\n");
    for section in &report.frameworks {
        page.raw("<tr><td>");
        page.element(&format!("a href=\"#{}\"", anchor(&section.id)), &section.title);
        page.raw("</td>");
        for status in statuses {
            let count = section.controls.iter().filter(|c| c.status == status).count();
            page.element("td class=\"number\"", &count.to_string());
        }
        page.raw("</tr>\n");
    }
    page.raw("</table>\n</nav>\n");
}

fn framework(page: &mut Page, section: &Section) {
    page.element(&format!("h2 id=\"{}\"", anchor(&section.id)), &section.title);
    page.element("p class=\"quiet small\"", &section.edition);
    page.element("p", &section.about);
    for doubt in &section.doubts {
        page.element("p class=\"small against\"", &format!("Doubt: {doubt}"));
    }
    for control in section.controls.iter().filter(|c| c.status != Status::CannotBeShown) {
        shown(page, control);
    }
    page.raw("<div class=\"panel cannot\">\n");
    page.element("h3", "What nothing here can show");
    page.raw("<table>\n");
    for control in section.controls.iter().filter(|c| c.status == Status::CannotBeShown) {
        page.raw("<tr>");
        page.element("td class=\"id\"", &control.id);
        page.raw("<td>");
        page.text(&control.title);
        page.raw("<br><span class=\"quiet small\">");
        page.text(&control.asks);
        page.raw("</span></td>");
        page.raw("<td>");
        page.prose(control.nothing.as_deref().unwrap_or_default());
        page.raw("</td></tr>\n");
    }
    page.raw("</table>\n</div>\n");
}

fn class(status: Status) -> &'static str {
    match status {
        Status::Evidence => "evidence",
        Status::Against => "against",
        Status::NoEvidence => "no_evidence",
        Status::CannotBeShown => "cannot_be_shown",
    }
}

fn shown(page: &mut Page, control: &Finding) {
    page.raw("<section class=\"panel\">\n<div class=\"head\">");
    page.element("span class=\"id\"", &control.id);
    page.element("h3", &control.title);
    let status = control.status;
    page.element(&format!("span class=\"status {}\"", class(status)), status.words());
    page.raw("</div>\n");
    page.element("p class=\"quiet\"", &control.asks);
    page.raw("<table class=\"lines\">\n<tr><th>What is recorded</th><th class=\"number\">Entries</th><th>First and last</th><th>Cited, with proofs</th></tr>\n");
    for line in &control.evidence {
        row(page, line);
    }
    page.raw("</table>\n");
    if let Some(limits) = &control.limits {
        page.raw("<p class=\"small\"><strong>What this leaves open.</strong> ");
        page.prose(limits);
        page.raw("</p>\n");
    }
    page.raw("</section>\n");
}

fn row(page: &mut Page, line: &Row) {
    let class = match (line.count, line.against) {
        (0, _) => "none",
        (_, true) => "against",
        (_, false) => "",
    };
    let _ = write!(page.html, "<tr class=\"{class}\"><td>");
    page.text(&line.shows);
    if line.against {
        page.raw(" <em>(speaks against)</em>");
    }
    for policy in &line.policies {
        page.raw("<br>");
        page.element("code", policy);
    }
    page.raw("</td>");
    page.element("td class=\"number\"", &line.count.to_string());
    page.raw("<td class=\"when\">");
    if let (Some(first), Some(last)) = (line.first, line.last) {
        page.text(&to_the_second(first));
        if first != last {
            page.raw("<br>");
            page.text(&to_the_second(last));
        }
    }
    page.raw("</td><td>");
    for index in &line.entries {
        page.element(&format!("a href=\"#e{index}\""), &index.to_string());
    }
    page.raw("</td></tr>\n");
}

fn entries(page: &mut Page, report: &Report) {
    page.element("h2", "The entries that are cited");
    page.element(
        "p",
        "Save the proof and the entry into one folder, and check them without the ledger, with the key that you trust:",
    );
    page.lines("aegis audit check-proof 42.tlog-proof --key VKEY");
    page.element(
        "p class=\"small quiet\"",
        "The proofs are of the format c2sp.org/tlog-proof; other tools verify them too. The whole log is verified by `aegis audit verify`.",
    );
    for (index, cited) in &report.entries {
        entry(page, *index, cited);
    }
}

fn entry(page: &mut Page, index: u64, cited: &Cited) {
    let _ = writeln!(page.html, "<section class=\"panel cited\" id=\"e{index}\">");
    page.element("h3", &format!("Entry {index}"));
    let body = cited.entry.get();
    if let Ok(entry) = Entry::parse(body.as_bytes()) {
        page.raw("<dl>\n");
        page.term("When", &entry.timestamp.to_string());
        page.term("What", &format!("{}, {}", entry.kind, entry.result));
        let names = ["protocol", "method", "server", "tool"];
        let action: Vec<&str> = names.iter().filter_map(|name| entry.action_text(name)).collect();
        for (name, value) in [
            ("Agent", entry.agent_id.clone()),
            ("Sponsor", entry.sponsor.clone()),
            ("Action", (!action.is_empty()).then(|| action.join(" "))),
            ("Resource", entry.resource.clone()),
            ("Reason", entry.reason.clone()),
            ("Approval", entry.approval.clone()),
        ] {
            if let Some(value) = value {
                page.term(name, &value);
            }
        }
        page.raw("</dl>\n");
    }
    page.raw("<p class=\"small\">");
    let name = format!("{index}.tlog-proof");
    page.download(&name, cited.proof.as_bytes());
    page.raw(" · ");
    page.download(&format!("{name}.json"), body.as_bytes());
    page.raw("</p>\n<details><summary class=\"small\">Entry and proof as text</summary>\n");
    page.lines(body);
    page.lines(&cited.proof);
    page.raw("</details>\n</section>\n");
}

/// A time for a table; the entries have it to the microsecond.
fn to_the_second(at: Timestamp) -> String {
    Timestamp::from_secs(at.as_secs()).to_string().replace(".000000Z", "Z")
}

/// A framework's name as an anchor; one from a file may hold anything.
fn anchor(id: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    id.chars().map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_never_markup() {
        let mut page = Page::default();
        page.element("td class=\"x\"", "<script>alert('1')</script>\"&\u{202e}\u{0}");
        assert_eq!(
            page.html,
            "<td class=\"x\">&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&quot;&amp;\\u{202e}\\u{0}</td>\n"
        );
        assert_eq!(anchor("a\"><b"), "a---b");
    }
}
