// The mask of PyTorch's `native_dropout`, thread by thread: a second restatement of its kernels' loops, in which
// nothing is shared with fusedact. (aten/src/ATen/native/cuda/Dropout.cu and cuRAND's Philox4_32_10.)
#include "driver.h"

constexpr unsigned BLOCK = 256;

struct Philox {
  uint32_t counter[4], key[2];

  // curand_init(seed, subsequence, offset): the offset counts numbers, of which a call gives four.
  Philox(uint64_t seed, uint64_t subsequence, uint64_t offset) {
    uint64_t calls = offset / 4;
    counter[0] = (uint32_t)calls, counter[1] = (uint32_t)(calls >> 32);
    counter[2] = (uint32_t)subsequence, counter[3] = (uint32_t)(subsequence >> 32);
    key[0] = (uint32_t)seed, key[1] = (uint32_t)(seed >> 32);
  }

  struct Four {
    float at[4];
  };
  // curand_uniform4: four floats in (0, 1].
  Four uniform4() {
    uint32_t c[4] = {counter[0], counter[1], counter[2], counter[3]}, k[2] = {key[0], key[1]};
    for (int round = 0; round < 10; round++) {
      uint64_t even = (uint64_t)0xD2511F53u * c[0], odd = (uint64_t)0xCD9E8D57u * c[2];
      uint32_t next[4] = {(uint32_t)(odd >> 32) ^ c[1] ^ k[0], (uint32_t)odd,
                          (uint32_t)(even >> 32) ^ c[3] ^ k[1], (uint32_t)even};
      for (int i = 0; i < 4; i++) c[i] = next[i];
      k[0] += 0x9E3779B9u, k[1] += 0xBB67AE85u;
    }
    for (int i = 0; i < 4 && ++counter[i] == 0; i++) {}  // carries
    Four result;
    for (int i = 0; i < 4; i++) result.at[i] = (float)c[i] * 0x1p-32f + 0x1p-33f;
    return result;
  }
};

struct Shape {
  uint64_t n;
  unsigned blocks;
  unsigned vec;  // elements per load
};

// fused_dropout_kernel: a thread's four numbers go to elements that stand a grid apart.
template <class P>
static void scalar_thread(uint8_t* keep, const Shape& shape, uint64_t thread, Philox state, P p) {
  uint64_t threads = (uint64_t)BLOCK * shape.blocks;
  uint64_t rounded = ((shape.n - 1) / (threads * 4) + 1) * threads * 4;
  for (uint64_t at = thread; at < rounded; at += threads * 4) {
    auto random = state.uniform4();
    for (int i = 0; i < 4; i++)
      if (at + threads * i < shape.n) keep[at + threads * i] = random.at[i] < p;
  }
}

// fused_dropout_kernel_vec: a thread's numbers go to consecutive elements. At vec 2 half of them are lost.
template <class P>
static void vector_thread(uint8_t* keep, const Shape& shape, uint64_t thread, Philox state, P p) {
  uint64_t stride = (uint64_t)BLOCK * shape.blocks * shape.vec;
  for (uint64_t at = thread * shape.vec; at < shape.n; at += stride) {
    Philox::Four random;
    for (unsigned i = 0; i < shape.vec; i++) {
      if (i % 4 == 0) random = state.uniform4();
      keep[at + i] = random.at[i % 4] < p;
    }
  }
}

template <class P>
static void dropout(uint8_t* keep, const Shape& shape, uint64_t seed, uint64_t offset, P p) {
  auto* each = shape.vec > 1 ? vector_thread<P> : scalar_thread<P>;
  for (uint64_t thread = 0; thread < (uint64_t)BLOCK * shape.blocks; thread++)
    each(keep, shape, thread, Philox(seed, thread, offset), p);
}

// How PyTorch launches its kernel for a tensor of n elements at `address`.
static Shape shape_of(uint64_t address, uint64_t n, unsigned itemsize, bool dense, unsigned processors,
                      unsigned threads_per_processor) {
  uint64_t blocks = (n + BLOCK - 1) / BLOCK, resident = (uint64_t)processors * (threads_per_processor / BLOCK);
  unsigned vec = dense ? 16 / itemsize : 1;
  while (vec > 1 && (address % (vec * itemsize) || n % vec)) vec /= 2;
  return {n, (unsigned)(blocks < resident ? blocks : resident), vec};
}

// The offset's increment, and in `vec` whether elements are numbered as they lie in memory (more than 1).
API uint64_t sim_dropout_increment(uint64_t address, uint64_t n, unsigned itemsize, int dense, unsigned processors,
                                   unsigned threads_per_processor, unsigned* vec) {
  auto shape = shape_of(address, n, itemsize, dense, processors, threads_per_processor);
  *vec = shape.vec;
  return ((n - 1) / ((uint64_t)BLOCK * shape.blocks * 4) + 1) * 4;
}
// `p_keep` is compared in float, for float64 tensors in double.
API void sim_dropout_mask(uint8_t* keep, uint64_t address, uint64_t n, unsigned itemsize, int dense,
                          unsigned processors, unsigned threads_per_processor, uint64_t seed, uint64_t offset,
                          double p_keep) {
  auto shape = shape_of(address, n, itemsize, dense, processors, threads_per_processor);
  if (itemsize == 8)
    dropout<double>(keep, shape, seed, offset, p_keep);
  else
    dropout<float>(keep, shape, seed, offset, (float)p_keep);
}
