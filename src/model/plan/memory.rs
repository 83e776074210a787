//! What the system says of memory.

/// Memory this machine could give now, in bytes, where the system tells.
pub fn available_memory() -> Option<u64> {
    proc_kib("/proc/meminfo", "MemAvailable:")
}

/// Most memory this process has held so far, in bytes, where the system tells.
pub fn peak_memory() -> Option<u64> {
    proc_kib("/proc/self/status", "VmHWM:")
}

/// Memory this process holds now, in bytes, where the system tells.
pub fn resident_memory() -> Option<u64> {
    proc_kib("/proc/self/status", "VmRSS:")
}

fn proc_kib(file: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find(|l| l.starts_with(key))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}
