// Memory that tensors on the CPU hand on to each other instead of asking the system for it at every step.
//
// While a scope is open, on whichever thread, blocks of 64 KiB and more come from one range of addresses, best fit, and
// go back to it when their last tensor dies, in a scope or not. The range grows to what was in use at one time, plus
// what fragmentation takes, and stays until `release`.

#pragma once

#include <cstdint>

namespace gnfast::cpu {

struct ArenaUse {
  int64_t blocks;   // handed out so far
  int64_t refused;  // that the system served instead, because the range was full
  int64_t grown;    // times that the range grew
  int64_t in_use;   // bytes of tensors that live
  int64_t held;     // bytes taken from the system
};

// Puts the arena in front of PyTorch's CPU allocator, once. False, and nothing is changed, where another one has
// replaced that or the addresses cannot be reserved; the functions below are then not to be called.
bool install_arena();

// A scope; they nest and may overlap.
void open_arena();
void close_arena();

// Gives the memory that no tensor uses back to the system.
void release_arena();

ArenaUse arena_use();

}  // namespace gnfast::cpu
