/* vec_host.c against plain loops in double, and its number formats against arithmetic with powers of two. */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "toy.h"

enum { B = 3, SLOTS = 6, LONGEST = 2500 };

static float slots[SLOTS][B][LONGEST];

static nri_space *
make(int64_t D)
{
    int64_t shape[2];
    uint64_t seed = 7;
    nri_tensor like = toy_tensor(NULL, NRI_FLOAT32, shape, B, D);
    nri_space *v;
    CHECK(nri_space_create_host(&like, SLOTS, &v) == NRI_OK);
    for (int s = 0; s < SLOTS; s++) {
        nri_tensor t = toy_tensor(slots[s], NRI_FLOAT32, shape, B, D);
        toy_normals(&seed, (int)(B * D), &slots[s][0][0]);
        CHECK(v->ops->exchange(v, s, &t, NRI_LOAD) == NRI_OK);
    }
    return v;
}

/* The slots are packed [B, D] whatever LONGEST is. */
static double
at(int s, int b, int64_t D, int64_t d)
{
    return (double)(&slots[s][0][0])[b * D + d];
}

static void
check_combine_by(int64_t D, int dst, nri_rows rows, int pitch)
{
    static float out[B * LONGEST];
    int64_t shape[2];
    double coef[B * SLOTS], worst = 0;
    nri_space *v = make(D);
    nri_tensor t = toy_tensor(out, NRI_FLOAT32, shape, B, D);
    for (int i = 0; i < B * rows.count; i++) {
        coef[i] = 0.3 * i - 1;
    }
    CHECK(v->ops->combine(v, dst, rows, coef, pitch) == NRI_OK);
    CHECK(v->ops->exchange(v, dst, &t, NRI_STORE) == NRI_OK);
    for (int b = 0; b < B; b++) {
        for (int64_t d = 0; d < D; d++) {
            double sum = 0;
            for (int i = 0; i < rows.count; i++) {
                sum += coef[b * pitch + i] * at(rows.first + i * rows.step, b, D, d);
            }
            worst = fmax(worst, fabs((double)out[b * D + d] - sum));
        }
    }
    CHECK_NEAR(worst, 0, 1e-5);
    nri_space_destroy(v);
}

/* With coefficients of each sample, and with the same for all. */
static void
check_combine(int64_t D, int dst, nri_rows rows)
{
    check_combine_by(D, dst, rows, rows.count);
    check_combine_by(D, dst, rows, 0);
}

static void
check_dots(int64_t D, int x, nri_rows rows)
{
    double out[B * SLOTS];
    nri_space *v = make(D);
    CHECK(v->ops->dots(v, x, rows, out) == NRI_OK);
    for (int b = 0; b < B; b++) {
        for (int i = 0; i < rows.count; i++) {
            double sum = 0, size = 0;
            for (int64_t d = 0; d < D; d++) {
                double term = at(x, b, D, d) * at(rows.first + i * rows.step, b, D, d);
                sum += term;
                size += fabs(term);
            }
            CHECK_NEAR(out[b * rows.count + i], sum, 2e-7 * size);
        }
    }
    nri_space_destroy(v);
}

static void
check_copy(int64_t D, const bool *which)
{
    static float out[B * LONGEST];
    int64_t shape[2];
    nri_space *v = make(D);
    nri_tensor t = toy_tensor(out, NRI_FLOAT32, shape, B, D);
    CHECK(v->ops->copy(v, 1, 4, which) == NRI_OK);
    CHECK(v->ops->exchange(v, 1, &t, NRI_STORE) == NRI_OK);
    for (int b = 0; b < B; b++) {
        const float *want = &slots[which && !which[b] ? 1 : 4][0][0] + b * D;
        CHECK(memcmp(out + b * D, want, sizeof(float) * (size_t)D) == 0);
    }
    nri_space_destroy(v);
}

/* Signs over floored sizes, in place and not. */
static void
check_sign(void)
{
    enum { N = 9 };
    static const float x[N] = {3, -3, 0.5F, -0.5F, 0.1F, -0.1F, 0, -1e-30F, NAN};
    static const double floors[] = {0, 0.25, 2};
    float out[N];
    int64_t shape[2];
    for (int i = 0; i < 6; i++) {
        double floor = floors[i / 2];
        int dst = i % 2 ? 2 : 1;
        nri_tensor t = toy_tensor(out, NRI_FLOAT32, shape, 1, N);
        nri_space *v;
        CHECK(nri_space_create_host(&t, 4, &v) == NRI_OK);
        memcpy(out, x, sizeof(out));
        CHECK(v->ops->exchange(v, 2, &t, NRI_LOAD) == NRI_OK);
        CHECK(v->ops->sign(v, dst, 2, floor) == NRI_OK);
        CHECK(v->ops->exchange(v, dst, &t, NRI_STORE) == NRI_OK);
        for (int d = 0; d < N - 1; d++) {
            double size = floor > 0 ? fmax(fabs((double)x[d]), floor) : 1;
            double want = x[d] > 0 ? 1 / size : x[d] < 0 ? -1 / size : 0;
            CHECK_NEAR((double)out[d], want, 1e-6 * fabs(want));
        }
        CHECK(!(fabsf(out[N - 1]) > 0)); /* 0 or NaN */
        for (int slot = 0; slot < 4; slot++) {
            CHECK(v->ops->exchange(v, slot, &t, NRI_STORE) == NRI_OK);
            for (int d = 0; slot != dst && d < N - 1; d++) {
                CHECK(out[d] == (slot == 2 ? x[d] : 0));
            }
        }
        nri_space_destroy(v);
    }
}

static void
check_operations(void)
{
    static const int64_t sizes[] = {1, 31, 32, 33, 1000, 1024, 1025, 2499};
    for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
        int64_t D = sizes[i];
        check_combine(D, 0, (nri_rows){1, 1, 1});
        check_combine(D, 0, (nri_rows){1, 4, 1});
        check_combine(D, 2, (nri_rows){1, 4, 1});
        check_combine(D, 1, (nri_rows){1, 3, 1});
        check_combine(D, 5, (nri_rows){1, 3, 2});
        check_combine(D, 3, (nri_rows){5, 3, -2});
        check_dots(D, 0, (nri_rows){1, 5, 1});
        check_dots(D, 3, (nri_rows){3, 1, 1});
        check_dots(D, 3, (nri_rows){0, 3, 2});
        check_copy(D, NULL);
        check_copy(D, (bool[]){true, false, true});
        check_copy(D, (bool[]){false, false, false});
    }
}

static void
check_creation(void)
{
    int64_t shape[3] = {2, 0, 3};
    nri_tensor like = {.dtype = NRI_FLOAT32, .ndim = 3, .shape = shape};
    nri_space *v;
    float out[12];
    CHECK(nri_space_create_host(&like, 1, &v) == NRI_BAD_ARGUMENT && !v);
    shape[1] = 2;
    CHECK(nri_space_create_host(&like, 0, &v) == NRI_BAD_ARGUMENT && !v);
    like.ndim = 0;
    CHECK(nri_space_create_host(&like, 1, &v) == NRI_BAD_ARGUMENT && !v);
    like.ndim = 3;
    CHECK(nri_space_create_host(&like, 2, &v) == NRI_OK);
    CHECK(v->batch == 2 && v->elements == 6 && v->slots == 2);
    nri_tensor t = toy_tensor(out, NRI_FLOAT32, shape, 2, 6);
    for (int slot = 0; slot < 2; slot++) {
        memset(out, 1, sizeof(out));
        CHECK(v->ops->exchange(v, slot, &t, NRI_STORE) == NRI_OK);
        for (int i = 0; i < 12; i++) {
            CHECK(out[i] == 0);
        }
    }
    static const int64_t others[][2] = {{1, 6}, {3, 6}, {2, 5}, {2, 7}, {6, 2}, {12, 1}}; /* of another B or D */
    for (int i = 0; i < 6; i++) {
        t = toy_tensor(out, NRI_FLOAT32, shape, others[i][0], others[i][1]);
        CHECK(!nri_space_fits(v, &t));
        CHECK(v->ops->exchange(v, 0, &t, NRI_LOAD) == NRI_BAD_ARGUMENT
              && v->ops->exchange(v, 0, &t, NRI_STORE) == NRI_BAD_ARGUMENT);
    }
    t = toy_tensor(out, NRI_FLOAT32, shape, 2, 6);
    CHECK(nri_space_fits(v, &t));
    nri_space_destroy(v);
    nri_space_destroy(NULL);
    /* bytes that cannot be counted */
    t = toy_tensor(NULL, NRI_FLOAT32, shape, (int64_t)1 << 20, (int64_t)1 << 20);
    CHECK(nri_space_create_host(&t, 1 << 21, &v) == NRI_NO_MEMORY && !v);
}

/* The text of a failure stays until the next, cut where it is too long. */
static void
check_error(void)
{
    char text[1000];
    nri_set_backend_error("first");
    nri_set_backend_error("second");
    CHECK(strcmp(nri_backend_error(), "second") == 0);
    memset(text, 'x', sizeof(text) - 1);
    text[sizeof(text) - 1] = 0;
    nri_set_backend_error(text);
    CHECK(strlen(nri_backend_error()) < sizeof(text) && strncmp(nri_backend_error(), "xxx", 3) == 0);
}

/* The nearest number with `digits` binary digits behind the first and exponents from `least` on; ties to even. */
static double
rounded(double x, int digits, int least, double largest)
{
    int exponent;
    if (!isfinite(x) || x == 0) {
        return x;
    }
    frexp(x, &exponent);
    exponent = (exponent - 1 > least ? exponent - 1 : least) - digits;
    double y = ldexp(nearbyint(ldexp(x, -exponent)), exponent);
    return fabs(y) > largest ? copysign(INFINITY, x) : y;
}

static bool
same(float x, double y)
{
    return isnan(x) ? isnan(y) : (double)x == y && !signbit(x) == !signbit(y);
}

/* A space of one long sample; slot 0. */
static nri_space *
make_line(int64_t n)
{
    int64_t shape[2];
    nri_space *v;
    nri_tensor like = toy_tensor(NULL, NRI_FLOAT32, shape, 1, n);
    CHECK(nri_space_create_host(&like, 1, &v) == NRI_OK);
    return v;
}

/* Load all 2^16 patterns, compare with the definition of the format, and get the same patterns back. */
static void
check_patterns(nri_dtype dtype, int digits, int bias)
{
    enum { ALL = 65536 };
    static uint16_t in[ALL], out[ALL];
    static float x[ALL];
    int64_t shape[2];
    int64_t wrong_value = 0, wrong_bits = 0;
    nri_space *v = make_line(ALL);
    for (int i = 0; i < ALL; i++) {
        in[i] = (uint16_t)i;
    }
    nri_tensor t = toy_tensor(in, dtype, shape, 1, ALL);
    CHECK(v->ops->exchange(v, 0, &t, NRI_LOAD) == NRI_OK);
    t.data = out;
    CHECK(v->ops->exchange(v, 0, &t, NRI_STORE) == NRI_OK);
    t.data = x;
    t.dtype = NRI_FLOAT32;
    CHECK(v->ops->exchange(v, 0, &t, NRI_STORE) == NRI_OK);
    for (int i = 0; i < ALL; i++) {
        int exponent = (i & 0x7fff) >> digits, fraction = i & ((1 << digits) - 1), top = 0x7fff >> digits;
        double lead = exponent ? 1 << digits : 0;
        double size = ldexp(lead + fraction, (exponent ? exponent : 1) - bias - digits);
        if (exponent == top) {
            size = fraction ? NAN : INFINITY;
        }
        wrong_value += !same(x[i], i & 0x8000 ? -size : size);
        wrong_bits += isnan(size) ? (out[i] & 0x7fff) >> digits != top || !(out[i] & ((1 << digits) - 1)) : out[i] != in[i];
    }
    CHECK(wrong_value == 0);
    CHECK(wrong_bits == 0);
    nri_space_destroy(v);
}

/* Numbers where rounding is decided: each number of the format, the ties between them, and their neighbours. */
static void
check_rounding(nri_dtype dtype, int digits, int least, double largest)
{
    enum { ALL = 65536 * 3 };
    static float x[ALL], y[ALL];
    static uint16_t packed[ALL];
    int64_t shape[2], wrong = 0;
    uint64_t seed = 11;
    int n = 0;
    nri_space *v = make_line(ALL);
    for (int i = 0; i < 65536 / 4; i++, n += 12) {
        double size = ldexp(1 + fabs(toy_uniform(&seed)), least - digits - 2 + i % (digits - 2 * least + 4));
        double low = rounded(size, digits, least, largest);
        double high = rounded(size * (1 + ldexp(0.75, -digits)), digits, least, largest);
        float tie = isinf(high) ? FLT_MAX : (float)((low + high) / 2);
        const float picked[6] = {(float)size, (float)low, tie, nextafterf(tie, 0), nextafterf(tie, INFINITY), (float)high};
        for (int k = 0; k < 6; k++) {
            x[n + k] = picked[k];
            x[n + 6 + k] = -picked[k];
        }
    }
    nri_tensor t = toy_tensor(x, NRI_FLOAT32, shape, 1, ALL);
    CHECK(v->ops->exchange(v, 0, &t, NRI_LOAD) == NRI_OK);
    t.data = packed;
    t.dtype = dtype;
    CHECK(v->ops->exchange(v, 0, &t, NRI_STORE) == NRI_OK);
    CHECK(v->ops->exchange(v, 0, &t, NRI_LOAD) == NRI_OK);
    t.data = y;
    t.dtype = NRI_FLOAT32;
    CHECK(v->ops->exchange(v, 0, &t, NRI_STORE) == NRI_OK);
    for (int i = 0; i < ALL; i++) {
        wrong += !same(y[i], rounded((double)x[i], digits, least, largest));
    }
    CHECK(wrong == 0);
    nri_space_destroy(v);
}

/* The first and last numbers of each kind, by hand. */
static void
check_half_edges(void)
{
    static const struct {
        float x;
        uint16_t half;
    } edges[] = {
        {65504, 0x7bff},        {65519.996F, 0x7bff}, {65520, 0x7c00},      {-65520, 0xfc00},
        {FLT_MAX, 0x7c00},      {INFINITY, 0x7c00},   {0x1p-14F, 0x0400},   {0x1.ff8p-15F, 0x03ff},
        {0x1.ffcp-15F, 0x0400}, {0x1p-24F, 0x0001},   {0x1p-25F, 0x0000},   {0x1.000002p-25F, 0x0001},
        {0x1.8p-24F, 0x0002},   {-0x1p-26F, 0x8000},  {0x1.002p0F, 0x3c00}, {0x1.006p0F, 0x3c02},
        {0x1p-149F, 0x0000},    {-0.0F, 0x8000},      {1, 0x3c00},          {NAN, 0x7e00},
    };
    enum { N = sizeof(edges) / sizeof(*edges) };
    float x[N];
    uint16_t half[N];
    int64_t shape[2];
    nri_space *v = make_line(N);
    for (int i = 0; i < N; i++) {
        x[i] = edges[i].x;
    }
    nri_tensor t = toy_tensor(x, NRI_FLOAT32, shape, 1, N);
    CHECK(v->ops->exchange(v, 0, &t, NRI_LOAD) == NRI_OK);
    t.data = half;
    t.dtype = NRI_FLOAT16;
    CHECK(v->ops->exchange(v, 0, &t, NRI_STORE) == NRI_OK);
    for (int i = 0; i < N; i++) {
        CHECK((half[i] & (isnan(x[i]) ? 0x7fff : 0xffff)) == edges[i].half);
    }
    nri_space_destroy(v);
}

/* float64 is rounded once on the way in and exact on the way out; float32 passes bit by bit. */
static void
check_wide_formats(void)
{
    double in[] = {1.0 / 3, -1e300, 0x1p-160, NAN, INFINITY, -0.0, 16777217, 0x1p-149};
    enum { N = sizeof(in) / sizeof(*in) };
    double out[N];
    float single[N];
    int64_t shape[2];
    nri_space *v = make_line(N);
    nri_tensor t = toy_tensor(in, NRI_FLOAT64, shape, 1, N);
    CHECK(v->ops->exchange(v, 0, &t, NRI_LOAD) == NRI_OK);
    t.data = out;
    CHECK(v->ops->exchange(v, 0, &t, NRI_STORE) == NRI_OK);
    for (int i = 0; i < N; i++) {
        CHECK(same((float)in[i], out[i]));
    }
    t.data = single;
    t.dtype = NRI_FLOAT32;
    CHECK(v->ops->exchange(v, 0, &t, NRI_STORE) == NRI_OK);
    CHECK(v->ops->exchange(v, 0, &t, NRI_LOAD) == NRI_OK);
    t.data = out;
    t.dtype = NRI_FLOAT64;
    CHECK(v->ops->exchange(v, 0, &t, NRI_STORE) == NRI_OK);
    for (int i = 0; i < N; i++) {
        CHECK(same(single[i], out[i]));
    }
    nri_space_destroy(v);
}

void
test_vec(void)
{
    check_label = "creation";
    check_creation();
    check_error();
    check_label = "operations";
    check_operations();
    check_label = "sign";
    check_sign();
    check_label = "float16";
    check_patterns(NRI_FLOAT16, 10, 15);
    check_rounding(NRI_FLOAT16, 10, -14, 65504);
    check_half_edges();
    check_label = "bfloat16";
    check_patterns(NRI_BFLOAT16, 7, 127);
    check_rounding(NRI_BFLOAT16, 7, -126, 0x1.fep127);
    check_label = "float32, float64";
    check_wide_formats();
}
