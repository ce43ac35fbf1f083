/* Allocations that are counted, and fail, see alloc.h. */
#include "alloc.h"

#include <stddef.h>

void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void __real_free(void *p);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
void __wrap_free(void *p);

static bool armed, failed;
static int until_failure, living;

static bool
refused(void)
{
    bool now = armed && until_failure-- == 0;
    failed |= now;
    return now;
}

static void *
counted(void *p)
{
    living += armed && p;
    return p;
}

void *
__wrap_malloc(size_t size)
{
    return refused() ? NULL : counted(__real_malloc(size));
}

void *
__wrap_calloc(size_t n, size_t size)
{
    return refused() ? NULL : counted(__real_calloc(n, size));
}

void
__wrap_free(void *p)
{
    living -= armed && p;
    __real_free(p);
}

void
alloc_arm(int n)
{
    living = 0;
    failed = false;
    until_failure = n;
    armed = true;
}

bool
alloc_failed(void)
{
    return failed;
}

int
alloc_disarm(void)
{
    armed = false;
    return living;
}
