//! The ops on the CUDA device, one file per stem beside `cuda/<stem>.cu`:
//! argument order, grid and workspace of each launch.

mod adamw;
mod attention;
mod decode;
mod embedding;
mod linear;
mod logprob;
mod lora;
mod qknorm_rope;
mod residual;
mod rmsnorm;
mod sample;
mod swiglu;
