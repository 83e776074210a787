//! Guards the kernels of `cuda/lora_backward.cu`: ds and dB from one read of dy,
//! over parts, ranks, ragged rows and widths, and every way to cut the columns.

use arca::device::cuda::Cuda;
use arca::device::{Device, SliceMut};
use arca::episode::AdapterId;
use arca::model::adapter::AdapterLayout;
use arca::model::batch::Batch;
use arca::model::config::{Group, ModelShape, Module};
use arca::ops::Ops;
use arca::ops::lora::{LoraBackward, two_passes};

use super::lora::{Bed, dropout, layout, model};
use super::{On, assert_close, random, references, test_cuda, test_device};

test_device!(one_adapter);
test_cuda!(columns_in_chunks);
test_cuda!(rows_do_not_meet);

/// How a test has the backward done.
type Way<'a, D> =
    &'a dyn Fn(&Bed<D>, &LoraBackward<D>, SliceMut<D, <D as Device>::Act>, SliceMut<D, f32>);

fn as_op<D: Ops>(
    bed: &Bed<D>,
    call: &LoraBackward<D>,
    ds: SliceMut<D, D::Act>,
    grads: SliceMut<D, f32>,
) {
    let (on, rows) = (bed.on, bed.rows);
    on.device
        .lora_backward(&on.ctx(), &bed.batch, rows, call, ds, grads)
        .unwrap();
}

/// What a backward gives: ds, the second adapter's gradients, and what
/// `lora_gradients` makes of that ds.
#[derive(PartialEq)]
struct Backward {
    ds: Vec<f32>,
    grads: Vec<f32>,
    again: Vec<f32>,
}

/// A backward of s as the forward left it, of dy with `strange` in the row it
/// names.
fn backward<D: Ops>(bed: &Bed<D>, way: Way<D>, strange: Option<(usize, f32)>) -> Backward {
    let (on, rows, group, layout) = (bed.on, bed.rows, bed.group, &bed.layouts[1]);
    let shape = layout.shape();
    let (ctx, d) = (&on.ctx(), &on.device);
    let inputs = group.inputs(shape);
    let outputs: usize = group.outputs(shape).iter().sum();
    let mut values = random(rows * outputs, 2);
    if let Some((row, value)) = strange {
        values[row * outputs..(row + 1) * outputs].fill(value);
    }
    let [x, mut s] = bed.operands(&random(rows * inputs, 1), inputs);
    let [dy, mut ds] = bed.operands(&values, outputs);
    let s_rows = s.get_mut(rows);
    d.lora_shrink(
        ctx,
        &bed.batch,
        rows,
        &bed.adapters,
        1,
        group,
        x.get(rows),
        s_rows,
    )
    .unwrap();
    let call = LoraBackward {
        adapters: &bed.adapters,
        layout,
        layer: 1,
        group,
        x: x.get(rows),
        s: s.get(rows),
        dy: dy.get(rows),
    };
    let before = random(layout.len(), 5);
    let (mut grads, mut again) = (on.float::<f32>(&before), on.float::<f32>(&before));
    way(bed, &call, ds.get_mut(rows), grads.slice_mut());
    d.lora_gradients(
        ctx,
        &bed.batch,
        rows,
        layout,
        1,
        group,
        call.x,
        call.s,
        call.dy,
        ds.get(rows),
        again.slice_mut(),
    )
    .unwrap();
    let (grads, again) = (on.get(&grads), on.get(&again));
    let ds = bed.s_of(&[dy, ds], outputs);
    Backward { ds, grads, again }
}

struct Case {
    rows: usize,
    shape: ModelShape,
    group: Group,
    targets: &'static [(usize, Module, usize)],
    masked: bool,
}

impl Case {
    /// Saved rows of the second of two adapters, base rows behind.
    fn batch(&self) -> Batch {
        let mut batch = Batch::default();
        batch.push_segment(&vec![0; self.rows], &[], Some(AdapterId(1)));
        batch.saved_rows = self.rows;
        batch.push_segment(&[0; 5], &[], None);
        if self.masked {
            dropout(&mut batch);
        }
        batch
    }

    fn layouts(&self) -> [AdapterLayout; 2] {
        let other = [(1, Module::Q, 70), (1, Module::Up, 50)];
        [
            layout(&self.shape, &other),
            layout(&self.shape, self.targets),
        ]
    }

    fn bed<'a, D: Ops>(&'a self, on: &'a On<D>, layouts: &'a [AdapterLayout]) -> Bed<'a, D> {
        let mut bed = Bed::new(on, &self.shape, layouts, &self.batch(), self.group);
        bed.rows = self.rows;
        bed
    }
}

fn case(
    rows: usize,
    shape: ModelShape,
    group: Group,
    targets: &'static [(usize, Module, usize)],
    masked: bool,
) -> Case {
    Case {
        rows,
        shape,
        group,
        targets,
        masked,
    }
}

fn one_adapter<D: Ops>(on: &On<D>) {
    use Module::*;
    let cases = [
        case(1, model(80, 48), Group::GateUp, &[(1, Gate, 1)], false),
        case(
            65,
            model(80, 48),
            Group::Qkv,
            &[(1, Q, 4), (1, V, 20)],
            true,
        ),
        case(
            130,
            model(80, 48),
            Group::Down,
            &[(1, Down, 16), (0, Q, 9)],
            false,
        ),
        case(
            600,
            model(48, 80),
            Group::GateUp,
            &[(1, Gate, 32), (1, Up, 5)],
            false,
        ),
        case(
            1030,
            model(48, 32),
            Group::Qkv,
            &[(1, K, 7), (1, Q, 16), (1, V, 3)],
            true,
        ),
        // Larger than one pass takes, and a group that is left alone.
        case(
            70,
            model(80, 48),
            Group::Qkv,
            &[(1, Q, 4), (1, K, 33)],
            false,
        ),
        case(70, model(80, 48), Group::O, &[(1, Q, 4), (0, O, 8)], false),
    ];
    let (exact, plain) = references();
    for case in &cases {
        let layouts = case.layouts();
        let mut bed = case.bed(on, &layouts);
        let separate = backward(&bed, &as_op, None);
        bed.joined = true;
        let joined = backward(&bed, &as_op, None);
        assert!(joined == separate, "where s lies, {:?}", case.group);
        let plain = backward(&case.bed(&plain, &layouts), &as_op, None);
        let want = backward(&case.bed(&exact, &layouts), &as_op, None);
        let what = |name| format!("{name}, {:?}, {} rows", case.group, case.rows);
        // B is rounded to bf16 on the device, and with dropout x is.
        let size =
            |v: &[f32]| v.iter().map(|x| x.abs() as f64).sum::<f64>() / v.len().max(1) as f64;
        assert_close(
            &what("ds"),
            &joined.ds,
            &plain.ds,
            &want.ds,
            size(&want.ds) / 256.0,
        );
        let floor = 1e-5 + size(&want.grads) / 256.0;
        assert_close(
            &what("gradients"),
            &joined.grads,
            &plain.grads,
            &want.grads,
            floor,
        );
        // Sums over rows are those of the kernels that read dy again.
        assert!(joined.grads == joined.again, "{}", what("gradients"));
        let of_group = |t: &(usize, Module, usize)| t.0 == 1 && case.group.modules().contains(&t.1);
        let adapted = case.targets.iter().any(of_group);
        let added = joined.grads != random(layouts[1].len(), 5);
        assert_eq!(added, adapted, "{}", what("gradients"));
    }
}

/// However the columns are cut, ds is the same but for the order of its sums
/// and the gradients follow from it, to the bit and in every run.
fn columns_in_chunks(on: &On<Cuda>) {
    use Module::*;
    let cases = [
        case(
            75,
            model(32, 592),
            Group::GateUp,
            &[(1, Gate, 16), (1, Up, 5)],
            false,
        ),
        case(530, model(208, 32), Group::Down, &[(1, Down, 31)], false),
    ];
    for case in &cases {
        let layouts = case.layouts();
        let mut bed = case.bed(on, &layouts);
        bed.joined = true;
        let apart: Way<Cuda> = &|bed, call, ds, grads| {
            let (ctx, rows) = (&on.ctx(), bed.rows);
            two_passes(&on.device, ctx, &bed.batch, rows, call, ds, grads).unwrap()
        };
        let want = backward(&bed, apart, None);
        for columns in [64, 128, 256, 512] {
            let way: Way<Cuda> = &|bed, call, ds, grads| {
                let pass = call.one_pass(&bed.batch, bed.rows).unwrap();
                let pass = pass.in_chunks_of(columns);
                on.device
                    .lora_backward_in_one(&on.ctx(), &bed.batch, &pass, call, ds, grads)
                    .unwrap();
            };
            let got = backward(&bed, way, None);
            assert!(got.grads == got.again, "chunks of {columns}");
            for (i, (a, b)) in got.ds.iter().zip(&want.ds).enumerate() {
                let last = b.abs().max(0.5) / 128.0;
                assert!(
                    (a - b).abs() <= last,
                    "{a} and {b} at {i}, chunks of {columns}"
                );
            }
            if columns == 128 {
                assert!(got == backward(&bed, way, None), "two runs");
            }
        }
    }
}

/// A row's ds is its own, whatever stands in its neighbours.
fn rows_do_not_meet(on: &On<Cuda>) {
    let case = case(
        70,
        model(32, 144),
        Group::GateUp,
        &[(1, Module::Gate, 3), (1, Module::Up, 20)],
        false,
    );
    let layouts = case.layouts();
    let bed = case.bed(on, &layouts);
    let width = layouts.iter().map(|l| l.s_width(case.group)).max().unwrap();
    let usual = backward(&bed, &as_op, None).ds;
    for row in [0, 17, 69] {
        let strange = backward(&bed, &as_op, Some((row, f32::NAN))).ds;
        for (i, (a, b)) in strange.chunks(width).zip(usual.chunks(width)).enumerate() {
            match i == row {
                true => assert!(a[..3].iter().all(|x| x.is_nan())),
                false => assert_eq!(a, b, "row {i} beside {row}"),
            }
        }
    }
}

/// One pass reads dy where all rows are one adapter's and ranks allow it; else
/// there are two.
#[cfg(feature = "emulator")]
#[test]
fn dy_is_read_in_one_pass() {
    use arca::device::cuda::emulator::EmulatorSettings;
    use std::cell::RefCell;
    let on = On::new(Cuda::emulator(EmulatorSettings::default()).unwrap());
    let launched = |case: &Case, segments: &[Option<u32>]| {
        let layouts = case.layouts();
        let mut bed = case.bed(&on, &layouts);
        if !segments.is_empty() {
            let mut batch = Batch::default();
            for adapter in segments {
                batch.push_segment(&[0; 10], &[], adapter.map(AdapterId));
            }
            bed.rows = batch.rows();
            batch.saved_rows = bed.rows;
            bed.batch = on.batch(&batch);
        }
        let names = RefCell::new(Vec::new());
        let way: Way<Cuda> = &|bed, call, ds, grads| {
            on.device.kernel_stats();
            as_op(bed, call, ds, grads);
            names.replace(on.device.kernel_stats().unwrap().into_keys().collect());
        };
        backward(&bed, way, None);
        names.into_inner()
    };
    let case = |rows, group, targets| case(rows, model(80, 48), group, targets, false);
    let small = case(20, Group::Qkv, &[(1, Module::Q, 16)]);
    let one = ["lora_backward_16", "lora_backward_sum", "lora_gradients_16"];
    assert_eq!(launched(&small, &[]), one);
    assert_eq!(launched(&small, &[Some(1), Some(1)]), one);
    let two = ["lora_gradients_16", "lora_shrink_backward_64"];
    for segments in [[Some(1), Some(0)], [Some(1), None], [None, Some(1)]] {
        assert_eq!(launched(&small, &segments), two, "{segments:?}");
    }
    let long = case(513, Group::Qkv, &[(1, Module::Q, 16)]);
    let sum = ["lora_gradients_sum"];
    assert_eq!(launched(&long, &[]), [&one[..], &sum].concat());
    let middle = case(20, Group::O, &[(1, Module::O, 17)]);
    let one = ["lora_backward_32", "lora_backward_sum", "lora_gradients_64"];
    assert_eq!(launched(&middle, &[]), one);
    let large = case(20, Group::O, &[(1, Module::O, 33)]);
    let two = ["lora_gradients_64", "lora_shrink_backward_64"];
    assert_eq!(launched(&large, &[]), two);
}
