/*
Vectors in host memory: plain loops, the reference for C tests, sanitizers and NumPy arrays.

The slots of one sample lie side by side, [B][slots][D].  Loops run over blocks that stay in the first cache while the
rows stream past them, so a vector is read once however many rows an operation has.
*/
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "vec.h"

enum { BLOCK = 2048, LANES = 64, WIDTH = 4, ALIGNMENT = 64 };

/* Wider vectors where the processor has them; sanitizers cannot instrument the resolver that chooses. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__gnu_linux__) && !defined(NRI_NO_CLONES)
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif

typedef struct {
    nri_space base;
    float *data;
    void *block; /* the allocation around `data` */
} space;

static float *
row(const nri_space *v, int64_t b, int slot)
{
    return ((const space *)v)->data + (b * v->slots + slot) * v->elements;
}

static int64_t
block_length(const nri_space *v, int64_t d)
{
    return v->elements - d < BLOCK ? v->elements - d : BLOCK;
}

/* y[i] is written where x[i] was read at most: what the compiler cannot know of pointers that may be equal. */
#if defined(__GNUC__) && !defined(__clang__)
#define SAME_INDEX _Pragma("GCC ivdep")
#else
#define SAME_INDEX
#endif

/* y = sum_k c[k] x[k]; inlined with a constant count. */
static inline void
sum_rows(int64_t n, int count, const float *coef, const float *const *x, float *y)
{
    float c[WIDTH];
    for (int k = 0; k < count; k++) {
        c[k] = coef[k];
    }
    SAME_INDEX
    for (int64_t i = 0; i < n; i++) {
        float sum = c[0] * x[0][i];
        for (int k = 1; k < count; k++) {
            sum += c[k] * x[k][i];
        }
        y[i] = sum;
    }
}

CLONES static void
combine_block(int64_t n, int count, const float *c, const float *const *x, float *y)
{
    switch (count) {
    case 1:
        sum_rows(n, 1, c, x, y);
        break;
    case 2:
        sum_rows(n, 2, c, x, y);
        break;
    case 3:
        sum_rows(n, 3, c, x, y);
        break;
    default:
        sum_rows(n, WIDTH, c, x, y);
    }
}

/* Lanes are summed in float over one block only, blocks in double: the error stays near that of one rounding. */
CLONES static double
dot_block(int64_t n, const float *restrict x, const float *restrict y)
{
    float lane[LANES] = {0};
    double sum[LANES / 2];
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (int j = 0; j < LANES; j++) {
            lane[j] += x[i + j] * y[i + j];
        }
    }
    for (int j = 0; j < LANES / 2; j++) {
        sum[j] = (double)lane[j] + (double)lane[j + LANES / 2];
    }
    for (int half = LANES / 4; half; half /= 2) {
        for (int j = 0; j < half; j++) {
            sum[j] += sum[j + half];
        }
    }
    for (; i < n; i++) {
        sum[0] += (double)x[i] * (double)y[i];
    }
    return sum[0];
}

/* Rows are added WIDTH at a time, the sum so far being the first of them; `dst` is written last, as it may be a row. */
static nri_status
combine_host(nri_space *v, int dst, nri_rows rows, const double *coef, int pitch)
{
    float sum[BLOCK], c[WIDTH];
    const float *x[WIDTH];
    for (int64_t b = 0; b < v->batch; b++) {
        for (int64_t d = 0; d < v->elements; d += BLOCK) {
            int64_t n = block_length(v, d);
            for (int i = 0, k = 0; i < rows.count; i++) {
                bool last = i + 1 == rows.count;
                c[k] = (float)coef[b * pitch + i];
                x[k++] = row(v, b, rows.first + i * rows.step) + d;
                if (k == WIDTH || last) {
                    combine_block(n, k, c, x, last ? row(v, b, dst) + d : sum);
                    c[0] = 1;
                    x[0] = sum;
                    k = 1;
                }
            }
        }
    }
    return NRI_OK;
}

static nri_status
dots_host(nri_space *v, int x, nri_rows rows, double *out)
{
    memset(out, 0, sizeof(*out) * (size_t)(v->batch * rows.count));
    for (int64_t b = 0; b < v->batch; b++) {
        for (int64_t d = 0; d < v->elements; d += BLOCK) {
            int64_t n = block_length(v, d);
            for (int i = 0; i < rows.count; i++) {
                out[b * rows.count + i] += dot_block(n, row(v, b, x) + d, row(v, b, rows.first + i * rows.step) + d);
            }
        }
    }
    return NRI_OK;
}

static nri_status
sign_host(nri_space *v, int dst, int src, double floor)
{
    float least = (float)floor;
    for (int64_t b = 0; b < v->batch; b++) {
        const float *x = row(v, b, src);
        float *y = row(v, b, dst);
        for (int64_t i = 0; i < v->elements; i++) {
            float sign = (float)(x[i] > 0) - (float)(x[i] < 0), size = fabsf(x[i]);
            y[i] = least > 0 ? sign / (size > least ? size : least) : sign;
        }
    }
    return NRI_OK;
}

static nri_status
copy_host(nri_space *v, int dst, int src, const bool *which)
{
    for (int64_t b = 0; b < v->batch; b++) {
        if (!which || which[b]) {
            memcpy(row(v, b, dst), row(v, b, src), sizeof(float) * (size_t)v->elements);
        }
    }
    return NRI_OK;
}

static float
bits_to_float(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof(x));
    return x;
}

static uint32_t
float_to_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof(bits));
    return bits;
}

static float
half_to_float(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = h >> 10 & 31u, fraction = h & 1023u;
    if (exponent == 31) {
        return bits_to_float(sign | 0x7f800000u | fraction << 13);
    }
    if (exponent) {
        return bits_to_float(sign | (exponent + 112) << 23 | fraction << 13);
    }
    float tiny = (float)fraction * 0x1p-24f;
    return sign ? -tiny : tiny;
}

/* Round to nearest, ties to even, as every network library does. */
static uint16_t
float_to_half(float x)
{
    uint32_t bits = float_to_bits(x), sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
    if (size > 0x7f800000u) {
        return (uint16_t)(sign | 0x7e00u);
    }
    if (size >= 0x477ff000u) { /* 65520 and above round to infinity */
        return (uint16_t)(sign | 0x7c00u);
    }
    if (size < 0x38800000u) { /* subnormal: adding 0.5 leaves the rounded value in the low bits */
        return (uint16_t)(sign | (float_to_bits(bits_to_float(size) + 0.5f) - 0x3f000000u));
    }
    return (uint16_t)(sign | (size - 0x38000000u + 0xfffu + (size >> 13 & 1u)) >> 13);
}

static float
bfloat_to_float(uint16_t b)
{
    return bits_to_float((uint32_t)b << 16);
}

static uint16_t
float_to_bfloat(float x)
{
    uint32_t bits = float_to_bits(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return (uint16_t)(bits >> 16 | 0x40u);
    }
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

/* Between n numbers of a slot and those of a tensor from its element `at` on. */
static void
exchange_row(float *x, const nri_tensor *t, int64_t at, int64_t n, bool load)
{
#define EACH(type, to_float, from_float) \
    for (int64_t i = 0; i < n; i++) { \
        type *y = (type *)t->data + at + i; \
        if (load) { \
            x[i] = to_float(*y); \
        } \
        else { \
            *y = from_float(x[i]); \
        } \
    }
    switch (t->dtype) {
    case NRI_FLOAT16:
        EACH(uint16_t, half_to_float, float_to_half)
        break;
    case NRI_BFLOAT16:
        EACH(uint16_t, bfloat_to_float, float_to_bfloat)
        break;
    case NRI_FLOAT32:
        EACH(float, , )
        break;
    case NRI_FLOAT64:
        EACH(double, (float), )
        break;
    }
#undef EACH
}

static nri_status
exchange_host(nri_space *v, int slot, const nri_tensor *t, nri_direction direction)
{
    if (!nri_space_fits(v, t)) {
        return NRI_BAD_ARGUMENT;
    }
    for (int64_t b = 0; b < v->batch; b++) {
        exchange_row(row(v, b, slot), t, b * v->elements, v->elements, direction == NRI_LOAD);
    }
    return NRI_OK;
}

static void
destroy_host(nri_space *v)
{
    free(((space *)v)->block);
    free(v);
}

static const nri_vec_ops host_ops = {destroy_host, combine_host, dots_host, sign_host, copy_host, exchange_host};

/* Tensors for this backend are C-contiguous host memory. */
nri_status
nri_space_create_host(const nri_tensor *like, int slots, nri_space **out)
{
    *out = NULL;
    space *s = calloc(1, sizeof(*s));
    if (!s) {
        return NRI_NO_MEMORY;
    }
    nri_status status = nri_space_init(&s->base, &host_ops, like, slots);
    if (status != NRI_OK) {
        free(s);
        return status;
    }
    /* A vector that straddles cache lines takes twice the time, and calloc aligns to 16 bytes. */
    s->block = calloc((size_t)(s->base.batch * slots) * (size_t)s->base.elements + ALIGNMENT, sizeof(*s->data));
    if (!s->block) {
        free(s);
        return NRI_NO_MEMORY;
    }
    s->data = (float *)((char *)s->block + ALIGNMENT - (uintptr_t)s->block % ALIGNMENT);
    *out = &s->base;
    return NRI_OK;
}
