//! Guards the memory plan: what a training session allocates on the device is
//! what its plan says, to the byte, and nothing is allocated after that.

use serde_json::Value;

use crate::common::arca;

/// `arca plan --json` with these arguments.
fn plan(args: &[&str]) -> Value {
    let dir = tempfile::tempdir().unwrap();
    let done = std::process::Command::new(arca())
        .args(["plan", "--json"])
        .args(args)
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    serde_json::from_slice(&done.stdout).unwrap()
}

/// Totals are sums, and every line says what it is.
#[test]
fn the_table_adds_up() {
    for device in ["cpu", "cuda"] {
        let plan = plan(&["--device", device, "--memory", "1T"]);
        let entries = plan["entries"].as_array().unwrap();
        assert!(entries.len() > 25, "{device}");
        let mut total = 0;
        for e in entries {
            let what = e["what"].as_str().unwrap();
            let size = if e["dtype"] == "bf16" { 2 } else { 4 };
            let shape = e["shape"].as_array().unwrap();
            let elements: u64 = shape.iter().map(|d| d.as_u64().unwrap()).product();
            let bytes = e["bytes"].as_u64().unwrap();
            let least = e["count"].as_u64().unwrap() * elements * size;
            assert!(
                bytes >= least && bytes < least + 256 * e["count"].as_u64().unwrap(),
                "{what}"
            );
            total += bytes;
        }
        assert_eq!(plan["total_bytes"], total);
        let roles = plan["roles"].as_object().unwrap();
        assert_eq!(
            roles.values().map(|b| b.as_u64().unwrap()).sum::<u64>(),
            total
        );
        assert_eq!(plan["fits"], true);
    }
}

/// The largest batch fits, one more token does not, and less memory gives less.
#[test]
fn the_largest_batch_is_the_largest() {
    let device = ["--device", "cuda"];
    let with = |memory: &str, tokens: &str| {
        plan(
            &[
                &device[..],
                &[
                    "--memory",
                    memory,
                    "--set",
                    &format!("train.tokens_per_batch={tokens}"),
                ],
            ]
            .concat(),
        )
    };
    let memory = "200M";
    let largest = with(memory, "64")["largest_tokens_per_batch"]
        .as_u64()
        .unwrap();
    assert_eq!(with(memory, &largest.to_string())["fits"], true);
    assert_eq!(with(memory, &(largest + 2).to_string())["fits"], false);
    let less = with("150M", "64")["largest_tokens_per_batch"]
        .as_u64()
        .unwrap();
    assert!(less < largest, "{less} {largest}");
    assert_eq!(with("1M", "64")["largest_tokens_per_batch"], Value::Null);
}

#[test]
fn what_would_not_fit_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let done = std::process::Command::new(arca())
        .args(["plan", "--device", "cuda", "--memory", "30M"])
        .current_dir(dir.path())
        .output()
        .unwrap();
    let text = String::from_utf8(done.stdout).unwrap();
    assert!(
        text.contains("would not fit: 30 MiB are available"),
        "{text}"
    );
    assert!(
        text.contains("KV pages") && text.contains("rollout.max_completion_length"),
        "{text}"
    );
}

/// Weights, adapters, activations, update, pages and scratch: allocated as
/// planned, and the peak stays there through sampling and a training step.
#[cfg(feature = "emulator")]
#[test]
fn peak_bytes_equal_the_plan() {
    use arca::config::Config;
    use arca::device::cuda::Cuda;
    use arca::device::cuda::emulator::EmulatorSettings;
    use arca::episode::AdapterId;
    use arca::model::batch::{Batch, Pair};
    use arca::model::config::ModelShape;
    use arca::rng::Purpose;
    use arca::rollout::Request;
    use arca::train::optimizer::Optimizer;
    use arca::train::session::{Demand, Session};
    use arca::train::setup::initial_adapter;

    let config = Config::load(None, &["rollout.max_completion_length=12".to_string()]).unwrap();
    let dir = crate::common::root().join("assets/demo");
    let shape = ModelShape::load(&dir).unwrap();
    let adapter = initial_adapter(&config, &shape).unwrap();
    let layout = adapter.layout.clone();
    let demand = Demand {
        longest_prompt: 20,
        longest_completion: 12,
        step_groups: 2,
        step_sequences: 8,
        group: 4,
        sampled: 8,
        reference_rows: true,
        training: true,
        tokens_per_batch: 256,
    };
    let device = Cuda::emulator(EmulatorSettings::default()).unwrap();
    let mut session = Session::open(device.clone(), &config, &dir, &demand, vec![adapter]).unwrap();
    let mut optimizer = Optimizer::new(&device, &layout, &config.optimizer).unwrap();
    let planned = session.plan.total();
    assert_eq!(
        device.memory_use().now,
        planned,
        "after loading:\n{}",
        session.plan.table()
    );

    let id = AdapterId(0);
    let request = Request {
        adapter: Some(id),
        prompt_ids: (3..20).collect(),
        samples: 0..4,
        seed: 1,
        purpose: Purpose::Rollout,
        step: 0,
        problem: 0,
    };
    let sampling = session.sampling(&config);
    session
        .generate(&[request], &sampling, &[], &mut |_| Ok(()))
        .unwrap();
    let mut batch = Batch::default();
    batch.push_segment(&[5; 30], &[], Some(id));
    batch.saved_rows = 30;
    batch.pairs = (0..29).map(|row| Pair { row, target: 5 }).collect();
    batch.grad_pairs = 29;
    session
        .engine
        .noise_floor({
            let mut probe = Batch::default();
            probe.push_segment(&[7; 20], &[], None);
            probe
        })
        .unwrap();
    session.engine.run_packed(batch, 1.0, true, None).unwrap();
    optimizer.zero_grads(&session.engine).unwrap();
    session
        .engine
        .backward(id, &[0.1; 29], &mut optimizer.grads)
        .unwrap();
    optimizer.apply(&mut session.engine, id, 1e-4).unwrap();
    assert_eq!(device.memory_use().peak, planned, "after a step");
}
