//! What a token's loss is divided by: sizes of whole micro-steps, never of the
//! packed batches that a step is cut into to fit memory.

use anyhow::{Result, ensure};

use crate::config::LossConfig;

/// How per-token losses become one number (TRL 1.16.0; m the loss mask, B and
/// the sums those of one micro-step, GA = gradient accumulation).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aggregation {
    /// (1/B) sum_i [sum_t m L / n_i] / GA. `grpo`, `sapo`.
    SequenceMean,
    /// sum m L / sum m / GA. `bnpo`.
    TokenMean,
    /// sum m L / (B * max_completion_length) / GA. `dr_grpo`.
    FixedLength,
    /// sum m L / (N * GA / steps_per_generation), N = sum m over the whole
    /// generation batch. `dapo`, `cispo`.
    GenerationTokens,
}

/// The sizes one sequence's loss is divided by. All are totals over the
/// micro-step (or generation batch) the sequence belongs to, wherever it is
/// computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Normalizer {
    /// B: sequences of the micro-step, those without loss included.
    pub sequences: usize,
    /// sum m: loss-bearing tokens of the micro-step.
    pub tokens: usize,
    /// N: loss-bearing tokens of the generation batch.
    pub generation_tokens: usize,
    /// `rollout.max_completion_length`.
    pub max_completion_length: usize,
    /// GA: micro-steps of one optimizer step.
    pub gradient_accumulation: usize,
    /// Micro-steps that the generation batch is spread over.
    pub steps_per_generation: usize,
}

impl Normalizer {
    /// The factor of each token's loss in a sequence of `tokens` loss-bearing
    /// tokens. Divisors below 1 count as 1, as in TRL.
    pub fn token_weight(&self, aggregation: Aggregation, tokens: usize) -> f64 {
        let at_least_one = |n: usize| n.max(1) as f64;
        let accumulation = at_least_one(self.gradient_accumulation);
        let divisor = match aggregation {
            Aggregation::SequenceMean => {
                at_least_one(self.sequences) * at_least_one(tokens) * accumulation
            }
            Aggregation::TokenMean => at_least_one(self.tokens) * accumulation,
            Aggregation::FixedLength => {
                at_least_one(self.sequences)
                    * at_least_one(self.max_completion_length)
                    * accumulation
            }
            Aggregation::GenerationTokens => {
                at_least_one(self.generation_tokens) * accumulation
                    / at_least_one(self.steps_per_generation)
            }
        };
        1.0 / divisor
    }
}

/// The normalizers of one optimizer step: its sequences, in canonical order,
/// cut into `loss.gradient_accumulation` micro-steps of equal count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepNormalizers {
    micro_steps: Vec<Normalizer>,
    sequences_per_micro_step: usize,
}

impl StepNormalizers {
    /// `loss_tokens[i]`: loss-bearing tokens of sequence i of the step, 0 for
    /// one whose loss is masked. Sequences that need no forward (zero
    /// advantage, no KL) are listed too: they stay in B and N.
    ///
    /// Every optimizer step uses its whole rollout batch, so TRL's
    /// steps_per_generation equals the gradient accumulation here.
    pub fn new(
        loss_tokens: &[usize],
        config: &LossConfig,
        max_completion_length: usize,
    ) -> Result<Self> {
        let accumulation = config.gradient_accumulation;
        let sequences = loss_tokens.len();
        ensure!(
            accumulation > 0,
            "loss.gradient_accumulation must be at least 1"
        );
        ensure!(
            sequences > 0 && sequences.is_multiple_of(accumulation),
            "loss.gradient_accumulation is {accumulation}: it must divide the {sequences} sequences of a step"
        );
        let generation_tokens = loss_tokens.iter().sum();
        let sequences_per_micro_step = sequences / accumulation;
        let micro_steps = loss_tokens
            .chunks(sequences_per_micro_step)
            .map(|chunk| Normalizer {
                sequences: chunk.len(),
                tokens: chunk.iter().sum(),
                generation_tokens,
                max_completion_length,
                gradient_accumulation: accumulation,
                steps_per_generation: accumulation,
            })
            .collect();
        Ok(StepNormalizers {
            micro_steps,
            sequences_per_micro_step,
        })
    }

    /// The normalizer of the micro-step that holds `sequence` (canonical
    /// index within the step); `None` beyond the step.
    pub fn of(&self, sequence: usize) -> Option<&Normalizer> {
        self.micro_steps
            .get(sequence / self.sequences_per_micro_step)
    }

    /// One per micro-step, in order.
    pub fn micro_steps(&self) -> &[Normalizer] {
        &self.micro_steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn micro_steps_have_their_own_sizes() {
        let config = LossConfig {
            gradient_accumulation: 2,
            ..LossConfig::default()
        };
        let step = StepNormalizers::new(&[3, 0, 5, 7], &config, 16).unwrap();
        let [first, second] = step.micro_steps() else {
            panic!("two micro-steps");
        };
        assert_eq!((first.sequences, first.tokens), (2, 3));
        assert_eq!((second.sequences, second.tokens), (2, 12));
        assert_eq!(step.of(1), Some(first));
        assert_eq!(step.of(2), Some(second));
        assert_eq!(step.of(4), None);

        let weight = |n: &Normalizer, a, tokens| n.token_weight(a, tokens);
        assert_eq!(weight(second, Aggregation::SequenceMean, 5), 1.0 / 20.0);
        assert_eq!(weight(second, Aggregation::TokenMean, 5), 1.0 / 24.0);
        assert_eq!(weight(second, Aggregation::FixedLength, 5), 1.0 / 64.0);
        // The whole batch's tokens, whatever the accumulation.
        assert_eq!(weight(second, Aggregation::GenerationTokens, 5), 1.0 / 15.0);
        assert_eq!(weight(first, Aggregation::GenerationTokens, 3), 1.0 / 15.0);
    }

    #[test]
    fn an_unequal_split_is_refused() {
        let mut config = LossConfig {
            gradient_accumulation: 2,
            ..LossConfig::default()
        };
        assert!(StepNormalizers::new(&[1, 1, 1], &config, 4).is_err());
        assert!(StepNormalizers::new(&[], &config, 4).is_err());
        config.gradient_accumulation = 0;
        assert!(StepNormalizers::new(&[1], &config, 4).is_err());
    }

    #[test]
    fn nothing_to_learn_divides_by_one() {
        let step = StepNormalizers::new(&[0], &LossConfig::default(), 4).unwrap();
        for aggregation in [
            Aggregation::SequenceMean,
            Aggregation::TokenMean,
            Aggregation::GenerationTokens,
        ] {
            assert_eq!(step.micro_steps()[0].token_weight(aggregation, 0), 1.0);
        }
    }
}
