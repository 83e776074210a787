//! Guards the kernels of `cuda/qknorm_rope.cu`.
