// Drawing the next token from f32 logits: temperature, top-k, top-p, min-p,
// then Gumbel-max with counter-based noise (Philox4x32-10).
//
// One block per request over [requests, columns] logits, of which the first
// `vocab` count. Equal logits give the CPU's token bit for bit: the noise is
// made of the same IEEE operations in the same order. Truncation finds its
// threshold by bisection over the values' order-preserving integers, with block
// sums in a fixed tree: no sorting, no atomics. Tokens of equal value go by
// index.
//
// 5 FLOPs and one logarithm pair a token; bytes 4 vocab (4 more per bisection
// step where truncation is on, from L2).
#include "common.cuh"

constexpr int kThreads = 512;

struct SampleRequest {
  uint64_t key;
  uint32_t position;
  uint32_t greedy;
  float scale;  // 1 / temperature; 1 if greedy
  float top_p;  // 1 = off
  uint32_t top_k;  // 0 = off
  float log_min_p;  // -inf = off
};

struct Sampled {
  uint32_t token;
  float logprob;
  uint32_t invalid;
  uint32_t padding;
};

// Natural logarithm of a positive normal number, as the CPU computes it:
// no operation may be contracted.
DEVICE float ln_exact(float x) {
  const uint32_t bits = bits_of_float(x);
  float e = float(int32_t(bits >> 23) - 126);
  float m = float_from_bits((bits & 0x007fffffu) | 0x3f000000u);
  if (m < 0.70710678118654752440f) {
    e = add_exact(e, -1.0f);
    m = add_exact(add_exact(m, m), -1.0f);
  } else {
    m = add_exact(m, -1.0f);
  }
  const float z = mul_exact(m, m);
  float p = 7.0376836e-2f;
  p = add_exact(mul_exact(p, m), -1.151461e-1f);
  p = add_exact(mul_exact(p, m), 1.1676999e-1f);
  p = add_exact(mul_exact(p, m), -1.2420141e-1f);
  p = add_exact(mul_exact(p, m), 1.4249323e-1f);
  p = add_exact(mul_exact(p, m), -1.6668058e-1f);
  p = add_exact(mul_exact(p, m), 2.0000715e-1f);
  p = add_exact(mul_exact(p, m), -2.4999994e-1f);
  p = add_exact(mul_exact(p, m), 3.333333e-1f);
  float y = mul_exact(mul_exact(p, m), z);
  y = add_exact(y, mul_exact(e, -2.1219444e-4f));
  y = add_exact(y, -mul_exact(0.5f, z));
  return add_exact(add_exact(m, y), mul_exact(e, 0.6933594f));
}

// Integers in the order of floats.
DEVICE uint32_t ordered(float x) {
  const uint32_t bits = bits_of_float(x);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Sum over the block, the same in every thread.
DEVICE double block_sum(double x) {
  SHARED(double, part, [kThreads / WARP]);
  x = warp_sum(x);
  if (threadIdx.x % WARP == 0) part[threadIdx.x / WARP] = x;
  __syncthreads();
  double sum = 0;
  for (int w = 0; w < kThreads / WARP; w++) sum += part[w];
  // The next sum writes where this one was read.
  __syncthreads();
  return sum;
}

struct Best {
  float value;
  uint32_t token;

  DEVICE void take(float v, uint32_t t) {
    if (v > value || (v == value && t < token)) {
      value = v;
      token = t;
    }
  }
};

DEVICE Best block_best(Best mine) {
  SHARED(Best, part, [kThreads / WARP]);
  for (int d = WARP / 2; d > 0; d /= 2) {
    const float v = shfl_xor(mine.value, d);
    const uint32_t t = shfl_xor(mine.token, d);
    mine.take(v, t);
  }
  if (threadIdx.x % WARP == 0) part[threadIdx.x / WARP] = mine;
  __syncthreads();
  Best all = part[0];
  // (Another call must come after some other barrier: there is a sum between.)
  for (int w = 1; w < kThreads / WARP; w++) all.take(part[w].value, part[w].token);
  return all;
}

// What truncation leaves: tokens above `least`, and those at it up to an index.
struct Kept {
  uint32_t least;  // ordered
  uint32_t last_at_least;
  float log_min_p;
  float top, scale;

  DEVICE bool holds(float x, uint32_t token) const {
    const uint32_t key = ordered(x);
    if (key < least || (key == least && token > last_at_least)) return false;
    return !(mul_exact(add_exact(x, -top), scale) < log_min_p);
  }
};

// The largest key that at least k values reach.
DEVICE uint32_t kth_largest(const float* z, uint32_t vocab, uint32_t k) {
  uint32_t key = 0;
  for (uint32_t bit = 0x80000000u; bit != 0; bit >>= 1) {
    double count = 0;
    for (uint32_t v = threadIdx.x; v < vocab; v += kThreads) count += ordered(z[v]) >= (key | bit) ? 1.0 : 0.0;
    if (block_sum(count) >= double(k)) key |= bit;
  }
  return key;
}

// Keeps tokens, likeliest first, while the mass before them is below top_p.
DEVICE void keep_top_p(Kept& kept, const float* z, uint32_t vocab, float top_p) {
  auto weight = [&](float x) { return exp(double(mul_exact(add_exact(x, -kept.top), kept.scale))); };
  // Mass of the values above a key, among those that top-k has left.
  auto mass_above = [&](uint32_t key, bool or_at) {
    double mass = 0;
    for (uint32_t v = threadIdx.x; v < vocab; v += kThreads) {
      const uint32_t mine = ordered(z[v]);
      if (mine >= kept.least && (mine > key || (or_at && mine == key)) && z[v] > -INFINITY) mass += weight(z[v]);
    }
    return block_sum(mass);
  };
  const double wanted = double(top_p) * mass_above(0, true);
  // The smallest key above which there is less than that.
  uint32_t key = 0;
  for (uint32_t bit = 0x80000000u; bit != 0; bit >>= 1) {
    if (mass_above(key | (bit - 1), false) >= wanted) key |= bit;
  }
  if (key < kept.least) return;
  // Of the values at the key itself, as many as begin below it.
  const double above = mass_above(key, false), at = mass_above(key, true) - above;
  double count = 0;
  for (uint32_t v = threadIdx.x; v < vocab; v += kThreads) count += ordered(z[v]) == key ? 1.0 : 0.0;
  count = block_sum(count);
  kept.least = key;
  if (count < 1.5) return;
  const double each = at / count;
  double room = 0;
  while (room < count && above + room * each < wanted) room += 1;
  if (room >= count) return;
  uint32_t low = 0, high = vocab - 1;
  while (low < high) {
    const uint32_t middle = low + (high - low) / 2;
    double before = 0;
    for (uint32_t v = threadIdx.x; v <= middle; v += kThreads) before += ordered(z[v]) == key ? 1.0 : 0.0;
    if (block_sum(before) >= room) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  kept.last_at_least = low;
}

// Grid (requests).
KERNEL void LAUNCH_BOUNDS(512)
sample_draw(const float* logits, const SampleRequest* requests, Sampled* out, uint32_t vocab, uint32_t columns) {
  const SampleRequest r = requests[blockIdx.x];
  const float* z = logits + size_t(blockIdx.x) * columns;
  Best mine = {-INFINITY, 0xffffffffu};
  double bad = 0;
  for (uint32_t v = threadIdx.x; v < vocab; v += kThreads) {
    if (z[v] != z[v]) bad += 1;
    mine.take(z[v], v);
  }
  const Best top = block_best(mine);
  if (block_sum(bad) > 0 || !(fabsf(top.value) < INFINITY)) {
    if (threadIdx.x == 0) out[blockIdx.x] = {0, 0.0f, 1, 0};
    return;
  }
  uint32_t token = top.token;
  if (r.greedy == 0) {
    Kept kept = {0, 0xffffffffu, r.log_min_p, top.value, r.scale};
    if (r.top_k > 0 && r.top_k < vocab) kept.least = kth_largest(z, vocab, r.top_k);
    if (r.top_p < 1.0f) keep_top_p(kept, z, vocab, r.top_p);
    mine = {-INFINITY, 0xffffffffu};
    // Four tokens share a block of noise.
    for (uint32_t v = threadIdx.x * 4; v < vocab; v += kThreads * 4) {
      const Philox noise = philox(v / 4, r.position, 0, 0, r.key);
      for (uint32_t j = 0; j < 4 && v + j < vocab; j++) {
        const float x = z[v + j];
        if (!kept.holds(x, v + j)) continue;
        const float gumbel = -ln_exact(-ln_exact(open_unit(noise.word[j])));
        mine.take(add_exact(mul_exact(x, r.scale), gumbel), v + j);
      }
    }
    const Best drawn = block_best(mine);
    token = drawn.token < vocab ? drawn.token : top.token;
  }
  double sum = 0;
  for (uint32_t v = threadIdx.x; v < vocab; v += kThreads) sum += double(expf((z[v] - top.value) * r.scale));
  sum = block_sum(sum);
  if (threadIdx.x == 0) {
    out[blockIdx.x] = {token, (z[token] - top.value) * r.scale - logf(float(sum)), 0, 0};
  }
}
KERNEL_EXPORT(sample_draw)
