//! Guards the kernels of `cuda/rmsnorm.cu`.
