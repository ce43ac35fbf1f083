/* Toy problems for the C tests, see toy.h. */
#include "toy.h"

#include <math.h>
#include <string.h>

const toy_fault toy_sound = {0, -1, 0, false};

double
toy_uniform(uint64_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return (double)(*seed >> 11) * 0x1p-52 - 1;
}

/* Sum of twelve uniforms: near enough to a normal number, and the same on every machine. */
double
toy_normal(uint64_t *seed)
{
    double sum = 0;
    for (int i = 0; i < 12; i++) {
        sum += toy_uniform(seed);
    }
    return sum / 2;
}

void
toy_normals(uint64_t *seed, int n, float *x)
{
    for (int i = 0; i < n; i++) {
        x[i] = (float)toy_normal(seed);
    }
}

nri_tensor
toy_tensor(void *data, nri_dtype dtype, int64_t shape[2], int64_t batch, int64_t elements)
{
    shape[0] = batch;
    shape[1] = elements;
    return (nri_tensor){.data = data, .dtype = dtype, .device_type = 1, .ndim = 2, .shape = shape};
}

double *
toy_alpha(toy_form *f, int j, int k)
{
    return f->steps + j * (2 * f->E + f->K) + k;
}

double *
toy_beta(toy_form *f, int j, int k)
{
    return toy_alpha(f, j, f->E + k);
}

double *
toy_gamma(toy_form *f, int j, int k)
{
    return toy_alpha(f, j, 2 * f->E + k);
}

toy_form
toy_empty(int E, int K)
{
    toy_form f = {.E = E, .K = K};
    for (int j = 0; j < E; j++) {
        f.timesteps[j] = 1 - (double)j / E;
        f.inputs[j] = 0.7 + 0.05 * j;
    }
    return f;
}

toy_form
toy_euler(int E)
{
    toy_form f = toy_empty(E, 0);
    for (int j = 0; j < E; j++) {
        *toy_alpha(&f, j, j) = 1 + 0.02 * (j + 1);
        *toy_beta(&f, j, j) = -0.3 - 0.04 * j;
    }
    return f;
}

toy_form
toy_ancestral(int E)
{
    toy_form f = toy_empty(E, E - 1);
    for (int j = 0; j < E; j++) {
        *toy_alpha(&f, j, j) = 1 - 0.03 * j;
        *toy_beta(&f, j, j) = -0.35;
        if (j < E - 1) {
            *toy_gamma(&f, j, j) = 0.4 + 0.1 * j;
        }
    }
    return f;
}

toy_form
toy_adams(int E)
{
    toy_form f = toy_empty(E, 0);
    for (int j = 0; j < E; j++) {
        double h = -0.25;
        *toy_alpha(&f, j, j) = 1;
        *toy_beta(&f, j, j) = j ? 1.5 * h : h;
        if (j) {
            *toy_beta(&f, j, j - 1) = -0.5 * h;
        }
    }
    return f;
}

toy_form
toy_heun(int steps)
{
    toy_form f = toy_empty(2 * steps, 0);
    for (int j = 0; j < 2 * steps; j += 2) {
        double h = -0.3;
        *toy_alpha(&f, j, j) = 1;
        *toy_beta(&f, j, j) = h;
        *toy_alpha(&f, j + 1, j) = 1;
        *toy_beta(&f, j + 1, j) = h / 2;
        *toy_beta(&f, j + 1, j + 1) = h / 2;
    }
    return f;
}

toy_form
toy_denoiser(int E, bool scaled, double eta, double top, double ratio)
{
    toy_form f = toy_empty(E, eta > 0 ? E - 1 : 0);
    f.leveled = true;
    for (int j = 0; j <= E; j++) {
        double sigma = j < E ? top * pow(ratio, j) : 0, size = sqrt(1 + sigma * sigma);
        f.levels[2 * j] = scaled ? 1 / size : 1;
        f.levels[2 * j + 1] = scaled ? sigma / size : sigma;
        if (j < E) {
            f.inputs[j] = scaled ? 1 : 1 / size;
        }
    }
    for (int j = 0; j < E; j++) {
        const double *now = f.levels + 2 * j, *next = now + 2;
        double C = eta * next[1], A = next[0] / now[0];
        *toy_alpha(&f, j, j) = A;
        *toy_beta(&f, j, j) = sqrt(next[1] * next[1] - C * C) - A * now[1];
        if (j < f.K) {
            *toy_gamma(&f, j, j) = C;
        }
    }
    return f;
}

toy_network
toy_make_network(int D, bool linear, double size, uint64_t seed)
{
    toy_network net = {.D = D, .linear = linear};
    for (int i = 0; i < D; i++) {
        for (int k = 0; k < D; k++) {
            net.w[i][k] = size * toy_normal(&seed) / (2 * sqrt(D));
        }
        net.v[i] = linear ? 0.3 * toy_normal(&seed) : 0;
    }
    return net;
}

void
toy_evaluate(const toy_network *net, double timestep, const double *x, double *m)
{
    for (int i = 0; i < net->D; i++) {
        double sum = timestep * net->v[i];
        for (int k = 0; k < net->D; k++) {
            sum += net->w[i][k] * x[k];
        }
        m[i] = net->linear ? sum : tanh(sum);
    }
}

void
toy_pull_back(const toy_network *net, double timestep, const double *x, const double *v, double *product)
{
    double m[TOY_D];
    toy_evaluate(net, timestep, x, m);
    for (int k = 0; k < net->D; k++) {
        product[k] = 0;
        for (int i = 0; i < net->D; i++) {
            product[k] += net->w[i][k] * (net->linear ? 1 : 1 - m[i] * m[i]) * v[i];
        }
    }
}

void
toy_forward(toy_form *f, const toy_network *net, const double *noises, double *states)
{
    double x[TOY_D], m[TOY_E][TOY_D];
    for (int j = 0; j < f->E; j++) {
        for (int d = 0; d < net->D; d++) {
            x[d] = f->inputs[j] * states[j * TOY_D + d];
        }
        toy_evaluate(net, f->timesteps[j], x, m[j]);
        for (int d = 0; d < net->D; d++) {
            double sum = 0;
            for (int k = 0; k <= j; k++) {
                sum += *toy_alpha(f, j, k) * states[k * TOY_D + d] + *toy_beta(f, j, k) * m[k][d];
            }
            for (int k = 0; k < f->K; k++) {
                sum += *toy_gamma(f, j, k) * noises[k * TOY_D + d];
            }
            states[(j + 1) * TOY_D + d] = sum;
        }
    }
}

toy_problem
toy_make_problem(toy_form *f, const toy_network *net, int B, uint64_t seed, double start[TOY_B][TOY_D])
{
    toy_problem p = {.B = B, .D = net->D};
    double states[(TOY_E + 1) * TOY_D], noises[TOY_K * TOY_D];
    for (int b = 0; b < B; b++) {
        for (int d = 0; d < net->D; d++) {
            states[d] = start[b][d] = toy_normal(&seed);
        }
        for (int k = 0; k < f->K; k++) {
            toy_normals(&seed, net->D, p.noises[k][b]);
            for (int d = 0; d < net->D; d++) {
                noises[k * TOY_D + d] = (double)p.noises[k][b][d];
            }
        }
        toy_forward(f, net, noises, states);
        for (int d = 0; d < net->D; d++) {
            p.target[b][d] = (float)states[f->E * TOY_D + d];
        }
    }
    return p;
}

nri_status
toy_move(nri_space *v, int slot, float (*x)[TOY_D], bool load)
{
    float packed[TOY_B * TOY_D];
    int64_t shape[2], D = v->elements;
    nri_tensor t = toy_tensor(packed, NRI_FLOAT32, shape, v->batch, D);
    for (int64_t b = 0; load && b < v->batch; b++) {
        memcpy(packed + b * D, x[b], sizeof(float) * (size_t)D);
    }
    NRI_TRY(v->ops->exchange(v, slot, &t, load ? NRI_LOAD : NRI_STORE));
    for (int64_t b = 0; !load && b < v->batch; b++) {
        memcpy(x[b], packed + b * D, sizeof(float) * (size_t)D);
    }
    return NRI_OK;
}

/* A sweep never asks about a sample that is not finite; a forward run has nothing else to go on with, where it counts. */
static nri_status
answer(nri_inversion *inv, nri_space *v, const toy_network *net, const nri_request *q, bool in_sweep, unsigned spoiled,
       bool litter)
{
    static const float garbage[] = {NAN, 1e30f, -INFINITY, -1e15f};
    float sample[TOY_B][TOY_D], cotangent[TOY_B][TOY_D], output[TOY_B * TOY_D];
    double x[TOY_D], m[TOY_D], u[TOY_D];
    int64_t shape[2];
    NRI_TRY(toy_move(v, q->slot, sample, false));
    if (q->cotangent >= 0) {
        NRI_TRY(toy_move(v, q->cotangent, cotangent, false));
    }
    for (int64_t b = 0; b < v->batch; b++) {
        for (int d = 0; d < net->D; d++) {
            x[d] = q->scale * (double)sample[b][d];
            if ((in_sweep || (litter && !q->active[b])) && !isfinite(x[d])) {
                return NRI_NOT_FINITE;
            }
            u[d] = q->cotangent >= 0 ? q->scale * (double)cotangent[b][d] : 0;
        }
        if (q->cotangent >= 0) {
            toy_pull_back(net, q->timestep, x, u, m);
        }
        else {
            toy_evaluate(net, q->timestep, x, m);
        }
        for (int d = 0; d < net->D; d++) {
            output[b * net->D + d] = spoiled >> b & 1u ? NAN : (float)m[d];
            if (litter && !q->active[b]) {
                output[b * net->D + d] = garbage[(b + d / 2) % 4];
            }
        }
    }
    nri_tensor t = toy_tensor(output, NRI_FLOAT32, shape, v->batch, net->D);
    return nri_inversion_feed(inv, &t);
}

static nri_status
collect(const nri_inversion *inv, nri_space *v, int E, int K, toy_outcome *out)
{
    nri_result result;
    NRI_TRY(nri_inversion_result(inv, &result));
    NRI_TRY(toy_move(v, result.latents, out->latents, false));
    for (int j = 0; result.trajectory >= 0 && j <= E; j++) {
        NRI_TRY(toy_move(v, result.trajectory + j, out->trajectory[j], false));
    }
    for (int k = 0; k < K; k++) {
        NRI_TRY(toy_move(v, result.noises + k, out->noises[k], false));
    }
    for (int b = 0; b < v->batch; b++) {
        for (int j = 0; j < E; j++) {
            out->residual[j][b] = result.residual[j * v->batch + b];
            out->step_nfe[j][b] = result.step_nfe[j * v->batch + b];
        }
        out->nfe[b] = result.nfe[b];
        out->restarts[b] = result.restarts[b];
        out->rejected[b] = result.rejected[b];
        out->failed[b] = result.failed[b];
        out->reason[b] = result.reason[b];
        out->error[b] = result.error[b];
        out->growth[b] = result.growth[b];
        out->measured[b] = result.measured[b];
    }
    out->evaluations = result.evaluations;
    return NRI_OK;
}

static nri_status
drive(nri_inversion *inv, nri_space *v, const toy_form *f, const toy_network *net, const toy_problem *p, toy_fault fault,
      toy_outcome *out)
{
    nri_request request;
    bool done;
    int sweep = -1; /* where the samples of sweeps are: that of the first request is one */
    toy_problem copy = *p;
    NRI_TRY(toy_move(v, nri_inversion_inputs(inv).target, copy.target, true));
    for (int k = 0; k < f->K; k++) {
        NRI_TRY(toy_move(v, nri_inversion_inputs(inv).noises + k, copy.noises[k], true));
    }
    for (int i = 0;; i++) {
        NRI_TRY(nri_inversion_next(inv, &request, &done));
        if (done) {
            return collect(inv, v, f->E, f->K, out);
        }
        sweep = i == 0 ? request.slot : sweep;
        unsigned spoiled = fault.first <= i && i <= fault.last ? fault.samples : 0;
        NRI_TRY(answer(inv, v, net, &request, request.slot == sweep, spoiled, fault.litter));
    }
}

nri_status
toy_sampler(const toy_form *f, nri_sampler **sampler)
{
    int step;
    return nri_sampler_create(f->E, f->K, f->timesteps, f->steps, f->inputs, f->leveled ? f->levels : NULL, sampler, &step);
}

nri_status
toy_invert(const toy_form *f, const toy_network *net, const nri_options *o, const toy_problem *p, toy_fault fault,
           toy_outcome *out)
{
    nri_sampler *sampler = NULL;
    nri_space *v = NULL;
    nri_inversion *inv = NULL;
    nri_problem problem;
    int64_t shape[2];
    nri_tensor like = toy_tensor(NULL, NRI_FLOAT32, shape, p->B, p->D);
    memset(out, 0, sizeof(*out));
    nri_status status = toy_sampler(f, &sampler);
    if (status == NRI_OK) {
        out->limit = nri_inversion_max_evaluations(sampler, o);
        status = nri_space_create_host(&like, nri_inversion_slots(sampler, o), &v);
    }
    if (status == NRI_OK) {
        status = nri_inversion_create(sampler, o, v, &inv, &problem);
    }
    if (status == NRI_OK) {
        status = drive(inv, v, f, net, p, fault, out);
    }
    nri_inversion_destroy(inv);
    nri_space_destroy(v);
    nri_sampler_destroy(sampler);
    return status;
}

nri_status
toy_open(const toy_form *f, const nri_options *o, int64_t B, int64_t D, toy_session *s)
{
    int64_t shape[2];
    nri_tensor like = toy_tensor(NULL, NRI_FLOAT32, shape, B, D);
    *s = (toy_session){.sampler = NULL};
    NRI_TRY(toy_sampler(f, &s->sampler));
    NRI_TRY(nri_space_create_host(&like, nri_inversion_slots(s->sampler, o), &s->v));
    return nri_inversion_create(s->sampler, o, s->v, &s->inv, &s->problem);
}

void
toy_shut(toy_session *s)
{
    nri_inversion_destroy(s->inv);
    nri_space_destroy(s->v);
    nri_sampler_destroy(s->sampler);
}

nri_status
toy_put(toy_session *s, int slot, double *x)
{
    int64_t shape[2];
    nri_tensor t = toy_tensor(x, NRI_FLOAT64, shape, s->v->batch, s->v->elements);
    return s->v->ops->exchange(s->v, slot, &t, NRI_LOAD);
}

nri_status
toy_get(toy_session *s, int slot, double *x)
{
    int64_t shape[2];
    nri_tensor t = toy_tensor(x, NRI_FLOAT64, shape, s->v->batch, s->v->elements);
    return s->v->ops->exchange(s->v, slot, &t, NRI_STORE);
}

nri_status
toy_feed(toy_session *s, double *m)
{
    int64_t shape[2];
    nri_tensor t = toy_tensor(m, NRI_FLOAT64, shape, s->v->batch, s->v->elements);
    return nri_inversion_feed(s->inv, &t);
}

double
toy_distance(int D, const float *x, const double *y)
{
    double gap = 0, size = 0;
    for (int d = 0; d < D; d++) {
        gap += ((double)x[d] - y[d]) * ((double)x[d] - y[d]);
        size += y[d] * y[d];
    }
    return sqrt(gap / size);
}
