//! Colours, in a light and a dark form. The page picks by media query; figures
//! written as files take the light ones.

use std::fmt::Write as _;

/// Groups: one per credit method, in the order of [`crate::credit::METHODS`].
const GROUPS: [(&str, &str); 12] = [
    ("#6b7280", "#a3aab8"),
    ("#d9660b", "#fb9a4b"),
    ("#0f8a80", "#35c9bb"),
    ("#8b3fd1", "#bf8bff"),
    ("#1f5fe0", "#6fa4ff"),
    ("#c8206f", "#ff7fb4"),
    ("#4f8f14", "#94d34d"),
    ("#a07400", "#e3bb3b"),
    ("#0b86b5", "#4cc4ee"),
    ("#8c4a2f", "#d59a7d"),
    ("#b3261e", "#ff8a80"),
    ("#3f4a9e", "#a3adf5"),
];

/// Parts of a step: rollout, reward, score, forward, backward, optimizer, rest.
const PHASES: [(&str, &str); 7] = [
    ("#3b6fd4", "#5f8fea"),
    ("#e0a33a", "#d9a344"),
    ("#9a6bd0", "#ab84dd"),
    ("#2f9e8f", "#3fb3a3"),
    ("#d2694f", "#dd7c64"),
    ("#8a9a3a", "#a3b352"),
    ("#b9bec7", "#5c6370"),
];

/// The page, its text, thin lines, the poster's band, and heat.
const SURFACES: [(&str, &str, &str); 8] = [
    ("page", "#f6f7f9", "#14161a"),
    ("panel", "#ffffff", "#1c1f25"),
    ("ink", "#1b1f27", "#e8eaee"),
    ("muted", "#5a6270", "#a0a8b6"),
    ("grid", "#e3e6eb", "#31363f"),
    ("band", "#d9efdd", "#1f3a2a"),
    ("heat", "#e2570b", "#ff8b3d"),
    ("cold", "#2563c9", "#6fa4ff"),
];

/// Colour of a group.
pub fn group(colour: usize) -> String {
    format!("var(--c{})", colour % GROUPS.len())
}

/// Colour of a part of a step.
pub fn phase(index: usize) -> String {
    format!("var(--p{})", index % PHASES.len())
}

fn all() -> impl Iterator<Item = (String, &'static str, &'static str)> {
    let numbered = |letter: &'static str, list: &'static [(&'static str, &'static str)]| {
        list.iter()
            .enumerate()
            .map(move |(i, (light, dark))| (format!("{letter}{i}"), *light, *dark))
    };
    let surfaces = SURFACES
        .iter()
        .map(|(name, light, dark)| (name.to_string(), *light, *dark));
    surfaces
        .chain(numbered("c", &GROUPS))
        .chain(numbered("p", &PHASES))
}

/// The colours as CSS variables.
pub fn css() -> String {
    let (mut light, mut dark) = (String::new(), String::new());
    for (name, l, d) in all() {
        let _ = write!(light, "--{name}:{l};");
        let _ = write!(dark, "--{name}:{d};");
    }
    format!(
        ":root{{color-scheme:light dark;{light}}}\n@media (prefers-color-scheme:dark){{:root{{{dark}}}}}\n"
    )
}

/// `svg` with each variable replaced by its light colour, for a file that
/// stands alone.
pub fn literal(svg: &str) -> String {
    let mut out = svg.to_string();
    for (name, light, _) in all() {
        out = out.replace(&format!("var(--{name})"), light);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literal_knows_every_variable() {
        let used: String = (0..30).map(|i| group(i) + &phase(i)).collect();
        assert!(!literal(&used).contains("var("));
        for method in 0..crate::credit::METHODS.len() {
            assert!(method < GROUPS.len(), "a colour for each method");
        }
    }
}
