//! Guards the kernels of `cuda/lora.cu`.
