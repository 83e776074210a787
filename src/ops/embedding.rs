//! Token embedding: rows of a table.

use anyhow::Result;

use crate::device::cpu::{Cpu, pool};
use crate::device::{Ctx, Device, Float, SliceMut};
use crate::ops::linear::{Linear, TableInfo};

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
                table.read_row(tokens[i] as usize, |j, x| {
                    row[j] = R::from_f32(A::from_f32(x).to_f32())
                });
            }
        });
        Ok(())
    }
}
