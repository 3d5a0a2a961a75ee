// The kernels of one instruction set: compiled once for each, with its own flags and -DGOSSAMER_ISA=<name>.
#include "kernels.h"

#include "conv.h"
#include "linear.h"
#include "pack.h"
#include "patterns.h"
#include "pool.h"
#include "blocks.h"
#include "screen.h"
#include "taps.h"
#include "transform.h"

#define GOSSAMER_JOIN(a, b) a##b
#define GOSSAMER_TABLE(isa) GOSSAMER_JOIN(gossamer_kernels_, isa)

extern "C" const gossamer::Kernels GOSSAMER_TABLE(GOSSAMER_ISA);
const gossamer::Kernels GOSSAMER_TABLE(GOSSAMER_ISA) = {
    gossamer::pack,         gossamer::unpack,       gossamer::linear_forward, gossamer::linear_backward,
    gossamer::conv_forward, gossamer::conv_backward, gossamer::screen,       gossamer::sampled_product,
    gossamer::max_pool_forward, gossamer::max_pool_backward, gossamer::taps_forward, gossamer::taps_backward,
    gossamer::cosine,       gossamer::hadamard,     gossamer::patterns,     gossamer::block_forward,  gossamer::block_backward,
};
