/* What all kinds of spaces share. */
#include "vec.h"

nri_status
nri_space_init(nri_space *v, const nri_vec_ops *ops, const nri_tensor *like, int slots)
{
    int64_t elements = 1;
    for (int i = 1; i < like->ndim; i++) {
        elements *= like->shape[i];
    }
    if (like->ndim < 1 || like->shape[0] < 1 || elements < 1 || slots < 1) {
        return NRI_BAD_ARGUMENT;
    }
    *v = (nri_space){ops, like->shape[0], elements, slots};
    return NRI_OK;
}

void
nri_space_destroy(nri_space *v)
{
    if (v) {
        v->ops->destroy(v);
    }
}
