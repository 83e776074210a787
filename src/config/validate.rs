//! The ranges and combinations a configuration must keep.

use std::fmt::Display;

use super::keys::check_name;
use super::*;
use crate::model::plan::parse_bytes;
use crate::reward::external;

/// Refuses `key = given` unless `ok`, saying what it must be.
fn require(ok: bool, key: &str, given: impl Display, must: &str) -> Result<(), UsageError> {
    if ok {
        return Ok(());
    }
    Err(UsageError::new(format!("{key} = {given}: {must}")))
}

/// The range keeps NaN out: every comparison with it is false.
fn require_in(
    range: impl std::ops::RangeBounds<f32>,
    key: &str,
    given: f32,
    must: &str,
) -> Result<(), UsageError> {
    require(
        given.is_finite() && range.contains(&given),
        key,
        given,
        must,
    )
}

impl Config {
    /// What holds for every verb. [`Config::load`] has called it.
    pub fn validate(&self) -> Result<(), UsageError> {
        self.data.validate()?;
        self.lora.validate()?;
        self.rollout.validate()?;
        self.reward.validate()?;
        self.advantage.validate()?;
        self.credit.validate()?;
        self.loss.validate()?;
        self.optimizer.validate()?;
        self.train.validate()?;
        require(
            self.eval.samples >= 1,
            "eval.samples",
            self.eval.samples,
            "must be 1 or more",
        )
    }

    /// What training needs beyond [`Config::validate`].
    pub fn validate_training(&self) -> Result<(), UsageError> {
        let rollout = &self.rollout;
        require(
            rollout.temperature > 0.0,
            "rollout.temperature",
            rollout.temperature,
            "must be above 0 to train: greedy completions of a group are all the same",
        )?;
        require(
            rollout.group_size >= 2,
            "rollout.group_size",
            rollout.group_size,
            "must be 2 or more to train: the baseline is the group's mean, so that the \
             advantage of a single completion is always 0",
        )?;
        self.require_whole_distribution()?;
        self.require_deviation()?;
        require(
            self.train.steps >= 1,
            "train.steps",
            self.train.steps,
            "must be 1 or more to train (`arca eval` measures without training)",
        )
    }

    /// Top-p, top-k and min-p make the sampler's distribution differ from the
    /// policy's, so that the gradient is biased.
    fn require_whole_distribution(&self) -> Result<(), UsageError> {
        let rollout = &self.rollout;
        if rollout.allow_truncated_sampling {
            return Ok(());
        }
        let must = "training would sample from a cut distribution while its log-probs come from \
                    the whole one, which biases the gradient; remove it, or accept that with \
                    rollout.allow_truncated_sampling = true";
        require(rollout.top_p >= 1.0, "rollout.top_p", rollout.top_p, must)?;
        require(rollout.top_k == 0, "rollout.top_k", rollout.top_k, must)?;
        require(rollout.min_p <= 0.0, "rollout.min_p", rollout.min_p, must)
    }

    fn require_deviation(&self) -> Result<(), UsageError> {
        let (group, prompts) = (self.rollout.group_size, self.train.prompts_per_step);
        let (count, of) = match self.advantage.scale {
            AdvantageScale::Group => (group, "group"),
            AdvantageScale::Batch => (group.saturating_mul(prompts), "batch"),
            AdvantageScale::None => return Ok(()),
        };
        require(
            self.advantage.ddof < count,
            "advantage.ddof",
            self.advantage.ddof,
            &format!("must be below the {count} completions of a {of}"),
        )
    }
}

impl DataConfig {
    fn validate(&self) -> Result<(), UsageError> {
        if !self.prompt_template.contains("{problem}") {
            check_name(
                "data.prompt_template",
                &self.prompt_template,
                &["plain", "chat"],
            )
            .map_err(|error| {
                UsageError::new(format!("{error}, or give a text with {{problem}} in it"))
            })?;
        }
        require(
            self.max_prompt_length >= 1,
            "data.max_prompt_length",
            self.max_prompt_length,
            "must be 1 or more",
        )
    }
}

impl LoraConfig {
    fn validate(&self) -> Result<(), UsageError> {
        require(self.r >= 1, "lora.r", self.r, "must be 1 or more")?;
        require_in(
            f32::MIN_POSITIVE..,
            "lora.alpha",
            self.alpha,
            "must be above 0",
        )?;
        require_in(
            0.0..1.0,
            "lora.dropout",
            self.dropout,
            "must be from 0 to below 1",
        )?;
        if self.target_modules.is_empty() {
            return Err(UsageError::new(
                "lora.target_modules is empty: name at least one module to adapt",
            ));
        }
        let all = LoraConfig::default().target_modules;
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        for (i, module) in self.target_modules.iter().enumerate() {
            check_name("lora.target_modules", module, &all)?;
            if self.target_modules[..i].contains(module) {
                return Err(UsageError::new(format!(
                    "lora.target_modules names `{module}` twice"
                )));
            }
        }
        Ok(())
    }
}

impl RolloutConfig {
    fn validate(&self) -> Result<(), UsageError> {
        require(
            self.group_size >= 1,
            "rollout.group_size",
            self.group_size,
            "must be 1 or more",
        )?;
        require_in(
            0.0..,
            "rollout.temperature",
            self.temperature,
            "must be 0 (greedy) or more",
        )?;
        require_in(
            f32::MIN_POSITIVE..=1.0,
            "rollout.top_p",
            self.top_p,
            "must be above 0 and at most 1",
        )?;
        require_in(
            0.0..1.0,
            "rollout.min_p",
            self.min_p,
            "must be from 0 to below 1",
        )?;
        require(
            self.max_completion_length >= 1,
            "rollout.max_completion_length",
            self.max_completion_length,
            "must be 1 or more",
        )?;
        require(
            self.stop.iter().all(|stop| !stop.is_empty()),
            "rollout.stop",
            "[.., \"\", ..]",
            "an empty stop string would end every completion at once",
        )?;
        match self.kv_memory.as_str() {
            "" => Ok(()),
            text => parse_bytes(text)
                .map(|_| ())
                .map_err(|e| UsageError::new(format!("rollout.kv_memory: {e}"))),
        }
    }
}

impl RewardConfig {
    /// The functions, and the external program unless it is one of them.
    fn count(&self) -> usize {
        let placed = self.functions.iter().any(|name| name == external::NAME);
        self.functions.len() + usize::from(!self.command.is_empty() && !placed)
    }

    fn validate(&self) -> Result<(), UsageError> {
        if self.functions.is_empty() && self.command.is_empty() {
            return Err(UsageError::new(
                "reward.functions is empty and reward.command is not set: nothing would be \
                 rewarded; reward.functions = [\"math\"] is the default",
            ));
        }
        let rewards = self.count();
        if !self.weights.is_empty() && self.weights.len() != rewards {
            return Err(UsageError::new(format!(
                "reward.weights has {} values for {rewards} rewards: give one weight per reward, \
                 or none for all 1",
                self.weights.len(),
            )));
        }
        for &weight in &self.weights {
            require_in(.., "reward.weights", weight, "must be a finite number")?;
        }
        Ok(())
    }
}

impl AdvantageConfig {
    fn validate(&self) -> Result<(), UsageError> {
        require(
            self.ddof <= 1,
            "advantage.ddof",
            self.ddof,
            "must be 0 (population) or 1 (unbiased)",
        )?;
        require_in(
            0.0..,
            "advantage.epsilon",
            self.epsilon,
            "must be 0 or more",
        )
    }
}

impl CreditConfig {
    /// The method's name is checked where the table of methods is.
    fn validate(&self) -> Result<(), UsageError> {
        require_in(
            f32::MIN_POSITIVE..,
            "credit.exponent",
            self.exponent,
            "must be above 0",
        )?;
        require_in(0.0.., "credit.epsilon", self.epsilon, "must be 0 or more")?;
        require_in(0.0..=1.0, "credit.mix", self.mix, "must be from 0 to 1")?;
        require_in(
            f32::MIN_POSITIVE..=1.0,
            "credit.quantile",
            self.quantile,
            "must be above 0 and at most 1",
        )?;
        let layer = self.hidden.strip_prefix("layer:");
        if layer.is_none_or(|index| index.parse::<usize>().is_err()) {
            check_name(
                "credit.hidden",
                &self.hidden,
                &["post-norm", "pre-norm", "layer:N"],
            )?;
            // The pattern itself, typed as it is written.
            require(
                layer.is_none(),
                "credit.hidden",
                &self.hidden,
                "N is a layer's number, counted from 0",
            )?;
        }
        Ok(())
    }
}

impl LossConfig {
    fn validate(&self) -> Result<(), UsageError> {
        require_in(0.0.., "loss.epsilon", self.epsilon, "must be 0 or more")?;
        if let Some(high) = self.epsilon_high {
            require_in(0.0.., "loss.epsilon_high", high, "must be 0 or more")?;
        }
        if let Some(delta) = self.delta {
            require_in(
                f32::MIN_POSITIVE..,
                "loss.delta",
                delta,
                "must be above 0 (above 1 + loss.epsilon to leave the usual clip as it is)",
            )?;
        }
        require_in(0.0.., "loss.beta", self.beta, "must be 0 or more")?;
        require_in(
            f32::MIN_POSITIVE..,
            "loss.sampler_correction_cap",
            self.sampler_correction_cap,
            "must be above 0",
        )?;
        require(
            self.inner_iterations >= 1,
            "loss.inner_iterations",
            self.inner_iterations,
            "must be 1 or more",
        )?;
        require(
            self.gradient_accumulation >= 1,
            "loss.gradient_accumulation",
            self.gradient_accumulation,
            "must be 1 or more",
        )
    }
}

impl OptimizerConfig {
    fn validate(&self) -> Result<(), UsageError> {
        require_in(
            0.0..,
            "optimizer.learning_rate",
            self.learning_rate,
            "must be 0 or more",
        )?;
        require_in(
            0.0..,
            "optimizer.weight_decay",
            self.weight_decay,
            "must be 0 or more",
        )?;
        for (key, beta) in [
            ("optimizer.beta1", self.beta1),
            ("optimizer.beta2", self.beta2),
        ] {
            require_in(0.0..1.0, key, beta, "must be from 0 to below 1")?;
        }
        require_in(
            f32::MIN_POSITIVE..,
            "optimizer.epsilon",
            self.epsilon,
            "must be above 0",
        )?;
        require_in(
            0.0..,
            "optimizer.max_grad_norm",
            self.max_grad_norm,
            "must be 0 (no clipping) or more",
        )
    }
}

impl TrainConfig {
    fn validate(&self) -> Result<(), UsageError> {
        check_name(
            "train.device",
            &self.device,
            &["auto", "cpu", "cuda", "emulator"],
        )?;
        require(
            self.prompts_per_step >= 1,
            "train.prompts_per_step",
            self.prompts_per_step,
            "must be 1 or more",
        )?;
        require(
            self.tokens_per_batch >= 1,
            "train.tokens_per_batch",
            self.tokens_per_batch,
            "must be 1 or more",
        )?;
        require(
            i64::try_from(self.seed).is_ok(),
            "train.seed",
            self.seed,
            "must be below 2^63, the largest whole number of TOML",
        )?;
        require_in(
            f32::MIN_POSITIVE..,
            "train.logprob_difference_limit",
            self.logprob_difference_limit,
            "must be above 0",
        )
    }
}
