/* What all kinds of spaces share. */
#include "vec.h"

#include <math.h>
#include <stdio.h>

static _Thread_local char error[400];

void
nri_set_backend_error(const char *text)
{
    snprintf(error, sizeof(error), "%s", text);
}

const char *
nri_backend_error(void)
{
    return error;
}

static int64_t
elements_of(const nri_tensor *t)
{
    int64_t elements = 1;
    for (int i = 1; i < t->ndim; i++) {
        elements *= t->shape[i];
    }
    return elements;
}

nri_status
nri_space_init(nri_space *v, const nri_vec_ops *ops, const nri_tensor *like, int slots)
{
    if (like->ndim < 1 || like->shape[0] < 1 || elements_of(like) < 1 || slots < 1) {
        return NRI_BAD_ARGUMENT;
    }
    if (slots > INT64_MAX / 16 / like->shape[0] / elements_of(like)) { /* bytes have to be counted */
        return NRI_NO_MEMORY;
    }
    *v = (nri_space){ops, like->shape[0], elements_of(like), slots};
    return NRI_OK;
}

bool
nri_space_fits(const nri_space *v, const nri_tensor *t)
{
    return t->ndim >= 1 && t->shape[0] == v->batch && elements_of(t) == v->elements;
}

void
nri_space_destroy(nri_space *v)
{
    if (v) {
        v->ops->destroy(v);
    }
}

nri_status
nri_norms(nri_space *v, int x, double *out)
{
    NRI_TRY(v->ops->dots(v, x, (nri_rows){x, 1, 1}, out));
    for (int64_t b = 0; b < v->batch; b++) {
        out[b] = sqrt(out[b]);
    }
    return NRI_OK;
}
