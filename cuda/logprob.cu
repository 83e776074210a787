// The LM head over (row, target) pairs: log-prob, entropy and the unscaled
// gradient u = d log pi(target) / d x = (W_target - sum_v p_v W_v) / T.
//
// The host runs it in chunks of pairs: logprob_gather collects the pairs' rows
// of x, a product gives f32 logits [pairs, columns] (vocab padded to whole
// vectors; the padding is ignored), logprob_stats turns them into statistics
// and, for u, into bf16 probabilities (padding 0), a second product gives
// sum_v p_v W_v in f32, and logprob_u finishes. dx is then coefficient * u
// (logprob_backward), and the logits are never needed again: 4 M H V in all.
// The statistics read the logits once, the probabilities once more; taking
// them in the product's epilogue is a later step.
//
// One block per pair; sums in a fixed tree. A NaN among the logits makes the
// pair's results NaN.
#include "common.cuh"

constexpr int kThreads = 512;

// Grid (items): to[i] = x[rows[i]], hidden a multiple of 8.
KERNEL void LAUNCH_BOUNDS(128) logprob_gather(const bf16* x, const uint32_t* rows, bf16* to, uint32_t hidden) {
  const size_t from = size_t(rows[blockIdx.x]) * hidden;
  for (uint32_t i = threadIdx.x * 8; i < hidden; i += blockDim.x * 8) {
    *reinterpret_cast<bf16x8*>(to + size_t(blockIdx.x) * hidden + i) = *reinterpret_cast<const bf16x8*>(x + from + i);
  }
}
KERNEL_EXPORT(logprob_gather)

// Running softmax: the largest value, the sum of exp(d) and of exp(d) d, where
// d is the distance to it.
struct Softmax {
  float top, sum, spread;

  DEVICE void take(const Softmax& o) {
    if (o.top == -INFINITY && o.sum == 0.0f) return;
    if (top == -INFINITY && sum == 0.0f) {
      *this = o;
      return;
    }
    const float best = fmaxf(top, o.top);
    const float a = expf(top - best), b = expf(o.top - best);
    spread = a * (spread + (top - best) * sum) + b * (o.spread + (o.top - best) * o.sum);
    sum = a * sum + b * o.sum;
    top = best;
  }
};

DEVICE Softmax block_softmax(Softmax mine) {
  SHARED(Softmax, part, [kThreads / WARP]);
  for (int d = WARP / 2; d > 0; d /= 2) {
    Softmax other = {shfl_xor(mine.top, d), shfl_xor(mine.sum, d), shfl_xor(mine.spread, d)};
    // The lower lane's share first on both sides, so that all lanes agree.
    if (threadIdx.x & d) {
      other.take(mine);
      mine = other;
    } else {
      mine.take(other);
    }
  }
  if (threadIdx.x % WARP == 0) part[threadIdx.x / WARP] = mine;
  __syncthreads();
  Softmax all = part[0];
  for (int w = 1; w < kThreads / WARP; w++) all.take(part[w]);
  return all;
}

// Grid (pairs of the chunk). `probabilities` [pairs, columns] may be null;
// where `grad_pairs` is less than the chunk, pairs from there on have none.
KERNEL void LAUNCH_BOUNDS(512)
logprob_stats(const float* logits, const uint32_t* targets, float* logprobs, float* entropies, bf16* probabilities,
              uint32_t grad_pairs, uint32_t vocab, uint32_t columns, float inverse_temperature) {
  const size_t pair = blockIdx.x;
  const float* z = logits + pair * columns;
  Softmax mine = {-INFINITY, 0.0f, 0.0f};
  for (uint32_t v = threadIdx.x; v < vocab; v += kThreads) {
    const float x = z[v] * inverse_temperature;
    if (x == -INFINITY) continue;
    if (x > mine.top) {
      const float shrink = mine.sum == 0.0f ? 0.0f : expf(mine.top - x);
      const float moved = mine.sum == 0.0f ? 0.0f : mine.top - x;
      mine.spread = shrink * (mine.spread + moved * mine.sum);
      mine.sum = shrink * mine.sum + 1.0f;
      mine.top = x;
    } else {
      // A NaN comes here and stays.
      const float d = x - mine.top, e = expf(d);
      mine.sum += e;
      mine.spread += e * d;
    }
  }
  const Softmax all = block_softmax(mine);
  if (threadIdx.x == 0) {
    logprobs[pair] = (z[targets[pair]] * inverse_temperature - all.top) - logf(all.sum);
    entropies[pair] = logf(all.sum) - all.spread / all.sum;
  }
  if (probabilities == nullptr || pair >= grad_pairs) return;
  const float scale = 1.0f / all.sum;
  bf16* p = probabilities + pair * columns;
  for (uint32_t v = threadIdx.x * 8; v < columns; v += kThreads * 8) {
    float x[8];
    load8(x, z + v);
    for (int j = 0; j < 8; j++) {
      x[j] = v + j < vocab ? expf(x[j] * inverse_temperature - all.top) * scale : 0.0f;
    }
    store8(p + v, x);
  }
}
KERNEL_EXPORT(logprob_stats)

// Grid (pairs): u = (W[target] - mean) * inverse_temperature; mean is f32
// [pairs, hidden].
KERNEL void LAUNCH_BOUNDS(128)
logprob_u(const bf16* weight, const uint32_t* targets, const float* mean, bf16* u, uint32_t hidden,
          float inverse_temperature) {
  const size_t pair = blockIdx.x;
  const bf16* w = weight + size_t(targets[pair]) * hidden;
  for (uint32_t i = threadIdx.x * 8; i < hidden; i += blockDim.x * 8) {
    float x[8], m[8];
    load8(x, w + i);
    load8(m, mean + pair * hidden + i);
    for (int j = 0; j < 8; j++) x[j] = (x[j] - m[j]) * inverse_temperature;
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
