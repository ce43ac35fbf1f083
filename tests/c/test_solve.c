/* solve.c on linear maps f(z) = H z + c, whose solution c / (1 - h) and error after each evaluation are known. */
#include <math.h>
#include <string.h>

#include "check.h"
#include "solve.h"
#include "toy.h"

/* Mixing depends on scalar products only, so that a diagonal H is as good as any symmetric one. */
enum { DIM = 40, BATCH = 6, MOST_NFE = 100 };

typedef struct {
    double h[DIM], c[DIM];
    double start[DIM];
    uint64_t bad; /* bit k: evaluation k returns NaN; the last bit stands for all later ones */
} map;

typedef struct {
    nri_solver solver;
    int depth, max_nfe;
    double tol, atol;
} settings;

typedef struct {
    float z[BATCH][DIM];
    int nfe[BATCH], evaluations;
    nri_reason reason[BATCH];
    double residual[BATCH], scale[BATCH];
    int restarts[BATCH], rejected[BATCH], failed[BATCH];
} outcome;

static const settings usual = {NRI_ANDERSON, 5, MOST_NFE, 1e-6, 0};

/* Slots besides the rings. */
enum { ITERATE, RESULT, ORIGIN, BEST_F, BEST_R, SPARE, RINGS };

static bool
finite(int n, const float *z)
{
    for (int d = 0; d < n; d++) {
        if (!isfinite(z[d])) {
            return false;
        }
    }
    return true;
}

/* Whatever a map returned, it is never asked for its value at a point that is not finite. */
static void
evaluate(nri_solve *s, const map *maps, int evaluation)
{
    float z[BATCH * DIM];
    double coef[BATCH * 2];
    int64_t shape[2], B = s->v->batch;
    const nri_vec_ops *ops = s->v->ops;
    nri_tensor t = toy_tensor(z, NRI_FLOAT32, shape, B, DIM);
    CHECK(ops->exchange(s->v, ITERATE, &t, NRI_STORE) == NRI_OK);
    CHECK(finite((int)B * DIM, z));
    for (int64_t b = 0; b < B; b++) {
        bool bad = maps[b].bad >> (evaluation < 63 ? evaluation : 63) & 1u;
        for (int d = 0; d < DIM; d++) {
            float *x = z + b * DIM + d;
            *x = bad ? NAN : (float)(maps[b].h[d] * (double)*x + maps[b].c[d]);
        }
        coef[2 * b] = -1;
        coef[2 * b + 1] = 1;
    }
    CHECK(ops->exchange(s->v, nri_solve_f(s), &t, NRI_LOAD) == NRI_OK);
    CHECK(ops->combine(s->v, nri_solve_r(s), (nri_rows){ITERATE, 2, nri_solve_f(s) - ITERATE}, coef, 2) == NRI_OK);
}

static nri_space *
make_space(const map *maps, int B, int slots)
{
    float start[BATCH * DIM];
    int64_t shape[2];
    nri_space *v;
    nri_tensor t = toy_tensor(start, NRI_FLOAT32, shape, B, DIM);
    for (int i = 0; i < B * DIM; i++) {
        start[i] = (float)maps[i / DIM].start[i % DIM];
    }
    CHECK(nri_space_create_host(&t, slots, &v) == NRI_OK);
    CHECK(v->ops->exchange(v, ITERATE, &t, NRI_LOAD) == NRI_OK);
    CHECK(v->ops->exchange(v, ORIGIN, &t, NRI_LOAD) == NRI_OK);
    return v;
}

/* A solve with rings of `depth` behind RINGS. */
static nri_solve
make_solve(nri_space *v, settings o, outcome *out)
{
    nri_solve s = {.v = v,
                   .solver = o.solver,
                   .depth = o.depth,
                   .max_nfe = o.max_nfe,
                   .tol = o.tol,
                   .atol = o.atol,
                   .slot = {RINGS, RINGS + o.depth + 1, BEST_F, BEST_R, SPARE, ORIGIN, -1},
                   .tally = {out->restarts, out->rejected, out->failed}};
    CHECK(nri_solve_create(&s) == NRI_OK);
    CHECK(!s.differentiates && s.mean == -1);
    return s;
}

static outcome
solve_with(const map *maps, int B, settings o, bool type_one)
{
    outcome out = {.evaluations = 0};
    float z[BATCH * DIM];
    int64_t shape[2];
    nri_space *v = make_space(maps, B, RINGS + 2 * (o.depth + 1));
    nri_solve s = make_solve(v, o, &out);
    s.type_one = type_one;
    CHECK(v->ops->dots(v, ORIGIN, (nri_rows){ORIGIN, 1, 1}, s.scale) == NRI_OK);
    for (int b = 0; b < B; b++) {
        s.scale[b] = sqrt(s.scale[b]);
    }
    nri_solve_begin(&s, NULL);
    for (; nri_solve_running(&s) && out.evaluations <= o.max_nfe; out.evaluations++) {
        evaluate(&s, maps, out.evaluations);
        CHECK(nri_iterate(&s, ITERATE) == NRI_OK);
        CHECK((s.asks == NRI_NOTHING) == !nri_solve_running(&s) && s.asks != NRI_GRADIENT);
        CHECK(v->ops->copy(v, RESULT, ITERATE, s.finished) == NRI_OK);
    }
    CHECK(!nri_solve_running(&s));
    nri_tensor t = toy_tensor(z, NRI_FLOAT32, shape, B, DIM);
    CHECK(v->ops->exchange(v, RESULT, &t, NRI_STORE) == NRI_OK);
    for (int b = 0; b < B; b++) {
        memcpy(out.z[b], z + b * DIM, sizeof(out.z[b]));
        out.nfe[b] = s.nfe[b];
        out.reason[b] = s.reason[b];
        out.residual[b] = s.residual[b];
        out.scale[b] = s.scale[b];
    }
    nri_solve_destroy(&s);
    nri_space_destroy(v);
    return out;
}

static outcome
solve(const map *maps, int B, settings o)
{
    return solve_with(maps, B, o, false);
}

/* Eigenvalues h[0..n), each as often as the next. */
static map
make_map(int n, const double *h, uint64_t seed)
{
    map m = {.bad = 0};
    for (int d = 0; d < DIM; d++) {
        m.h[d] = h[d % n];
        m.c[d] = toy_normal(&seed);
        m.start[d] = toy_normal(&seed);
    }
    return m;
}

/* Half of the spectrum at kappa, the rest spread below, as the Jacobian of a denoising step has it. */
static map
make_step(double kappa, uint64_t seed)
{
    double h[DIM];
    for (int d = 0; d < DIM; d++) {
        h[d] = d < DIM / 2 ? kappa : kappa * (DIM - d) / (DIM / 2 + 1);
    }
    return make_map(DIM, h, seed);
}

static double
distance(const map *m, const float *z)
{
    double solution[DIM];
    for (int d = 0; d < DIM; d++) {
        solution[d] = m->c[d] / (1 - m->h[d]);
    }
    return toy_distance(DIM, z, solution);
}

/* Each direction keeps h of its error per evaluation. */
static void
check_fixed_point(void)
{
    check_label = "fixed point";
    const double h[] = {0.9, -0.7, 0.5, 0};
    map m = make_map(4, h, 1);
    for (int nfe = 1; nfe < 20; nfe += 3) {
        outcome out = solve(&m, 1, (settings){NRI_FIXED_POINT, 0, nfe, 0, 0});
        double worst = 0;
        for (int d = 0; d < DIM; d++) {
            double solution = m.c[d] / (1 - m.h[d]);
            double want = solution + pow(m.h[d], nfe) * ((double)(float)m.start[d] - solution);
            worst = fmax(worst, fabs((double)out.z[0][d] - want));
        }
        CHECK_NEAR(worst, 0, 1e-5);
        CHECK(out.nfe[0] == nfe && out.reason[0] == NRI_MAX_NFE);
    }
}

static void
check_spectra(void)
{
    check_label = "spectra";
    static const double kappas[] = {0.3, 0.5, 0.7, 0.9, 0.95};
    static const int limits[] = {9, 12, 16, 32, 46};
    for (int i = 0; i < 5; i++) {
        map m = make_step(kappas[i], 2);
        outcome out = solve(&m, 1, usual), plain = solve(&m, 1, (settings){NRI_FIXED_POINT, 0, out.nfe[0], 0, 0});
        CHECK(out.reason[0] == NRI_TOL);
        CHECK(out.residual[0] <= 1e-6 * out.scale[0]);
        CHECK_NEAR(distance(&m, out.z[0]), 0, 1e-5);
        CHECK(out.nfe[0] <= limits[i]);
        CHECK(distance(&m, out.z[0]) < 0.1 * distance(&m, plain.z[0]));
    }
    /* fixed-point iteration would leave by a factor of 2.5 each time */
    map m = make_map(4, (double[]){-2.5, 0.3, 0, -0.5}, 3);
    outcome out = solve(&m, 1, usual);
    CHECK(out.reason[0] == NRI_TOL);
    CHECK_NEAR(distance(&m, out.z[0]), 0, 1e-5);
}

/* With full memory, n distinct eigenvalues need n + 1 evaluations, as in GMRES, and no fewer. */
static void
check_krylov(void)
{
    check_label = "n + 1 evaluations";
    static const double h[] = {0.9, -0.6, 0.3, 0.65};
    for (int n = 1; n <= 4; n++) {
        map m = make_map(n, h, 4);
        settings o = {NRI_ANDERSON, n, n + 1, 0, 0};
        outcome out = solve(&m, 1, o);
        CHECK_NEAR(distance(&m, out.z[0]), 0, 2e-5);
        CHECK(out.nfe[0] == n + 1);
        o.max_nfe = n;
        out = solve(&m, 1, o);
        CHECK(distance(&m, out.z[0]) > 1e-3);
    }
}

/* gamma = <r_0, r_1> / <r_0, r_1 - r_0>, gamma f_0 + (1 - gamma) f_1 behind the second evaluation; later ones as ever. */
static void
check_type_one(void)
{
    check_label = "type I";
    map m = make_step(0.9, 18);
    double f[2][DIM], r[2][DIM], z[DIM], above = 0, below = 0, gap = 0;
    for (int d = 0; d < DIM; d++) {
        z[d] = (double)(float)m.start[d];
        for (int k = 0; k < 2; k++) {
            f[k][d] = m.h[d] * z[d] + m.c[d];
            r[k][d] = f[k][d] - z[d];
            z[d] = f[k][d];
        }
        above += r[0][d] * r[1][d];
        below += r[0][d] * (r[1][d] - r[0][d]);
    }
    double gamma = above / below;
    outcome out = solve_with(&m, 1, (settings){NRI_ANDERSON, 5, 2, 0, 0}, true);
    outcome other = solve(&m, 1, (settings){NRI_ANDERSON, 5, 2, 0, 0});
    for (int d = 0; d < DIM; d++) {
        CHECK_NEAR((double)out.z[0][d], gamma * f[0][d] + (1 - gamma) * f[1][d], 1e-4);
        gap = fmax(gap, fabs((double)(out.z[0][d] - other.z[0][d])));
    }
    CHECK(out.nfe[0] == 2 && gap > 0.1);
    m = make_map(1, (double[]){0.9}, 19); /* one eigenvalue: gamma is exact */
    CHECK_NEAR(distance(&m, solve_with(&m, 1, (settings){NRI_ANDERSON, 5, 2, 0, 0}, true).z[0]), 0, 2e-5);
    /* not where gamma is far beyond what is trusted, nor where the residual has turned round */
    const double hard[2][4] = {{0.999, 0.9985, 0.998, 0.9975}, {-0.5, 0.1, -0.7, 0}};
    for (int i = 0; i < 2; i++) {
        m = make_map(4, hard[i], 20);
        out = solve_with(&m, 1, (settings){NRI_ANDERSON, 5, 2, 0, 0}, true);
        other = solve(&m, 1, (settings){NRI_ANDERSON, 5, 2, 0, 0});
        CHECK(memcmp(out.z[0], other.z[0], sizeof(out.z[0])) == 0);
        CHECK(out.rejected[0] == 1 && other.rejected[0] == 0); /* type I only */
    }
    m = make_map(1, (double[]){1}, 6); /* r does not change: no differences to mix */
    for (int d = 0; d < DIM; d++) {
        m.c[d] = m.start[d] = 1;
    }
    out = solve(&m, 1, (settings){NRI_ANDERSON, 5, 4, 0, 0});
    CHECK(out.rejected[0] == 3 && out.restarts[0] == 0);
    CHECK(solve(&m, 1, (settings){NRI_FIXED_POINT, 0, 4, 0, 0}).rejected[0] == 0);
}

static void
check_stopping(void)
{
    check_label = "stopping";
    map m = make_step(0.8, 5);
    settings o = usual;
    for (o.tol = 1e-1; o.tol > 1e-6; o.tol *= 0.1) {
        outcome out = solve(&m, 1, o);
        CHECK(out.reason[0] == NRI_TOL);
        CHECK(out.residual[0] <= o.tol * out.scale[0]);
        CHECK(distance(&m, out.z[0]) < 10 * o.tol);
        CHECK(out.nfe[0] == out.evaluations && out.nfe[0] > 1);
    }
    outcome out = solve(&m, 1, (settings){NRI_ANDERSON, 5, MOST_NFE, 0, 1e-3});
    CHECK(out.reason[0] == NRI_ATOL);
    CHECK(out.residual[0] <= 1e-3 * sqrt(DIM));
    out = solve(&m, 1, (settings){NRI_ANDERSON, 5, out.nfe[0] - 1, 0, 0});
    CHECK(out.residual[0] > 1e-3 * sqrt(DIM));
    out = solve(&m, 1, (settings){NRI_ANDERSON, 5, 4, 1e-6, 0});
    CHECK(out.reason[0] == NRI_MAX_NFE && out.nfe[0] == 4);
    CHECK(distance(&m, out.z[0]) < 0.2);
}

/* f(z) = z + c has no solution and a residual that never changes; in eighths there is no rounding either. */
static void
check_stalled(void)
{
    check_label = "stalled";
    map m = make_map(1, (double[]){1}, 6);
    for (int d = 0; d < DIM; d++) {
        m.c[d] = rint(8 * m.c[d]) / 8;
        m.start[d] = rint(8 * m.start[d]) / 8;
    }
    outcome out = solve(&m, 1, usual);
    CHECK(out.reason[0] == NRI_STALLED);
    CHECK(out.nfe[0] == 5);
    for (int d = 0; d < DIM; d++) {
        CHECK_NEAR((double)out.z[0][d], m.start[d] + m.c[d], 1e-4);
    }
}

/* A full step multiplies the residual by 20, half a step by 9.5 and a quarter by 4.25: two restarts, then the end. */
static void
check_diverged(void)
{
    check_label = "diverged";
    map m = make_map(1, (double[]){-20}, 7);
    for (int solver = NRI_ANDERSON; solver <= NRI_FIXED_POINT; solver++) {
        outcome out = solve(&m, 1, (settings){(nri_solver)solver, 2, MOST_NFE, 1e-6, 0});
        CHECK(out.reason[0] == NRI_DIVERGED);
        CHECK(out.nfe[0] == 4 && out.restarts[0] == 2 && out.failed[0] == 0);
        for (int d = 0; d < DIM; d++) {
            CHECK_NEAR((double)out.z[0][d], -20 * m.start[d] + m.c[d], 1e-4);
        }
    }
}

/* Restarts go to z + r / 2 and z + r / 4 of the best pair; the iterate after one that helped is its f. */
static void
check_restarts(void)
{
    static const struct {
        double h, step;
        int nfe;
    } cases[] = {{-2.5, 0.5, 3}, {-6, 0.25, 4}};
    check_label = "restarts";
    for (int i = 0; i < 2; i++) {
        double h = cases[i].h;
        map m = make_map(1, &h, 8);
        outcome out = solve(&m, 1, (settings){NRI_FIXED_POINT, 0, cases[i].nfe, 0, 0});
        CHECK(out.reason[0] == NRI_MAX_NFE && out.restarts[0] == i + 1 && out.rejected[0] == 0);
        for (int d = 0; d < DIM; d++) {
            double z = m.start[d], f = h * z + m.c[d];
            CHECK_NEAR((double)out.z[0][d], h * (z + cases[i].step * (f - z)) + m.c[d], 1e-4);
        }
    }
    /* half a step is worse by 1.25 here, which is no reason to restart nor to be returned */
    map m = make_map(1, (double[]){-3.5}, 8);
    outcome out = solve(&m, 1, (settings){NRI_FIXED_POINT, 0, 3, 0, 0});
    for (int d = 0; d < DIM; d++) {
        CHECK_NEAR((double)out.z[0][d], -3.5 * m.start[d] + m.c[d], 1e-5);
    }
    /* two restarts, and then what they kept is mixed */
    m = make_map(1, (double[]){-8}, 7);
    out = solve(&m, 1, (settings){NRI_ANDERSON, 5, MOST_NFE, 1e-3, 0});
    CHECK(out.reason[0] == NRI_TOL);
    CHECK_NEAR(distance(&m, out.z[0]), 0, 1e-3);
}

static void
check_not_finite(void)
{
    check_label = "not finite";
    map m = make_step(0.8, 9);
    for (int at = 0; at < 8; at++) {
        m.bad = (uint64_t)1 << at;
        outcome out = solve(&m, 1, usual);
        CHECK(out.reason[0] == NRI_TOL && out.failed[0] == 1 && out.restarts[0] == 1);
        CHECK_NEAR(distance(&m, out.z[0]), 0, 1e-5);
        settings last = usual;
        last.max_nfe = at + 1;
        out = solve(&m, 1, last);
        CHECK(out.reason[0] == (at == 0 ? NRI_NON_FINITE : NRI_MAX_NFE) && out.nfe[0] == at + 1);
        CHECK(finite(DIM, out.z[0]));
    }
    for (int at = 0; at < 8; at++) {
        m.bad = ~(uint64_t)0 << at;
        outcome out = solve(&m, 1, usual);
        CHECK(out.reason[0] == NRI_NON_FINITE);
        CHECK(out.nfe[0] == at + 2 && out.failed[0] == 2 && out.restarts[0] == 1);
        CHECK(finite(DIM, out.z[0]));
        CHECK(isnan(out.residual[0]) == (at == 0));
        for (int d = 0; at == 0 && d < DIM; d++) {
            CHECK(out.z[0][d] == (float)m.start[d]);
        }
    }
    m.bad = 1u << 1 | 1u << 3 | 1u << 5 | 1u << 7; /* never twice in a row */
    CHECK(solve(&m, 1, usual).reason[0] == NRI_TOL);
}

/* After a bad evaluation nothing is remembered but the best pair; before the first good one, the origin. */
static void
check_memory(void)
{
    check_label = "memory over a restart";
    map m = make_map(2, (double[]){0.9, -0.6}, 4);
    m.bad = 1u << 2;
    outcome out = solve(&m, 1, (settings){NRI_ANDERSON, 5, 4, 0, 0}); /* mixes evaluations 1 and 3 */
    CHECK(distance(&m, out.z[0]) > 1e-3);
    out = solve(&m, 1, (settings){NRI_ANDERSON, 5, 5, 0, 0});
    CHECK_NEAR(distance(&m, out.z[0]), 0, 2e-5);
    m.bad = 1u << 0;
    out = solve(&m, 1, (settings){NRI_FIXED_POINT, 0, 2, 0, 0});
    for (int d = 0; d < DIM; d++) {
        CHECK_NEAR((double)out.z[0][d], m.h[d] * m.start[d] + m.c[d], 1e-5);
    }
}

/* A sample's result must not depend on its company, not even by rounding, nor on what comes after its end. */
static void
check_batch(void)
{
    check_label = "batch";
    map maps[BATCH] = {make_step(0.3, 10),
                       make_step(0.95, 11),
                       make_map(1, (double[]){-10}, 12),
                       make_step(0.8, 13),
                       make_map(1, (double[]){1}, 14),
                       make_step(0.5, 15)};
    maps[3].bad = 1u << 2;
    maps[5].bad = ~(uint64_t)0 << 12; /* after its end */
    for (int solver = 0; solver < 2; solver++) {
        settings o = {solver ? NRI_FIXED_POINT : NRI_ANDERSON, solver ? 0 : 5, 40, solver ? 1e-3 : 1e-6, 0};
        outcome all = solve(maps, BATCH, o);
        for (int b = 0; b < BATCH; b++) {
            outcome one = solve(maps + b, 1, o);
            CHECK(memcmp(all.z[b], one.z[0], sizeof(one.z[0])) == 0);
            CHECK(all.nfe[b] == one.nfe[0] && all.reason[b] == one.reason[0]);
            CHECK(all.residual[b] == one.residual[0] && all.restarts[b] == one.restarts[0]);
            CHECK(all.rejected[b] == one.rejected[0] && all.failed[b] == one.failed[0]);
        }
        CHECK(all.nfe[5] < 12);
        CHECK(all.reason[5] == NRI_TOL);
    }
}

static void
check_skip(void)
{
    check_label = "skip";
    map maps[2] = {make_step(0.3, 16), make_step(0.3, 17)};
    outcome out = {.evaluations = 0};
    nri_space *v = make_space(maps, 2, RINGS + 2);
    nri_solve s = make_solve(v, (settings){NRI_FIXED_POINT, 0, 2, 0, 0}, &out);
    nri_solve_begin(&s, (bool[]){true, false});
    for (int i = 0; i < 2; i++) {
        CHECK(nri_solve_running(&s));
        evaluate(&s, maps, i);
        CHECK(nri_iterate(&s, ITERATE) == NRI_OK);
        CHECK(!s.finished[0] && s.finished[1] == (i == 1));
        CHECK(!nri_solve_active(&s, 0) && nri_solve_active(&s, 1) == (i == 0));
    }
    CHECK(!nri_solve_running(&s));
    CHECK(s.nfe[0] == 0 && s.nfe[1] == 2);
    nri_solve_begin(&s, (bool[]){true, true});
    CHECK(!nri_solve_running(&s));
    nri_solve_destroy(&s);
    nri_space_destroy(v);
}

static void
check_texts(void)
{
    check_label = "texts";
    CHECK(strcmp(nri_reason_name(NRI_MAX_NFE), "max_nfe") == 0);
    CHECK(strcmp(nri_status_text(NRI_NO_MEMORY), "out of memory") == 0);
    static const struct {
        const char *const *names;
        int count;
    } lists[] = {{nri_solver_names, NRI_SOLVERS}, {nri_order_names, NRI_ORDERS},     {nri_noise_names, NRI_NOISES},
                 {nri_path_names, NRI_PATHS},     {nri_spacing_names, NRI_SPACINGS}, {nri_reason_names, NRI_REASONS}};
    for (size_t i = 0; i < sizeof(lists) / sizeof(*lists); i++) {
        for (int k = 0; k < lists[i].count; k++) {
            CHECK(lists[i].names[k] && lists[i].names[k][0]);
        }
        CHECK(!lists[i].names[lists[i].count]);
    }
    CHECK(strcmp(nri_solver_names[NRI_NEWTON], "newton") == 0 && strcmp(nri_order_names[NRI_PASSES], "passes") == 0);
    CHECK(strcmp(nri_noise_names[NRI_ABSORB], "absorb") == 0 && strcmp(nri_path_names[NRI_LERP], "lerp") == 0);
    for (int i = NRI_RUNNING; i <= NRI_NON_FINITE; i++) {
        CHECK(nri_reason_text((nri_reason)i)[0] != 0 && strcmp(nri_reason_name((nri_reason)i), "unknown") != 0);
    }
    CHECK(strcmp(nri_reason_name((nri_reason)99), "unknown") == 0);
    CHECK(strcmp(nri_reason_text((nri_reason)99), "unknown reason") == 0);
    CHECK(strcmp(nri_status_text((nri_status)99), "unknown status") == 0);
}

void
test_solve(void)
{
    check_fixed_point();
    check_spectra();
    check_krylov();
    check_type_one();
    check_stopping();
    check_stalled();
    check_diverged();
    check_restarts();
    check_not_finite();
    check_memory();
    check_batch();
    check_skip();
    check_texts();
}
