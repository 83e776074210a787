//! The command line as it is typed: one struct per verb.

use std::path::PathBuf;

use crate::model::plan::parse_bytes;
use crate::profile::steps::StepRange;
use crate::reward::Fallback;
use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};

const AFTER_HELP: &str = "\
Examples:
  arca train                                      train the bundled demo
  arca train --config math.toml --set credit.method=arca --run runs/arca
  arca train --run runs/arca --resume             continue after an interruption
  arca sweep --config presets/demo.toml           train 16 adapters side by side, and compare them
  arca eval --model Qwen/Qwen3-0.6B --adapter runs/arca/adapter --data test.jsonl
  arca inspect --model Qwen/Qwen3-0.6B --adapter runs/arca/adapter --input rows.jsonl --method arca
  arca report runs/uniform runs/arca --out report.html
  arca plan --config math.toml                    would it fit?

A model is a folder in Hugging Face layout, or a hub id that lies in the local cache.
Exit codes: 0 done, 1 failed, 2 bad usage or config, 130 interrupted after a clean save.";

/// Reinforcement learning with LoRA on Qwen3 models, with token-level credit assignment
#[derive(Debug, Parser)]
#[command(name = "arca", version, after_help = AFTER_HELP)]
#[command(subcommand_value_name = "VERB", subcommand_help_heading = "Verbs")]
pub struct Cli {
    #[command(subcommand)]
    pub verb: Verb,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Train an adapter (without a model: the bundled demo)
    Train(TrainArgs),
    /// Train many adapters side by side, and compare them
    Sweep(SweepArgs),
    /// Measure the base model and adapters on held-out problems
    Eval(EvalArgs),
    /// Complete prompts
    Generate(GenerateArgs),
    /// Show each token's log-prob, entropy, residual and credit
    Inspect(InspectArgs),
    /// Gradients and one optimizer step for given episodes
    Replay(ReplayArgs),
    /// Judge answers against gold answers
    Grade(GradeArgs),
    /// One HTML file and figures on runs and sweeps
    Report(ReportArgs),
    /// What a run would need in memory
    Plan(PlanArgs),
    /// Measure the speed of a part of a run
    Bench(BenchArgs),
    /// Write a randomly initialised Qwen3 checkpoint
    InitModel(InitModelArgs),
}

/// Where to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DeviceName {
    /// CUDA where there is a usable GPU, else the CPU
    Auto,
    Cpu,
    Cuda,
    /// The CUDA kernels run on the CPU (builds with --features emulator)
    Emulator,
}

/// How the configuration is put together; common to all verbs that take one.
#[derive(Debug, Args)]
#[command(next_help_heading = "Configuration")]
pub struct ConfigArgs {
    /// Configuration in TOML
    #[arg(long, value_name = "FILE.toml")]
    pub config: Option<PathBuf>,
    /// Override one key, as in optimizer.learning_rate=1e-5 (repeatable)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// auto, cpu, cuda or emulator [config: train.device]
    #[arg(long, value_enum, hide_possible_values = true, value_name = "NAME")]
    pub device: Option<DeviceName>,
    /// Print results, warnings and errors only
    #[arg(long, short)]
    pub quiet: bool,
}

/// [`ConfigArgs`] of a verb that reads a run rather than writing one.
#[derive(Debug, Args)]
#[command(next_help_heading = "Configuration")]
pub struct ReadConfigArgs {
    #[command(flatten)]
    pub common: ConfigArgs,
    /// Take the configuration of this run folder, unless --config is given
    #[arg(long, value_name = "DIR")]
    pub run: Option<PathBuf>,
}

/// How completions are drawn.
#[derive(Debug, Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Sampling temperature, 0 is greedy [config: rollout.temperature]
    #[arg(long, value_name = "T")]
    pub temperature: Option<f32>,
    /// The likeliest token each time; the same as --temperature 0
    #[arg(long, conflicts_with = "temperature")]
    pub greedy: bool,
    /// Smallest set of tokens of at least this probability [config: rollout.top_p]
    #[arg(long, value_name = "P")]
    pub top_p: Option<f32>,
    /// The K likeliest tokens, 0 is all [config: rollout.top_k]
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Tokens at least this fraction as likely as the likeliest [config: rollout.min_p]
    #[arg(long, value_name = "P")]
    pub min_p: Option<f32>,
    /// Longest completion in tokens [config: rollout.max_completion_length]
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<usize>,
    /// Key of the random numbers [config: train.seed]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

/// `arca train`
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// Base model: a folder or a cached hub id [config: model.path]
    #[arg(long, value_name = "MODEL")]
    pub model: Option<String>,
    /// Key of the random numbers [config: train.seed]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Folder to write [default: runs/<time>-<credit method>-<seed>]
    #[arg(long, value_name = "DIR")]
    pub run: Option<PathBuf>,
    /// Continue the run in --run from its latest checkpoint
    #[arg(long, requires = "run")]
    pub resume: bool,
    /// Profile these steps, as in 3:5: a table by op and trace.json in the run folder, and the
    /// vendor's profiler told (cudaProfilerStart and Stop)
    #[arg(long, value_name = "A:B")]
    pub profile_steps: Option<StepRange>,
    #[command(flatten)]
    pub common: ConfigArgs,
}

/// `arca sweep`
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("arms").required(true).args(["config", "resume"])))]
pub struct SweepArgs {
    /// Folder to write [default: runs/<time>-sweep]
    #[arg(long, value_name = "DIR")]
    pub run: Option<PathBuf>,
    /// Continue the sweep in --run from its arms' latest checkpoints
    #[arg(long, requires = "run")]
    pub resume: bool,
    #[command(flatten)]
    pub common: ConfigArgs,
}

/// `arca eval`
#[derive(Debug, Args)]
pub struct EvalArgs {
    /// Base model: a folder or a cached hub id [config: model.path]
    #[arg(long, value_name = "MODEL")]
    pub model: Option<String>,
    /// PEFT adapter folders to measure beside the base model
    #[arg(long, value_name = "DIR", num_args = 1..)]
    pub adapter: Vec<PathBuf>,
    /// Problems: JSONL (also .gz) or a folder in MATH's layout [config: data.eval]
    #[arg(long, value_name = "FILE")]
    pub data: Option<String>,
    /// Sampled completions per problem [config: eval.samples]
    #[arg(long, value_name = "K")]
    pub samples: Option<usize>,
    /// Only the first N problems, 0 is all [config: eval.limit]
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Write the rows as JSON (- is standard output)
    #[arg(long, value_name = "OUT")]
    pub json: Option<PathBuf>,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub config: ReadConfigArgs,
}

/// `arca generate`
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("prompts").required(true).args(["prompt", "input"])))]
pub struct GenerateArgs {
    /// Base model: a folder or a cached hub id [config: model.path]
    #[arg(long, value_name = "MODEL")]
    pub model: Option<String>,
    /// PEFT adapter folder
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// The prompt, taken as it is: no template is applied
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// Rows with `id` and `prompt` or `prompt_ids` (- is standard input)
    #[arg(long, value_name = "FILE.jsonl")]
    pub input: Option<PathBuf>,
    /// Completions per prompt
    #[arg(long, value_name = "K", default_value_t = 1)]
    pub samples: usize,
    /// Write one JSON object per completion (- is standard output)
    #[arg(long, value_name = "OUT")]
    pub json: Option<PathBuf>,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub config: ReadConfigArgs,
}

/// `arca inspect`
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Base model: a folder or a cached hub id [config: model.path]
    #[arg(long, value_name = "MODEL")]
    pub model: Option<String>,
    /// PEFT adapter folder
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Rows with `prompt` and `completion`, or `prompt_ids` and `completion_ids`
    #[arg(long, value_name = "FILE.jsonl")]
    pub input: PathBuf,
    /// Credit methods to show, or all [default: credit.method]
    #[arg(long, value_name = "NAME", num_args = 1.., value_delimiter = ',')]
    pub method: Vec<String>,
    /// Temperature of the log-probs [config: rollout.temperature]
    #[arg(long, value_name = "T")]
    pub temperature: Option<f32>,
    /// State the residual is taken of: post-norm, pre-norm or layer:N [config: credit.hidden]
    #[arg(long, value_name = "STATE")]
    pub hidden: Option<String>,
    /// Power of the scores [config: credit.exponent]
    #[arg(long, value_name = "P")]
    pub exponent: Option<f32>,
    /// Write one JSON object per row (- is standard output)
    #[arg(long, value_name = "OUT.jsonl")]
    pub json: Option<PathBuf>,
    /// Write one page with a heat map per method
    #[arg(long, value_name = "OUT.html")]
    pub html: Option<PathBuf>,
    /// Also show the numbers, one line per token
    #[arg(long, conflicts_with_all = ["json", "html"])]
    pub table: bool,
    #[command(flatten)]
    pub config: ReadConfigArgs,
}

/// `arca replay`
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// Base model: a folder or a cached hub id [config: model.path]
    #[arg(long, value_name = "MODEL")]
    pub model: Option<String>,
    /// PEFT adapter folder to start from
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Rows with `group`, `prompt_ids`, `completion_ids`, and `reward`, `advantage` or `advantages`
    #[arg(long, value_name = "FILE.jsonl")]
    pub episodes: PathBuf,
    /// Optimizer state to start from [default: zero]
    #[arg(long, value_name = "FILE")]
    pub optimizer_state: Option<PathBuf>,
    /// Folder for gradients.safetensors, adapter/, optimizer.safetensors and stats.json
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    #[command(flatten)]
    pub config: ReadConfigArgs,
}

/// Where the answer of a completion without any box may stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum FallbackName {
    /// Nowhere
    #[default]
    None,
    /// After the last "the answer is" or ####
    Phrase,
    /// There, else the last number
    Number,
}

impl From<FallbackName> for Fallback {
    fn from(name: FallbackName) -> Self {
        match name {
            FallbackName::None => Fallback::None,
            FallbackName::Phrase => Fallback::Phrase,
            FallbackName::Number => Fallback::Number,
        }
    }
}

/// `arca grade`
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("answers").required(true).args(["answer", "file"])))]
pub struct GradeArgs {
    /// The right answer
    #[arg(long, value_name = "A", requires = "answer", conflicts_with = "file")]
    #[arg(allow_hyphen_values = true)]
    pub gold: Option<String>,
    /// The answer to judge
    #[arg(long, value_name = "B", requires = "gold", allow_hyphen_values = true)]
    pub answer: Option<String>,
    /// Rows with `gold` and `answer`, `completion` or `pred`, which its `kind` says to be an "answer"
    /// or "response"; `group` and the label `equal` count in the table (- is standard input)
    #[arg(value_name = "FILE.jsonl")]
    pub file: Option<PathBuf>,
    /// Pay doubtful answers too, as reward.lenient does
    #[arg(long)]
    pub lenient: bool,
    /// Where a completion's answer may stand when nothing is boxed: none, phrase (after "the
    /// answer is" or ####) or number (there, else the last one), as reward.fallback does
    #[arg(long, value_enum, hide_possible_values = true, value_name = "NAME")]
    #[arg(default_value_t)]
    pub fallback: FallbackName,
    /// Show the rows whose verdict is not as labelled
    #[arg(long, conflicts_with = "answer")]
    pub disagreements: bool,
}

/// `arca report`
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Run folders and sweep folders; a sweep stands for its arms
    #[arg(value_name = "RUN", required = true)]
    pub runs: Vec<PathBuf>,
    /// File to write; one that is there is overwritten only if it is named [default: report.html]
    #[arg(long, value_name = "FILE.html")]
    pub out: Option<PathBuf>,
    /// Write the study down in Markdown too: tables, and what they allow one to say
    #[arg(long, value_name = "FILE.md")]
    pub markdown: Option<PathBuf>,
    /// Folder for the figures as SVG and PNG [default: the file's name with -figures]
    #[arg(long, value_name = "DIR")]
    pub figures: Option<PathBuf>,
}

/// `arca plan`
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// Base model: a folder or a cached hub id [config: model.path]
    #[arg(long, value_name = "MODEL")]
    pub model: Option<String>,
    /// Memory to plan for, as in 80G [default: what the device has free]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub memory: Option<u64>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub config: ReadConfigArgs,
}

/// What `arca bench` measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BenchKind {
    /// Each kernel alone
    Kernels,
    /// Sampling of one batch of completions
    Rollout,
    /// Gradients and one optimizer step
    Update,
    /// A whole training step
    Step,
    /// Tokens one by one at a fixed batch
    Decode,
    /// Rollouts of a sweep's arms, decoded together and one after another
    Sweep,
}

/// Model shapes that benches know without a model folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BenchShape {
    /// The bundled demo
    Demo,
    #[value(name = "5m")]
    M5,
    #[value(name = "100m")]
    M100,
    #[value(name = "0.6b")]
    Qwen0_6b,
    #[value(name = "1.7b")]
    Qwen1_7b,
    #[value(name = "4b")]
    Qwen4b,
}

/// What `arca bench rollout` samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum RolloutWorkload {
    /// A GRPO step's
    #[default]
    Grpo,
    /// That of other engines' offline benchmarks
    Offline,
}

/// `arca bench`
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// kernels, rollout, update, step, decode or sweep
    #[arg(value_enum, hide_possible_values = true, value_name = "KIND")]
    pub kind: BenchKind,
    /// Base model: a folder or a cached hub id [config: model.path]
    #[arg(long, value_name = "MODEL")]
    pub model: Option<String>,
    /// End with one line that is a JSON object
    #[arg(long)]
    pub json: bool,
    /// Sequences side by side: the same as --prompts
    #[arg(long, value_name = "N", conflicts_with = "prompts")]
    pub batch: Option<usize>,
    /// Prompts of random tokens [default: decode 1, sweep 4 for each arm, rollout offline 256, else 8;
    /// update 16, on a CPU without a model folder 8, of large shapes 2]
    #[arg(long, value_name = "N")]
    pub prompts: Option<usize>,
    /// Sweep: adapters that sample side by side
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub arms: usize,
    /// Completions per prompt [default: 8; decode, and update of a model folder, 1]
    #[arg(long, value_name = "K")]
    pub group_size: Option<usize>,
    /// Tokens of a prompt [default: decode 32, rollout offline 100 to 1024, else 64; update on a
    /// GPU 256, of a model folder 1]
    #[arg(long, value_name = "N")]
    pub prompt_length: Option<usize>,
    /// Tokens of a completion, in rollout of the longest [default: rollout 256 or offline 1024,
    /// else 64; update on a GPU 512, of a model folder 128]
    #[arg(long, value_name = "N")]
    pub new_tokens: Option<usize>,
    /// Update: completions of seeded lengths from 8; of a model folder 8 prompts of 64 tokens x 8
    #[arg(long)]
    pub ragged: bool,
    /// Timed runs, after one that is not [default: 5, rollout's offline workload 1]
    #[arg(long, value_name = "N")]
    pub repeats: Option<usize>,
    /// Rollout: grpo (prompts with groups of completions of log-normal lengths) or offline (256
    /// sequences of 100 to 1,024 tokens after as many, that of nano-vllm and mini-sglang)
    #[arg(long, value_enum, hide_possible_values = true, value_name = "NAME")]
    #[arg(default_value_t)]
    pub workload: RolloutWorkload,
    /// Rollout: run after run for so long, and say whether memory grew
    #[arg(long, value_name = "S", conflicts_with = "repeats")]
    pub seconds: Option<u64>,
    /// Kernels and update: demo, 5m, 100m, 0.6b, 1.7b or 4b, with random weights; kernels take
    /// several [default: kernels the last three on a GPU, else demo; update 1.7b on a GPU, else 5m]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "SHAPES")]
    #[arg(hide_possible_values = true, conflicts_with = "model")]
    pub shape: Vec<BenchShape>,
    /// Kernels: packed rows of one call [default: 8192 on a GPU, else 64]
    #[arg(long, value_name = "N")]
    pub rows: Option<usize>,
    /// Rank of the adapter; decode has none without it [config: lora.r]
    #[arg(long, value_name = "R")]
    pub lora_r: Option<usize>,
    /// Update: profile these of the timed runs, as in 2:3: a table by op, a trace, and the vendor's
    /// profiler told
    #[arg(long, value_name = "A:B")]
    pub profile_steps: Option<StepRange>,
    /// Where the trace of --profile-steps goes
    #[arg(long, value_name = "FILE.json", default_value = "trace.json")]
    #[arg(requires = "profile_steps")]
    pub out: PathBuf,
    #[command(flatten)]
    pub config: ReadConfigArgs,
}

/// Dtype of written weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WeightDtype {
    Bf16,
    F32,
}

/// `arca init-model`
#[derive(Debug, Args)]
pub struct InitModelArgs {
    /// A model's config.json, or a folder that holds one
    #[arg(long, value_name = "FILE_OR_DIR")]
    pub config_from: PathBuf,
    /// Folder to write
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Key of the random numbers
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Dtype of the weights
    #[arg(long, value_enum, default_value_t = WeightDtype::Bf16)]
    pub dtype: WeightDtype,
}
