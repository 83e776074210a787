//! The order problems are asked in: a fresh shuffle each epoch, resumable.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use crate::rng::{Purpose, Stream, stream_key};

/// Where a [`DataOrder`] stands: all a checkpoint needs beside the seed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Full passes done.
    pub epoch: u64,
    /// Rows of the current pass handed out.
    pub position: usize,
}

/// Row numbers in an order that depends on the seed and the number of rows
/// alone, never on the sizes of the batches they are taken in.
#[derive(Clone, Debug)]
pub struct DataOrder {
    seed: u64,
    cursor: Cursor,
    order: Vec<usize>,
}

impl DataOrder {
    /// The order of `rows` rows from its start.
    pub fn new(rows: usize, seed: u64) -> Result<Self> {
        Self::resume(rows, seed, Cursor::default())
    }

    /// The same order from `cursor` on.
    pub fn resume(rows: usize, seed: u64, cursor: Cursor) -> Result<Self> {
        ensure!(rows > 0, "no problems to put in order");
        ensure!(
            u32::try_from(rows).is_ok(),
            "{rows} problems are more than an order can hold"
        );
        ensure!(
            cursor.position <= rows,
            "the saved run stood at row {} of its data, which has {rows} rows now: resume with the data it was \
             started with",
            cursor.position
        );
        Ok(DataOrder {
            seed,
            cursor,
            order: shuffled(rows, seed, cursor.epoch),
        })
    }

    /// The next `n` rows, going on into the next epoch where this one ends.
    pub fn next_batch(&mut self, n: usize) -> Vec<usize> {
        (0..n).map(|_| self.next_row()).collect()
    }

    /// Where to resume.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    fn next_row(&mut self) -> usize {
        if self.cursor.position == self.order.len() {
            self.cursor = Cursor {
                epoch: self.cursor.epoch + 1,
                position: 0,
            };
            self.order = shuffled(self.order.len(), self.seed, self.cursor.epoch);
        }
        self.cursor.position += 1;
        self.order[self.cursor.position - 1]
    }
}

fn shuffled(rows: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..rows).collect();
    Stream::new(stream_key(seed, Purpose::DataOrder, epoch, 0, 0)).shuffle(&mut order);
    order
}
