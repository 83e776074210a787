//! Memory of the CPU device's buffers.

use bytemuck::Zeroable;

/// From this size on a buffer asks for large pages.
const LARGE: usize = 4 << 20;
/// What the system makes large pages of.
const HUGE_PAGE: usize = 2 << 20;

/// A zeroed vector whose pages are not touched before they are used, large ones
/// where the system has them: products walk along columns of rows that are
/// kilobytes long, a page each, and small pages' addresses do not fit in the
/// processor's tables (2 to 5 % of an update, benches/LOG.md).
pub fn zeroed<T: Zeroable>(len: usize) -> Vec<T> {
    let mut data: Vec<T> = bytemuck::allocation::zeroed_vec(len);
    if size_of_val(&data[..]) >= LARGE {
        ask_for_large_pages(&mut data);
    }
    data
}

#[cfg(target_os = "linux")]
fn ask_for_large_pages<T>(data: &mut [T]) {
    let start = data.as_mut_ptr() as usize;
    let first = start.next_multiple_of(HUGE_PAGE);
    let end = (start + size_of_val(data)) / HUGE_PAGE * HUGE_PAGE;
    if first < end {
        // SAFETY: the range lies within the vector's own memory, and what it
        // holds does not change. It is a hint: a system without large pages
        // refuses, and nothing is lost.
        unsafe { libc::madvise(first as *mut libc::c_void, end - first, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn ask_for_large_pages<T>(_: &mut [T]) {}
