//! Guards the kernels of `cuda/attention.cu`.
