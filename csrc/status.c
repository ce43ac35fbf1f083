/* Texts of statuses and all names, expanded from the lists in vec.h and nrinv.h. */
#include "nrinv.h"

#include <stddef.h>

#define TEXT(id, text) text,
#define NAME(id, name, ...) name,
#define MEANING(id, name, text) text,

static const char *const status_texts[] = {NRI_STATUS_LIST(TEXT)};
const char *const nri_solver_names[] = {NRI_SOLVER_LIST(TEXT) NULL};
const char *const nri_order_names[] = {NRI_ORDER_LIST(TEXT) NULL};
const char *const nri_noise_names[] = {NRI_NOISE_LIST(TEXT) NULL};
const char *const nri_path_names[] = {NRI_PATH_LIST(TEXT) NULL};
const char *const nri_spacing_names[] = {NRI_SPACING_LIST(TEXT) NULL};
const char *const nri_reason_names[] = {NRI_REASON_LIST(NAME) NULL};
const char *const nri_reason_texts[] = {NRI_REASON_LIST(MEANING) NULL};

const char *
nri_status_text(nri_status status)
{
    return (size_t)status < sizeof(status_texts) / sizeof(*status_texts) ? status_texts[status] : "unknown status";
}

const char *
nri_reason_name(nri_reason reason)
{
    return (size_t)reason < NRI_REASONS ? nri_reason_names[reason] : "unknown";
}

const char *
nri_reason_text(nri_reason reason)
{
    return (size_t)reason < NRI_REASONS ? nri_reason_texts[reason] : "unknown reason";
}
