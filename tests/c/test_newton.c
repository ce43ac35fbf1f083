/* newton.c beside its equations: every point that is asked for, every product, and the end, with F and g in double. */
#include <math.h>
#include <string.h>

#include "check.h"
#include "toy.h"

/* f(z) = (y - b m(i z)) / A and F of one sample */
typedef struct {
    double A, b, input, timestep, lam;
    const toy_network *net;
    double y[TOY_D];
} equation;

static double
evaluate(const equation *e, const double *z, double *f, double *m)
{
    double x[TOY_D], sum = 0, far = 0, D = e->net->D;
    for (int d = 0; d < e->net->D; d++) {
        x[d] = e->input * z[d];
    }
    toy_evaluate(e->net, e->timestep, x, m);
    for (int d = 0; d < e->net->D; d++) {
        f[d] = (e->y[d] - e->b * m[d]) / e->A;
        sum += fabs(z[d] - f[d]);
        far += (z[d] - e->y[d] / e->A) * (z[d] - e->y[d] / e->A);
    }
    double w = e->A > 1 ? 1 / (1 - 1 / (e->A * e->A)) : 1;
    return sum / D + e->lam * w * sqrt(far / D);
}

/* g, from the network's product with the signs asked for */
static void
gradient(const equation *e, const double *z, const double *signs, double *product, double *g)
{
    double x[TOY_D], v[TOY_D], far = 0;
    for (int d = 0; d < e->net->D; d++) {
        x[d] = e->input * z[d];
        v[d] = e->input * signs[d];
        far += (z[d] - e->y[d] / e->A) * (z[d] - e->y[d] / e->A);
    }
    toy_pull_back(e->net, e->timestep, x, v, product);
    double w = e->A > 1 ? 1 / (1 - 1 / (e->A * e->A)) : 1, rms = sqrt(far / e->net->D);
    for (int d = 0; d < e->net->D; d++) {
        g[d] = -e->b / e->A * product[d] - signs[d];
        g[d] += rms > 0 ? e->lam * w * (z[d] - e->y[d] / e->A) / rms : 0;
    }
}

/* Follow one equation to its end; how often a step was halved. */
static int
follow(equation *e, double floor, double first)
{
    toy_form f = toy_empty(1, 0);
    nri_options o = nri_default_options;
    nri_request q;
    toy_session s;
    bool done;
    double z[TOY_D], image[TOY_D], m[TOY_D], signs[TOY_D], product[TOY_D], g[TOY_D] = {0};
    double best[TOY_D], best_image[TOY_D] = {0}, merit = INFINITY, length = 1;
    int evaluations = 0, products = 0, accepted = 0, halved = 0;
    *toy_alpha(&f, 0, 0) = e->A;
    *toy_beta(&f, 0, 0) = e->b;
    e->input = f.inputs[0];
    e->timestep = f.timesteps[0];
    o.solver = NRI_NEWTON;
    o.max_nfe = 24;
    o.tol = 0;
    o.lam = e->lam;
    o.floor = floor;
    o.guess = true; /* a start off mu, so that the prior pulls from the first step on */
    CHECK(toy_open(&f, &o, 1, e->net->D, &s) == NRI_OK);
    CHECK(toy_put(&s, nri_inversion_inputs(s.inv).target, e->y) == NRI_OK);
    for (int d = 0; d < e->net->D; d++) {
        best[d] = z[d] = e->y[d] + first * (d % 3 - 1);
    }
    CHECK(toy_put(&s, nri_inversion_inputs(s.inv).guess, z) == NRI_OK);
    while (nri_inversion_next(s.inv, &q, &done) == NRI_OK && !done) {
        CHECK(toy_get(&s, q.slot, z) == NRI_OK);
        CHECK(q.wants_gradient);
        if (q.cotangent < 0) {
            for (int d = 0; d < e->net->D; d++) {
                double step = accepted ? merit * g[d] / (fabs(g[d]) * fmax(fabs(g[d]), floor)) : 0;
                CHECK_NEAR(z[d], best[d] - length * step, 2e-5);
            }
            double now = evaluate(e, z, image, m);
            evaluations++;
            CHECK(toy_feed(&s, m) == NRI_OK);
            if (now < merit) {
                merit = now;
                length = 1;
                accepted++;
                memcpy(best, z, sizeof(best));
                memcpy(best_image, image, sizeof(best_image));
            }
            else {
                length /= 2;
                halved++;
            }
        }
        else {
            CHECK(toy_get(&s, q.cotangent, signs) == NRI_OK);
            CHECK(accepted == products + 1 && length == 1);
            for (int d = 0; d < e->net->D; d++) {
                CHECK_NEAR(z[d], best[d], 0);
                CHECK(fabs(image[d] - z[d]) < 1e-5 || signs[d] == (image[d] > z[d] ? 1 : -1));
            }
            gradient(e, z, signs, product, g);
            products++;
            CHECK(toy_feed(&s, product) == NRI_OK);
        }
    }
    nri_result result;
    CHECK(nri_inversion_result(s.inv, &result) == NRI_OK);
    CHECK(toy_get(&s, result.latents, z) == NRI_OK);
    double gap = 0;
    for (int d = 0; d < e->net->D; d++) {
        CHECK_NEAR(z[d], best_image[d], 1e-5);
        gap += (best_image[d] - best[d]) * (best_image[d] - best[d]);
    }
    CHECK(result.reason[0] == NRI_MAX_NFE || (result.reason[0] == NRI_STALLED && length < 1.0 / 64));
    CHECK(evaluations >= 4 && products >= 2);
    CHECK(result.restarts[0] == halved - (accepted == products && halved > 0 && length < 1));
    CHECK(result.rejected[0] == 0 && result.failed[0] == 0);
    CHECK(result.nfe[0] == evaluations + products && result.step_nfe[0] == result.nfe[0]);
    CHECK(result.evaluations == result.nfe[0] && result.nfe[0] <= o.max_nfe);
    double scale = 0;
    for (int d = 0; d < e->net->D; d++) {
        double guess = e->y[d] + first * (d % 3 - 1);
        scale += guess * guess;
    }
    CHECK_NEAR(result.residual[0], sqrt(gap / scale), 1e-5);
    toy_shut(&s);
    return halved;
}

static void
check_equations(void)
{
    static const double scales[] = {1, 1.4, 0.8}, lams[] = {0, 0.1, 1}, floors[] = {0.1, 0.5};
    uint64_t seed = 91;
    int halved = 0;
    for (int i = 0; i < 36; i++) {
        bool linear = i / 18;
        toy_network net = toy_make_network(TOY_D, linear, 0.9, 92);
        equation e = {.A = scales[i % 3], .b = -0.6, .lam = lams[i / 3 % 3], .net = &net};
        check_label = linear ? "equations, linear" : "equations, tanh";
        for (int d = 0; d < TOY_D; d++) {
            e.y[d] = (double)(float)toy_normal(&seed);
        }
        halved += follow(&e, floors[i / 9 % 2], 0.5);
    }
    check_label = "halving";
    CHECK(halved > 36);
}

static toy_outcome
invert(toy_form *f, const toy_network *net, nri_options o, const toy_problem *p, toy_fault fault)
{
    toy_outcome out;
    CHECK(toy_invert(f, net, &o, p, fault, &out) == NRI_OK);
    for (int b = 0; b < p->B; b++) {
        for (int d = 0; d < p->D; d++) {
            CHECK(isfinite(out.latents[b][d]));
        }
    }
    return out;
}

static nri_options
newton(int max_nfe, double tol)
{
    nri_options o = nri_default_options;
    o.solver = NRI_NEWTON;
    o.max_nfe = max_nfe;
    o.tol = tol;
    o.lam = 0;
    return o;
}

/* One evaluation is a fixed-point step; an update takes a product and an evaluation more. */
static void
check_budgets(void)
{
    static const int spent[] = {1, 1, 3, 4, 5};
    double start[TOY_B][TOY_D];
    toy_form f = toy_euler(2);
    toy_network net = toy_make_network(TOY_D, false, 0.9, 93);
    toy_problem p = toy_make_problem(&f, &net, 2, 94, start);
    nri_options plain = newton(1, 0);
    plain.solver = NRI_FIXED_POINT;
    toy_outcome once = invert(&f, &net, plain, &p, toy_sound);
    check_label = "budgets";
    for (int max_nfe = 1; max_nfe <= 5; max_nfe++) {
        toy_outcome out = invert(&f, &net, newton(max_nfe, 0), &p, toy_sound);
        for (int b = 0; b < 2; b++) {
            CHECK(out.reason[b] == NRI_MAX_NFE);
            int sum = 0;
            for (int j = 0; j < 2; j++) {
                sum += out.step_nfe[j][b];
                CHECK(out.step_nfe[j][b] <= max_nfe && (max_nfe > 3 || out.step_nfe[j][b] == spent[max_nfe - 1]));
            }
            CHECK(out.nfe[b] == sum);
            for (int d = 0; d < TOY_D && max_nfe < 3; d++) {
                CHECK_NEAR((double)out.latents[b][d], (double)once.latents[b][d], 1e-6);
            }
            CHECK(max_nfe < 3 || b > 0 || memcmp(out.latents[b], once.latents[b], sizeof(once.latents[b])) != 0);
        }
    }
}

/* Nothing of a sample depends on the others, nor on what comes back for it when it is done. */
static void
check_batch(void)
{
    double start[TOY_B][TOY_D];
    toy_form f = toy_euler(3);
    toy_network net = toy_make_network(TOY_D, false, 0.9, 95);
    toy_problem p = toy_make_problem(&f, &net, TOY_B, 96, start);
    nri_options o = newton(16, 5e-2);
    bool differ = false;
    check_label = "batch";
    memset(p.target[1], 0, sizeof(p.target[1])); /* ends with its first evaluation */
    toy_outcome all = invert(&f, &net, o, &p, toy_sound);
    toy_outcome hurt = invert(&f, &net, o, &p, (toy_fault){1, 1 << 30, 1u << 2, false});
    for (int b = 0; b < TOY_B; b++) {
        toy_problem single = {.B = 1, .D = TOY_D};
        memcpy(single.target[0], p.target[b], sizeof(single.target[0]));
        toy_outcome one = invert(&f, &net, o, &single, toy_sound);
        CHECK(memcmp(all.latents[b], one.latents[0], sizeof(one.latents[0])) == 0);
        CHECK(all.nfe[b] == one.nfe[0] && all.reason[b] == one.reason[0]);
        if (b != 2) {
            CHECK(memcmp(hurt.latents[b], one.latents[0], sizeof(one.latents[0])) == 0);
            CHECK(hurt.nfe[b] == one.nfe[0] && hurt.reason[b] == one.reason[0]);
        }
        for (int j = 0; j < f.E; j++) {
            CHECK(all.residual[j][b] == one.residual[j][0] && all.step_nfe[j][b] == one.step_nfe[j][0]);
        }
        differ |= all.nfe[b] != all.nfe[0];
    }
    CHECK(differ && all.nfe[1] == f.E && all.reason[1] == NRI_TOL);
    CHECK(hurt.reason[2] == NRI_NON_FINITE && hurt.nfe[2] == 2);
}

/* A bad output costs its evaluation, a second one or a bad product the sample, its company nothing. */
static void
check_not_finite(void)
{
    double start[TOY_B][TOY_D];
    toy_form f = toy_euler(2);
    toy_network net = toy_make_network(TOY_D, false, 0.9, 97);
    toy_problem p = toy_make_problem(&f, &net, 2, 98, start);
    nri_options o = newton(5, 0);
    toy_outcome sound = invert(&f, &net, o, &p, toy_sound);
    check_label = "not finite";
    int bad_products = 0;
    for (int at = 0; at < sound.evaluations; at++) {
        toy_outcome out = invert(&f, &net, o, &p, (toy_fault){at, at, 1, false});
        CHECK(out.reason[0] == NRI_MAX_NFE || out.reason[0] == NRI_NON_FINITE);
        CHECK(memcmp(out.latents[1], sound.latents[1], sizeof(sound.latents[1])) == 0);
        CHECK(out.reason[1] == NRI_MAX_NFE && out.nfe[1] == sound.nfe[1]);
        bad_products += out.reason[0] == NRI_NON_FINITE;
        out = invert(&f, &net, o, &p, (toy_fault){at, 1 << 30, 3, false});
        bool last = at == sound.evaluations - 1; /* an end that was due, with something found before */
        CHECK(out.reason[0] == (last ? NRI_MAX_NFE : NRI_NON_FINITE) && out.reason[1] == out.reason[0]);
        CHECK(out.evaluations <= at + 3);
    }
    CHECK(bad_products > 0 && bad_products < sound.evaluations);
    /* calls 0, 1 and 2 are an evaluation, its product and the next evaluation */
    toy_outcome out = invert(&f, &net, o, &p, (toy_fault){1, 1, 3, false});
    CHECK(out.reason[0] == NRI_NON_FINITE && out.nfe[0] == 2 && out.evaluations == 2);
    out = invert(&f, &net, newton(1, 0), &p, (toy_fault){0, 0, 3, false});
    CHECK(out.reason[0] == NRI_NON_FINITE && out.evaluations == 1);
    for (int b = 0; b < 2; b++) {
        CHECK(memcmp(out.latents[b], p.target[b], sizeof(p.target[b])) == 0);
    }
    out = invert(&f, &net, o, &p, (toy_fault){0, 0, 3, false}); /* tried again where it began */
    CHECK(out.reason[0] == NRI_MAX_NFE && out.step_nfe[1][0] >= 4);
}

static void
check_refusals(void)
{
    toy_form f = toy_euler(2);
    toy_session s;
    check_label = "refusals";
    for (int i = 0; i < 7; i++) {
        nri_options o = newton(3, 0);
        o.lam = i == 0 ? -1 : i == 1 ? INFINITY : i == 2 ? NAN : 0;
        o.floor = i == 3 ? 0 : i == 4 ? -1 : i == 5 ? NAN : 0.5;
        CHECK(toy_open(&f, &o, 1, 3, &s) == (i < 6 ? NRI_BAD_ARGUMENT : NRI_OK));
        toy_shut(&s);
    }
}

void
test_newton(void)
{
    check_equations();
    check_budgets();
    check_batch();
    check_not_finite();
    check_refusals();
}
