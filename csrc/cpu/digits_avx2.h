// The product of one token in whole numbers, for AVX2, where floats take four instructions for 8 weights and
// this takes two.
//
// A group of x becomes whole numbers of 23 bits times a power of two, and each of these three digits of 8
// bits. Digits times nibbles are summed without an error. So a group errs only where a value of x has bits
// below 2^-22 of the group's largest: of 16-bit values those smaller than 2^-11 (fp16) or 2^-14 (bf16) of it.
// A group that holds an infinity, a NaN or values near the ends of fp32 stays floats.
#pragma once

#include "cpu/tile_x86.h"

namespace autotune::cpu {
namespace {

constexpr int kDigits = 3;
// Of a group: what its whole numbers are to be multiplied by, 0 if it stays floats, and the sum of each
// digit.
constexpr int kDigitSums = 1 + kDigits;
// The largest number whose digits all fit, 0x7f7f7f.
constexpr float kMostWhole = 8355711.0f;
// Columns whose products fit 16 bits: 8 sums of two, each at most 15 * 128.
constexpr int64_t kWindow = 32;

inline __m256i low_bytes(__m256i words) { return _mm256_srai_epi32(_mm256_slli_epi32(words, 24), 24); }

// The bytes of 8 values in the order in which a packed word has their nibbles: 0 4 1 5, then 2 6 3 7.
inline void store_digit(__m256i digit, uint32_t* target) {
  const __m256i bytes = _mm256_shuffle_epi8(digit, _mm256_set1_epi32(0x0c080400));
  const __m128i both = _mm_unpacklo_epi8(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(target), both);
}

inline float sum_of(__m256i words) {
  const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return static_cast<float>(_mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1))));
}

// The power of two by which a group becomes whole numbers, 0 if it has to stay floats.
template <class Isa>
float whole_factor(const void* x, Dtype dtype, int64_t begin, int64_t end) {
  __m256i most = _mm256_setzero_si256();
  for (int64_t i = begin; i < end; i += 8) {
    Eight values;
    load8<Isa>(x, dtype, i, values);
    const __m256i size = _mm256_and_si256(_mm256_castps_si256(values), _mm256_set1_epi32(0x7fffffff));
    most = _mm256_max_epi32(most, size);
  }
  const __m128i four = _mm_max_epi32(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
  const __m128i two = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  const __m128i one = _mm_max_epi32(two, _mm_shuffle_epi32(two, 0xb1));
  const uint32_t bits = static_cast<uint32_t>(_mm_cvtsi128_si32(one));
  const float largest = bits_to_float(bits);
  if (largest == 0) return 1;
  if (!(largest >= 0x1p-60f && largest <= 0x1p60f)) return 0;
  // 2^22 over the largest power of two in it, by their exponents.
  const float factor = bits_to_float((2 * 127 + 22 - (bits >> 23)) << 23);
  return largest * factor > kMostWhole ? factor / 2 : factor;
}

// Words of 8 values: two of each digit and two that are not used, or 8 floats.
template <class Isa>
void convert_to_digits(const void* x, Dtype dtype, int64_t k, int64_t group_size, uint32_t* words,
                       float* sums) {
  for (int64_t begin = 0; begin < k; begin += group_size, sums += kDigitSums) {
    const float factor = whole_factor<Isa>(x, dtype, begin, begin + group_size);
    __m256i total[kDigits] = {};
    for (int64_t i = begin; i < begin + group_size; i += 8) {
      Eight values;
      load8<Isa>(x, dtype, i, values);
      if (factor == 0) {
        std::memcpy(words + i, &values, sizeof values);
        continue;
      }
      __m256i left = _mm256_cvtps_epi32(values * factor);
      for (int digit = 0; digit < kDigits; ++digit) {
        const __m256i low = low_bytes(left);
        left = _mm256_srai_epi32(_mm256_sub_epi32(left, low), 8);
        total[digit] = _mm256_add_epi32(total[digit], low);
        store_digit(low, words + i + 2 * digit);
      }
    }
    sums[0] = factor == 0 ? 0 : 1 / factor;
    for (int digit = 0; digit < kDigits; ++digit) sums[1 + digit] = sum_of(total[digit]);
  }
}

// total += digits times nibbles over `Count` words of 8 rows, at most kWindow columns.
template <class Isa, int Count>
inline void add_products(const int32_t* q, const uint32_t* x, __m256i (&total)[kDigits]) {
  const __m256i nibbles = _mm256_set1_epi8(0x0f);
  __m256i acc[kDigits] = {};
  AUTOTUNE_UNROLL for (int i = 0; i < Count; ++i, q += kBlockRows, x += kWordWeights) {
    const __m256i words = _mm256_xor_si256(Isa::load_words(q), _mm256_set1_epi8(-0x78));
    const __m256i low = _mm256_and_si256(words, nibbles);
    const __m256i high = _mm256_and_si256(_mm256_srli_epi32(words, 4), nibbles);
    AUTOTUNE_UNROLL for (int digit = 0; digit < kDigits; ++digit) {
      const auto* pair = reinterpret_cast<const int*>(x + 2 * digit);
      const __m256i sum = _mm256_add_epi16(_mm256_maddubs_epi16(low, _mm256_set1_epi32(pair[0])),
                                           _mm256_maddubs_epi16(high, _mm256_set1_epi32(pair[1])));
      acc[digit] = _mm256_add_epi16(acc[digit], sum);
      // Else the compiler puts all products first, more than there are registers for.
      asm volatile("" : "+x"(acc[digit]));
    }
  }
  AUTOTUNE_UNROLL for (int digit = 0; digit < kDigits; ++digit) {
    const __m256i sum = _mm256_madd_epi16(acc[digit], _mm256_set1_epi16(1));
    total[digit] = _mm256_add_epi32(total[digit], sum);
  }
}

// The sums of (q - zero) x over a group that is digits, of 8 rows.
template <class Isa>
inline __m256 digit_sums(int64_t columns, const int32_t* q, const uint32_t* x, const float* sums,
                         __m256 zeros) {
  constexpr int kCount = kWindow / kWordWeights;
  __m256i total[kDigits] = {};
  for (; columns >= kWindow; columns -= kWindow, q += kCount * kBlockRows, x += kWindow) {
    AUTOTUNE_UNROLL for (int i = 0; i < kCount; ++i) {
      __builtin_prefetch(q + i * kBlockRows + Isa::kPrefetchWords);
    }
    add_products<Isa, kCount>(q, x, total);
  }
  for (; columns > 0; columns -= kWordWeights, q += kBlockRows, x += kWordWeights) {
    add_products<Isa, 1>(q, x, total);
  }
  __m256 value = {};
  AUTOTUNE_UNROLL for (int digit = kDigits - 1; digit >= 0; --digit) {
    value = value * 256.0f + (_mm256_cvtepi32_ps(total[digit]) - zeros * sums[1 + digit]);
  }
  return value * sums[0];
}

// The same of a group that is floats.
template <class Isa>
inline __m256 float_sums(int64_t columns, const int32_t* q, const uint32_t* x, __m256 zeros) {
  __m256 value = {};
  for (; columns > 0; columns -= kWordWeights, q += kBlockRows, x += kWordWeights) {
    const auto words = Isa::load_words(q);
    AUTOTUNE_UNROLL for (int step = 0; step < kWordWeights; ++step) {
      value = Isa::dot(value, Isa::dequantize(words, step) + (8.0f - zeros), x + step);
    }
  }
  return value;
}

// A block of rows times one token.
template <class Isa>
void digit_tile(const Tile& t, int, int) {
  constexpr int kVecs = kBlockRows / Isa::kLanes;
  __m256 total[kVecs] = {};
  for (int64_t column = t.begin; column < t.end; column += t.group_size) {
    const int64_t group = column / t.group_size;
    const float* sums = t.sums + group * kDigitSums;
    AUTOTUNE_UNROLL for (int v = 0; v < kVecs; ++v) {
      const int64_t at = group * kBlockRows + v * Isa::kLanes;
      __m256 zeros = _mm256_set1_ps(8);
      if (t.zeros != nullptr) zeros -= Isa::load_offsets(t.zeros + at);
      const int32_t* q = t.qweight + column / kWordWeights * kBlockRows + v * Isa::kLanes;
      const __m256 value = *sums != 0 ? digit_sums<Isa>(t.group_size, q, t.x + column, sums, zeros)
                                      : float_sums<Isa>(t.group_size, q, t.x + column, zeros);
      total[v] += value * Isa::load_scales(t.scales + at * width_of(t.dtype), t.dtype);
    }
  }
  std::memcpy(t.out, total, sizeof total);
}

template <class Isa>
constexpr Kernels with_digits() {
  Kernels kernels = kernels_of<Isa>();
  kernels.single = {kWordWeights, kDigitSums, 1, 1, convert_to_digits<Isa>, digit_tile<Isa>};
  return kernels;
}

}  // namespace
}  // namespace autotune::cpu
