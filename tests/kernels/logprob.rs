//! Guards the kernels of `cuda/logprob.cu`.
