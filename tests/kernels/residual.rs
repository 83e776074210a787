//! Guards the kernels of `cuda/residual.cu`.
