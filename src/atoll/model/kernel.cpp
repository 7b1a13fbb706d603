// Driver: one pass of a decoder of the Llama family over paged keys and values, for atoll/model/kernel.py.
//
// Weights are read as they lie in a GGUF file, 32 numbers a block. Every number is summed in one order, whatever else is
// in the batch: eight partial sums, element i into sum i % 8, then those together. So the logits of a token depend on the
// tokens before it alone, not on its batch mates, on how the prompt was cut, or on which pages were there already.
//
// GCC's and Clang's vector extensions: the same source serves AVX2 and any other machine; what AVX2 has of its own
// computes the same numbers.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include <immintrin.h>
#define ATOLL_AVX2 1
#else
#define ATOLL_AVX2 0
#endif

#ifdef _OPENMP
#include <omp.h>
static int thread() { return omp_get_thread_num(); }
#else
static int thread() { return 0; }
#endif

#define INLINE static inline __attribute__((always_inline))

namespace {

const int BLOCK = 32;       // numbers a block
const int CHUNK_ROWS = 32;  // rows of a matrix that a thread takes at once
const int FEW = 8;          // tokens; with more, a chunk's rows are unpacked once for all
const int TOGETHER = 49152;  // inputs, of as many tokens, that stay in the cache beside a chunk
#ifdef __AVX512VL__
const int TILE = 6;  // tokens by four rows whose sums are in registers at once
#else
const int TILE = 3;
#endif
const int QUERIES = 4;      // tokens of a slice whose keys are read together

// -- eight floats -----------------------------------------------------------------------------------------------------

typedef float F8 __attribute__((vector_size(32)));
typedef int32_t I8 __attribute__((vector_size(32)));

INLINE F8 load(const float* p) {
    F8 v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE void store(float* p, F8 v) { memcpy(p, &v, sizeof v); }

INLINE F8 kept(F8 v) {  // in a register, where the compiler would rather read it again at each use
#if ATOLL_AVX2
    __m256 r = (__m256)v;
    __asm__("" : "+v"(r));
    v = (F8)r;
#endif
    return v;
}

INLINE F8 all(float x) { return F8{x, x, x, x, x, x, x, x}; }

INLINE F8 multiply_add(F8 a, F8 b, F8 c) {
#if ATOLL_AVX2
    return (F8)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

INLINE float sum(F8 v) {
#if ATOLL_AVX2
    __m128 a = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
    a = _mm_add_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_add_ss(a, _mm_movehdup_ps(a)));
#else
    float a = v[0] + v[4], b = v[1] + v[5], c = v[2] + v[6], d = v[3] + v[7];
    return (a + c) + (b + d);
#endif
}

INLINE F8 floats(const uint8_t* p) {  // of eight unsigned bytes
#if ATOLL_AVX2
    return (F8)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#else
    F8 v;
    for (int i = 0; i < 8; i++) v[i] = p[i];
    return v;
#endif
}

INLINE F8 floats(const int8_t* p) {
#if ATOLL_AVX2
    return (F8)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#else
    F8 v;
    for (int i = 0; i < 8; i++) v[i] = p[i];
    return v;
#endif
}

INLINE F8 exponential(F8 x) {  // to 2 units in the last place; Cephes' polynomial (Moshier)
    const F8 lowest = all(-87.f), highest = all(88.f), magic = all(12582912.f);
    x = x < lowest ? lowest : x;
    x = x > highest ? highest : x;
    F8 n = multiply_add(x, all(1.44269504f), magic) - magic;
    F8 r = multiply_add(n, all(-0.693359375f), x);
    r = multiply_add(n, all(2.12194440e-4f), r);
    F8 p = all(1.9875691500e-4f);
    p = multiply_add(p, r, all(1.3981999507e-3f));
    p = multiply_add(p, r, all(8.3334519073e-3f));
    p = multiply_add(p, r, all(4.1665795894e-2f));
    p = multiply_add(p, r, all(1.6666665459e-1f));
    p = multiply_add(p, r, all(5.0000001201e-1f));
    p = multiply_add(p, r * r, r + all(1.f));
    return (F8)((I8)p + (__builtin_convertvector(n, I8) << 23));
}

INLINE float half(const uint8_t* p) {
    uint16_t h;
    memcpy(&h, p, sizeof h);
#if ATOLL_AVX2
    return _cvtsh_ss(h);
#else
    uint32_t bits = (uint32_t)(h & 0x7fff) << 13;
    float f;
    memcpy(&f, &bits, sizeof f);
    f *= 0x1p112f;
    memcpy(&bits, &f, sizeof f);
    if ((h & 0x7c00) == 0x7c00) bits |= 0x7f800000;
    bits |= (uint32_t)(h & 0x8000) << 16;
    memcpy(&f, &bits, sizeof f);
    return f;
#endif
}

// -- packings: a block of 32 numbers, as floats or as integers with a scale and an offset ------------------------------

struct Int8Block {  // of activations
    float scale, total;  // total = scale * sum(values)
    int8_t values[BLOCK];
};

template <class Integer>
INLINE F8 plain_dot(const Integer* w, const int8_t* x) {  // lane i: the sum over elements 4i to 4i + 3
    F8 v;
    for (int i = 0; i < 8; i++) {
        int s = 0;
        for (int j = 4 * i; j < 4 * i + 4; j++) s += w[j] * x[j];
        v[i] = (float)s;
    }
    return v;
}

INLINE F8 integer_dot(const uint8_t* w, const int8_t* x) {
#if ATOLL_AVX2
    __m256i products = _mm256_maddubs_epi16(_mm256_loadu_si256((const __m256i*)w), _mm256_loadu_si256((const __m256i*)x));
    return (F8)_mm256_cvtepi32_ps(_mm256_madd_epi16(products, _mm256_set1_epi16(1)));
#else
    return plain_dot(w, x);
#endif
}

INLINE F8 integer_dot(const int8_t* w, const int8_t* x) {
#if ATOLL_AVX2
    __m256i a = _mm256_loadu_si256((const __m256i*)w), b = _mm256_loadu_si256((const __m256i*)x);
    __m256i products = _mm256_maddubs_epi16(_mm256_sign_epi8(a, a), _mm256_sign_epi8(b, a));
    return (F8)_mm256_cvtepi32_ps(_mm256_madd_epi16(products, _mm256_set1_epi16(1)));
#else
    return plain_dot(w, x);
#endif
}

INLINE void nibbles(const uint8_t* packed, uint8_t* out) {  // the low halves of all bytes, then the high ones
#if ATOLL_AVX2
    __m128i q = _mm_loadu_si128((const __m128i*)packed);
    __m256i both = _mm256_set_m128i(_mm_srli_epi16(q, 4), q);
    _mm256_storeu_si256((__m256i*)out, _mm256_and_si256(both, _mm256_set1_epi8(15)));
#else
    for (int i = 0; i < 16; i++) out[i] = packed[i] & 15, out[16 + i] = packed[i] >> 4;
#endif
}

#if ATOLL_AVX2
INLINE void unpack_nibbles(const uint8_t* packed, F8 scale, F8 offset, F8* w) {
    __m128i q = _mm_loadu_si128((const __m128i*)packed), mask = _mm_set1_epi8(15);
    __m128i low = _mm_and_si128(q, mask), high = _mm_and_si128(_mm_srli_epi16(q, 4), mask);
    __m128i quarters[4] = {low, _mm_srli_si128(low, 8), high, _mm_srli_si128(high, 8)};
    for (int i = 0; i < 4; i++)
        w[i] = multiply_add((F8)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(quarters[i])), scale, offset);
}
#else
INLINE void unpack_nibbles(const uint8_t* packed, F8 scale, F8 offset, F8* w) {
    uint8_t values[BLOCK];
    nibbles(packed, values);
    for (int i = 0; i < 4; i++) w[i] = multiply_add(floats(values + 8 * i), scale, offset);
}
#endif

struct Float32 {
    static const int nbytes = 128;
    static const bool integers = false;
    INLINE void unpack(const uint8_t* b, F8* w) {
        for (int i = 0; i < 4; i++) memcpy(&w[i], b + 32 * i, 32);
    }
};

struct Float16 {
    static const int nbytes = 64;
    static const bool integers = false;
    INLINE void unpack(const uint8_t* b, F8* w) {
        for (int i = 0; i < 4; i++) {
#if ATOLL_AVX2
            w[i] = (F8)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(b + 16 * i)));
#else
            for (int j = 0; j < 8; j++) w[i][j] = half(b + 16 * i + 2 * j);
#endif
        }
    }
};

struct Q8_0 {
    static const int nbytes = 34;
    static const bool integers = true;
    typedef int8_t Integer;
    INLINE void unpack(const uint8_t* b, F8* w) {
        F8 scale = all(half(b));
        for (int i = 0; i < 4; i++) w[i] = floats((const int8_t*)b + 2 + 8 * i) * scale;
    }
    INLINE void split(const uint8_t* b, int8_t* values, float* scale, float* offset) {
        memcpy(values, b + 2, BLOCK);
        *scale = half(b), *offset = 0;
    }
};

struct Q4_0 {
    static const int nbytes = 18;
    static const bool integers = true;
    typedef uint8_t Integer;
    INLINE void unpack(const uint8_t* b, F8* w) {  // exact: a scale has 11 bits
        float scale = half(b);
        unpack_nibbles(b + 2, all(scale), all(-8 * scale), w);
    }
    INLINE void split(const uint8_t* b, uint8_t* values, float* scale, float* offset) {
        nibbles(b + 2, values);
        *scale = half(b), *offset = -8 * *scale;
    }
};

struct Q4_1 {
    static const int nbytes = 20;
    static const bool integers = true;
    typedef uint8_t Integer;
    INLINE void unpack(const uint8_t* b, F8* w) { unpack_nibbles(b + 4, all(half(b)), all(half(b + 2)), w); }
    INLINE void split(const uint8_t* b, uint8_t* values, float* scale, float* offset) {
        nibbles(b + 4, values);
        *scale = half(b), *offset = half(b + 2);
    }
};

// -- matrices ---------------------------------------------------------------------------------------------------------

}  // namespace

extern "C" {

struct Matrix {
    const uint8_t* rows;
    int32_t packing, outputs, inputs;
};

struct Layer {
    const float *attention_norm, *mlp_norm;
    Matrix query, key, value, output, gate, up, down;
};

struct Model {
    int32_t layers, width, hidden, heads, key_heads, head_width, context;
    float epsilon;
    const float *cosines, *sines;  // [context][head_width / 2]
    const float* norm;
    Matrix embedding, head;
    const Layer* layer;
};

struct Pages {  // [layers][pages][key heads][page_tokens][head width], keys and values
    float *keys, *values;
    int32_t pages, page_tokens;
};

struct Batch {  // tokens of slice s: first[s] to first[s + 1]; its pages: table + s * table_width
    int32_t slices, tokens, wanted, table_width;
    const int32_t *first, *token, *position, *table, *want;
};
}

namespace {

template <class Function>
INLINE void as_packed(int packing, Function f) {
    switch (packing) {
        case 0: f(Float32()); break;
        case 1: f(Float16()); break;
        case 2: f(Q8_0()); break;
        case 3: f(Q4_0()); break;
        default: f(Q4_1()); break;
    }
}

// f(n), n from 1 to MOST, as a constant that the compiler knows; for 0 nothing.
template <int MOST, class Function>
INLINE void as_constant(int n, Function f) {
    if (n == MOST) f(std::integral_constant<int, MOST>());
    else if constexpr (MOST > 1) as_constant<MOST - 1>(n, f);
}

struct Inputs {  // of matrices, [tokens][width]; quantised only where integers are asked for
    const float* x;
    const Int8Block* quantised;
    int tokens, width;
};

template <bool ADD>
INLINE void put(float* y, float value) {
    *y = ADD ? *y + value : value;
}

// y[token][row] = x[token] . rows[row], for a few tokens and rows at once.
template <class Packed, bool ADD, int TOKENS, int ROWS>
void dot(const float* x, int width, const uint8_t* rows, float* y, size_t stride) {
    const size_t row_bytes = (size_t)width / BLOCK * Packed::nbytes;
    F8 sums[TOKENS][ROWS] = {};
    for (int k = 0, at = 0; k < width; k += BLOCK, at += Packed::nbytes)
        for (int r = 0; r < ROWS; r++) {
            F8 w[4];
            Packed::unpack(rows + r * row_bytes + at, w);
            for (int i = 0; i < 4; i++)
                for (int t = 0; t < TOKENS; t++)
                    sums[t][r] = multiply_add(w[i], load(x + (size_t)t * width + k + 8 * i), sums[t][r]);
        }
    for (int t = 0; t < TOKENS; t++)
        for (int r = 0; r < ROWS; r++) put<ADD>(y + t * stride + r, sum(sums[t][r]));
}

template <class Packed, bool ADD, int TOKENS, int ROWS>
void all_rows(const float* x, int width, const uint8_t* rows, int n, float* y, size_t stride) {
    const size_t row_bytes = (size_t)width / BLOCK * Packed::nbytes;
    int r = 0;
    for (; r + ROWS <= n; r += ROWS) dot<Packed, ADD, TOKENS, ROWS>(x, width, rows + r * row_bytes, y + r, stride);
    for (; r < n; r++) dot<Packed, ADD, TOKENS, 1>(x, width, rows + r * row_bytes, y + r, stride);
}

template <class Packed, bool ADD>
void few_tokens(const Inputs& in, const uint8_t* rows, int n, float* y, size_t stride) {
    as_constant<FEW>(in.tokens, [&](auto tokens) {
        constexpr int TOKENS = tokens, ROWS = TOKENS == 1 ? 4 : TOKENS <= 4 ? 2 : 1;
        all_rows<Packed, ADD, TOKENS, ROWS>(in.x, in.width, rows, n, y, stride);
    });
}

template <bool ADD, int TOKENS>
INLINE void tile(const float* x, int width, const float* w, int rows, float* y, size_t stride) {
    int r = 0;
    for (; r + 4 <= rows; r += 4) {
        F8 sums[TOKENS][4] = {};
        const float* from = w + (size_t)r * width;
        for (int k = 0; k < width; k += 8) {
            F8 a[TOKENS];
            for (int t = 0; t < TOKENS; t++) a[t] = kept(load(x + (size_t)t * width + k));
            for (int i = 0; i < 4; i++) {
                const F8 b = kept(load(from + (size_t)i * width + k));
                for (int t = 0; t < TOKENS; t++) sums[t][i] = multiply_add(b, a[t], sums[t][i]);
            }
        }
        for (int t = 0; t < TOKENS; t++)
            for (int i = 0; i < 4; i++) put<ADD>(y + t * stride + r + i, sum(sums[t][i]));
    }
    for (; r < rows; r++)
        for (int t = 0; t < TOKENS; t++) {
            F8 s = {};
            for (int k = 0; k < width; k += 8)
                s = multiply_add(load(w + (size_t)r * width + k), load(x + (size_t)t * width + k), s);
            put<ADD>(y + t * stride + r, sum(s));
        }
}

template <class Packed, bool ADD>
void many_tokens(const Inputs& in, const uint8_t* rows, int n, float* y, size_t stride, float* unpacked) {
    const size_t blocks = (size_t)n * (in.width / BLOCK);
    for (size_t b = 0; b < blocks; b++) {
        F8 w[4];
        Packed::unpack(rows + b * Packed::nbytes, w);
        for (int i = 0; i < 4; i++) store(unpacked + b * BLOCK + 8 * i, w[i]);
    }
    const int together = std::max(TILE, TOGETHER / in.width / TILE * TILE);
    for (int begin = 0; begin < in.tokens; begin += together) {
        const int end = std::min(begin + together, in.tokens);
        for (int r = 0; r < n; r += 4) {
            const int rows_here = std::min(4, n - r);
            const float* w = unpacked + (size_t)r * in.width;
            int t = begin;
            for (; t + TILE <= end; t += TILE)
                tile<ADD, TILE>(in.x + (size_t)t * in.width, in.width, w, rows_here, y + t * stride + r, stride);
            if (t < end)
                as_constant<TILE - 1>(end - t, [&](auto rest) {
                    tile<ADD, rest>(in.x + (size_t)t * in.width, in.width, w, rows_here, y + t * stride + r, stride);
                });
        }
    }
}

template <class Packed, bool ADD, int TOKENS>
void integer_rows(const Int8Block* x, int width, const uint8_t* rows, int n, float* y, size_t stride) {
    const int blocks = width / BLOCK;
    for (int r = 0; r < n; r++) {
        F8 sums[TOKENS] = {};
        float offsets[TOKENS] = {};
        for (int k = 0; k < blocks; k++, rows += Packed::nbytes) {
            typename Packed::Integer values[BLOCK];
            float scale, offset;
            Packed::split(rows, values, &scale, &offset);
            for (int t = 0; t < TOKENS; t++) {
                const Int8Block& block = x[(size_t)t * blocks + k];
                sums[t] = multiply_add(integer_dot(values, block.values), all(scale * block.scale), sums[t]);
                offsets[t] += offset * block.total;
            }
        }
        for (int t = 0; t < TOKENS; t++) put<ADD>(y + t * stride + r, sum(sums[t]) + offsets[t]);
    }
}

template <class Packed, bool ADD>
void in_integers(const Inputs& in, const uint8_t* rows, int n, float* y, size_t stride) {
    for (int t = 0; t < in.tokens; t += FEW)
        as_constant<FEW>(std::min(FEW, in.tokens - t), [&](auto tokens) {
            const Int8Block* x = in.quantised + (size_t)t * (in.width / BLOCK);
            integer_rows<Packed, ADD, tokens>(x, in.width, rows, n, y + t * stride, stride);
        });
}

template <class Packed, bool ADD, bool INTEGERS>
struct Rows {
    static void apply(const Inputs& in, const uint8_t* rows, int n, float* y, size_t stride, float* unpacked) {
        if (in.tokens > FEW) many_tokens<Packed, ADD>(in, rows, n, y, stride, unpacked);
        else few_tokens<Packed, ADD>(in, rows, n, y, stride);
    }
};

template <class Packed, bool ADD>
struct Rows<Packed, ADD, true> {
    static void apply(const Inputs& in, const uint8_t* rows, int n, float* y, size_t stride, float* unpacked) {
        if (in.quantised) in_integers<Packed, ADD>(in, rows, n, y, stride);
        else Rows<Packed, ADD, false>::apply(in, rows, n, y, stride, unpacked);
    }
};

// Within a parallel region: f(0) to f(n - 1), by all threads. A few equal parts are dealt out beforehand, since asking
// for the next one costs more than what is won; many parts go to whoever is free.
template <class Function>
INLINE void share(int n, bool equal, Function f) {
    if (equal) {
#pragma omp for schedule(static)
        for (int i = 0; i < n; i++) f(i);
    } else {
#pragma omp for schedule(dynamic)
        for (int i = 0; i < n; i++) f(i);
    }
}

struct Product {  // y[tokens][outputs] = x . rows
    const Matrix* matrix;
    float* y;
};

// The rows of all the products, shared by all threads. `unpacked` is the thread's own.
template <bool ADD>
void multiply(const Inputs& in, const Product* products, int n, float* unpacked) {
    int chunks[4] = {0};
    for (int p = 0; p < n; p++) chunks[p + 1] = chunks[p] + (products[p].matrix->outputs + CHUNK_ROWS - 1) / CHUNK_ROWS;
    share(chunks[n], in.tokens <= FEW, [&](int c) {
        int p = 0;
        while (c >= chunks[p + 1]) p++;
        const Matrix& m = *products[p].matrix;
        const int begin = (c - chunks[p]) * CHUNK_ROWS, rows = std::min(CHUNK_ROWS, m.outputs - begin);
        as_packed(m.packing, [&](auto packed) {
            typedef decltype(packed) Packed;
            const uint8_t* from = m.rows + (size_t)begin * (m.inputs / BLOCK) * Packed::nbytes;
            Rows<Packed, ADD, Packed::integers>::apply(in, from, rows, products[p].y + begin, m.outputs, unpacked);
        });
    });
}

// -- what lies between the matrices -----------------------------------------------------------------------------------

void normalise(const float* x, const float* weight, float* out, int width, float epsilon) {
    F8 squares = {};
    for (int i = 0; i < width; i += 8) squares = multiply_add(load(x + i), load(x + i), squares);
    const F8 scale = all(1 / sqrtf(sum(squares) / width + epsilon));
    for (int i = 0; i < width; i += 8) store(out + i, load(x + i) * scale * load(weight + i));
}

void quantise(const float* x, Int8Block* out, int width) {
    for (int k = 0; k < width; k += BLOCK, x += BLOCK, out++) {
        float peak = 0;
        for (int i = 0; i < BLOCK; i++) peak = std::max(peak, fabsf(x[i]));
        const float scale = peak / 127, inverse = scale > 0 ? 1 / scale : 0;
        int total = 0;
        for (int i = 0; i < BLOCK; i++) {
            const int q = (int)lrintf(x[i] * inverse);
            out->values[i] = (int8_t)q;
            total += q;
        }
        out->scale = scale, out->total = scale * total;
    }
}

void rotate(float* head, int width, const float* cosines, const float* sines) {
    for (int i = 0; i < width / 2; i++) {
        const float a = head[i], b = head[i + width / 2];
        head[i] = a * cosines[i] - b * sines[i];
        head[i + width / 2] = b * cosines[i] + a * sines[i];
    }
}

template <int VECTORS>
INLINE void mix(const float* weights, const float* values, int stride, int n, F8* sums) {
    for (int t = 0; t < n; t++) {
        const F8 weight = all(weights[t]);
        for (int i = 0; i < VECTORS; i++) sums[i] = multiply_add(weight, load(values + (size_t)t * stride + 8 * i), sums[i]);
    }
}

// Of `n` <= QUERIES consecutive tokens of a slice, the first at position `at`: one head, over pages of `at + n` tokens.
// `scores`: n rows of `room` floats, room a multiple of 8 above the last position.
struct Attention {
    const float *keys, *values;  // of the layer and key head, in page 0
    size_t page_stride;          // floats
    const int32_t* table;
    int page_tokens, width;

    template <int N>
    void score(const float* const* queries, int length, float* scores, int room, float scale) const {
        for (int begin = 0, p = 0; begin < length; begin += page_tokens, p++) {
            const float* page = keys + table[p] * page_stride;
            const int here = std::min(page_tokens, length - begin);
            for (int t = 0; t < here; t++) {
                F8 sums[N] = {};
                for (int i = 0; i < width; i += 8) {
                    const F8 key = load(page + (size_t)t * width + i);
                    for (int q = 0; q < N; q++) sums[q] = multiply_add(key, load(queries[q] + i), sums[q]);
                }
                for (int q = 0; q < N; q++) scores[(size_t)q * room + begin + t] = sum(sums[q]) * scale;
            }
        }
    }

    template <int VECTORS>
    void gather(const float* weights, int length, int column, F8 share, float* out) const {
        F8 sums[VECTORS] = {};
        for (int begin = 0, p = 0; begin < length; begin += page_tokens, p++)
            mix<VECTORS>(weights + begin, values + table[p] * page_stride + column, width,
                         std::min(page_tokens, length - begin), sums);
        for (int i = 0; i < VECTORS; i++) store(out + column + 8 * i, sums[i] * share);
    }

    void run(const float* const* queries, float* const* outs, int n, int at, float* scores, int room) const {
        const float scale = 1 / sqrtf((float)width);
        if (n == 4) score<4>(queries, at + n, scores, room, scale);
        else for (int q = 0; q < n; q++) score<1>(queries + q, at + q + 1, scores + (size_t)q * room, room, scale);
        for (int q = 0; q < n; q++) {
            const int length = at + q + 1, padded = (length + 7) / 8 * 8;
            float* s = scores + (size_t)q * room;
            for (int t = length; t < padded; t++) s[t] = -INFINITY;
            F8 peaks = all(-INFINITY), total = {};
            for (int t = 0; t < padded; t += 8) {
                const F8 x = load(s + t);
                peaks = x > peaks ? x : peaks;
            }
            float peak = peaks[0];
            for (int i = 1; i < 8; i++) peak = std::max(peak, peaks[i]);
            for (int t = 0; t < padded; t += 8) {
                const F8 x = load(s + t), e = x == all(-INFINITY) ? all(0.f) : exponential(x - all(peak));
                store(s + t, e);
                total += e;
            }
            const F8 share = all(1 / sum(total));
            int column = 0;
            for (; column + 64 <= width; column += 64) gather<8>(s, length, column, share, outs[q]);
            for (; column < width; column += 8) gather<1>(s, length, column, share, outs[q]);
        }
    }
};

// -- scratch ----------------------------------------------------------------------------------------------------------

size_t rounded(size_t n) { return (n + 15) / 16 * 16; }

struct Scratch {  // laid out from one allocation, in floats
    float *hidden, *normed, *query, *key, *value, *mixed, *gate, *up, *scores, *unpacked;
    Int8Block* quantised;
    int widest, room;
    size_t floats;

    Scratch(const Model& m, int tokens, int threads, float* memory) {
        const int inner = m.heads * m.head_width, keys = m.key_heads * m.head_width;
        widest = std::max(std::max(m.width, m.hidden), inner);
        room = (m.context + 7) / 8 * 8;
        size_t at = 0;
        auto take = [&](size_t n) {
            float* p = memory ? memory + at : nullptr;
            at += rounded(n);
            return p;
        };
        hidden = take((size_t)tokens * m.width), normed = take((size_t)tokens * m.width);
        query = take((size_t)tokens * inner), key = take((size_t)tokens * keys), value = take((size_t)tokens * keys);
        mixed = take((size_t)tokens * inner);
        gate = take((size_t)tokens * m.hidden), up = take((size_t)tokens * m.hidden);
        scores = take((size_t)threads * QUERIES * room), unpacked = take((size_t)threads * CHUNK_ROWS * widest);
        quantised = (Int8Block*)take((size_t)tokens * (widest / BLOCK) * sizeof(Int8Block) / sizeof(float));
        floats = at;
    }
};

struct Pass {  // one forward pass; each method is called by all threads of the region
    const Model& m;
    const Pages& pages;
    const Batch& batch;
    const Scratch& s;
    const bool integers;
    float* const unpacked;

    Inputs inputs(const float* x, int width, int tokens) const {
        return Inputs{x, integers ? s.quantised : nullptr, tokens, width};
    }

    void embed() const {
#pragma omp for
        for (int t = 0; t < batch.tokens; t++)
            as_packed(m.embedding.packing, [&](auto packed) {
                typedef decltype(packed) Packed;
                const uint8_t* row = m.embedding.rows + (size_t)batch.token[t] * (m.width / BLOCK) * Packed::nbytes;
                for (int k = 0; k < m.width; k += BLOCK, row += Packed::nbytes) {
                    F8 w[4];
                    Packed::unpack(row, w);
                    for (int i = 0; i < 4; i++) store(s.hidden + (size_t)t * m.width + k + 8 * i, w[i]);
                }
            });
    }

    void norm(const float* weight, const int32_t* which, int n) const {  // which: nullptr for all
#pragma omp for
        for (int t = 0; t < n; t++) {
            float* out = s.normed + (size_t)t * m.width;
            normalise(s.hidden + (size_t)(which ? which[t] : t) * m.width, weight, out, m.width, m.epsilon);
            if (integers) quantise(out, s.quantised + (size_t)t * (m.width / BLOCK), m.width);
        }
    }

    void rotate_and_keep(int layer) const {
        const int inner = m.heads * m.head_width, keys = m.key_heads * m.head_width, half = m.head_width / 2;
        const size_t head = (size_t)pages.page_tokens * m.head_width, page = head * m.key_heads;
#pragma omp for
        for (int t = 0; t < batch.tokens; t++) {
            const int slice = (int)(std::upper_bound(batch.first, batch.first + batch.slices + 1, t) - batch.first) - 1;
            const int at = batch.position[t];
            const float *cosines = m.cosines + (size_t)at * half, *sines = m.sines + (size_t)at * half;
            for (int h = 0; h < m.heads; h++)
                rotate(s.query + (size_t)t * inner + h * m.head_width, m.head_width, cosines, sines);
            const size_t number = batch.table[(size_t)slice * batch.table_width + at / pages.page_tokens];
            const size_t to = ((size_t)layer * pages.pages + number) * page + (size_t)(at % pages.page_tokens) * m.head_width;
            for (int h = 0; h < m.key_heads; h++) {
                float* key = s.key + (size_t)t * keys + h * m.head_width;
                rotate(key, m.head_width, cosines, sines);
                memcpy(pages.keys + to + h * head, key, m.head_width * sizeof(float));
                memcpy(pages.values + to + h * head, s.value + (size_t)t * keys + h * m.head_width,
                       m.head_width * sizeof(float));
            }
        }
    }

    void attend(int layer) const {
        const int inner = m.heads * m.head_width, sharing = m.heads / m.key_heads;
        const size_t head = (size_t)pages.page_tokens * m.head_width, page = head * m.key_heads;
        float* const scores = s.scores + (size_t)thread() * QUERIES * s.room;
        int groups = 0;
        for (int i = 0; i < batch.slices; i++) groups += (batch.first[i + 1] - batch.first[i] + QUERIES - 1) / QUERIES;
        share(groups * m.heads, batch.slices == 1 && batch.tokens == 1, [&](int item) {
            const int h = item % m.heads, key_head = h / sharing;
            int group = item / m.heads, slice = 0;
            for (;; slice++) {
                const int here = (batch.first[slice + 1] - batch.first[slice] + QUERIES - 1) / QUERIES;
                if (group < here) break;
                group -= here;
            }
            const int t = batch.first[slice] + group * QUERIES, n = std::min(QUERIES, batch.first[slice + 1] - t);
            const float* queries[QUERIES];
            float* outs[QUERIES];
            for (int q = 0; q < n; q++) {
                queries[q] = s.query + (size_t)(t + q) * inner + h * m.head_width;
                outs[q] = s.mixed + (size_t)(t + q) * inner + h * m.head_width;
            }
            const size_t base = (size_t)layer * pages.pages * page + key_head * head;
            const Attention attention = {pages.keys + base, pages.values + base, page,
                                         batch.table + (size_t)slice * batch.table_width, pages.page_tokens, m.head_width};
            attention.run(queries, outs, n, batch.position[t], scores, s.room);
        });
        if (integers) {
#pragma omp for
            for (int t = 0; t < batch.tokens; t++)
                quantise(s.mixed + (size_t)t * inner, s.quantised + (size_t)t * (inner / BLOCK), inner);
        }
    }

    void activate() const {
#pragma omp for
        for (int t = 0; t < batch.tokens; t++) {
            float* gate = s.gate + (size_t)t * m.hidden;
            const float* up = s.up + (size_t)t * m.hidden;
            for (int i = 0; i < m.hidden; i += 8) {
                const F8 g = load(gate + i);
                store(gate + i, g / (all(1.f) + exponential(-g)) * load(up + i));
            }
            if (integers) quantise(gate, s.quantised + (size_t)t * (m.hidden / BLOCK), m.hidden);
        }
    }

    void run(float* out, bool states) const {
        const int n = batch.tokens;
        embed();
        for (int i = 0; i < m.layers; i++) {
            const Layer& layer = m.layer[i];
            norm(layer.attention_norm, nullptr, n);
            const Product projections[] = {{&layer.query, s.query}, {&layer.key, s.key}, {&layer.value, s.value}};
            multiply<false>(inputs(s.normed, m.width, n), projections, 3, unpacked);
            rotate_and_keep(i);
            attend(i);
            const Product output[] = {{&layer.output, s.hidden}};
            multiply<true>(inputs(s.mixed, m.heads * m.head_width, n), output, 1, unpacked);
            norm(layer.mlp_norm, nullptr, n);
            const Product mlp[] = {{&layer.gate, s.gate}, {&layer.up, s.up}};
            multiply<false>(inputs(s.normed, m.width, n), mlp, 2, unpacked);
            activate();
            const Product down[] = {{&layer.down, s.hidden}};
            multiply<true>(inputs(s.gate, m.hidden, n), down, 1, unpacked);
        }
        norm(m.norm, batch.want, batch.wanted);
        if (states) {
#pragma omp for
            for (int t = 0; t < batch.wanted; t++)
                memcpy(out + (size_t)t * m.width, s.normed + (size_t)t * m.width, m.width * sizeof(float));
            return;
        }
        const Product head[] = {{&m.head, out}};
        multiply<false>(inputs(s.normed, m.width, batch.wanted), head, 1, unpacked);
    }
};

}  // namespace

extern "C" {

size_t atoll_scratch_floats(const Model* model, int tokens, int threads) {
    return Scratch(*model, tokens, threads, nullptr).floats;
}

int atoll_vectors() { return ATOLL_AVX2; }

// out: logits, [wanted][vocab], or the normed states that they are made of, [wanted][width]. The caller has checked all
// sizes and numbers.
void atoll_forward(const Model* model, const Pages* pages, const Batch* batch, int integers, int threads, float* memory,
                   int states, float* out) {
    const Scratch scratch(*model, batch->tokens, threads, memory);
#pragma omp parallel num_threads(threads)
    {
        float* unpacked = scratch.unpacked + (size_t)thread() * CHUNK_ROWS * scratch.widest;
        Pass{*model, *pages, *batch, scratch, integers != 0, unpacked}.run(out, states != 0);
    }
}
}
