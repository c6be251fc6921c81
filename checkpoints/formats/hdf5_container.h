// The native container: one HDF5 file of contiguous, page-aligned datasets at the root, one per tensor, each with its
// XXH3-128 as attribute "xxh3_128"; metadata are root attributes. docs/formats.md.
#pragma once

#include "checkpoints/checkpoint_format.h"

namespace cinch {

const CheckpointFormat& hdf5_format();

}  // namespace cinch
