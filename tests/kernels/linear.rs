//! Guards the base products and the LoRA terms within them.
