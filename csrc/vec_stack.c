/*
Vectors made of vectors: slot i stands for the `blocks` slots of another space from first + i * blocks on, one after the
other, so that a solver can work on a whole trajectory as if it were one state.

Inner products weight the square of block k with weights[k].
*/
#include <stdlib.h>
#include <string.h>

#include "arena.h"
#include "vec.h"

typedef struct {
    nri_space base;
    nri_space *inner;
    int first, blocks;
    double *weights; /* [blocks] */
    double *part;    /* [B][slots] inner products of one block */
    void *block;
} space;

/* Block k of a slot, and of rows. */
static int
block_slot(const space *s, int slot, int k)
{
    return s->first + slot * s->blocks + k;
}

static nri_rows
block_rows(const space *s, nri_rows rows, int k)
{
    return (nri_rows){block_slot(s, rows.first, k), rows.count, rows.step * s->blocks};
}

static nri_status
combine_stack(nri_space *v, int dst, nri_rows rows, const double *coef, int pitch)
{
    const space *s = (const space *)v;
    for (int k = 0; k < s->blocks; k++) {
        NRI_TRY(s->inner->ops->combine(s->inner, block_slot(s, dst, k), block_rows(s, rows, k), coef, pitch));
    }
    return NRI_OK;
}

static nri_status
dots_stack(nri_space *v, int x, nri_rows rows, double *out)
{
    space *s = (space *)v;
    int64_t n = v->batch * rows.count;
    memset(out, 0, sizeof(*out) * (size_t)n);
    for (int k = 0; k < s->blocks; k++) {
        NRI_TRY(s->inner->ops->dots(s->inner, block_slot(s, x, k), block_rows(s, rows, k), s->part));
        for (int64_t i = 0; i < n; i++) {
            out[i] += s->weights[k] * s->weights[k] * s->part[i];
        }
    }
    return NRI_OK;
}

static nri_status
copy_stack(nri_space *v, int dst, int src, const bool *which)
{
    const space *s = (const space *)v;
    for (int k = 0; k < s->blocks; k++) {
        NRI_TRY(s->inner->ops->copy(s->inner, block_slot(s, dst, k), block_slot(s, src, k), which));
    }
    return NRI_OK;
}

static nri_status
sign_stack(nri_space *v, int dst, int src, double floor)
{
    const space *s = (const space *)v;
    for (int k = 0; k < s->blocks; k++) {
        NRI_TRY(s->inner->ops->sign(s->inner, block_slot(s, dst, k), block_slot(s, src, k), floor));
    }
    return NRI_OK;
}

/* A caller's tensor is one block: it is loaded into, and stored from, the inner space. */
static nri_status
exchange_stack(nri_space *v, int slot, const nri_tensor *t, nri_direction direction)
{
    (void)v, (void)slot, (void)t, (void)direction;
    return NRI_BAD_ARGUMENT;
}

static void
destroy_stack(nri_space *v)
{
    free(((space *)v)->block);
    free(v);
}

static const nri_vec_ops stack_ops = {destroy_stack, combine_stack, dots_stack, sign_stack, copy_stack, exchange_stack};

nri_status
nri_space_create_stack(nri_space *inner, int first, int blocks, int slots, const double *weights, nri_space **out)
{
    *out = NULL;
    if (first < 0 || blocks < 1 || slots < 1 || (inner->slots - first) / slots < blocks) {
        return NRI_BAD_ARGUMENT;
    }
    space *s = calloc(1, sizeof(*s));
    if (!s) {
        return NRI_NO_MEMORY;
    }
    s->base = (nri_space){&stack_ops, inner->batch, inner->elements * blocks, slots};
    s->inner = inner;
    s->first = first;
    s->blocks = blocks;
    const nri_array arrays[] = {NRI_ARRAY(space, weights, blocks, 1), NRI_ARRAY(space, part, inner->batch, slots)};
    s->block = NRI_CARVE(s, arrays);
    if (!s->block) {
        free(s);
        return NRI_NO_MEMORY;
    }
    memcpy(s->weights, weights, sizeof(*weights) * (size_t)blocks);
    *out = &s->base;
    return NRI_OK;
}
