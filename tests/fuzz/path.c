/* Fuzz target: points between noises and centroids, from bytes.  A call that succeeds has finite weights. */
#include "fuzz.h"

#include <math.h>

enum { MOST_B = 2, MOST_D = 40, MOST_N = 5 };

static nri_status
load(fuzz_bytes *in, nri_space *v, int slot)
{
    float x[MOST_B * MOST_D];
    int64_t shape[2], n = v->batch * v->elements;
    nri_tensor t = fuzz_tensor(x, shape, v->batch, v->elements);
    double scale = fuzz_rarely(in) ? fuzz_number(in) : 1 + fuzz_plain(in), phase = fuzz_pick(in, 32) / 4.0;
    for (int64_t i = 0; i < n; i++) {
        x[i] = (float)(scale * sqrt(2) * sin((1.7 + phase) * (double)i + phase));
    }
    for (int k = fuzz_rarely(in) ? fuzz_pick(in, 4) : 0; k > 0; k--) {
        x[fuzz_pick(in, (int)n)] = (float)fuzz_number(in);
    }
    return v->ops->exchange(v, slot, &t, NRI_LOAD);
}

static void
must_be_finite(const double *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        MUST(isfinite(x[i]));
    }
}

static void
check_failure(const nri_space *v, nri_status status, int64_t sample)
{
    bool of_sample = status == NRI_NOT_FINITE || status == NRI_NO_NOISE || status == NRI_NOT_UNIQUE;
    MUST(of_sample || status == NRI_BAD_ARGUMENT || status == NRI_NO_MEMORY);
    MUST(!of_sample || (sample >= 0 && sample < v->batch));
}

static nri_status
interpolate(fuzz_bytes *in, nri_space *v)
{
    double fractions[MOST_N], weights[MOST_N * MOST_B * 3], length[MOST_B];
    int64_t sample;
    int n = 1 + fuzz_pick(in, MOST_N);
    nri_path method = (nri_path)fuzz_pick(in, NRI_PATHS);
    nri_spacing spacing = (nri_spacing)fuzz_pick(in, NRI_SPACINGS);
    for (int i = 0; i < n; i++) {
        fractions[i] = fuzz_pick(in, 65) / 64.0;
    }
    nri_status status = nri_interpolate(v, method, spacing, n, fractions, weights, length, &sample);
    if (status != NRI_OK) {
        check_failure(v, status, sample);
        return status;
    }
    must_be_finite(weights, n * v->batch * 3);
    if (method == NRI_GEODESIC) {
        must_be_finite(length, v->batch);
    }
    return NRI_OK;
}

static nri_status
centroid(fuzz_bytes *in, nri_space *v)
{
    double shares[NRI_PATH_SLOTS], weights[NRI_PATH_SLOTS * MOST_B], sum = 0;
    int64_t sample;
    int count = 1 + fuzz_pick(in, NRI_PATH_SLOTS - 1);
    for (int k = 0; k < count; k++) {
        shares[k] = fuzz_pick(in, 16) / 4.0;
        sum += shares[k];
    }
    shares[0] += sum == 0;
    nri_status status = nri_centroid(v, count, shares, weights, &sample);
    if (status != NRI_OK) {
        check_failure(v, status, sample);
        return status;
    }
    must_be_finite(weights, count * v->batch);
    return NRI_OK;
}

static nri_status
run(fuzz_bytes *in, nri_space **v)
{
    float x[MOST_B * MOST_D] = {0};
    int64_t shape[2];
    nri_tensor like = fuzz_tensor(x, shape, 1 + fuzz_pick(in, MOST_B), 1 + fuzz_pick(in, MOST_D));
    bool middle = fuzz_byte(in) & 1;
    NRI_TRY(nri_space_create_host(&like, NRI_PATH_SLOTS, v));
    for (int slot = 0; slot < NRI_PATH_SLOTS; slot++) {
        NRI_TRY(load(in, *v, slot));
    }
    return middle ? centroid(in, *v) : interpolate(in, *v);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_bytes in = {data, data + size};
    nri_space *v = NULL;
    alloc_arm(fuzz_rarely(&in) ? fuzz_pick(&in, 6) : -1);
    nri_status status = run(&in, &v);
    MUST(alloc_failed() == (status == NRI_NO_MEMORY));
    nri_space_destroy(v);
    MUST(alloc_disarm() == 0);
    return 0;
}
