//! Guards the kernels of `cuda/swiglu.cu`.
