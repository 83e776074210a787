//! What a memory plan knows of a device, and what a device is told of a plan.

use serde::Serialize;

/// What memory is for. One role is one arena on a device that has arenas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Base weights, norms and the rotary table.
    Weights,
    /// Weights read where they lie in a mapped file.
    Mapped,
    /// Adapters with gradients and moments.
    Adapters,
    Activations,
    /// Scratch of the backward.
    Update,
    /// Pages of keys and values.
    Kv,
    /// Scratch of single ops.
    Workspace,
    /// Batch descriptors and what copies go through.
    Staging,
}

impl Role {
    pub const ALL: [Role; 8] = [
        Role::Weights,
        Role::Mapped,
        Role::Adapters,
        Role::Activations,
        Role::Update,
        Role::Kv,
        Role::Workspace,
        Role::Staging,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Role::Weights => "weights",
            Role::Mapped => "mapped",
            Role::Adapters => "adapters",
            Role::Activations => "activations",
            Role::Update => "update",
            Role::Kv => "kv",
            Role::Workspace => "workspace",
            Role::Staging => "staging",
        }
    }
}

/// Type of the elements of a planned buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    F32,
    Bf16,
    F16,
    U32,
    U8,
}

impl Dtype {
    pub fn size(self) -> usize {
        match self {
            Dtype::F32 | Dtype::U32 => 4,
            Dtype::Bf16 | Dtype::F16 => 2,
            Dtype::U8 => 1,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "f32",
            Dtype::Bf16 => "bf16",
            Dtype::F16 => "f16",
            Dtype::U32 => "u32",
            Dtype::U8 => "u8",
        }
    }
}

/// Buffers on a CUDA device start at multiples of this many bytes.
pub const CUDA_ALIGNMENT: usize = 256;

/// All that a plan asks of a device, so that planning needs none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryKind {
    /// Weights packed for each direction, memory touched when it is written.
    Cpu { act: Dtype },
    /// bf16, one copy of the weights, one allocation per arena.
    Cuda,
}

impl MemoryKind {
    /// Activations' type.
    pub fn act(self) -> Dtype {
        match self {
            MemoryKind::Cpu { act } => act,
            MemoryKind::Cuda => Dtype::Bf16,
        }
    }

    /// Buffers start at multiples of this many bytes and fill them.
    pub fn alignment(self) -> usize {
        match self {
            MemoryKind::Cpu { .. } => 1,
            MemoryKind::Cuda => CUDA_ALIGNMENT,
        }
    }

    /// Whether buffers that are never in use at once lie over each other. The
    /// CPU's untouched pages cost nothing, so it keeps them apart.
    pub fn overlays(self) -> bool {
        self == MemoryKind::Cuda
    }

    /// Whether LoRA's s and ds lie behind the rows they come from and its
    /// factors beside the base weights, so that both are one product. The
    /// CPU's products add LoRA to each block of sums, wherever it lies.
    pub fn joins_lora(self) -> bool {
        self == MemoryKind::Cuda
    }

    pub fn name(self) -> &'static str {
        match self {
            MemoryKind::Cpu { .. } => "cpu",
            MemoryKind::Cuda => "cuda",
        }
    }
}
