//! A profile as a roofline table: each op's time beside the least it could
//! take at the measured rates.

use serde_json::{Value, json};

use super::roof::Roof;
use super::{Level, Profile};
use crate::ops::cost::Cost;

/// A call that could be over in this time is bound by being launched at all:
/// about what a launch takes, on a GPU and between two threads.
const LAUNCH_SECONDS: f64 = 2e-6;

/// Calls of one op, or ranges of one name.
#[derive(Clone, Debug, Default)]
pub struct Row {
    pub name: String,
    pub calls: usize,
    pub seconds: f64,
    pub cost: Cost,
}

impl Row {
    /// What keeps it from being faster, at best: the larger of its two times
    /// at the roof, or its launches.
    pub fn bound_by(&self, roof: &Roof) -> &'static str {
        let (compute, memory) = (self.cost.flops / roof.flops, self.cost.bytes / roof.bytes);
        if compute.max(memory) < LAUNCH_SECONDS * self.calls as f64 {
            "launch"
        } else if compute > memory {
            "compute"
        } else {
            "memory"
        }
    }

    fn json(&self, roof: &Roof, whole: f64) -> Value {
        json!({
            "op": self.name,
            "calls": self.calls,
            "seconds": self.seconds,
            "share": self.seconds / whole,
            "flops": self.cost.flops,
            "bytes": self.cost.bytes,
            "share_of_roof": roof.bound(&self.cost) / self.seconds,
            "bound_by": self.bound_by(roof),
        })
    }
}

/// Where the time of the recorded steps went.
#[derive(Clone, Debug)]
pub struct OpTable {
    /// By time, longest first.
    pub ops: Vec<Row>,
    /// In order of their first beginning.
    pub phases: Vec<Row>,
    pub steps: usize,
    /// Of all steps, on the host's clock.
    pub seconds: f64,
}

impl OpTable {
    pub fn new(profile: &Profile) -> OpTable {
        let mut table = OpTable {
            ops: Vec::new(),
            phases: Vec::new(),
            steps: 0,
            seconds: 0.0,
        };
        for span in &profile.spans {
            let [start, end] = span.host;
            let (rows, seconds) = match span.level {
                Level::Step => {
                    table.steps += 1;
                    table.seconds += end - start;
                    continue;
                }
                Level::Layer => continue,
                // Where the device runs behind the host, what it worked there:
                // the host may be far ahead.
                Level::Phase => (&mut table.phases, span.seconds()),
                Level::Op => (&mut table.ops, span.seconds()),
            };
            let row = match rows.iter_mut().find(|r| r.name == span.name) {
                Some(row) => row,
                None => {
                    rows.push(Row {
                        name: span.name.to_string(),
                        ..Row::default()
                    });
                    let last = rows.len() - 1;
                    &mut rows[last]
                }
            };
            row.calls += 1;
            row.seconds += seconds;
            row.cost.flops += span.cost.flops;
            row.cost.bytes += span.cost.bytes;
        }
        table.ops.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        table
    }

    fn in_ops(&self) -> f64 {
        self.ops.iter().map(|r| r.seconds).sum()
    }

    /// For people.
    pub fn text(&self, roof: &Roof) -> String {
        let ms = |seconds: f64| seconds * 1e3;
        let share = |seconds: f64| 100.0 * seconds / self.seconds.max(f64::MIN_POSITIVE);
        let mut out = format!(
            "{} step{} in {:.1} ms; roof: product {:.1} GFLOP/s, copy {:.1} GB/s, both measured\n\n",
            self.steps,
            if self.steps == 1 { "" } else { "s" },
            ms(self.seconds),
            roof.flops / 1e9,
            roof.bytes / 1e9
        );
        out += &format!("{:<28} {:>10} {:>7}\n", "phase", "ms", "%");
        for row in &self.phases {
            out += &format!(
                "{:<28} {:>10.2} {:>7.1}\n",
                row.name,
                ms(row.seconds),
                share(row.seconds)
            );
        }
        out += &format!(
            "\n{:<28} {:>7} {:>10} {:>6} {:>10} {:>9} {:>9} {:>8} {:>7}  {}\n",
            "op", "calls", "ms", "%", "GFLOP", "GB", "GFLOP/s", "GB/s", "% roof", "bound by"
        );
        for row in &self.ops {
            let seconds = row.seconds.max(f64::MIN_POSITIVE);
            out += &format!(
                "{:<28} {:>7} {:>10.2} {:>6.1} {:>10.3} {:>9.3} {:>9.1} {:>8.1} {:>7.1}  {}\n",
                row.name,
                row.calls,
                ms(row.seconds),
                share(row.seconds),
                row.cost.flops / 1e9,
                row.cost.bytes / 1e9,
                row.cost.flops / seconds / 1e9,
                row.cost.bytes / seconds / 1e9,
                100.0 * roof.bound(&row.cost) / seconds,
                row.bound_by(roof)
            );
        }
        let outside = self.seconds - self.in_ops();
        out += &format!(
            "{:<28} {:>7} {:>10.2} {:>6.1}\n",
            "(between ops)",
            "",
            ms(outside),
            share(outside)
        );
        out
    }

    /// For programs.
    pub fn json(&self, roof: &Roof) -> Value {
        let whole = self.seconds.max(f64::MIN_POSITIVE);
        let phases: Vec<Value> = self
            .phases
            .iter()
            .map(|r| json!({"phase": r.name, "seconds": r.seconds, "share": r.seconds / whole}))
            .collect();
        let ops: Vec<Value> = self.ops.iter().map(|r| r.json(roof, whole)).collect();
        json!({
            "steps": self.steps,
            "seconds": self.seconds,
            "roof": {"flops_per_second": roof.flops, "bytes_per_second": roof.bytes},
            "phases": phases,
            "ops": ops,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Span;

    fn span(level: Level, name: &'static str, host: [f64; 2], flops: f64, bytes: f64) -> Span {
        Span {
            level,
            name,
            number: None,
            parent: None,
            host,
            device: None,
            cost: Cost { flops, bytes },
            beside: false,
        }
    }

    #[test]
    fn calls_are_added_and_bounds_told_apart() {
        let roof = Roof {
            flops: 1e9,
            bytes: 1e9,
        };
        let profile = Profile {
            spans: vec![
                span(Level::Step, "step", [0.0, 10.0], 0.0, 0.0),
                span(Level::Phase, "forward", [0.0, 9.0], 0.0, 0.0),
                span(Level::Op, "copy", [0.0, 1.0], 0.0, 5e8),
                span(Level::Op, "product", [1.0, 3.0], 1e9, 1e6),
                span(Level::Op, "product", [3.0, 5.0], 1e9, 1e6),
                span(Level::Op, "nothing", [5.0, 5.5], 100.0, 100.0),
            ],
        };
        let table = OpTable::new(&profile);
        assert_eq!((table.steps, table.seconds), (1, 10.0));
        let product = &table.ops[0];
        assert_eq!((product.name.as_str(), product.calls), ("product", 2));
        assert_eq!((product.seconds, product.cost.flops), (4.0, 2e9));
        let bounds: Vec<&str> = table.ops.iter().map(|r| r.bound_by(&roof)).collect();
        assert_eq!(bounds, ["compute", "memory", "launch"]);
        let json = table.json(&roof);
        assert_eq!(json["ops"][0]["share_of_roof"], 0.5);
        assert_eq!(json["phases"][0]["share"], 0.9);
        assert!(table.text(&roof).contains("(between ops)"));
    }
}
