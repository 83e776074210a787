//! One integration binary; each module states what it guards.

mod text;
