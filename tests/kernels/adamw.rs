//! Guards the kernels of `cuda/adamw.cu`.
