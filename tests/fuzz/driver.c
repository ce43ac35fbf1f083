/*
A plain driver for machines without libFuzzer: invert|path [-seed=N] [-runs=N] [-max_total_time=SECONDS] CORPUS...

Its inputs are the files of the folders CORPUS, then random bytes and files with random changes, the same for the same seed.
An input that fails is left behind as crash-input.
*/
#include "fuzz.h"

#include <dirent.h>
#include <inttypes.h>
#include <signal.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { LONGEST = 1024, MOST_FILES = 4096, BETWEEN_CLOCKS = 256, LONGEST_RUN = 10 /* s */ };

typedef struct {
    size_t size;
    uint8_t data[LONGEST];
} input;

static input *files;
static int file_count;
static uint64_t seed = 1;

static uint64_t
next_random(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed >> 11;
}

static size_t
below(size_t n)
{
    return (size_t)(next_random() % n);
}

static void
read_file(const char *folder, const char *name)
{
    char path[4096];
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    FILE *f = *name == '.' || file_count >= MOST_FILES ? NULL : fopen(path, "rb");
    if (f) {
        files[file_count].size = fread(files[file_count].data, 1, LONGEST, f);
        file_count++;
        fclose(f);
    }
}

static void
read_folder(const char *folder)
{
    DIR *d = opendir(folder);
    for (struct dirent *entry; d && (entry = readdir(d));) {
        read_file(folder, entry->d_name);
    }
    if (d) {
        closedir(d);
    }
}

/* Random bytes; half of the inputs have mostly zeros, the plainest choices, behind their beginning. */
static void
draw(input *x)
{
    bool sparse = below(2);
    x->size = 1 + below(LONGEST);
    for (size_t i = 0; i < x->size; i++) {
        x->data[i] = sparse && i > 64 && below(8) ? 0 : (uint8_t)below(256);
    }
}

static void
change(input *x)
{
    for (size_t n = 1 + below(8); n && x->size; n--) {
        x->data[below(x->size)] = (uint8_t)below(256);
    }
    if (!below(4)) {
        x->size = below(x->size + 1);
    }
}

/* Sanitizers abort, so that the handler below sees it. */
const char *__asan_default_options(void);
const char *
__asan_default_options(void)
{
    return "abort_on_error=1";
}

static const input *current;

static void
keep_input(int number)
{
    FILE *f = fopen("crash-input", "wb");
    if (f) {
        fwrite(current->data, 1, current->size, f);
        fclose(f);
    }
    fprintf(stderr, number == SIGALRM ? "it hangs: crash-input\n" : "it fails: crash-input\n");
    signal(SIGABRT, SIG_DFL);
    abort();
}

static void
try_input(const input *x)
{
    current = x;
    alarm(LONGEST_RUN);
    LLVMFuzzerTestOneInput(x->data, x->size);
}

int
main(int argc, char **argv)
{
    long long runs = -1, seconds = -1, n = 0;
    uint64_t first = 1;
    input x;
    files = calloc(MOST_FILES, sizeof(*files));
    MUST(files);
    signal(SIGABRT, keep_input);
    signal(SIGALRM, keep_input);
    for (int i = 1; i < argc; i++) {
        if (sscanf(argv[i], "-runs=%lld", &runs) || sscanf(argv[i], "-max_total_time=%lld", &seconds)
            || sscanf(argv[i], "-seed=%" SCNu64, &first)) {
            continue;
        }
        if (*argv[i] != '-') {
            read_folder(argv[i]);
        }
    }
    seed = first ? first : 1;
    for (int i = 0; i < file_count; i++, n++) {
        try_input(files + i);
    }
    for (time_t end = time(NULL) + seconds;
         (runs < 0 || n < runs) && (seconds < 0 || n % BETWEEN_CLOCKS || time(NULL) < end); n++) {
        if (file_count && below(2)) {
            x = files[below((size_t)file_count)];
            change(&x);
        }
        else {
            draw(&x);
        }
        try_input(&x);
    }
    alarm(0);
    printf("Done %lld runs\n", n);
    free(files);
    return 0;
}
