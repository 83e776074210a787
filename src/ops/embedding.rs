//! Token embedding: rows of a table.

use anyhow::Result;

use crate::device::cpu::{Cpu, pool};
use crate::device::{Ctx, Device, Float, SliceMut};
use crate::ops::linear::{Linear, TableInfo, WeightDtype};

pub trait Embedding: Device + Linear {
    /// out[i] = table[batch.tokens[i]], `[rows, hidden]`, overwritten. `R` is
    /// the residual stream's type. Token ids are checked by the host.
    fn embedding_forward<R: Float>(
        &self,
        ctx: &Ctx<Self>,
        batch: &Self::Batch,
        table: &Self::Table,
        out: SliceMut<Self, R>,
    ) -> Result<()>;
}

impl<A: Float> Embedding for Cpu<A> {
    fn embedding_forward<R: Float>(
        &self,
        _: &Ctx<Self>,
        batch: &Self::Batch,
        table: &Self::Table,
        mut out: SliceMut<Self, R>,
    ) -> Result<()> {
        let tokens = &batch.batch.tokens;
        let hidden = table.hidden();
        let shared = out.shared();
        pool::parallel_rows(tokens.len(), hidden, |rows| {
            for i in rows {
                // SAFETY: one row each.
                let row = unsafe { shared.slice_mut(i * hidden, hidden) };
                if cfg!(target_endian = "little")
                    && table.dtype != WeightDtype::F16
                    && [size_of::<A>(), size_of::<R>()] == [table.dtype.size(); 2]
                {
                    // f32 or bf16 throughout.
                    let from = table.row_bytes(tokens[i] as usize);
                    bytemuck::cast_slice_mut(row).copy_from_slice(from);
                    continue;
                }
                table.read_row(tokens[i] as usize, |j, x| {
                    row[j] = R::from_f32(A::from_f32(x).to_f32())
                });
            }
        });
        Ok(())
    }
}
