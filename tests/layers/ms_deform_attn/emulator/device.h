// A GPU for tests: runs the source of a CUDA kernel on the host, one block after the other, every thread as a fiber.
//
// Fibers change only where threads meet (shuffles, barriers). A warp whose lanes do not all come to the same meeting,
// or a block that stands still, is an error, as is a kernel that computes something else when its threads run in
// reverse.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <functional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static

struct Index {
  unsigned x;
};
struct uint4 {
  unsigned x, y, z, w;
};

namespace emulator {

constexpr int WARP_LANES = 32;

enum class Meeting { NOWHERE, SHUFFLE, WARP, BLOCK };

struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(128 * 1024);
  Index thread;
  Meeting meeting = Meeting::NOWHERE;  // where it waits
  bool done = false;
  int shuffles = 0;
};

struct Machine {
  std::vector<Fiber> fibers;
  std::vector<uint64_t> exchange;  // two numbers a lane, written in turn
  Fiber* running = nullptr;
  Index block{0};
  ucontext_t scheduler;
  std::function<void()> kernel;

  static Machine& here() {
    static Machine machine;
    return machine;
  }

  static void enter() {
    here().kernel();
    here().running->done = true;
    swapcontext(&here().running->context, &here().scheduler);
  }

  void meet(Meeting where) {
    running->meeting = where;
    swapcontext(&running->context, &scheduler);
  }

  template <class T>
  T shuffle(T x, int source) {
    const int self = running->thread.x, warp = self / WARP_LANES * WARP_LANES, turn = running->shuffles++ % 2;
    memcpy(&exchange[2 * self + turn], &x, sizeof x);
    meet(Meeting::SHUFFLE);
    memcpy(&x, &exchange[2 * (warp + source % WARP_LANES) + turn], sizeof x);
    return x;
  }

  void run(int blocks, int threads, bool reversed, std::function<void()> body) {
    kernel = std::move(body);
    fibers.resize(threads);
    exchange.resize(2 * threads);
    for (block.x = 0; block.x < unsigned(blocks); ++block.x) run_block(reversed);
  }

  void run_block(bool reversed) {
    const int threads = fibers.size();
    for (int i = 0; i < threads; ++i) {
      Fiber& fiber = fibers[i];
      fiber.thread.x = i;
      fiber.done = false;
      fiber.meeting = Meeting::NOWHERE;
      fiber.shuffles = 0;
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.data();
      fiber.context.uc_stack.ss_size = fiber.stack.size();
      makecontext(&fiber.context, &Machine::enter, 0);
    }
    while (!all_done()) {
      for (int i = 0; i < threads; ++i) {
        Fiber& fiber = fibers[reversed ? threads - 1 - i : i];
        if (fiber.done || fiber.meeting != Meeting::NOWHERE) continue;
        running = &fiber;
        swapcontext(&scheduler, &fiber.context);
      }
      if (!release()) throw std::runtime_error("threads of block " + std::to_string(block.x) + " wait for each other");
    }
  }

  bool all_done() const {
    return std::all_of(fibers.begin(), fibers.end(), [](const Fiber& fiber) { return fiber.done; });
  }

  // Lets whole warps, and the whole block, go on from where they met.
  bool release() {
    bool progress = false, whole_block = true;
    for (const Fiber& fiber : fibers)
      if (!fiber.done && fiber.meeting != Meeting::BLOCK) whole_block = false;
    for (size_t first = 0; first < fibers.size(); first += WARP_LANES) {
      Fiber* lanes = &fibers[first];
      bool same = true;
      for (int i = 1; i < WARP_LANES; ++i)
        if (lanes[i].done != lanes[0].done || lanes[i].meeting != lanes[0].meeting) same = false;
      if (!same) throw std::runtime_error("lanes of a warp part in block " + std::to_string(block.x));
      if (lanes[0].done) {
        progress = true;
        continue;
      }
      if (!whole_block && lanes[0].meeting == Meeting::BLOCK) continue;
      for (int i = 0; i < WARP_LANES; ++i) lanes[i].meeting = Meeting::NOWHERE;
      progress = true;
    }
    return progress;
  }
};

}  // namespace emulator

#define threadIdx (emulator::Machine::here().running->thread)
#define blockIdx (emulator::Machine::here().block)

inline void __syncthreads() { emulator::Machine::here().meet(emulator::Meeting::BLOCK); }
inline void __syncwarp() { emulator::Machine::here().meet(emulator::Meeting::WARP); }
template <class T>
T __shfl_sync(unsigned, T x, int source) {
  return emulator::Machine::here().shuffle(x, source);
}
template <class T>
T __shfl_xor_sync(unsigned, T x, int mask) {
  return emulator::Machine::here().shuffle(x, threadIdx.x ^ mask);
}
template <class T>
T __ldg(const T* from) {
  return *from;
}
template <class T>
void __stcs(T* to, T x) {
  *to = x;
}
template <class T>
T atomicAdd(T* to, T x) {
  return std::exchange(*to, *to + x);
}
template <class T>
T atomicExch(T* to, T x) {
  return std::exchange(*to, x);
}
template <class T>
T atomicCAS(T* to, T expected, T x) {
  return *to == expected ? std::exchange(*to, x) : *to;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return uint64_t(a) * b >> 32; }
using std::max;
using std::min;
