// What the C library does with memory that was freed: kept, it would make a run over many layers grow with their
// number.
#pragma once

namespace cinch {

/// From now on every allocation of a mebibyte or more is mapped by itself and goes back to the system when it is freed.
/// Left to itself glibc raises that bound to 32 MiB after the first large ones were freed, and the heap's holes make
/// the process grow with depth (by a tenth over 64 small layers).
void map_large_allocations() noexcept;

/// Gives the heap's holes back to the system; for the end of a layer.
void return_freed_memory() noexcept;

}  // namespace cinch
