//! The keys: one table per stage of the pipeline, with their defaults.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::reward::{Fallback, Grader};

/// The whole configuration, one table per stage. Every key has a default, and
/// the defaults train the bundled demo.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub model: ModelConfig,
    pub data: DataConfig,
    pub lora: LoraConfig,
    pub reference: ReferenceConfig,
    pub rollout: RolloutConfig,
    pub reward: RewardConfig,
    pub advantage: AdvantageConfig,
    pub credit: CreditConfig,
    pub loss: LossConfig,
    pub optimizer: OptimizerConfig,
    pub train: TrainConfig,
    pub eval: EvalConfig,
    pub log: LogConfig,
}

/// What activations are computed in; statistics and the adapter stay f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ComputeDtype {
    F32,
    Bf16,
}

/// The base model, which training leaves as it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
    /// A Hugging Face model folder, or a hub id found in the local cache.
    /// Empty: the bundled demo model.
    pub path: String,
    /// Absent: f32 on the CPU, bf16 on CUDA.
    pub compute_dtype: Option<ComputeDtype>,
}

/// Where the problems come from and how they become prompts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// JSONL (also .gz) or a folder tree of JSON in MATH's layout. Empty: the demo's.
    pub train: String,
    /// Held-out problems, in the same formats. Empty: the demo's.
    pub eval: String,
    /// `plain`, `chat`, or text with `{problem}`.
    pub prompt_template: String,
    /// Handed to the chat template; absent: the template's own default.
    pub enable_thinking: Option<bool>,
    /// Longer prompts are refused by name of the row (tokens).
    pub max_prompt_length: usize,
    /// Keep rows whose solution boxes several different answers: their gold
    /// is perhaps only part of the answer.
    pub keep_partial_golds: bool,
}

impl Default for DataConfig {
    fn default() -> Self {
        DataConfig {
            train: String::new(),
            eval: String::new(),
            prompt_template: "plain".into(),
            enable_thinking: None,
            max_prompt_length: 512,
            keep_partial_golds: false,
        }
    }
}

/// The trained adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    /// Rank.
    pub r: usize,
    /// The adapter is scaled by alpha / r.
    pub alpha: f32,
    /// Probability of dropping an element of the adapter's input in training.
    pub dropout: f32,
    /// Short names: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj.
    pub target_modules: Vec<String>,
    /// Scale by alpha / sqrt(r) instead.
    pub use_rslora: bool,
    /// Start from this PEFT adapter folder (its rank and scale win).
    pub init_from: Option<PathBuf>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        LoraConfig {
            r: 16,
            alpha: 32.0,
            dropout: 0.0,
            target_modules: [
                "q_proj",
                "k_proj",
                "v_proj",
                "o_proj",
                "gate_proj",
                "up_proj",
                "down_proj",
            ]
            .map(String::from)
            .to_vec(),
            use_rslora: false,
            init_from: None,
        }
    }
}

/// What KL and ARCA's "adapter off" compare against.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReferenceConfig {
    /// A PEFT adapter folder; absent: the base model.
    pub adapter: Option<PathBuf>,
}

/// How completions are sampled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RolloutConfig {
    /// Completions per prompt.
    pub group_size: usize,
    /// 0: greedy (not in training).
    pub temperature: f32,
    /// Smallest set of tokens of at least this probability; 1 = all.
    pub top_p: f32,
    /// The so many likeliest tokens; 0 = all.
    pub top_k: usize,
    /// Tokens at least this fraction as likely as the likeliest; 0 = all.
    pub min_p: f32,
    /// Longest completion (tokens).
    pub max_completion_length: usize,
    /// Stop strings beside the model's stop ids.
    pub stop: Vec<String>,
    /// Train although top_p / top_k / min_p make the sampler's distribution
    /// differ from the policy's.
    pub allow_truncated_sampling: bool,
    /// Completions cut by length get no gradient.
    pub mask_truncated: bool,
    /// Most extra rounds of sampling that replace groups whose rewards are all
    /// equal (0 = off).
    pub refill_zero_variance: usize,
    /// Memory for keys and values, such as `4G`; samples wait or step back where
    /// it is short. Empty: what all samples side by side may need.
    pub kv_memory: String,
}

impl Default for RolloutConfig {
    fn default() -> Self {
        RolloutConfig {
            group_size: 8,
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            max_completion_length: 512,
            stop: Vec::new(),
            allow_truncated_sampling: false,
            mask_truncated: false,
            refill_zero_variance: 0,
            kv_memory: String::new(),
        }
    }
}

/// What a completion earns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RewardConfig {
    /// math, format, length; `external` places `command` among them.
    pub functions: Vec<String>,
    /// One per reward; empty: all 1.
    pub weights: Vec<f32>,
    /// An external reward: program and arguments (JSONL in, JSONL out). It
    /// comes last where `functions` does not place it.
    pub command: Vec<String>,
    /// Pay doubtful answers too, as `docs/reward.md` lists them.
    pub lenient: bool,
    /// Where the answer of a completion without a box may stand.
    pub fallback: Fallback,
}

impl RewardConfig {
    /// The checker these settings ask for.
    pub fn grader(&self) -> Grader {
        Grader {
            lenient: self.lenient,
            fallback: self.fallback,
        }
    }
}

impl Default for RewardConfig {
    fn default() -> Self {
        RewardConfig {
            functions: vec!["math".into()],
            weights: Vec::new(),
            command: Vec::new(),
            lenient: false,
            fallback: Fallback::None,
        }
    }
}

/// What the centred rewards are divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdvantageScale {
    /// The standard deviation of the prompt's own group.
    Group,
    /// The standard deviation over the whole batch.
    Batch,
    /// Nothing (Dr. GRPO).
    None,
}

/// What is subtracted from a reward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Baseline {
    /// The group's mean.
    Mean,
    /// The mean of the group's other completions (RLOO).
    LeaveOneOut,
}

/// From the rewards of a group to one advantage per completion.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdvantageConfig {
    /// What the centred rewards are divided by.
    pub scale: AdvantageScale,
    /// What is subtracted from a reward.
    pub baseline: Baseline,
    /// Delta degrees of freedom of the standard deviation: 1 unbiased, 0 population.
    pub ddof: usize,
    /// Added to the standard deviation.
    pub epsilon: f32,
}

impl Default for AdvantageConfig {
    fn default() -> Self {
        AdvantageConfig {
            scale: AdvantageScale::Group,
            baseline: Baseline::Mean,
            ddof: 1,
            epsilon: 1e-4,
        }
    }
}

/// How a completion's advantage is spread over its tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CreditConfig {
    /// A name of the table in `docs/credit.md`.
    pub method: String,
    /// Scores are raised to this power: 1 is the paper's formula, 2 what its runs did.
    pub exponent: f32,
    /// Added to every score before they are normalised.
    pub epsilon: f32,
    /// `post-norm`, `pre-norm`, or `layer:N` (the residual stream after layer N, from 0).
    pub hidden: String,
    /// lambda of lambda * uniform + (1 - lambda) * method.
    pub mix: f32,
    /// Share of tokens that entropy_quantile keeps.
    pub quantile: f32,
    /// What stands in the problem's place in contrast's other prompt.
    pub contrast_prompt: String,
    /// Steps of uniform credit at the start.
    pub warmup_steps: usize,
    /// Every so many steps all rows are scored for the diagnostics (0 = never).
    pub probe_every: usize,
}

impl Default for CreditConfig {
    fn default() -> Self {
        CreditConfig {
            method: "uniform".into(),
            exponent: 1.0,
            epsilon: 1e-8,
            hidden: "post-norm".into(),
            mix: 0.0,
            quantile: 0.2,
            contrast_prompt: String::new(),
            warmup_steps: 0,
            probe_every: 10,
        }
    }
}

/// How per-token losses add up, named as in TRL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossType {
    /// Mean over each completion, then over completions.
    Grpo,
    /// Mean over the tokens of the micro-step.
    Bnpo,
    /// Sum over tokens, divided by completions times `max_completion_length`.
    DrGrpo,
    /// Mean over the tokens of the whole batch.
    Dapo,
    /// Clipped, detached ratio times log-prob; aggregated as `dapo`.
    Cispo,
}

/// Where the importance ratio is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RatioLevel {
    Token,
    /// The geometric mean over the completion (GSPO).
    Sequence,
}

/// What is done about a sampler whose log-probs differ from the trainer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SamplerCorrection {
    None,
    /// Weigh by the ratio trainer / sampler, capped.
    Truncate,
    /// Drop what lies beyond the cap.
    Mask,
}

/// From advantages to per-token coefficients.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LossConfig {
    /// `loss.type`.
    #[serde(rename = "type")]
    pub loss_type: LossType,
    /// The ratio is clipped below 1 - epsilon.
    pub epsilon: f32,
    /// Absent: `epsilon` (for cispo: an absolute cap on the ratio).
    pub epsilon_high: Option<f32>,
    /// Two-sided clip: an upper bound of the ratio for negative advantages.
    pub delta: Option<f32>,
    /// Weight of the k3 KL against the reference.
    pub beta: f32,
    /// Multiply the KL by the importance ratio.
    pub bias_correction_kl: bool,
    /// Where the importance ratio is taken.
    pub importance_sampling_level: RatioLevel,
    /// What is done where sampler and trainer disagree.
    pub sampler_correction: SamplerCorrection,
    /// Cap of the sampler correction's ratio.
    pub sampler_correction_cap: f32,
    /// Optimizer steps on each rollout batch.
    pub inner_iterations: usize,
    /// Semantic accumulation: micro-steps whose losses are averaged into one
    /// optimizer step (TRL's meaning; not the physical split).
    pub gradient_accumulation: usize,
}

impl Default for LossConfig {
    fn default() -> Self {
        LossConfig {
            loss_type: LossType::Grpo,
            epsilon: 0.2,
            epsilon_high: None,
            delta: None,
            beta: 0.0,
            bias_correction_kl: true,
            importance_sampling_level: RatioLevel::Token,
            sampler_correction: SamplerCorrection::None,
            sampler_correction_cap: 3.0,
            inner_iterations: 1,
            gradient_accumulation: 1,
        }
    }
}

/// The learning rate after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    Constant,
    /// Half a cosine down to 0 at the last step.
    Cosine,
    /// A straight line down to 0 at the last step.
    Linear,
}

/// AdamW over the adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerConfig {
    /// The peak, reached after the warm-up.
    pub learning_rate: f32,
    /// The learning rate after the warm-up.
    pub schedule: Schedule,
    /// Steps of linear warm-up.
    pub warmup_steps: usize,
    /// Decoupled weight decay.
    pub weight_decay: f32,
    /// Decay of the gradient's running mean.
    pub beta1: f32,
    /// Decay of the squared gradient's running mean.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// Global norm; 0 = no clipping.
    pub max_grad_norm: f32,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        OptimizerConfig {
            learning_rate: 1e-5,
            schedule: Schedule::Constant,
            warmup_steps: 0,
            weight_decay: 0.0,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            max_grad_norm: 1.0,
        }
    }
}

/// When a backward keeps each layer's input alone and computes the rest again.
/// It changes no bit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GradientCheckpointing {
    /// Where a step's activations would not fit otherwise.
    #[default]
    Auto,
    Always,
    Never,
}

/// The run as a whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Rollout batches of the run.
    pub steps: usize,
    /// Problems per rollout batch.
    pub prompts_per_step: usize,
    /// Key of every random number of the run.
    pub seed: u64,
    /// auto, cpu, cuda, emulator.
    pub device: String,
    /// Most rows of one packed batch: a physical limit, never part of the meaning.
    pub tokens_per_batch: usize,
    /// Whether layers are computed again for their backward, to save memory.
    pub gradient_checkpointing: GradientCheckpointing,
    /// Held-out evaluation every so many steps (0 = only before and after).
    pub eval_every: usize,
    /// Checkpoint every so many steps (0 = only at the end).
    pub save_every: usize,
    /// Largest mean |sampler log-prob - trainer log-prob| of a step; beyond it
    /// the run stops.
    pub logprob_difference_limit: f32,
}

impl Default for TrainConfig {
    fn default() -> Self {
        TrainConfig {
            steps: 100,
            prompts_per_step: 16,
            seed: 0,
            device: "auto".into(),
            tokens_per_batch: 8192,
            gradient_checkpointing: GradientCheckpointing::Auto,
            eval_every: 0,
            save_every: 0,
            logprob_difference_limit: 0.05,
        }
    }
}

/// Held-out evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvalConfig {
    /// Sampled completions per held-out problem.
    pub samples: usize,
    /// First so many problems of `data.eval` (0 = all).
    pub limit: usize,
}

impl Default for EvalConfig {
    fn default() -> Self {
        EvalConfig {
            samples: 4,
            limit: 0,
        }
    }
}

/// What is written beside `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// Per-token ids, log-probs, entropies, residuals and weights in `completions/`.
    pub token_traces: bool,
    /// Event files for TensorBoard.
    pub tensorboard: bool,
}

impl Default for LogConfig {
    fn default() -> Self {
        LogConfig {
            token_traces: false,
            tensorboard: true,
        }
    }
}
