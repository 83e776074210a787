//! Guards what kernels move, because the emulator sees every address: distinct
//! bytes against the op's declared minimum (`ops/cost.rs`), no scattered
//! global accesses, conflict-free shared memory in the tensor-core kernels.
//!
//! `cargo test --release --features emulator -- --nocapture traffic` prints the table.
#![cfg(feature = "emulator")]

use std::collections::BTreeMap;

use arca::device::cuda::Cuda;
use arca::device::cuda::emulator::{EmulatorSettings, KernelStats};
use arca::episode::AdapterId;
use arca::model::adapter::{AdapterLayout, LoraSettings};
use arca::model::batch::{Batch, PageTable, Pair};
use arca::model::config::{Group, ModelShape, Module};
use arca::ops::adamw::{AdamW, AdamWStep};
use arca::ops::attention::Attention;
use arca::ops::cost::{self, Cost, Ranks};
use arca::ops::decode::{DecodeAttention, PAGE, page_elements};
use arca::ops::linear::Linear;
use arca::ops::logprob::LogProb;
use arca::ops::lora::{Lora, LoraBackward};
use arca::ops::qknorm_rope::{QkNormRope, QkNormWeights, RopeTable};
use arca::ops::residual::Residual;
use arca::ops::rmsnorm::{NormShape, RmsNorm};
use arca::ops::swiglu::SwiGlu;
use half::bf16;

use super::{On, random, shape, weight};

/// Sums over an op's kernels, whose line is printed and checked.
fn report(on: &On<Cuda>, op: &str, cost: Cost) -> KernelStats {
    report_of(&on.device.kernel_stats().unwrap(), op, cost)
}

fn report_of(stats: &BTreeMap<&str, KernelStats>, op: &str, cost: Cost) -> KernelStats {
    let mut sum = KernelStats::default();
    for s in stats.values() {
        sum.unique_bytes_read += s.unique_bytes_read;
        sum.unique_bytes_written += s.unique_bytes_written;
        sum.global_bytes_read += s.global_bytes_read;
        sum.global_bytes_written += s.global_bytes_written;
        sum.requests += s.requests;
        sum.sectors += s.sectors;
        sum.shared_requests += s.shared_requests;
        sum.bank_conflicts += s.bank_conflicts;
        sum.mma += s.mma;
    }
    let unique = (sum.unique_bytes_read + sum.unique_bytes_written) as f64;
    let moved = (sum.global_bytes_read + sum.global_bytes_written) as f64;
    println!(
        "{op:<24} minimum {:>9.0} distinct {unique:>9.0} ({:.2}) requested {moved:>9.0} sectors/request {:>5.2} bytes/sector {:>5.2} \
         bank conflicts/request {:.3} mma {}",
        cost.bytes,
        unique / cost.bytes,
        sum.sectors as f64 / sum.requests.max(1) as f64,
        moved / sum.sectors.max(1) as f64,
        sum.bank_conflicts as f64 / sum.shared_requests.max(1) as f64,
        sum.mma
    );
    assert!(
        unique <= 1.25 * cost.bytes,
        "{op} touches {unique} bytes, {} would do",
        cost.bytes
    );
    sum
}

/// A request asks for all of the sectors that it touches, on average: what lanes
/// share counts once for each. Single values of a row may cost 3 %.
fn assert_whole_sectors(op: &str, sum: &KernelStats) {
    let moved = sum.global_bytes_read + sum.global_bytes_written;
    assert!(
        100 * 32 * sum.sectors <= 103 * moved,
        "{op} touches {} sectors for {moved} bytes",
        sum.sectors
    );
}

fn device() -> On<Cuda> {
    let settings = EmulatorSettings {
        checked: true,
        statistics: true,
        ..EmulatorSettings::default()
    };
    let on = On::new(Cuda::emulator(settings).unwrap());
    on.device.kernel_stats();
    on
}

#[test]
fn streams_move_their_minimum() {
    let on = device();
    let (rows, hidden) = (40, 256);
    let n = rows * hidden;
    let norm = NormShape {
        rows,
        hidden,
        eps: 1e-6,
    };
    let (a, b) = (on.act(&random(n, 1)), on.act(&random(n, 2)));
    let weight = on.float::<f32>(&random(hidden, 3));
    let (mut h, mut x) = (on.dirty::<bf16>(n), on.dirty::<bf16>(n));
    let mut rstd = on.dirty::<f32>(rows);
    on.device
        .rmsnorm_forward(
            &on.ctx(),
            norm,
            Some((a.slice(), b.slice())),
            h.slice_mut(),
            &weight.buf,
            x.slice_mut(),
            rstd.slice_mut(),
        )
        .unwrap();
    let sum = report(
        &on,
        "rmsnorm_forward",
        cost::rmsnorm_forward(rows, hidden, 2, 2),
    );
    assert_whole_sectors("rmsnorm_forward", &sum);
    let mut dh = on.float::<f32>(&random(n, 4));
    on.device
        .rmsnorm_backward(
            &on.ctx(),
            norm,
            a.slice(),
            &weight.buf,
            rstd.slice(),
            b.slice(),
            dh.slice_mut(),
            x.slice_mut(),
        )
        .unwrap();
    let least = cost::rmsnorm_backward(rows, hidden, 2, 2);
    let sum = report(&on, "rmsnorm_backward", least);
    assert_whole_sectors("rmsnorm_backward", &sum);
    // The row is read once; the weight twice, for every row, and rstd by every lane.
    let shared = 4 * rows * (2 * hidden + 32);
    assert!(
        sum.global_bytes_read + sum.global_bytes_written <= least.bytes as u64 + shared as u64,
        "rmsnorm_backward reads its row again"
    );
    let gate_up = on.act(&random(2 * n, 5));
    on.device
        .swiglu_forward(&on.ctx(), rows, hidden, gate_up.slice(), x.slice_mut())
        .unwrap();
    let sum = report(&on, "swiglu_forward", cost::swiglu_forward(rows, hidden, 2));
    assert_whole_sectors("swiglu_forward", &sum);
    let mut d_gate_up = on.dirty::<bf16>(2 * n);
    on.device
        .swiglu_backward(
            &on.ctx(),
            rows,
            hidden,
            gate_up.slice(),
            a.slice(),
            d_gate_up.slice_mut(),
        )
        .unwrap();
    let sum = report(
        &on,
        "swiglu_backward",
        cost::swiglu_backward(rows, hidden, 2),
    );
    assert_whole_sectors("swiglu_backward", &sum);
    let mut batch = Batch::default();
    batch.push_segment(&vec![0; rows], &[], None);
    batch.residual_pairs = (0..rows as u32 / 2).map(|i| (2 * i, 2 * i + 1)).collect();
    let mut norms = on.dirty::<f32>(rows / 2);
    let loaded = on.batch(&batch);
    on.device
        .residual_norms(&on.ctx(), &loaded, hidden, a.slice(), norms.slice_mut())
        .unwrap();
    report(&on, "residual_norms", cost::residual(rows / 2, hidden, 2));
    let state = |seed| on.float::<f32>(&random(n, seed));
    let (g, mut p, mut m) = (state(6), state(7), state(8));
    let mut v = on.float::<f32>(&vec![0.5; n]);
    let step = AdamWStep {
        learning_rate: 1e-3,
        beta1: 0.9,
        beta2: 0.99,
        epsilon: 1e-8,
        weight_decay: 0.0,
        step: 1,
        clip: 1.0,
    };
    on.device
        .adamw(
            &on.ctx(),
            &step,
            g.slice(),
            p.slice_mut(),
            m.slice_mut(),
            v.slice_mut(),
        )
        .unwrap();
    let sum = report(&on, "adamw", cost::adamw(n));
    assert_whole_sectors("adamw", &sum);
    // 16 bytes a lane, but for the last warp's: 512 bytes a request.
    assert!(sum.global_bytes_read + sum.global_bytes_written >= 500 * sum.requests);
    let n = 2 * 8192;
    let g = on.float::<f32>(&random(n, 9));
    on.device.squared_norm(&on.ctx(), g.slice()).unwrap();
    let sum = report(&on, "squared_norm", cost::squared_norm(n));
    assert_whole_sectors("squared_norm", &sum);
}

#[test]
fn heads_move_their_minimum() {
    let on = device();
    for shape in [shape(64, 14, 2), shape(128, 16, 8)] {
        let rows = 64;
        let mut batch = Batch::default();
        batch.push_segment(&vec![0; rows], &[], None);
        let loaded = on.batch(&batch);
        let rope = RopeTable::new(&on.device, &on.ctx(), &shape, rows).unwrap();
        let weights = QkNormWeights {
            q: on.float::<f32>(&random(shape.head_dim, 1)).buf,
            k: on.float::<f32>(&random(shape.head_dim, 2)).buf,
        };
        let qk_width = shape.q_width() + shape.kv_width();
        let qkv = on.act(&random(rows * shape.qkv_width(), 3));
        let d_qk = on.act(&random(rows * qk_width, 4));
        let mut qk = on.dirty::<bf16>(rows * qk_width);
        let mut d_qkv = on.dirty::<bf16>(rows * shape.qkv_width());
        on.device.kernel_stats();
        on.device
            .qknorm_rope_forward(
                &on.ctx(),
                &loaded,
                &shape,
                rows,
                &weights,
                &rope,
                qkv.slice(),
                qk.slice_mut(),
            )
            .unwrap();
        let name = format!("qknorm_rope {}", shape.head_dim);
        let sum = report(&on, &name, cost::qknorm_rope_forward(rows, &shape, 2));
        assert_wide_heads(&name, &sum);
        on.device
            .qknorm_rope_backward(
                &on.ctx(),
                &loaded,
                &shape,
                rows,
                &weights,
                &rope,
                qkv.slice(),
                d_qk.slice(),
                d_qkv.slice_mut(),
            )
            .unwrap();
        let name = format!("{name} backward");
        let sum = report(&on, &name, cost::qknorm_rope_backward(rows, &shape, 2));
        assert_wide_heads(&name, &sum);
    }
}

/// Sixteen bytes a lane: 512 bytes a request, but for the one of the position.
fn assert_wide_heads(op: &str, sum: &KernelStats) {
    assert_whole_sectors(op, sum);
    let moved = sum.global_bytes_read + sum.global_bytes_written;
    assert!(
        moved >= 450 * sum.requests,
        "{op} makes {} requests for {moved} bytes",
        sum.requests
    );
}

#[test]
fn attention_is_free_of_bank_conflicts() {
    let on = device();
    let shape = shape(64, 4, 2);
    let mut batch = Batch::default();
    let prompt = batch.push_segment(&[0; 64], &[], None);
    batch.push_segment(&[0; 40], &[prompt], None);
    batch.saved_rows = batch.rows();
    let rows = batch.rows();
    let loaded = on.batch(&batch);
    let qk_width = shape.q_width() + shape.kv_width();
    let qk = on.act(&random(rows * qk_width, 1));
    let qkv = on.act(&random(rows * shape.qkv_width(), 2));
    let mut out = on.dirty::<bf16>(rows * shape.q_width());
    let mut lse = on.dirty::<f32>(rows * shape.num_heads);
    on.device.kernel_stats();
    on.device
        .attention_forward(
            &on.ctx(),
            &loaded,
            &shape,
            qk.slice(),
            qkv.slice(),
            out.slice_mut(),
            lse.slice_mut(),
        )
        .unwrap();
    let sum = report(
        &on,
        "attention_forward",
        cost::attention_forward(&batch, rows, &shape, 2),
    );
    assert!(sum.mma > 0, "attention runs on tensor cores");
    assert!(20 * sum.bank_conflicts <= sum.shared_requests, "{sum:?}");

    let context = 100;
    let each = usize::div_ceil(context, PAGE);
    let mut decode = Batch::default();
    for i in 0..3u32 {
        decode.push_segment(&[0], &[], None);
        decode.positions[i as usize] = context as u32 - 1;
        decode.pages.push(PageTable {
            group: [].into(),
            own: (i * each as u32..(i + 1) * each as u32).collect(),
        });
    }
    let loaded = on.batch(&decode);
    let mut pages = on.act(&random(3 * each * page_elements(&shape), 4));
    on.device.kernel_stats();
    on.device
        .decode_attention(
            &on.ctx(),
            &loaded,
            &shape,
            qk.slice(),
            qkv.slice(),
            pages.slice_mut(),
            out.slice_mut(),
        )
        .unwrap();
    let sum = report(
        &on,
        "decode_attention",
        cost::decode_attention(3, context, &shape, 2),
    );
    assert!(sum.mma > 0, "decode runs on tensor cores");
}

/// All products of a group are one launch, whose blocks read x once for all
/// modules: no operand is counted twice.
#[test]
fn gradients_share_what_they_read() {
    let on = device();
    let shape = ModelShape {
        hidden_size: 256,
        intermediate_size: 256,
        ..shape(64, 4, 2)
    };
    let layout = AdapterLayout::new(
        &shape,
        LoraSettings::uniform(&shape, &Module::ALL, 16, 32.0, 0.0, false),
    )
    .unwrap();
    let rows = 256;
    let mut batch = Batch::default();
    batch.push_segment(&vec![0; rows], &[], Some(AdapterId(0)));
    batch.saved_rows = rows;
    let loaded = on.batch(&batch);
    let mut grads = on.float::<f32>(&vec![0.0; layout.len()]);
    for group in Group::ALL {
        let (inputs, parts) = (group.inputs(&shape), group.outputs(&shape));
        let outputs: usize = parts.iter().sum();
        let s_width = layout.s_width(group);
        let x = on.act(&random(rows * inputs, 1));
        let dy = on.act(&random(rows * outputs, 2));
        let s = on.act(&random(rows * s_width, 3));
        let ds = on.act(&random(rows * s_width, 4));
        on.device.kernel_stats();
        on.device
            .lora_gradients(
                &on.ctx(),
                &loaded,
                rows,
                &layout,
                0,
                group,
                x.slice(),
                s.slice(),
                dy.slice(),
                ds.slice(),
                grads.slice_mut(),
            )
            .unwrap();
        let cost = Ranks::new(&layout, 0, group, rows).gradients(2);
        let sum = report(&on, &format!("lora_gradients {group:?}"), cost);
        assert!(20 * sum.bank_conflicts <= sum.shared_requests, "{sum:?}");
    }
}

/// Of the 12 bytes of a logit, the two products have 6: the statistics ask for
/// each once, and write exponentials once, for pairs with u alone.
#[test]
fn logits_are_read_once() {
    let on = device();
    let (pairs, grad_pairs, vocab, hidden) = (3, 2, 9_003, 16);
    let columns = usize::next_multiple_of(vocab, 8);
    let mut batch = Batch::default();
    batch.push_segment(&vec![0; pairs], &[], None);
    batch.saved_rows = pairs;
    batch.pairs = (0..pairs as u32)
        .map(|row| Pair {
            row,
            target: 4000 * row,
        })
        .collect();
    batch.grad_pairs = grad_pairs;
    let loaded = on.batch(&batch);
    let head = on
        .device
        .load_matrix(&[weight(vocab, hidden, 1)], None, true, 0)
        .unwrap();
    let x = on.act(&random(pairs * hidden, 2));
    let (mut logprobs, mut entropies) = (on.dirty::<f32>(pairs), on.dirty::<f32>(pairs));
    let mut u = on.dirty::<bf16>(grad_pairs * hidden);
    on.device.kernel_stats();
    on.device
        .logprob_forward(
            &on.ctx(),
            &on.ctx(),
            &loaded,
            &head,
            1.0,
            x.slice(),
            logprobs.slice_mut(),
            entropies.slice_mut(),
            Some(u.slice_mut()),
        )
        .unwrap();
    let stats = on.device.kernel_stats().unwrap();
    let sum = &stats["logprob_stats"];
    // Beside the logits, the target and its logit once more.
    let read = pairs * (4 * columns + 8);
    let written = grad_pairs * (2 * columns + 4) + pairs * 8;
    println!(
        "logprob_stats            requested {} read {} written, sectors/request {:.2}",
        sum.global_bytes_read,
        sum.global_bytes_written,
        sum.sectors as f64 / sum.requests as f64
    );
    assert_eq!(sum.global_bytes_read, read as u64);
    assert_eq!(sum.global_bytes_written, written as u64);
    assert_eq!(sum.unique_bytes_written, written as u64);
    assert_whole_sectors("logprob_stats", sum);
}

/// LoRA's backward reads each element of dy once, for ds and dB.
#[test]
fn one_backward_reads_dy_once() {
    let on = device();
    let shape = ModelShape {
        hidden_size: 512,
        intermediate_size: 512,
        ..shape(64, 4, 2)
    };
    let settings = LoraSettings::uniform(&shape, &Module::ALL, 16, 32.0, 0.0, false);
    let layout = AdapterLayout::new(&shape, settings).unwrap();
    let rows = 512;
    let mut batch = Batch::default();
    batch.push_segment(&vec![0; rows], &[], Some(AdapterId(0)));
    batch.saved_rows = rows;
    let loaded = on.batch(&batch);
    let mut grads = on.float::<f32>(&random(layout.len(), 6));
    let mut adapters = on.device.new_adapters(&shape).unwrap();
    on.device
        .sync_adapter(
            &on.ctx(),
            &mut adapters,
            AdapterId(0),
            &layout,
            grads.slice(),
        )
        .unwrap();
    for group in Group::ALL {
        let (inputs, parts) = (group.inputs(&shape), group.outputs(&shape));
        let outputs: usize = parts.iter().sum();
        let s_width = layout.s_width(group);
        let x = on.act(&random(rows * inputs, 1));
        let dy = on.act(&random(rows * outputs, 2));
        let s = on.act(&random(rows * s_width, 3));
        let mut ds = on.dirty::<bf16>(rows * s_width);
        let call = LoraBackward {
            adapters: &adapters,
            layout: &layout,
            layer: 0,
            group,
            x: x.slice(),
            s: s.slice(),
            dy: dy.slice(),
        };
        // As a larger batch has its columns cut.
        let pass = call.one_pass(&loaded, rows).unwrap().in_chunks_of(512);
        on.device.kernel_stats();
        on.device
            .lora_backward_in_one(
                &on.ctx(),
                &loaded,
                &pass,
                &call,
                ds.slice_mut(),
                grads.slice_mut(),
            )
            .unwrap();
        let stats = on.device.kernel_stats().unwrap();
        let cost = Ranks::new(&layout, 0, group, rows).backward(2);
        let sum = report_of(&stats, &format!("lora_backward {group:?}"), cost);
        assert!(20 * sum.bank_conflicts <= sum.shared_requests, "{sum:?}");
        // Beside dy: s and B by each block, the gradients that are added to, and
        // the factors' places, which every lane looks up.
        let blocks: usize = parts.iter().map(|w| w.div_ceil(512)).sum();
        let rest = blocks * 2 * 16 * rows + 2 * 16 * outputs + 4 * 16 * outputs;
        let places = blocks * 128 * parts.len() * 48;
        let asked = stats["lora_backward_16"].global_bytes_read as usize;
        let least = 2 * rows * outputs + rest;
        assert!(
            (least..least + places).contains(&asked),
            "{asked} bytes, not {least}"
        );
        assert!(places < rows * outputs, "a second read of dy would show");
    }
}
