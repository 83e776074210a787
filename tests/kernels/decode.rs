//! Guards the kernels of `cuda/decode.cu`.
