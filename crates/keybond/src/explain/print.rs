//! The runbook on the terminal and as a page.

use std::fmt::{self, Write as _};

use super::{Entry, Origin, catalogue};

impl Entry {
    /// The names of the legs, or what stands for none.
    fn leg_names(&self) -> String {
        if self.legs.is_empty() {
            return "before the first leg".into();
        }
        let names: Vec<_> = self.legs.iter().map(|leg| leg.name()).collect();
        names.join(", ")
    }
}

impl Origin {
    fn sentence(self) -> String {
        match self {
            Self::Keybond => "keybond's own".into(),
            Self::Shared => "published with MSAL; keybond means the same by it".into(),
            Self::Msal { instead: Some(own) } => format!("MSAL's; keybond says `{own}` instead"),
            Self::Msal { instead: None } => "MSAL's; it cannot happen with keybond".into(),
            Self::TokenService => "the token service's".into(),
        }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.code)?;
        writeln!(f, "  {}", self.meaning)?;
        writeln!(f, "  Legs: {}", self.leg_names())?;
        writeln!(f, "  Code: {}", self.origin.sentence())?;
        writeln!(f, "  Asking again helps: {}", self.retry)?;
        list(f, "  Typical causes:", "    - ", self.causes)?;
        list(f, "  What to do:", "    - ", self.actions)
    }
}

/// The whole runbook in Markdown: `docs/errors.md` is this text.
pub fn markdown() -> String {
    let mut page = String::from(
        "# Error codes\n\n\
         Every error has a stable code. `keybond explain CODE` prints what stands here; both come from one\n\
         table in `crates/keybond/src/explain/`. To renew this page after a change of the table:\n\n\
         ```sh\nKEYBOND_BLESS=1 cargo test -p keybond --test explain\n```\n\n\
         | code | legs | asking again helps |\n|---|---|---|\n",
    );
    // Writing to a string cannot fail.
    for entry in catalogue() {
        let _ = writeln!(
            page,
            "| [`{code}`](#{anchor}) | {legs} | {retry} |",
            code = entry.code,
            anchor = entry.code.to_ascii_lowercase(),
            legs = entry.leg_names(),
            retry = entry.retry,
        );
    }
    for entry in catalogue() {
        let _ = write!(
            page,
            "\n## {}\n\n{}\n\n- Legs: {}.\n- Code: {}.\n- Asking again helps: {}.\n\n",
            entry.code,
            entry.meaning,
            entry.leg_names(),
            entry.origin.sentence(),
            entry.retry,
        );
        let _ = list(&mut page, "Typical causes:\n", "- ", entry.causes);
        page.push('\n');
        let _ = list(&mut page, "What to do:\n", "- ", entry.actions);
    }
    page
}

fn list(out: &mut impl fmt::Write, title: &str, bullet: &str, lines: &[&str]) -> fmt::Result {
    writeln!(out, "{title}")?;
    lines
        .iter()
        .try_for_each(|line| writeln!(out, "{bullet}{line}"))
}
