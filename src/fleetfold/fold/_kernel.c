/* The fold's inner loops, compiled: the same additions and multiplications in the same order as
   kernel.py's numpy, so the same bytes. No fused multiply-add (-ffp-contract=off), no fast math. */
#define _GNU_SOURCE
#include <stdint.h>
#include <string.h>
#include <errno.h>
#include <unistd.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EACH_CPU __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EACH_CPU
#endif

int fleetfold_version(void) { return 3; }

/* part = rows[0] * w[0] (if `first`) or part + rows[0] * w[0]; then + rows[k] * w[k] for k < count. */
FOR_EACH_CPU
void fleetfold_accumulate(float *restrict part, const float *const *rows, const float *w, int count,
                          int64_t n, int first) {
  int k = 0;
  if (first && count >= 4) {
    const float *restrict a = rows[0], *restrict b = rows[1], *restrict c = rows[2], *restrict d = rows[3];
    const float u = w[0], v = w[1], x = w[2], y = w[3];
    for (int64_t i = 0; i < n; i++) {
      float p = a[i] * u;
      p = p + b[i] * v;
      p = p + c[i] * x;
      part[i] = p + d[i] * y;
    }
    k = 4;
  } else if (first) {
    const float *restrict a = rows[0];
    for (int64_t i = 0; i < n; i++) part[i] = a[i] * w[0];
    k = 1;
  }
  for (; k + 4 <= count; k += 4) {
    const float *restrict a = rows[k], *restrict b = rows[k + 1];
    const float *restrict c = rows[k + 2], *restrict d = rows[k + 3];
    const float u = w[k], v = w[k + 1], x = w[k + 2], y = w[k + 3];
    for (int64_t i = 0; i < n; i++) {
      float p = part[i] + a[i] * u;
      p = p + b[i] * v;
      p = p + c[i] * x;
      part[i] = p + d[i] * y;
    }
  }
  for (; k < count; k++) {
    const float *restrict a = rows[k];
    const float u = w[k];
    for (int64_t i = 0; i < n; i++) part[i] = part[i] + a[i] * u;
  }
}

FOR_EACH_CPU
void fleetfold_widen(double *restrict total, const float *restrict part, int64_t n, int first) {
  if (first)
    for (int64_t i = 0; i < n; i++) total[i] = (double)part[i];
  else
    for (int64_t i = 0; i < n; i++) total[i] = total[i] + (double)part[i];
}

/* 1 if every value is finite: 0 * x is NaN for the others, and a NaN stays one. */
FOR_EACH_CPU
int fleetfold_finite(const double *restrict values, int64_t n) {
  const int64_t exponent = 0x7ff0000000000000;
  int64_t found = 0;
  for (int64_t i = 0; i < n; i++) {
    int64_t bits;
    memcpy(&bits, values + i, 8);
    found |= (bits & exponent) == exponent;
  }
  return !found;
}

/* out = values within ±limit, rounded once. */
FOR_EACH_CPU
void fleetfold_narrow(float *restrict out, const double *restrict values, int64_t n, double limit) {
  for (int64_t i = 0; i < n; i++) {
    double v = values[i];
    v = v > limit ? limit : v;
    v = v < -limit ? -limit : v;
    out[i] = (float)v;
  }
}

FOR_EACH_CPU
void fleetfold_bf16(float *restrict out, const uint16_t *restrict in, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    const uint32_t bits = (uint32_t)in[i] << 16;
    memcpy(out + i, &bits, 4);
  }
}

FOR_EACH_CPU
void fleetfold_fp16(float *restrict out, const uint16_t *restrict in, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    const uint32_t sign = (uint32_t)(in[i] & 0x8000u) << 16, magnitude = (uint32_t)(in[i] & 0x7fffu) << 13;
    float value;
    uint32_t bits;
    memcpy(&value, &magnitude, 4);
    value *= 0x1p112f; /* the exponents' biases differ by 112; exact, subnormals too */
    memcpy(&bits, &value, 4);
    bits = magnitude >= 0x0f800000u ? magnitude | 0x7f800000u : bits; /* infinities and NaNs */
    bits |= sign;
    memcpy(out + i, &bits, 4);
  }
}

/* One scale for each `block` values; the first value is number `phase` of its block. */
FOR_EACH_CPU
void fleetfold_int8(float *restrict out, const int8_t *restrict in, const float *restrict scales, int64_t n,
                    int64_t phase, int64_t block) {
  int64_t i = 0;
  for (int64_t b = 0; i < n; b++) {
    const int64_t stop = (b + 1) * block - phase < n ? (b + 1) * block - phase : n;
    const float scale = scales[b];
    for (; i < stop; i++) out[i] = (float)in[i] * scale;
  }
}

/* out = total (if there is one) + part, within ±limit, rounded once. Whether all sums are finite. */
FOR_EACH_CPU
int fleetfold_finish(float *restrict out, const double *restrict total, const float *restrict part, int64_t n,
                     double limit) {
  const int64_t exponent = 0x7ff0000000000000;
  int64_t found = 0;
  for (int64_t i = 0; i < n; i++) {
    double v = total ? total[i] + (double)part[i] : (double)part[i];
    int64_t bits;
    memcpy(&bits, &v, 8);
    found |= (bits & exponent) == exponent;
    v = v > limit ? limit : v;
    v = v < -limit ? -limit : v;
    out[i] = (float)v;
  }
  return !found;
}

/* total = the weighted sum of n fp32 values of each file, read from its offset: four rows at a time into
   `rows`, `group` files summed in `part`, these sums in `total`; with `out`, that sum goes there, narrowed.
   0; -1 where a file ends too soon; 1 where `out` is asked for and a sum is not finite. */
int fleetfold_sum_files(double *total, float *part, float *rows, const int *files, const int64_t *offsets,
                        const float *w, int count, int group, int64_t n, float *out, double limit) {
  for (int start = 0; start < count; start += group) {
    const int stop = start + group < count ? start + group : count;
    for (int k = start; k < stop; k += 4) {
      const float *pack[4];
      const int some = stop - k < 4 ? stop - k : 4;
      for (int j = 0; j < some; j++) {
        char *into = (char *)(rows + j * n);
        for (int64_t done = 0; done < 4 * n;) {
          const ssize_t got = pread(files[k + j], into + done, 4 * n - done, offsets[k + j] + done);
          if (got < 0 && errno == EINTR) continue;
          if (got <= 0) return -1;
          done += got;
        }
        pack[j] = rows + j * n;
      }
      fleetfold_accumulate(part, pack, w + k, some, n, k == start);
    }
    if (out && stop == count) return !fleetfold_finish(out, start ? total : 0, part, n, limit);
    fleetfold_widen(total, part, n, start == 0);
  }
  return 0;
}
