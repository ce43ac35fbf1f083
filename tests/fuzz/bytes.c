/* Bytes that become numbers, see fuzz.h. */
#include "fuzz.h"

#include <float.h>
#include <limits.h>
#include <math.h>
#include <string.h>

int
fuzz_byte(fuzz_bytes *in)
{
    return in->at < in->end ? *in->at++ : 0;
}

int
fuzz_pick(fuzz_bytes *in, int count)
{
    return fuzz_byte(in) % count;
}

bool
fuzz_rarely(fuzz_bytes *in)
{
    return fuzz_byte(in) >= 240;
}

double
fuzz_plain(fuzz_bytes *in)
{
    return (int8_t)fuzz_byte(in) / 32.0;
}

double
fuzz_number(fuzz_bytes *in)
{
    static const double special[] = {0,        -0.0,    1,     -1,      NAN,  INFINITY, -INFINITY, FLT_TRUE_MIN,
                                     1e-310,   FLT_MIN, 1e-18, 1e18,    3e19, 1e30,     -1e30,     FLT_MAX,
                                     -FLT_MAX, 1e39,    1e300, DBL_MAX, 1e-5, -1e-300,  0x1p31,    0x1p63};
    int kind = fuzz_byte(in), count = (int)(sizeof(special) / sizeof(*special));
    double x = 0;
    if (kind < 160) {
        return fuzz_plain(in);
    }
    if (kind < 240) {
        return special[kind % count];
    }
    for (size_t i = 0; i < sizeof(x); i++) {
        uint8_t byte = (uint8_t)fuzz_byte(in);
        memcpy((uint8_t *)&x + i, &byte, 1);
    }
    return x;
}

int
fuzz_int(fuzz_bytes *in, int usual)
{
    static const int special[] = {-1, INT_MAX, INT_MIN, 16, 1000, 1 << 30, INT_MAX / 2, INT_MAX / 3};
    return fuzz_rarely(in) ? special[fuzz_pick(in, 8)] : fuzz_pick(in, usual + 1);
}

nri_tensor
fuzz_tensor(void *data, int64_t shape[2], int64_t batch, int64_t elements)
{
    shape[0] = batch;
    shape[1] = elements;
    return (nri_tensor){.data = data, .dtype = NRI_FLOAT32, .device_type = 1, .ndim = 2, .shape = shape};
}
