use super::*;

const LOGPROBS: [f32; 3] = [-1.0, -2.0, -0.5];

fn terms<'a>() -> SequenceTerms<'a> {
    SequenceTerms {
        logprobs: &LOGPROBS,
        old_logprobs: None,
        reference_logprobs: None,
        sampler_ratio: None,
        advantage: Advantage::Sequence(2.0),
        masked: false,
    }
}

fn normalizer() -> Normalizer {
    let step = StepNormalizers::new(&[3, 5], &LossConfig::default(), 8).unwrap();
    step.micro_steps()[0]
}

fn objective(edit: impl FnOnce(&mut LossConfig)) -> Objective {
    let mut config = LossConfig::default();
    edit(&mut config);
    Objective::new(&config).unwrap()
}

#[test]
fn first_iteration_is_the_policy_gradient() {
    // -A / (B n), whichever the level, since the ratio is 1.
    for level in [RatioLevel::Token, RatioLevel::Sequence] {
        let o = objective(|c| c.importance_sampling_level = level);
        let out = o.sequence(&terms(), &normalizer()).unwrap();
        for c in out.coefficients {
            assert!((c + 2.0 / 6.0).abs() < 1e-7);
        }
        assert!((out.loss + 1.0).abs() < 1e-12);
    }
}

#[test]
fn clipping_stops_the_gradient_on_one_side_only() {
    let old = [-1.5, -2.0, -0.1]; // ratios 1.65, 1, 0.67
    let with = |advantage| {
        let t = SequenceTerms {
            old_logprobs: Some(&old),
            advantage: Advantage::Sequence(advantage),
            ..terms()
        };
        let o = objective(|_| ());
        o.sequence(&t, &normalizer()).unwrap()
    };
    let up = with(1.0);
    assert_eq!(up.coefficients[0], 0.0);
    assert!(up.coefficients[2] < 0.0);
    assert_eq!((up.stats.high.sum, up.stats.low.sum), (1.0, 0.0));
    let down = with(-1.0);
    assert!(down.coefficients[0] > 0.0);
    assert_eq!(down.coefficients[2], 0.0);
    assert_eq!((down.stats.high.sum, down.stats.low.sum), (0.0, 1.0));
    assert_eq!(down.stats.region.mean(), Some(1.0 / 3.0));
}

#[test]
fn delta_bounds_negative_advantages() {
    let old = [-2.0, -2.0, -0.5];
    let t = SequenceTerms {
        old_logprobs: Some(&old),
        advantage: Advantage::Sequence(-1.0),
        ..terms()
    };
    let free = objective(|_| ()).sequence(&t, &normalizer()).unwrap();
    assert!((free.coefficients[0] - 1f32.exp() / 6.0).abs() < 1e-6);
    let bounded = objective(|c| c.delta = Some(2.0));
    let bounded = bounded.sequence(&t, &normalizer()).unwrap();
    assert_eq!(bounded.coefficients[0], 0.0);
    assert!((bounded.loss - 4.0 / 6.0).abs() < 1e-7);
}

#[test]
fn a_masked_sequence_has_no_loss_even_with_kl() {
    let reference = [-3.0f32; 3];
    let t = SequenceTerms {
        reference_logprobs: Some(&reference),
        masked: true,
        ..terms()
    };
    let out = objective(|c| c.beta = 0.1)
        .sequence(&t, &normalizer())
        .unwrap();
    assert_eq!(out.coefficients, [0.0; 3]);
    assert_eq!(out.loss, 0.0);
    assert_eq!(out.stats, LossStats::default());
}

#[test]
fn a_skipped_sequence_counts_as_unclipped() {
    let o = objective(|_| ());
    let zero = SequenceTerms {
        advantage: Advantage::Sequence(0.0),
        old_logprobs: Some(&[-3.0, -2.0, -0.1]),
        ..terms()
    };
    let mut computed = o.sequence(&zero, &normalizer()).unwrap().stats;
    computed.ratio = Tally::default();
    assert_eq!(o.skipped(3, &zero.advantage), computed);
}

#[test]
fn an_empty_completion_is_no_trouble() {
    for level in [RatioLevel::Token, RatioLevel::Sequence] {
        let o = objective(|c| c.importance_sampling_level = level);
        let t = SequenceTerms {
            logprobs: &[],
            old_logprobs: Some(&[]),
            ..terms()
        };
        let out = o.sequence(&t, &normalizer()).unwrap();
        assert!(out.coefficients.is_empty() && out.loss == 0.0);
    }
}

#[test]
fn bad_terms_are_named() {
    let message = |beta: f32, t: SequenceTerms| {
        let o = objective(|c| c.beta = beta);
        o.sequence(&t, &normalizer()).unwrap_err().to_string()
    };
    let nan = [-1.0, f32::NAN, -0.5];
    let bad = SequenceTerms {
        old_logprobs: Some(&nan),
        ..terms()
    };
    assert!(message(0.0, bad).contains("token 1: old log-prob"));
    let short = SequenceTerms {
        advantage: Advantage::Token(&[1.0]),
        ..terms()
    };
    assert!(message(0.0, short).contains("advantage"));
    assert!(message(0.1, terms()).contains("reference"));
    let far = [-1.0, -2.0, -1e4];
    let overflow = SequenceTerms {
        old_logprobs: Some(&far),
        advantage: Advantage::Sequence(-1.0),
        ..terms()
    };
    assert!(message(0.0, overflow).contains("token 2"));
}

#[test]
fn bad_settings_are_refused() {
    let refused = |edit: fn(&mut LossConfig)| {
        let mut config = LossConfig::default();
        edit(&mut config);
        Objective::new(&config).is_err()
    };
    assert!(!refused(|_| ()));
    assert!(refused(|c| c.epsilon = -0.1));
    assert!(refused(|c| c.epsilon_high = Some(f32::NAN)));
    assert!(refused(|c| c.delta = Some(0.0)));
    assert!(refused(|c| c.beta = -1.0));
}
