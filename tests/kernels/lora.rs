//! Guards the kernels of `cuda/lora.cu`: several adapters of different ranks
//! and modules in one batch with base rows between, every rank of the contract,
//! dropout, gradients over one and several chunks of rows.

use arca::device::{Float, Slice, SliceMut};
use arca::episode::AdapterId;
use arca::model::adapter::{AdapterLayout, LoraSettings, Target};
use arca::model::batch::{Batch, Dropout};
use arca::model::buffers::Rows;
use arca::model::config::{Group, ModelShape, Module};
use arca::ops::Ops;
use arca::ops::lora::LoraCall;
use arca::rng::mix;

use super::{On, assert_close, random, references, test_device, weight};

test_device!(several_adapters);
test_device!(one_adapter);
test_device!(ranks);
test_device!(gradients_over_chunks);
test_device!(gradients_together_are_those_alone);

pub(super) fn model(hidden: usize, intermediate: usize) -> ModelShape {
    ModelShape {
        hidden_size: hidden,
        intermediate_size: intermediate,
        head_dim: 64,
        num_heads: 2,
        num_kv_heads: 1,
        ..crate::common::small_shape(false)
    }
}

pub(super) fn layout(shape: &ModelShape, targets: &[(usize, Module, usize)]) -> AdapterLayout {
    let settings = LoraSettings {
        r: 8,
        alpha: 16.0,
        dropout: 0.0,
        use_rslora: false,
        targets: targets
            .iter()
            .map(|&(layer, module, r)| Target {
                layer,
                module,
                r,
                alpha: 2.0 * r as f32,
            })
            .collect(),
    };
    AdapterLayout::new(shape, settings).unwrap()
}

pub(super) struct Bed<'a, D: Ops> {
    pub(super) on: &'a On<D>,
    shape: &'a ModelShape,
    pub(super) layouts: &'a [AdapterLayout],
    pub(super) adapters: D::Adapters,
    pub(super) batch: D::Batch,
    pub(super) rows: usize,
    pub(super) group: Group,
    /// Whether s lies where plans put it, rather than by itself.
    pub(super) joined: bool,
}

/// What a pass through one group gives: s, y, ds, dx.
type Pass = [Vec<f32>; 4];

impl<'a, D: Ops> Bed<'a, D> {
    pub(super) fn new(
        on: &'a On<D>,
        shape: &'a ModelShape,
        layouts: &'a [AdapterLayout],
        batch: &Batch,
        group: Group,
    ) -> Self {
        let mut adapters = on.device.new_adapters(shape).unwrap();
        for (i, layout) in layouts.iter().enumerate() {
            let id = AdapterId(i as u32);
            // Twice: the second must replace the first.
            for seed in [90, i as u64 + 20] {
                let params = on.float::<f32>(&random(layout.len(), seed));
                on.device
                    .sync_adapter(&on.ctx(), &mut adapters, id, layout, params.slice())
                    .unwrap();
            }
        }
        Bed {
            on,
            shape,
            layouts,
            adapters,
            batch: on.batch(batch),
            rows: batch.rows(),
            group,
            joined: false,
        }
    }

    fn s_width(&self) -> usize {
        let widths = self.layouts.iter().map(|l| l.s_width(self.group));
        widths.max().unwrap_or(0)
    }

    /// Rows of these values, NaN behind them, and rows for s (NaN, but for
    /// separate ones).
    pub(super) fn operands(&self, values: &[f32], width: usize) -> [Rows<D>; 2] {
        let (on, rows, s_width) = (self.on, self.rows, self.s_width());
        let made = |width, lora| Rows::with_lora(&on.device, rows, width, lora).unwrap();
        let [mut x, mut s] = match self.joined {
            true => made(width, s_width),
            false => {
                let ([x, _], [s, _]) = (made(width, 0), made(s_width, 0));
                [x, s]
            }
        };
        if !self.joined {
            // Base rows' s is never written: zero, so that results compare.
            self.fill(s.get_mut(rows), s_width, &vec![0.0; rows * s_width]);
        }
        self.fill(x.get_mut(rows), width, values);
        [x, s]
    }

    fn fill(&self, to: SliceMut<D, D::Act>, width: usize, values: &[f32]) {
        let mut all = vec![D::Act::from_f32(f32::NAN); to.len];
        let stride = to.stride(self.rows);
        for (row, values) in values.chunks(width.max(1)).enumerate() {
            for (j, x) in values.iter().enumerate() {
                all[row * stride + j] = D::Act::from_f32(*x);
            }
        }
        self.on.device.upload(&self.on.ctx(), to, &all).unwrap();
    }

    /// s of adapted rows, wherever it lies; zeros for those of the base.
    pub(super) fn s_of(&self, [x, s]: &[Rows<D>; 2], width: usize) -> Vec<f32> {
        let (rows, s_width) = (self.rows, self.s_width());
        let joins = self.joined && self.on.device.memory_kind().joins_lora();
        let (from, first) = match joins {
            true => (x.get(rows), width),
            false => (s.get(rows), 0),
        };
        let mut all = vec![D::Act::default(); from.len];
        self.on
            .device
            .download(&self.on.ctx(), from, &mut all)
            .unwrap();
        let stride = from.stride(rows);
        let mut out = Vec::new();
        for row in 0..rows {
            let segments = &self.on.device.batch(&self.batch).segments;
            let adapter = segments
                .iter()
                .find(|s| s.rows.contains(&row))
                .and_then(|s| s.adapter);
            let used = adapter.map_or(0, |id| self.columns(id));
            out.extend((0..s_width).map(|j| match j < used {
                true => all[row * stride + first + j].to_f32(),
                false => 0.0,
            }));
        }
        out
    }

    /// Columns of s that an adapter writes.
    fn columns(&self, id: AdapterId) -> usize {
        let layout = &self.layouts[id.0 as usize];
        let factors = self
            .group
            .modules()
            .iter()
            .filter_map(|&m| layout.factor(1, m));
        factors.map(|f| f.r.next_multiple_of(16)).sum()
    }

    fn call<'b>(&'b self, s: &'b Rows<D>) -> LoraCall<'b, D> {
        LoraCall {
            adapters: &self.adapters,
            layer: 1,
            group: self.group,
            s: s.get(self.rows),
        }
    }

    fn matrix(&self) -> D::Matrix {
        let inputs = self.group.inputs(self.shape);
        let parts = self.group.outputs(self.shape);
        let views: Vec<_> = parts
            .iter()
            .enumerate()
            .map(|(i, &n)| weight(n, inputs, 40 + i as u64))
            .collect();
        let lora = if self.joined { self.s_width() } else { 0 };
        self.on
            .device
            .load_matrix(&views, None, true, lora)
            .unwrap()
    }

    fn pass(&self) -> Pass {
        self.pass_with(&self.matrix())
    }

    fn pass_with(&self, matrix: &D::Matrix) -> Pass {
        let (on, rows, group) = (self.on, self.rows, self.group);
        let inputs = group.inputs(self.shape);
        let outputs: usize = group.outputs(self.shape).iter().sum();
        let mut forward = self.operands(&random(rows * inputs, 1), inputs);
        let mut backward = self.operands(&random(rows * outputs, 2), outputs);
        let mut y = on.dirty::<D::Act>(rows * outputs);
        let mut dx = on.dirty::<D::Act>(rows * inputs);
        let (ctx, d) = (&on.ctx(), &on.device);
        let (batch, adapters) = (&self.batch, &self.adapters);
        let [x, s] = &mut forward;
        let s_rows = s.get_mut(rows);
        d.lora_shrink(ctx, batch, rows, adapters, 1, group, x.get(rows), s_rows)
            .unwrap();
        let call = Some(self.call(s));
        d.linear_forward(ctx, batch, rows, matrix, x.get(rows), call, y.slice_mut())
            .unwrap();
        let [dy, ds] = &mut backward;
        let ds_rows = ds.get_mut(rows);
        d.lora_shrink_backward(ctx, batch, rows, adapters, 1, group, dy.get(rows), ds_rows)
            .unwrap();
        let call = Some(self.call(ds));
        d.linear_backward(ctx, batch, rows, matrix, dy.get(rows), call, dx.slice_mut())
            .unwrap();
        let s = self.s_of(&forward, inputs);
        let ds = self.s_of(&backward, outputs);
        [s, on.get(&y), ds, on.get(&dx)]
    }

    /// Gradients of the first adapter, added to what is there.
    fn gradients(&self) -> Vec<f32> {
        let (on, rows, group, s_width) = (self.on, self.rows, self.group, self.s_width());
        let inputs = group.inputs(self.shape);
        let outputs: usize = group.outputs(self.shape).iter().sum();
        let x = on.act(&random(rows * inputs, 1));
        let dy = on.act(&random(rows * outputs, 2));
        let s = on.act(&random(rows * s_width, 3));
        let ds = on.act(&random(rows * s_width, 4));
        let layout = &self.layouts[0];
        let mut grads = on.float::<f32>(&random(layout.len(), 5));
        on.device
            .lora_gradients(
                &on.ctx(),
                &self.batch,
                rows,
                layout,
                1,
                group,
                x.slice(),
                s.slice(),
                dy.slice(),
                ds.slice(),
                grads.slice_mut(),
            )
            .unwrap();
        on.get(&grads)
    }
}

pub(super) fn dropout(batch: &mut Batch) {
    batch.dropout = Some(Dropout {
        p: 0.3,
        row_keys: (0..batch.rows()).map(|i| mix(i as u64 / 3)).collect(),
    });
}

/// Runs `f` on the device and on both references, and compares piece by piece.
fn compare<D: Ops>(
    on: &On<D>,
    what: &str,
    shape: &ModelShape,
    layouts: &[AdapterLayout],
    batch: &Batch,
    group: Group,
) {
    let (exact, plain) = references();
    let mut bed = Bed::new(on, shape, layouts, batch, group);
    let separate = bed.pass();
    bed.joined = true;
    let joined = bed.pass();
    let plain = Bed::new(&plain, shape, layouts, batch, group).pass();
    let want = Bed::new(&exact, shape, layouts, batch, group).pass();
    for (i, name) in ["s", "y", "ds", "dx"].iter().enumerate() {
        // Factors are rounded to bf16 on the device, and y and dx once more
        // after the base product: the scale of both is an ulp of the values.
        let size = want[i].iter().map(|x| x.abs() as f64).sum::<f64>() / want[i].len() as f64;
        let floor = size / 256.0;
        for (how, got) in [("separate", &separate), ("joined", &joined)] {
            let what = format!("{name}, {what}, {how}");
            assert_close(&what, &got[i], &plain[i], &want[i], floor);
        }
    }
}

fn several_adapters<D: Ops>(on: &On<D>) {
    let shape = model(80, 48);
    let layouts = [
        layout(
            &shape,
            &[
                (1, Module::Q, 4),
                (1, Module::V, 20),
                (1, Module::O, 3),
                (0, Module::Up, 8),
                (1, Module::Gate, 2),
            ],
        ),
        layout(
            &shape,
            &[
                (1, Module::K, 40),
                (1, Module::Gate, 8),
                (1, Module::Up, 16),
                (1, Module::Down, 5),
            ],
        ),
    ];
    let mut batch = Batch::default();
    for (rows, adapter) in [
        (1, Some(0)),
        (65, Some(1)),
        (3, None),
        (7, Some(0)),
        (2, None),
    ] {
        batch.push_segment(&vec![0; rows], &[], adapter.map(AdapterId));
    }
    for group in Group::ALL {
        compare(on, &format!("{group:?}"), &shape, &layouts, &batch, group);
        let mut dropped = batch.clone();
        dropout(&mut dropped);
        compare(
            on,
            &format!("{group:?}, dropout"),
            &shape,
            &layouts,
            &dropped,
            group,
        );
    }
}

/// Equal but for the last bit of bf16: a GPU may add in another order where a
/// product has other sizes.
#[track_caller]
fn assert_same(what: &str, a: &[f32], b: &[f32]) {
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        let last = b.abs().max(1.0) / 128.0;
        assert!((a - b).abs() <= last, "{what}: {a} and {b} at {i}");
    }
}

/// One adapter with base rows between and behind its own: LoRA is part of the
/// product, and base rows are what they are without it.
fn one_adapter<D: Ops>(on: &On<D>) {
    let shape = model(80, 48);
    let targets = [
        (1, Module::K, 20),
        (1, Module::V, 3),
        (1, Module::O, 16),
        (1, Module::Up, 33),
        (1, Module::Down, 64),
        (0, Module::Q, 70),
    ];
    let layouts = [layout(&shape, &targets)];
    let mut batch = Batch::default();
    for (rows, adapter) in [(66, Some(0)), (5, None), (2, Some(0)), (30, None)] {
        batch.push_segment(&vec![0; rows], &[], adapter.map(AdapterId));
    }
    for group in Group::ALL {
        let what = format!("one adapter, {group:?}");
        compare(on, &what, &shape, &layouts, &batch, group);
        let mut bed = Bed::new(on, &shape, &layouts, &batch, group);
        bed.joined = true;
        let matrix = bed.matrix();
        let before = bed.pass_with(&matrix);
        // Another adapter's turn, and this one's changed: the factors beside
        // the weight follow.
        let params = on.float::<f32>(&vec![0.0; layouts[0].len()]);
        let zero = |bed: &mut Bed<D>| {
            let (ctx, id) = (on.ctx(), AdapterId(0));
            on.device
                .sync_adapter(&ctx, &mut bed.adapters, id, &layouts[0], params.slice())
                .unwrap();
        };
        zero(&mut bed);
        let zeroed = bed.pass_with(&matrix);
        let plain = {
            let mut none = batch.clone();
            none.segments.iter_mut().for_each(|s| s.adapter = None);
            bed.batch = on.batch(&none);
            bed.pass_with(&matrix)
        };
        let (inputs, outputs) = (group.inputs(&shape), group.outputs(&shape).iter().sum());
        for (i, width) in [(1, outputs), (3, inputs)] {
            let rows = |pass: &Pass, rows: std::ops::Range<usize>| {
                pass[i][rows.start * width..rows.end * width].to_vec()
            };
            for base in [66..71, 73..103] {
                assert_same(&what, &rows(&before, base.clone()), &rows(&plain, base));
            }
            assert_ne!(rows(&before, 0..66), rows(&zeroed, 0..66), "{what}");
            assert_same(&what, &rows(&zeroed, 0..66), &rows(&plain, 0..66));
        }
    }
}

/// Which launches LoRA's part of a group costs beside shrinks: the factors are
/// put beside a weight once, and nothing reads a finished output again, unless
/// several adapters or a mask of dropout stand between.
#[cfg(feature = "emulator")]
#[test]
fn lora_is_part_of_the_product() {
    use arca::device::cuda::Cuda;
    use arca::device::cuda::emulator::EmulatorSettings;
    let on = On::new(Cuda::emulator(EmulatorSettings::default()).unwrap());
    let shape = model(80, 48);
    let targets = [(1, Module::Gate, 4), (1, Module::Up, 20)];
    let layouts = [layout(&shape, &targets), layout(&shape, &targets)];
    let launched = |bed: &Bed<Cuda>, matrix| {
        on.device.kernel_stats();
        bed.pass_with(matrix);
        let mut names: Vec<&str> = on.device.kernel_stats().unwrap().into_keys().collect();
        names.retain(|n| !n.starts_with("lora_shrink"));
        names
    };
    let group = Group::GateUp;
    let mut batch = Batch::default();
    batch.push_segment(&[0; 40], &[], Some(AdapterId(1)));
    batch.push_segment(&[0; 9], &[], None);
    let mut bed = Bed::new(&on, &shape, &layouts, &batch, group);
    let separate = ["lora_expand", "lora_expand_backward"];
    let matrix = bed.matrix();
    assert_eq!(launched(&bed, &matrix), separate);
    bed.joined = true;
    let matrix = bed.matrix();
    assert_eq!(launched(&bed, &matrix), ["lora_place"]);
    assert_eq!(launched(&bed, &matrix), [""; 0]);
    let mut masked = batch.clone();
    dropout(&mut masked);
    bed.batch = on.batch(&masked);
    assert_eq!(launched(&bed, &matrix), ["lora_expand_backward"]);
    batch.push_segment(&[0; 3], &[], Some(AdapterId(0)));
    bed.batch = on.batch(&batch);
    bed.rows = batch.rows();
    assert_eq!(launched(&bed, &matrix), separate);
}

fn ranks<D: Ops>(on: &On<D>) {
    let shape = model(144, 32);
    for (r, rows) in [(1, 1), (4, 63), (8, 64), (16, 65), (64, 5), (128, 33)] {
        let layouts = [layout(
            &shape,
            &[(1, Module::Q, r), (1, Module::K, r), (1, Module::V, r)],
        )];
        let mut batch = Batch::default();
        batch.push_segment(&vec![0; rows], &[], Some(AdapterId(0)));
        compare(
            on,
            &format!("r {r}, {rows} rows"),
            &shape,
            &layouts,
            &batch,
            Group::Qkv,
        );
    }
}

fn gradients_over_chunks<D: Ops>(on: &On<D>) {
    let (exact, plain) = references();
    let shape = model(80, 32);
    for (rows, r, masked) in [
        (1, 1, false),
        (65, 4, true),
        (130, 128, false),
        (1100, 16, true),
    ] {
        let targets = [
            (1, Module::Q, r),
            (1, Module::V, r.min(20)),
            (0, Module::Q, 2),
        ];
        let layouts = [layout(&shape, &targets)];
        let mut batch = Batch::default();
        batch.push_segment(&vec![0; rows], &[], Some(AdapterId(0)));
        batch.saved_rows = rows;
        if masked {
            dropout(&mut batch);
        }
        let bed = Bed::new(on, &shape, &layouts, &batch, Group::Qkv);
        let got = bed.gradients();
        assert_eq!(got, bed.gradients(), "two runs");
        let plain = Bed::new(&plain, &shape, &layouts, &batch, Group::Qkv).gradients();
        let want = Bed::new(&exact, &shape, &layouts, &batch, Group::Qkv).gradients();
        // Sums in f32 over up to 1100 rows, and with dropout x rounded to bf16.
        let floor = 1e-5 + if masked { 1e-3 } else { 0.0 };
        assert_close(&format!("{rows} rows, r {r}"), &got, &plain, &want, floor);
    }
}

/// Gradients of layer 1's q, k and v from these operands, added to ones.
fn gradients_of<D: Ops>(
    on: &On<D>,
    layout: &AdapterLayout,
    batch: &Batch,
    [x, s, dy, ds]: [Slice<D, D::Act>; 4],
) -> Vec<f32> {
    let mut grads = on.float::<f32>(&vec![1.0; layout.len()]);
    let (rows, group) = (batch.rows(), Group::Qkv);
    on.device
        .lora_gradients(
            &on.ctx(),
            &on.batch(batch),
            rows,
            layout,
            1,
            group,
            x,
            s,
            dy,
            ds,
            grads.slice_mut(),
        )
        .unwrap();
    on.get(&grads)
}

/// A batch of one segment under the first adapter.
fn one_segment(rows: usize, masked: bool) -> Batch {
    let mut batch = Batch::default();
    batch.push_segment(&vec![0; rows], &[], Some(AdapterId(0)));
    batch.saved_rows = rows;
    if masked {
        dropout(&mut batch);
    }
    batch
}

/// What modules share does not change a bit of what each would get alone: the
/// ranks' columns of s cross blocks, a module may be missing.
fn gradients_together_are_those_alone<D: Ops>(on: &On<D>) {
    let shape = model(80, 32);
    let sets: [&[(Module, usize)]; 3] = [
        &[(Module::Q, 5), (Module::K, 20), (Module::V, 40)],
        &[(Module::Q, 3), (Module::V, 70)],
        &[(Module::K, 1), (Module::V, 16)],
    ];
    for (parts, (rows, masked)) in sets.iter().zip([(600, false), (70, true), (1100, false)]) {
        let batch = one_segment(rows, masked);
        let targets: Vec<_> = parts.iter().map(|&(m, r)| (1, m, r)).collect();
        let all = layout(&shape, &targets);
        let s_width = all.s_width(Group::Qkv);
        let x = on.act(&random(rows * 80, 1));
        let dy = on.act(&random(rows * shape.qkv_width(), 2));
        let (s, ds) = (random(rows * s_width, 3), random(rows * s_width, 4));
        let (all_s, all_ds) = (on.act(&s), on.act(&ds));
        let operands = [x.slice(), all_s.slice(), dy.slice(), all_ds.slice()];
        let together = gradients_of(on, &all, &batch, operands);
        let mut column = 0;
        for target in &targets {
            let alone = layout(&shape, &[*target]);
            let width = alone.s_width(Group::Qkv);
            let own = |values: &[f32]| {
                let rows = values.chunks(s_width);
                let own = rows.flat_map(|row| row[column..column + width].to_vec());
                on.act(&own.collect::<Vec<_>>())
            };
            let (s, ds) = (own(&s), own(&ds));
            let operands = [x.slice(), s.slice(), dy.slice(), ds.slice()];
            let want = gradients_of(on, &alone, &batch, operands);
            let at = all.factor(1, target.1).unwrap().a;
            let got = &together[at..at + want.len()];
            assert!(got.iter().any(|&g| g != 1.0));
            assert_eq!(got, want, "{target:?} of {parts:?}, {rows} rows");
            column += width;
        }
    }
}

/// Rows of operands with room behind them give what tight rows do.
#[cfg(feature = "emulator")]
#[test]
fn gradients_of_wide_rows() {
    let shape = model(80, 32);
    let all = layout(&shape, &[(1, Module::Q, 5), (1, Module::V, 20)]);
    let (s_width, rows) = (all.s_width(Group::Qkv), 530);
    for on in super::emulators().map(On::new) {
        for masked in [false, true] {
            let batch = one_segment(rows, masked);
            // Of x, s, dy and ds, and what lies behind their rows.
            let widths = [80, s_width, shape.qkv_width(), s_width];
            let gaps = [s_width, 8, 24, 16];
            let values: Vec<Vec<f32>> = (1..)
                .zip(widths)
                .map(|(i, w)| random(rows * w, i))
                .collect();
            let tight: Vec<_> = values.iter().map(|v| on.act(v)).collect();
            let wide: Vec<_> = (0..4)
                .map(|i| {
                    let rows = values[i].chunks(widths[i]);
                    let wide = rows.flat_map(|row| [row, &vec![f32::NAN; gaps[i]]].concat());
                    on.act(&wide.collect::<Vec<_>>())
                })
                .collect();
            let run = |t: &[super::Tensor<_, _>]| {
                let operands = [t[0].slice(), t[1].slice(), t[2].slice(), t[3].slice()];
                gradients_of(&on, &all, &batch, operands)
            };
            assert_eq!(run(&wide), run(&tight), "dropout {masked}");
        }
    }
}
