//! `arca bench update`: gradients and one optimizer step, and how near they
//! come to what the machine can do.
//!
//! Useful operations are those that the method needs, whatever is computed: a
//! prompt counts once for its group, nothing is padded or computed again, and
//! base weights have no gradient. See [`Work::flops`].

use std::path::PathBuf;

use anyhow::Result;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::bed::{Bed, Phases, Workload};
use super::measure::{Findings, Table, Timed, json_of, median, mib, tell, with};
use super::phases_json;
use crate::cli::args::{BenchArgs, BenchKind, BenchShape, WeightDtype};
use crate::cli::{Outcome, UsageError};
use crate::config::Config;
use crate::credit::CreditAssigner;
use crate::device::Ctx;
use crate::model::adapter::AdapterLayout;
use crate::model::config::ModelShape;
use crate::model::half_layer::HalfLayers;
use crate::profile::ops::OpTable;
use crate::profile::roof::{Roof, datasheet};
use crate::profile::{self, Recording, trace};
use crate::rollout::stats::trunk_parameters;
use crate::train::session::{OnDevice, act_name, model_dir};
use crate::train::setup::wants_reference;

/// Runs the verb.
pub fn run(args: BenchArgs) -> Result<Outcome> {
    let config = args.load()?;
    if args.shape.len() > 1 {
        return Err(UsageError::new("bench update: one --shape at a time").into());
    }
    let repeats = args.repeats.unwrap_or(5);
    if let Some(steps) = args.profile_steps
        && steps.last > repeats
    {
        return Err(UsageError::new(format!(
            "--profile-steps {}:{}: there are {repeats} timed runs (--repeats)",
            steps.first, steps.last
        ))
        .into());
    }
    let bench = Bench {
        config: &config,
        args: &args,
    };
    tell(&config, bench, args.json)
}

struct Bench<'a> {
    config: &'a Config,
    args: &'a BenchArgs,
}

/// Where the weights come from.
enum Source {
    Folder(PathBuf),
    Random(BenchShape, TempDir),
}

impl Source {
    /// A configured model, else random weights of the asked or usual shape.
    fn new<D: HalfLayers>(bench: &Bench, device: &D, gpu: bool) -> Result<Source> {
        let shape = match (bench.args.shape.first(), bench.config.model.path.as_str()) {
            (Some(&shape), _) => shape,
            (None, "") if gpu => BenchShape::Qwen1_7b,
            // The emulator: slow, and without kernels for the 5m shape's heads.
            (None, "") if device.check_shape(&BenchShape::M5.shape()?).is_err() => BenchShape::Demo,
            (None, "") => BenchShape::M5,
            (None, _) => return Ok(Source::Folder(model_dir(bench.config)?)),
        };
        let dtype = match size_of::<D::Act>() {
            4 => WeightDtype::F32,
            _ => WeightDtype::Bf16,
        };
        Ok(Source::Random(shape, shape.checkpoint(dtype)?))
    }

    /// The batch, unless sizes are asked for: see [`Workload::new`].
    fn default_batch(&self, gpu: bool, ragged: bool) -> [usize; 4] {
        use BenchShape::*;
        match self {
            // Those of tools/compare_cpu.py.
            Source::Folder(_) if ragged => [8, 8, 64, 64],
            Source::Folder(_) => [16, 1, 1, 128],
            Source::Random(..) if gpu => [16, 8, 256, 512],
            Source::Random(Demo | M5, _) => [8, 8, 64, 64],
            Source::Random(..) => [2, 8, 64, 64],
        }
    }
}

impl OnDevice for Bench<'_> {
    type Output = Report;

    fn run<D: HalfLayers>(self, device: D) -> Result<Report> {
        let gpu = device.name().starts_with("NVIDIA");
        let source = Source::new(&self, &device, gpu)?;
        let w = Workload::new(self.args, source.default_batch(gpu, self.args.ragged))?;
        let config = w.configure(self.config);
        let (dir, title) = match &source {
            Source::Folder(dir) => (dir.as_path(), config.model.path.clone()),
            Source::Random(shape, dir) => {
                (dir.path(), format!("{} (random weights)", shape.name()))
            }
        };
        let shape = ModelShape::load(dir)?;
        // Before the run's memory is taken.
        let roof = {
            let stream = device.new_stream()?;
            Roof::measure(&device, &Ctx { stream: &stream })?
        };
        let mut bed = Bed::open(device, &config, &w, BenchKind::Update, dir)?;
        let completions = bed.random_completions();
        let mut runs = Vec::new();
        let mut recording = None;
        let mut profile = None;
        // The first run touches memory for the first time: not counted.
        for run in 0..=w.repeats {
            let steps = self.args.profile_steps;
            if steps.is_some_and(|s| s.first == run) {
                let engine = &bed.session.engine;
                recording = Some(Recording::start(&engine.device, &engine.ctx())?);
                engine.device.collect(true)?;
            }
            let timed = Timed::run(|| {
                let _range = profile::step(run);
                let mut phases = Phases::new();
                bed.update(&completions, run, &mut phases)?;
                Ok(phases)
            })?;
            if steps.is_some_and(|s| s.last == run)
                && let Some(recording) = recording.take()
            {
                let engine = &bed.session.engine;
                engine.device.collect(false)?;
                let found = recording.finish(&engine.device, &engine.ctx())?;
                trace::write(&self.args.out, &found, &engine.device.name())?;
                profile = Some(OpTable::new(&found));
            }
            if run > 0 {
                runs.push(timed);
            }
        }
        let lengths = w.lengths(config.train.seed);
        let engine = &bed.session.engine;
        let layout = &engine.adapter(super::bed::POLICY).layout;
        let work = Work::new(&w, &lengths, &config, &shape, layout)?;
        Ok(Report {
            title,
            device: engine.device.name(),
            act: act_name::<D>(),
            device_peak: engine.device.peak_memory(),
            lora_r: layout.settings().r,
            trace: self.args.out.clone(),
            workload: w,
            lengths,
            work,
            roof,
            runs,
            profile,
        })
    }
}

/// What one update has to do.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Work {
    /// Rows of the policy through the decoder layers.
    rows: usize,
    /// (query, key) pairs of those rows: each attends to its context up to
    /// itself.
    pairs: usize,
    /// Tokens whose log-prob is asked for.
    scored: usize,
    /// Parameters of the decoder layers' products.
    trunk: usize,
    /// Parameters of the adapter.
    adapter: usize,
    /// Parameters of the head.
    head: usize,
    /// a: operations per pair, over all layers.
    per_pair: usize,
    /// A forward of its own, without dropout, comes first.
    score: bool,
    /// Rows of the reference ride in the first forward,
    reference: bool,
    /// and their log-probs are asked for.
    reference_logprobs: bool,
}

impl Work {
    fn new(
        w: &Workload,
        lengths: &[usize],
        config: &Config,
        shape: &ModelShape,
        layout: &AdapterLayout,
    ) -> Result<Work> {
        let credit = CreditAssigner::new(&config.credit)?;
        let triangle = |n: usize| n * (n + 1) / 2;
        // The last token of a completion predicts nothing.
        let own = lengths.iter().map(|n| n - 1);
        Ok(Work {
            rows: w.prompts * w.prompt_length + own.clone().sum::<usize>(),
            pairs: w.prompts * triangle(w.prompt_length)
                + own
                    .map(|n| n * w.prompt_length + triangle(n))
                    .sum::<usize>(),
            scored: lengths.iter().sum(),
            trunk: trunk_parameters(shape),
            adapter: layout.len(),
            head: shape.vocab_size * shape.hidden_size,
            per_pair: 4 * shape.q_width() * shape.num_layers,
            score: config.lora.dropout > 0.0,
            reference: wants_reference(&credit, config),
            reference_logprobs: credit.needs(0).reference || config.loss.beta > 0.0,
        })
    }

    /// Useful operations of a phase. With P trunk, A adapter and Hd head
    /// parameters, a pass of n rows over c (query, key) pairs with k scored
    /// tokens takes
    ///
    /// forward  n (2P + 2A) + a c + 2Hd k
    /// backward n (2P + 4A) + 2.5 a c + 2Hd k
    ///
    /// since base weights take no gradient and attention's backward has five
    /// products to the forward's two. AdamW counts 12 per parameter.
    fn flops(&self, phase: &str) -> f64 {
        let [n, c, k] = [self.rows, self.pairs, self.scored].map(|x| x as f64);
        let [p, a, hd] = [self.trunk, self.adapter, self.head].map(|x| x as f64);
        let attention = self.per_pair as f64 * c;
        let policy = n * (2.0 * p + 2.0 * a) + attention + 2.0 * hd * k;
        let reference = match (self.reference, self.reference_logprobs) {
            (false, _) => 0.0,
            (true, false) => n * 2.0 * p + attention,
            (true, true) => n * 2.0 * p + attention + 2.0 * hd * k,
        };
        match phase {
            // The reference is scored with the first forward, whichever it is.
            "score" => policy + reference,
            "forward" if self.score => policy,
            "forward" => policy + reference,
            "backward" => n * (2.0 * p + 4.0 * a) + 2.5 * attention + 2.0 * hd * k,
            "optimizer" => 12.0 * a,
            _ => 0.0,
        }
    }

    fn total(&self) -> f64 {
        let score = match self.score {
            true => self.flops("score"),
            false => 0.0,
        };
        score + self.flops("forward") + self.flops("backward") + self.flops("optimizer")
    }

    /// The formulas, and the numbers of this batch in them.
    fn formula(&self) -> Vec<String> {
        let mut lines = vec![
            "forward n (2P + 2A) + a c + 2Hd k; backward n (2P + 4A) + 2.5 a c + 2Hd k".to_string(),
        ];
        if self.reference {
            let logprobs = if self.reference_logprobs {
                " + 2Hd k"
            } else {
                ""
            };
            lines.push(format!("reference n 2P + a c{logprobs}"));
        }
        if self.score {
            lines.push("one more forward for the scores, without dropout".into());
        }
        lines.push(format!(
            "n {} rows, c {} pairs, k {} scored tokens; P {}, A {}, Hd {} parameters; a {}",
            self.rows, self.pairs, self.scored, self.trunk, self.adapter, self.head, self.per_pair
        ));
        lines
    }
}

/// What the bench found.
struct Report {
    title: String,
    device: String,
    act: &'static str,
    device_peak: Option<u64>,
    lora_r: usize,
    trace: PathBuf,
    workload: Workload,
    lengths: Vec<usize>,
    work: Work,
    roof: Roof,
    runs: Vec<Timed<Phases>>,
    profile: Option<OpTable>,
}

impl Report {
    /// Tokens of all sequences, a shared prompt once. One token to begin with
    /// is no prompt.
    fn tokens(&self) -> usize {
        let w = &self.workload;
        let prompts = match w.prompt_length {
            1 => 0,
            n => n * w.prompts,
        };
        prompts + self.lengths.iter().sum::<usize>()
    }

    fn share_of_roof(&self) -> f64 {
        self.work.total() / median(&self.runs).seconds / self.roof.flops
    }
}

impl Findings for Report {
    fn table(&self) -> String {
        let median = median(&self.runs);
        let giga = |x: f64| x / 1e9;
        let mut table = Table::default();
        table.row("kind", "update");
        table.row("device", &self.device);
        table.row(
            "model",
            format!(
                "{}, LoRA r {} ({} parameters)",
                self.title, self.lora_r, self.work.adapter
            ),
        );
        table.row("workload", self.workload.describe());
        table.seconds(&self.runs);
        let rate = self.tokens() as f64 / median.seconds;
        table.row(
            "tokens/s",
            format!("{rate:.1} ({} tokens, a shared prompt once)", self.tokens()),
        );
        table.row(
            "useful FLOPs",
            format!(
                "{:.3} G, a prompt once for its group",
                giga(self.work.total())
            ),
        );
        for line in self.work.formula() {
            table.row("", line);
        }
        table.row(
            "roof",
            format!(
                "{:.1} GFLOP/s, {} product measured in this process just before",
                giga(self.roof.flops),
                self.act
            ),
        );
        let rate = self.work.total() / median.seconds;
        table.row(
            "share of roof",
            format!(
                "{:.1} % ({:.1} GFLOP/s)",
                100.0 * self.share_of_roof(),
                giga(rate)
            ),
        );
        if let Some((flops, what)) = datasheet(&self.device) {
            table.row(
                "of theory",
                format!(
                    "{:.1} % of {:.1} GFLOP/s ({what})",
                    100.0 * rate / flops,
                    giga(flops)
                ),
            );
        }
        if let Some(peak) = self.device_peak {
            table.row("device MiB", format!("{:.1} at most", mib(peak as f64)));
        }
        table.resources(&self.runs);
        let mut out = table.text();
        out += &format!(
            "\n{:<14} {:>9} {:>6} {:>10} {:>9} {:>7}\n",
            "phase", "seconds", "%", "GFLOP", "GFLOP/s", "% roof"
        );
        let named: f64 = median.detail.iter().map(|p| p.1).sum();
        let rest = ("(rest)", (median.seconds - named).max(0.0));
        for (name, seconds) in median.detail.iter().copied().chain([rest]) {
            let flops = self.work.flops(name);
            let rate = flops / seconds.max(f64::MIN_POSITIVE);
            let share = 100.0 * seconds / median.seconds;
            out += &format!("{name:<14} {seconds:>9.4} {share:>6.1}");
            if flops > 0.0 {
                out += &format!(
                    " {:>10.3} {:>9.1} {:>7.1}",
                    giga(flops),
                    giga(rate),
                    100.0 * rate / self.roof.flops
                );
            }
            out += "\n";
        }
        if let Some(profile) = &self.profile {
            out += &format!("\nprofile: {}", profile.text(&self.roof));
            out += &format!("trace: {}\n", self.trace.display());
        }
        out
    }

    fn json(&self) -> Value {
        let median = median(&self.runs);
        let flops: Vec<(&str, f64)> = median
            .detail
            .iter()
            .map(|p| (p.0, self.work.flops(p.0)))
            .collect();
        let more = json!({
            "kind": "update",
            "device": self.device,
            "model": self.title,
            "dtype": self.act,
            "share_of_roof": self.share_of_roof(),
            "useful_flops": self.work.total(),
            "roof": {"flops_per_second": self.roof.flops, "bytes_per_second": self.roof.bytes},
            "theory_flops_per_second": datasheet(&self.device).map(|d| d.0),
            "phases": phases_json(&median.detail),
            "phase_flops": phases_json(&flops),
            "device_peak_bytes": self.device_peak,
            "adapter_parameters": self.work.adapter,
            "lora_r": self.lora_r,
            "lengths": self.lengths,
            "profile": self.profile.as_ref().map(|p| p.json(&self.roof)),
        });
        let mut map = json_of(&self.runs, self.tokens());
        if let Value::Object(more) = more {
            map.extend(more);
        }
        with(map, self.workload.json())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::adapter::LoraSettings;
    use crate::model::config::Module;

    fn layout(shape: &ModelShape, r: usize) -> AdapterLayout {
        let settings = LoraSettings::uniform(shape, &Module::ALL, r, 2.0 * r as f32, 0.0, false);
        AdapterLayout::new(shape, settings).unwrap()
    }

    #[test]
    fn adapters_have_the_known_numbers_of_parameters() {
        let shape = BenchShape::Qwen1_7b.shape().unwrap();
        for (r, parameters) in [(64, 69_730_304), (16, 17_432_576), (4, 4_358_144)] {
            assert_eq!(layout(&shape, r).len(), parameters);
        }
    }

    #[test]
    fn shapes_have_the_known_numbers_of_parameters() {
        for (which, trunk, head, per_pair) in [
            (BenchShape::Qwen0_6b, 440_401_920, 155_582_464, 229_376),
            (BenchShape::Qwen1_7b, 1_409_286_144, 311_164_928, 229_376),
            (BenchShape::Qwen4b, 3_633_315_840, 388_956_160, 589_824),
        ] {
            let shape = which.shape().unwrap();
            assert_eq!(trunk_parameters(&shape), trunk, "{which:?}");
            assert_eq!(shape.vocab_size * shape.hidden_size, head, "{which:?}");
            let a = 4 * shape.q_width() * shape.num_layers;
            assert_eq!(a, per_pair, "{which:?}");
        }
    }

    fn work(overrides: &[&str], w: &Workload, lengths: &[usize]) -> Work {
        let overrides: Vec<String> = overrides.iter().map(|s| s.to_string()).collect();
        let config = Config::load(None, &overrides).unwrap();
        let shape = BenchShape::M5.shape().unwrap();
        Work::new(w, lengths, &config, &shape, &layout(&shape, 16)).unwrap()
    }

    /// One prompt of 3 tokens with completions of 4 and 2, at the 5m shape, by
    /// hand.
    #[test]
    fn operations_are_those_of_the_formula() {
        let w = Workload {
            prompts: 1,
            group_size: 2,
            prompt_length: 3,
            new_tokens: 4,
            ragged: true,
            adapted: true,
            repeats: 1,
        };
        let plain = work(&["lora.dropout=0"], &w, &[4, 2]);
        // Rows 3 + 3 + 1. Pairs: prompt 1 + 2 + 3; first 4 + 5 + 6; second 4.
        assert_eq!((plain.rows, plain.pairs, plain.scored), (7, 25, 6));
        // Per layer 256 x 512 (qkv), 256 x 256 (o), 3 x 256 x 768.
        let p = 5.0 * (131_072.0 + 65_536.0 + 589_824.0);
        // r 16 x (in + out): q 512, k and v 384 each, o 512, gate, up and down 1024 each.
        let a = 5.0 * 16.0 * (512.0 + 2.0 * 384.0 + 512.0 + 3.0 * 1024.0);
        let hd = 4096.0 * 256.0;
        let attention = 25.0 * 4.0 * 256.0 * 5.0;
        let forward = 7.0 * (2.0 * p + 2.0 * a) + attention + 6.0 * 2.0 * hd;
        let backward = 7.0 * (2.0 * p + 4.0 * a) + 2.5 * attention + 6.0 * 2.0 * hd;
        assert_eq!(plain.flops("forward"), forward);
        assert_eq!(plain.flops("backward"), backward);
        assert_eq!(plain.total(), forward + backward + 12.0 * a);

        let reference = 7.0 * 2.0 * p + attention + 6.0 * 2.0 * hd;
        let with_kl = work(&["lora.dropout=0", "loss.beta=0.1"], &w, &[4, 2]);
        assert_eq!(with_kl.flops("forward"), forward + reference);
        // ARCA compares states, without log-probs of the reference.
        let arca = work(&["lora.dropout=0", "credit.method=arca"], &w, &[4, 2]);
        let states = reference - 6.0 * 2.0 * hd;
        assert_eq!(arca.flops("forward"), forward + states);
        let dropout = work(&["lora.dropout=0.1"], &w, &[4, 2]);
        assert_eq!(dropout.total(), plain.total() + forward);
    }

    /// 16 prompts of 256 x 8 completions of 512 tokens: 69,632 tokens, of which
    /// the last of each completion goes through no layer.
    #[test]
    fn the_usual_batch_counts_a_prompt_once() {
        let w = Workload {
            prompts: 16,
            group_size: 8,
            prompt_length: 256,
            new_tokens: 512,
            ragged: false,
            adapted: true,
            repeats: 1,
        };
        let work = work(&[], &w, &[512; 128]);
        assert_eq!(work.rows, 69_632 - 128);
        assert_eq!(work.scored, 65_536);
    }
}
