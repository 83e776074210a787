//! What was typed arrives, what cannot be meant is refused by name.

use std::path::PathBuf;

use proptest::prelude::*;

use super::*;

/// A model is named, so that the demo's settings stay out.
fn load(overrides: &[&str]) -> Result<Config, UsageError> {
    let overrides = overrides.iter().map(|text| text.to_string());
    let model = ["model.path=m".to_string()];
    Config::load(
        None,
        &model.into_iter().chain(overrides).collect::<Vec<_>>(),
    )
}

fn refusal(overrides: &[&str]) -> String {
    load(overrides)
        .expect_err("it should be refused")
        .to_string()
}

fn load_file(text: &str) -> Result<Config, UsageError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.toml");
    std::fs::write(&path, text).unwrap();
    Config::load(Some(&path), &[])
}

#[test]
fn defaults_are_valid_and_known() {
    let named = Config {
        model: ModelConfig {
            path: "m".into(),
            ..ModelConfig::default()
        },
        ..Config::default()
    };
    let loaded = load(&[]).unwrap();
    assert_eq!(loaded, named);
    loaded.validate_training().unwrap();

    let known = keys::known();
    for key in [
        "lora.r",
        "loss.type",
        "loss.epsilon_high",
        "reference.adapter",
    ] {
        assert!(known.iter().any(|k| k == key), "{key} is not in {known:?}");
    }
}

#[test]
fn the_demo_applies_only_without_a_model() {
    let demo = Config::demo_defaults().unwrap();
    demo.validate_training().unwrap();
    assert_eq!(demo.loss.loss_type, LossType::DrGrpo);
    assert_eq!(load(&[]).unwrap().loss.loss_type, LossType::Grpo);

    let changed = Config::load(None, &["loss.type=bnpo".into()]).unwrap();
    assert_eq!(changed.loss.loss_type, LossType::Bnpo);
    assert_eq!(changed.train.steps, demo.train.steps);
    assert_eq!(demo.differences(&changed).unwrap(), ["loss.type"]);
}

/// An optional key that the demo sets could be set back to absent, and would
/// then come back when the saved configuration is loaded.
#[test]
fn the_demo_sets_no_optional_key() {
    for (key, default) in keys::values(&Config::default()).unwrap() {
        let demo = keys::values(&Config::demo_defaults().unwrap()).unwrap();
        let value = &demo.iter().find(|(k, _)| *k == key).unwrap().1;
        assert!(!default.is_null() || value.is_null(), "{key}");
    }
}

#[test]
fn overrides_are_toml_or_text() {
    let config = load(&[
        "credit.method=arca",
        "credit.hidden = \"layer:3\"",
        "lora.target_modules=[\"q_proj\"]",
        "optimizer.learning_rate=1e-5",
        "optimizer.max_grad_norm=2",
        "train.steps=5",
        "log.token_traces=true",
        "loss.epsilon_high=0.28",
        "reference.adapter=../a b/c",
        "data.train=x=y.jsonl",
    ])
    .unwrap();
    assert_eq!(config.credit.method, "arca");
    assert_eq!(config.credit.hidden, "layer:3");
    assert_eq!(config.lora.target_modules, ["q_proj"]);
    assert_eq!(config.optimizer.learning_rate, 1e-5);
    assert_eq!(config.optimizer.max_grad_norm, 2.0);
    assert_eq!(config.train.steps, 5);
    assert!(config.log.token_traces);
    assert_eq!(config.loss.epsilon_high, Some(0.28));
    assert_eq!(config.reference.adapter, Some(PathBuf::from("../a b/c")));
    assert_eq!(config.data.train, "x=y.jsonl");
}

/// A text key takes what looks like a number, and a list survives a shell that
/// ate its quotes.
#[test]
fn the_key_decides_how_a_value_is_read() {
    let config = load(&[
        "model.path=2024",
        "data.train=true",
        "lora.target_modules=[q_proj, v_proj]",
        "rollout.stop=[\"</a>\", \"b\"]",
    ])
    .unwrap();
    assert_eq!(config.model.path, "2024");
    assert_eq!(config.data.train, "true");
    assert_eq!(config.lora.target_modules, ["q_proj", "v_proj"]);
    assert_eq!(config.rollout.stop, ["</a>", "b"]);
}

#[test]
fn the_last_override_wins_and_none_unsets() {
    let config = load(&[
        "train.steps=5",
        "loss.delta=4",
        "train.steps=6",
        "loss.delta=none",
    ]);
    let config = config.unwrap();
    assert_eq!(config.train.steps, 6);
    assert_eq!(config.loss.delta, None);
}

#[test]
fn an_inline_table_sets_its_keys() {
    let config = load(&["credit={method=\"arca\", mix=0.5}"]).unwrap();
    assert_eq!(
        (config.credit.method.as_str(), config.credit.mix),
        ("arca", 0.5)
    );
}

#[test]
fn overrides_win_over_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.toml");
    std::fs::write(&path, "[train]\nsteps = 3\nseed = 7\n").unwrap();
    let config = Config::load(Some(&path), &["train.steps=4".into()]).unwrap();
    assert_eq!((config.train.steps, config.train.seed), (4, 7));
}

#[test]
fn an_unknown_key_is_named_with_its_place_and_the_nearest() {
    for (given, nearest) in [
        ("credit.methd", "credit.method"),
        ("group_size", "rollout.group_size"),
        ("train.learning_rate", "optimizer.learning_rate"),
        ("optimizer.lr", "optimizer.learning_rate"),
        ("lora.rank", "lora.r"),
        ("rollouts.top_p", "rollout.top_p"),
        ("credit.method.name", "credit.method"),
        ("loss.epsilon_hi", "loss.epsilon_high"),
        ("optimizer.weight-decay", "optimizer.weight_decay"),
    ] {
        let message = refusal(&[&format!("{given}=1")]);
        assert_eq!(
            message,
            format!("--set: unknown key `{given}`; the nearest known key is `{nearest}`")
        );
    }

    let error = load_file("[train]\nsteps = 5\n\n[loss]\nbeta = 0\nepsilonhigh = 1\n");
    let message = error.unwrap_err().to_string();
    assert!(
        message.ends_with(
            "run.toml:6: unknown key `loss.epsilonhigh`; the nearest known key is \
             `loss.epsilon_high`"
        ),
        "{message}"
    );
    assert!(load_file("[los]\n").is_err());
    assert!(load_file("[loss]\n").is_ok());
}

#[test]
fn a_wrong_type_names_the_key_what_was_given_and_what_is_expected() {
    for (given, message) in [
        (
            "rollout.group_size=many",
            "given string \"many\", expected a whole number, 0 or more",
        ),
        (
            "rollout.group_size=-1",
            "given integer `-1`, expected a whole number, 0 or more",
        ),
        (
            "train.steps=2.5",
            "given floating point `2.5`, expected a whole number, 0 or more",
        ),
        (
            "rollout.temperature=warm",
            "given string \"warm\", expected a number",
        ),
        (
            "log.tensorboard=1",
            "given integer `1`, expected true or false",
        ),
        (
            "reward.functions=math",
            "given string \"math\", expected a list such as [\"a\", \"b\"]",
        ),
        (
            "loss.type=sapo",
            "unknown variant `sapo`, expected one of `grpo`, `bnpo`, `dr_grpo`, `dapo`, `cispo`",
        ),
        (
            "loss.delta=high",
            "given string \"high\", expected a number",
        ),
    ] {
        let (key, _) = given.split_once('=').unwrap();
        assert_eq!(refusal(&[given]), format!("--set: `{key}`: {message}"));
    }
    let message = load_file("[data]\ntrain = 3\n").unwrap_err().to_string();
    assert!(
        message.ends_with("run.toml:2: `data.train`: given integer `3`, expected a string"),
        "{message}"
    );
}

#[test]
fn what_is_no_setting_is_refused() {
    assert!(refusal(&["train.steps"]).contains("KEY=VALUE"));
    assert!(refusal(&["credit=arca"]).contains("credit.method"));
    assert!(refusal(&["=3"]).contains("unknown key"));
    let message = load_file("[train]\nsteps = \n").unwrap_err().to_string();
    assert!(message.contains("run.toml:2: "), "{message}");
    let missing = Config::load(Some(Path::new("no/such.toml")), &[]).unwrap_err();
    assert!(missing.to_string().contains("no/such.toml"), "{missing}");
}

#[test]
fn ranges_are_kept() {
    for given in [
        "lora.r=0",
        "lora.alpha=0",
        "lora.dropout=1",
        "lora.dropout=nan",
        "lora.target_modules=[]",
        "lora.target_modules=[\"q_proj\", \"q_proj\"]",
        "rollout.group_size=0",
        "rollout.temperature=-1",
        "rollout.temperature=inf",
        "rollout.top_p=0",
        "rollout.top_p=1.1",
        "rollout.min_p=1",
        "rollout.max_completion_length=0",
        "rollout.stop=[\"\"]",
        "reward.functions=[]",
        "reward.weights=[1, 2]",
        "advantage.ddof=2",
        "advantage.epsilon=-1",
        "credit.exponent=0",
        "credit.epsilon=-1",
        "credit.mix=1.5",
        "credit.quantile=0",
        "credit.quantile=1.1",
        "credit.hidden=layer:x",
        "credit.hidden=layer:N",
        "loss.epsilon=-0.1",
        "loss.delta=0",
        "loss.beta=-1",
        "loss.inner_iterations=0",
        "loss.gradient_accumulation=0",
        "optimizer.learning_rate=-1",
        "optimizer.beta1=1",
        "optimizer.epsilon=0",
        "optimizer.max_grad_norm=-1",
        "train.prompts_per_step=0",
        "train.tokens_per_batch=0",
        "train.device=gpu",
        "data.prompt_template=chatt",
        "eval.samples=0",
    ] {
        let (key, _) = given.split_once('=').unwrap();
        let message = refusal(&[given]);
        assert!(message.starts_with(key), "{given}: {message}");
    }
    for given in [
        "data.prompt_template=Q: {problem} A:",
        "credit.hidden=layer:0",
        "credit.mix=1",
        "rollout.temperature=0",
    ] {
        load(&[given]).unwrap();
    }
    let external = ["reward.command=[\"judge\"]", "reward.weights=[1, 0.5]"];
    load(&external).unwrap();
}

#[test]
fn a_misspelt_name_has_a_nearest() {
    assert_eq!(
        refusal(&["lora.target_modules=[\"qproj\"]"]),
        "lora.target_modules = \"qproj\" is not known: did you mean `q_proj`? (known: q_proj, \
         k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj)"
    );
    assert!(refusal(&["credit.hidden=postnorm"]).contains("`post-norm`"));
}

#[test]
fn training_needs_more() {
    for (given, word) in [
        (&["rollout.temperature=0"][..], "greedy"),
        (&["rollout.group_size=1"], "baseline"),
        (&["rollout.top_p=0.95"], "allow_truncated_sampling"),
        (&["rollout.top_k=20"], "allow_truncated_sampling"),
        (&["rollout.min_p=0.1"], "allow_truncated_sampling"),
        (&["train.steps=0"], "arca eval"),
    ] {
        let message = load(given).unwrap().validate_training().unwrap_err();
        assert!(message.to_string().contains(word), "{message}");
    }
    let accepted = [
        "rollout.top_p=0.95",
        "rollout.allow_truncated_sampling=true",
    ];
    load(&accepted).unwrap().validate_training().unwrap();
}

/// Any file of the run folder reads back as it was, and reads well.
#[test]
fn resolved_toml_is_short() {
    let text = load(&["optimizer.learning_rate=1e-5"])
        .unwrap()
        .to_toml()
        .unwrap();
    assert!(text.contains("learning_rate = 0.00001\n"), "{text}");
    assert!(text.contains("epsilon = 0.2\n"), "{text}");
}

fn configs() -> impl Strategy<Value = Config> {
    let numbers = (
        1usize..1000,
        2usize..64,
        0u64..i64::MAX as u64,
        any::<bool>(),
        1e-9f32..1e3,
        1e-9f32..1e3,
        0f32..1.0,
    );
    let options = (
        prop::option::of(0f32..10.0),
        prop::option::of("[ -~]{1,12}"),
        prop::option::of(any::<bool>()),
        prop::sample::select(vec!["", "m", "none"]),
    );
    let texts = ("\\PC{0,20}", prop::collection::vec("[^\\x00]{1,8}", 0..3));
    (numbers, options, texts).prop_map(|(numbers, options, texts)| {
        let mut config = Config::default();
        config.lora.r = numbers.0;
        config.rollout.group_size = numbers.1;
        config.train.seed = numbers.2;
        config.log.tensorboard = numbers.3;
        config.optimizer.learning_rate = numbers.4;
        config.rollout.temperature = numbers.5;
        config.lora.dropout = numbers.6;
        config.loss.epsilon_high = options.0;
        config.reference.adapter = options.1.filter(|path| path != "none").map(PathBuf::from);
        config.data.enable_thinking = options.2;
        config.model.path = options.3.into();
        config.data.prompt_template = format!("{{problem}}{}", texts.0);
        config.rollout.stop = texts.1;
        config
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]

    #[test]
    fn the_resolved_config_loads_back_equal(config in configs()) {
        let text = config.to_toml().unwrap();
        prop_assert_eq!(load_file(&text).unwrap(), config);
    }
}
