/* Texts of statuses and reasons, expanded from the lists in vec.h and nrinv.h. */
#include "nrinv.h"

const char *
nri_status_text(nri_status status)
{
    switch (status) {
#define NRI_STATUS(id, text) \
    case NRI_##id: \
        return text;
        NRI_STATUS_LIST(NRI_STATUS)
#undef NRI_STATUS
    }
    return "unknown status";
}

const char *
nri_reason_name(nri_reason reason)
{
    switch (reason) {
#define NRI_REASON(id, name, text) \
    case NRI_##id: \
        return name;
        NRI_REASON_LIST(NRI_REASON)
#undef NRI_REASON
    }
    return "unknown";
}

const char *
nri_reason_text(nri_reason reason)
{
    switch (reason) {
#define NRI_REASON(id, name, text) \
    case NRI_##id: \
        return text;
        NRI_REASON_LIST(NRI_REASON)
#undef NRI_REASON
    }
    return "unknown reason";
}
