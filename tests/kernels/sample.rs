//! Guards the kernels of `cuda/sample.cu`.
