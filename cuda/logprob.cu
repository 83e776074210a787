// The LM head over (row, target) pairs: log-prob, entropy and the unscaled
// gradient u = d log pi(target) / d x = (W_target - sum_v p_v W_v) / T.
//
// The host runs it in chunks of pairs: logprob_gather collects the pairs' rows
// of x, a product gives f32 logits [pairs, columns] (vocab padded to whole
// vectors; the padding is ignored), and logprob_stats turns them into
// statistics and, for u, into e_v = exp(logit_v / T - ref) in bf16 (padding 0),
// where ref is any number near the row's maximum: bf16 has the exponents of
// f32. A second product gives sum_v e_v W_v in f32, and logprob_u scales it with
// the row's exp(ref - max) / sum_v exp(logit_v / T - max) and finishes. dx is
// then coefficient * u (logprob_backward), and the logits are never needed
// again: 4 M H V in all.
//
// Bytes of a logit: written by the product (4), read once (4), e written (2) and
// read by the second product (2). The e of a row lie over its own logits, in the
// first half of the row: a chunk needs no memory for them. Taking the
// statistics in the product's epilogue is a later step.
//
// One block per pair; sums in a fixed tree. A NaN or +inf among the logits makes
// the pair's results NaN; a token at -inf has probability 0.
#include "common.cuh"

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / WARP;
// Columns of a row that the block holds at a time: each thread has kGroups times
// four neighbours, so that a warp's accesses are whole sectors in f32 and bf16.
constexpr int kGroups = 2;
constexpr uint32_t kGroup = kThreads * 4;
constexpr uint32_t kStripe = kGroups * kGroup;
// How far above its reference a value may be: exp of it, times weights and
// summed, is far from overflow.
constexpr float kFar = 60.0f;
// Below any logit but -inf, and twice of it is still a number.
constexpr float kLowest = -1e37f;

// Grid (items): to[i] = x[rows[i]], hidden a multiple of 8.
KERNEL void LAUNCH_BOUNDS(128) logprob_gather(const bf16* x, const uint32_t* rows, bf16* to, uint32_t hidden) {
  const size_t from = size_t(rows[blockIdx.x]) * hidden;
  for (uint32_t i = threadIdx.x * 8; i < hidden; i += blockDim.x * 8) {
    *reinterpret_cast<bf16x8*>(to + size_t(blockIdx.x) * hidden + i) = *reinterpret_cast<const bf16x8*>(x + from + i);
  }
}
KERNEL_EXPORT(logprob_gather)

// A thread's running softmax: the largest value so far, or something above it,
// and the sums of exp(d) and of exp(d) d, where d is the distance to it.
struct Softmax {
  float top, sum, spread;

  // The same with a top at least as high.
  DEVICE void raise(float to) {
    const float d = top - to, shrink = expf(d);
    spread = shrink * (spread + d * sum);
    sum *= shrink;
    top = to;
  }
};

// `part` is for one use: another would need a barrier between.
DEVICE float block_max(float (&part)[kWarps], float x) {
  x = warp_max(x);
  if (threadIdx.x % WARP == 0) part[threadIdx.x / WARP] = x;
  __syncthreads();
  float best = part[0];
  for (int w = 1; w < kWarps; w++) best = fmaxf(best, part[w]);
  return best;
}

// The whole block's, the same in every thread.
DEVICE Softmax block_softmax(Softmax mine) {
  SHARED(float, part, [3][kWarps]);
  mine.raise(block_max(part[0], mine.top));
  const float sum = warp_sum(mine.sum), spread = warp_sum(mine.spread);
  if (threadIdx.x % WARP == 0) {
    part[1][threadIdx.x / WARP] = sum;
    part[2][threadIdx.x / WARP] = spread;
  }
  __syncthreads();
  mine.sum = mine.spread = 0.0f;
  for (int w = 0; w < kWarps; w++) {
    mine.sum += part[1][w];
    mine.spread += part[2][w];
  }
  return mine;
}

// This thread's logits of a stripe, as they are.
struct Stripe {
  float x[kGroups][4];

  DEVICE void read(const float* z, uint32_t first, uint32_t columns) {
    for (int g = 0; g < kGroups; g++) {
      const uint32_t v = first + g * kGroup;
      if (v < columns) load4(x[g], z + v);
    }
  }

  // What is beyond the vocabulary becomes a token that is ruled out.
  DEVICE void scale(uint32_t first, uint32_t vocab, float inverse_temperature) {
    for (int g = 0; g < kGroups; g++) {
      const uint32_t v = first + g * kGroup, left = v < vocab ? vocab - v : 0;
      for (uint32_t j = 0; j < 4; j++) {
        x[g][j] = j < left ? x[g][j] * inverse_temperature : -INFINITY;
      }
    }
  }

  DEVICE float top() const {
    float best = x[0][0];
    for (int g = 0; g < kGroups; g++) {
      for (int j = 0; j < 4; j++) best = fmaxf(best, x[g][j]);
    }
    return best;
  }

  DEVICE void write(bf16* e, uint32_t first, uint32_t columns) const {
    for (int g = 0; g < kGroups; g++) {
      const uint32_t v = first + g * kGroup;
      if (v < columns) store_words(e + v, {pack_bf16(x[g][0], x[g][1]), pack_bf16(x[g][2], x[g][3])});
    }
  }
};

// Multiplies this thread's e by `by`, and those of columns before `from` by 0.
DEVICE void rescale(bf16* e, uint32_t columns, uint32_t from, float by) {
  for (uint32_t stripe = 0; stripe < columns; stripe += kStripe) {
    for (int g = 0; g < kGroups; g++) {
      const uint32_t v = stripe + threadIdx.x * 4 + g * kGroup;
      if (v >= columns) continue;
      uint32_t pair[2];
      load_words(pair, e + v);
      const float scale = stripe < from ? 0.0f : by;
      for (int i = 0; i < 2; i++) pair[i] = pack_bf16(low_half(pair[i]) * scale, high_half(pair[i]) * scale);
      store_words(e + v, pair);
    }
  }
}

// Grid (pairs of the chunk). The first `grad_pairs` rows of logits become e in
// bf16, in the first half of the row; `inverses` [grad_pairs] is what makes
// probabilities of them.
//
// Statistics are relative to the largest value that the thread has met, e to a
// reference: the largest value of the block's first stripe. Where a thread meets
// one further above it than kFar, it takes that for its own reference, and the
// block scales e once more in the end. What the thread wrote before is then
// below exp(-kFar) of the largest, nothing in an f32 sum: it becomes 0.
KERNEL void LAUNCH_BOUNDS(512, 3)
logprob_stats(float* logits, const uint32_t* targets, float* logprobs, float* entropies, float* inverses,
              uint32_t grad_pairs, uint32_t vocab, uint32_t columns, float inverse_temperature) {
  const size_t pair = blockIdx.x;
  const bool with_e = pair < grad_pairs;
  float* z = logits + pair * columns;
  bf16* e = reinterpret_cast<bf16*>(z);
  const uint32_t own = threadIdx.x * 4;
  // Two stripes are under way at any time; their registers take turns, since a
  // copy would wait for what is under way.
  Stripe even = {}, odd = {};
  even.read(z, own, columns);
  odd.read(z, kStripe + own, columns);
  // Before e comes to lie over it; in shared memory, where it takes no register.
  SHARED(float, target, [1]);
  if (threadIdx.x == 0) target[0] = z[targets[pair]] * inverse_temperature;
  Stripe first = even;
  first.scale(own, vocab, inverse_temperature);
  SHARED(float, of_first, [kWarps]);
  const float first_ref = fmaxf(block_max(of_first, first.top()), kLowest);
  float ref = first_ref, by_ref = 1.0f;
  uint32_t from = 0;
  Softmax mine = {ref, 0.0f, 0.0f};
  auto step = [&](Stripe& now, uint32_t stripe) {
    now.scale(stripe + own, vocab, inverse_temperature);
    const float top = now.top();
    if (top > mine.top) {
      mine.raise(top);
      if (top - ref > kFar) {
        ref = top;
        from = stripe;
      }
      by_ref = expf(top - ref);
    }
    for (int g = 0; g < kGroups; g++) {
      for (int j = 0; j < 4; j++) {
        // A token that is ruled out adds 0 to the spread, not NaN.
        const float d = now.x[g][j] - mine.top, p = fast_exp2(d * LOG2E);
        mine.sum += p;
        mine.spread += p * fmaxf(d, -1e4f);
        now.x[g][j] = p * by_ref;
      }
    }
    if (with_e) now.write(e, stripe + own, columns);
    now.read(z, stripe + 2 * kStripe + own, columns);
  };
  // The e of a stripe lie where the logits of the stripe of half its number were:
  // all threads must have read those. The first two stripes were read before the
  // barrier of block_max; each further one allows for twice as many.
  uint32_t writable = 4 * kStripe;
  for (uint32_t stripe = 0; stripe < columns; stripe += 2 * kStripe) {
    if (stripe == writable) {
      __syncthreads();
      writable = 2 * (stripe + 2 * kStripe);
    }
    step(even, stripe);
    step(odd, stripe + kStripe);
  }
  const Softmax all = block_softmax(mine);
  if (threadIdx.x == 0) {
    logprobs[pair] = (target[0] - all.top) - logf(all.sum);
    entropies[pair] = logf(all.sum) - all.spread / all.sum;
  }
  if (!with_e) return;
  // Some thread has a reference of its own.
  const bool far = all.top - first_ref > kFar;
  if (far) rescale(e, columns, from, expf(ref - all.top));
  if (threadIdx.x == 0) inverses[pair] = (far ? 1.0f : expf(first_ref - all.top)) / all.sum;
}
KERNEL_EXPORT(logprob_stats)

// Grid (pairs): u = (W[target] - sums * inverse) * inverse_temperature; sums is
// f32 [pairs, hidden], of e_v W_v.
KERNEL void LAUNCH_BOUNDS(128)
logprob_u(const bf16* weight, const uint32_t* targets, const float* sums, const float* inverses, bf16* u,
          uint32_t hidden, float inverse_temperature) {
  const size_t pair = blockIdx.x;
  const bf16* w = weight + size_t(targets[pair]) * hidden;
  const float inverse = inverses[pair];
  for (uint32_t i = threadIdx.x * 8; i < hidden; i += blockDim.x * 8) {
    float x[8], m[8];
    load8(x, w + i);
    load8(m, sums + pair * hidden + i);
    for (int j = 0; j < 8; j++) x[j] = (x[j] - m[j] * inverse) * inverse_temperature;
    store8(u + pair * hidden + i, x);
  }
}
KERNEL_EXPORT(logprob_u)

// Grid (saved rows): dx[row] = sum over the row's pairs, in order, of
// coefficient * u; zero where there is none.
KERNEL void LAUNCH_BOUNDS(128)
logprob_backward(const float* coefficients, const bf16* u, const uint32_t* ends, const uint32_t* pairs, bf16* dx,
                 uint32_t hidden) {
  const size_t row = blockIdx.x;
  const uint32_t first = ends[row], last = ends[row + 1];
  for (uint32_t i = threadIdx.x * 8; i < hidden; i += blockDim.x * 8) {
    float sum[8] = {};
    for (uint32_t k = first; k < last; k++) {
      const size_t pair = pairs[k];
      const float c = coefficients[pair];
      float x[8];
      load8(x, u + pair * hidden + i);
      for (int j = 0; j < 8; j++) sum[j] += c * x[j];
    }
    store8(dx + row * hidden + i, sum);
  }
}
KERNEL_EXPORT(logprob_backward)
