/* rooms.h: memory between two pages that must not be touched, for the programs of this folder. */
#ifndef QK_ROOMS_H
#define QK_ROOMS_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

static inline void fail(const char *reason) {
    fprintf(stderr, "pack: %s\n", reason);
    exit(1);
}

/* Whole pages between two guard pages. */
typedef struct {
    uint8_t *start, *end;
} room;

/* Where in its room an array lies: against a guard, or one element from the first, so that it is not aligned. */
typedef enum { AT_START, AT_END, SHIFTED, N_PLACES } place;

static inline room make_room(size_t nbytes) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), inside = (nbytes / page + 1) * page;
    uint8_t *guard = mmap(NULL, inside + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (guard == MAP_FAILED || mprotect(guard + page, inside, PROT_READ | PROT_WRITE) != 0) fail("no memory");
    return (room){guard + page, guard + page + inside};
}

static inline void *put(room r, place at, size_t element_bytes, size_t nbytes) {
    return at == AT_END ? r.end - nbytes : r.start + (at == SHIFTED ? element_bytes : 0);
}

#endif
