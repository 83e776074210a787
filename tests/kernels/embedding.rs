//! Guards the kernels of `cuda/embedding.cu`.
