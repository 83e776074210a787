//! A plan for people: the table, the verdict, and byte counts as they are typed.

use crate::device::memory::Role;
use crate::model::plan::{Entry, Phase, Plan};

/// How many rows a refusal blames.
const BLAMED: usize = 5;

fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1 << 20) as f64
}

fn dims(shape: &[usize]) -> String {
    let sizes: Vec<String> = shape.iter().map(|n| n.to_string()).collect();
    format!("[{}]", sizes.join(", "))
}

impl Plan {
    /// All rows, then totals by role and over all.
    pub fn table(&self) -> String {
        let mut out = format!(
            "{:<24} {:<11} {:>22} {:<5} {:<23} {:>11}\n",
            "what", "role", "shape", "dtype", "phases", "MiB"
        );
        for e in &self.entries {
            out += &format!(
                "{:<24} {:<11} {:>22} {:<5} {:<23} {:>11.1}\n",
                e.what,
                e.role.name(),
                dims(&e.shape),
                e.dtype.name(),
                match e.host {
                    true => "on the host",
                    false => e.phases,
                },
                mib(e.bytes)
            );
        }
        out.push('\n');
        let mut line = |what: &str, value: f64| out += &format!("{what:<40} {value:>11.1}\n");
        for role in Role::ALL {
            match self.role_bytes(role) {
                0 => {}
                bytes => line(role.name(), mib(bytes)),
            }
        }
        if self.shared_bytes() > 0 {
            line("shared by phases in turn", -mib(self.shared_bytes()));
        }
        line("total", mib(self.total()));
        out
    }

    /// The largest rows that decide the total, largest first: of what phases
    /// share, the rows of the phase that needs most.
    pub fn blame(&self) -> Vec<&Entry> {
        let phases = [Phase::Forward, Phase::Update, Phase::NoiseFloor];
        let worst = phases.into_iter().max_by_key(|&p| self.need(p));
        let mut rows: Vec<&Entry> = self
            .entries
            .iter()
            .filter(|e| !e.host && !e.shrink.is_empty())
            .filter(|e| !e.overlaid || e.phase.is_none() || e.phase == worst)
            .collect();
        rows.sort_by_key(|e| std::cmp::Reverse(e.bytes));
        rows.truncate(BLAMED);
        rows
    }

    /// What to say where `available` bytes are too few, with the rows to blame.
    pub fn refusal(&self, available: u64) -> Option<String> {
        if self.total() <= available {
            return None;
        }
        let mut out = format!(
            "would not fit: {} MiB are needed, {} MiB are available; the largest rows, and what makes them smaller:\n",
            self.total().div_ceil(1 << 20),
            available >> 20
        );
        for e in self.blame() {
            out += &format!(
                "  {:<24} {:>22} {:<5} {:>11.1} MiB  {}\n",
                e.what,
                dims(&e.shape),
                e.dtype.name(),
                mib(e.bytes),
                e.shrink
            );
        }
        Some(out)
    }
}

/// Bytes as they are typed: `80G`, `80GiB`, `512M` (powers of 1024) or `80GB`
/// (of 1000); a bare number is bytes.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no amount of memory: such as 80G, 512M or 80GB");
    let trimmed = text.trim();
    let digits = trimmed
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(trimmed.len());
    let number: f64 = trimmed[..digits].parse().map_err(|_| wrong())?;
    let unit = trimmed[digits..].trim().to_ascii_lowercase();
    let letters = ["", "k", "m", "g", "t"];
    let power = |short: &str| letters.iter().position(|l| *l == short);
    let bytes = match unit.as_str() {
        "b" => number,
        u => match (power(u.trim_end_matches("ib")), u.strip_suffix('b')) {
            (Some(p), _) => number * 1024f64.powi(p as i32),
            (None, Some(short)) => number * 1000f64.powi(power(short).ok_or_else(wrong)? as i32),
            (None, None) => return Err(wrong()),
        },
    };
    Ok(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::parse_bytes;

    #[test]
    fn bytes_are_read() {
        assert_eq!(parse_bytes("80G"), Ok(80 << 30));
        assert_eq!(parse_bytes("80GiB"), Ok(80 << 30));
        assert_eq!(parse_bytes("80 GB"), Ok(80_000_000_000));
        assert_eq!(parse_bytes("1.5m"), Ok(3 << 19));
        assert_eq!(parse_bytes("4096"), Ok(4096));
        assert_eq!(parse_bytes("7b"), Ok(7));
        for wrong in ["", "G", "80X", "8 0G", "-1G"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
    }
}
